"""A linear classifier in closed form, cheap enough to run many times during pretraining.

Ridge regression onto one-hot labels. The penalty is chosen by leave-one-out error on the training
part, which the singular value decomposition gives for every penalty at once; the validation part is
never looked at for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RELATIVE_PENALTIES = tuple(10.0 ** (power / 2) for power in range(-10, 5))
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class RidgeClassifier:
    """A fitted classifier on standardised features.

    Attributes:
        mean, scale: float64 [D], of the training features.
        weight: float64 [D, classes].
        bias: float64 [classes].
        penalty: The chosen ridge penalty, per training sample.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    penalty: float

    def scores(self, features: Tensor) -> Tensor:
        """Class scores: features float [n, D] -> float64 [n, classes]; the largest wins."""
        standard = (features.to("cpu", torch.float64) - self.mean) / self.scale
        return standard @ self.weight + self.bias


def fit_ridge(features: Tensor, labels: Tensor, num_classes: int) -> RidgeClassifier:
    """Fit by ridge regression, the penalty by leave-one-out squared error on the same rows.

    Args:
        features: float [n, D], n at least 2.
        labels: int64 [n], in 0..num_classes - 1.
        num_classes: Number of classes.

    Returns:
        The classifier, in float64 on the CPU.

    Raises:
        ValueError: Fewer than two rows, or a feature is not finite.
    """
    data = features.detach().to("cpu", torch.float64)
    if data.shape[0] < 2:
        raise ValueError(f"features: {data.shape[0]} rows, at least 2 are needed")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("features: a value is not finite")
    count = data.shape[0]
    mean, scale = data.mean(dim=0), data.std(dim=0, correction=0).clamp_min(_SMALLEST_SCALE)
    standard = (data - mean) / scale
    targets = torch.nn.functional.one_hot(labels.cpu(), num_classes).to(torch.float64)
    bias = targets.mean(dim=0)
    left, singular, right = torch.linalg.svd(standard, full_matrices=False)
    projected = left.T @ (targets - bias)
    best_error, best_penalty = float("inf"), _RELATIVE_PENALTIES[-1]
    for penalty in _RELATIVE_PENALTIES:
        shrinkage = singular**2 / (singular**2 + penalty * count)
        fitted = left @ (shrinkage[:, None] * projected)
        # Leverage of each row; 1 / n belongs to the intercept.
        leverage = (left**2 @ shrinkage) + 1.0 / count
        residual = (targets - bias - fitted) / (1.0 - leverage).clamp_min(1e-9)[:, None]
        error = float(residual.square().sum())
        if error < best_error:
            best_error, best_penalty = error, penalty
    factors = singular / (singular**2 + best_penalty * count)
    weight = right.T @ (factors[:, None] * projected)
    return RidgeClassifier(mean, scale, weight, bias, best_penalty)
