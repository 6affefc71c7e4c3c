"""Feature prediction: the objective of the paper, section 3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.masking import TokenMasks
from vjepa.models import VJEPA, Encoder, ModelConfig
from vjepa.tasks.health import (
    PredictionHealth,
    mask_counts,
    parameter_distance,
    representation_health,
    spread,
)
from vjepa.tasks.task import BatchPart, StepOutput, target_summand

TARGET_NORM_EPS = 1e-5
"""Epsilon of the normalisation of targets (the encoder's own norms use 1e-6)."""
_VARIANCE_EPS = 1e-4


class FeaturePrediction(nn.Module):
    """Predict the target encoder's features of masked tokens from the visible ones.

    For a clip y, a mask with context tokens x, and all masks of the clip::

        loss = mean over masks, masked tokens and features of |P(E(x)) - stop_grad(LN(T(y)))|

    T, the target encoder, sees the whole clip once for all masks; its features pass a LayerNorm
    without scale and shift before the masked ones are taken (so the authors' released code does,
    where the paper is silent). A loss exponent p other than 1 gives mean(|error|^p) / p.

    In count mode packed the mean runs over all masked tokens of the batch, so a clip counts by its
    number of masked tokens; with equal counts that is the mean of the clips' means.

    Args:
        model: Encoder, target encoder and predictor.
        loss_exponent: p above 0; the paper's L1 is 1.
        variance_coefficient: Weight of a penalty on predictions that hardly vary over a clip's
            masked tokens: the mean over clips and features of relu(1 - standard deviation). The
            authors' code has it with weight 0.

    Attributes:
        model: As given.
    """

    def __init__(
        self, model: VJEPA, loss_exponent: float = 1.0, variance_coefficient: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self._exponent = loss_exponent
        self._variance_coefficient = variance_coefficient

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self.model.config

    @property
    def encoder_for_evaluation(self) -> Encoder:
        """The target encoder: what frozen evaluation uses (paper, section 4)."""
        return self.model.target_encoder

    def trainable(self) -> dict[str, nn.Module]:
        """The trained modules by name, in the optimiser's order."""
        return {"encoder": self.model.encoder, "predictor": self.model.predictor}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(online, target) modules: the target follows as a moving average."""
        return [(self.model.encoder, self.model.target_encoder)]

    def forward(
        self, clips: Tensor, masks: Sequence[TokenMasks], part: BatchPart | None = None
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: One for each mask kind, over the clips' token grid, on the clips' device.
            part: What part of a batch these are; loss and metrics then are summands of the batch's.
                None: the whole.

        Returns:
            The loss, and as metrics the loss of each mask kind (``loss/mask_0``, ...) and, where it
            has a weight, the variance penalty.
        """
        targets = self.targets(clips)
        losses, penalties = [], []
        for kind, mask in enumerate(masks):
            predicted = self.predict(clips, mask, kind)
            error = (predicted - mask.gather_target(targets)).abs()
            if self._exponent != 1:
                error = error**self._exponent / self._exponent
            losses.append(target_summand(error.mean(), part, kind))
            if self._variance_coefficient:
                penalty = variance_penalty(predicted, mask)
                penalties.append(penalty if part is None else penalty * part.clips)
        loss = torch.stack(losses).mean()
        metrics = {f"loss/mask_{kind}": part.detach() for kind, part in enumerate(losses)}
        if penalties:
            penalty = torch.stack(penalties).mean()
            loss = loss + self._variance_coefficient * penalty
            metrics["variance_penalty"] = penalty.detach()
        return StepOutput(loss=loss, metrics=metrics)

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """Normalised target features of all tokens: float32 [B, N, D]."""
        return normalise_features(self.model.target_encoder(clips))

    def predict(self, clips: Tensor, mask: TokenMasks, kind: int) -> Tensor:
        """Predicted features of the masked tokens: float32 [B, M, D], or packed [U, D].

        Args:
            clips: float [B, C, T, H, W], normalised.
            mask: Context and target tokens.
            kind: Place of the mask kind, which chooses the mask token.
        """
        return self._predict(self._encode(clips, mask), mask, kind)

    def _encode(self, clips: Tensor, mask: TokenMasks) -> Tensor:
        return self.model.encoder(clips, mask.context, offsets=mask.context_offsets)

    def _predict(self, context: Tensor, mask: TokenMasks, kind: int) -> Tensor:
        predicted = self.model.predictor(
            context,
            mask.context,
            mask.target,
            kind,
            context_offsets=mask.context_offsets,
            target_offsets=mask.target_offsets,
        )
        return predicted.float()

    @torch.no_grad()
    def health(self, clips: Tensor, masks: Sequence[TokenMasks]) -> dict[str, Tensor]:
        """Whether the features stay rich; costs about one forward pass.

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: As in :meth:`forward`.

        Returns:
            float32 scalars, explained in :mod:`vjepa.tasks.health`.
        """
        targets = self.targets(clips)
        prediction = PredictionHealth(targets)
        context_spread = []
        for kind, mask in enumerate(masks):
            context = self._encode(clips, mask)
            context_spread.append(spread(normalise_features(context)))
            prediction.add(self._predict(context, mask, kind), mask)
        encoders = (self.model.encoder, self.model.target_encoder)
        return {
            "target_std": spread(targets),
            "context_std": torch.stack(context_spread).mean(),
            **representation_health(targets),
            **prediction.summary(),
            "teacher_student_distance": parameter_distance(*encoders),
            **mask_counts(masks, targets),
        }


def normalise_features(features: Tensor) -> Tensor:
    """LayerNorm over the features without scale and shift: [..., D] -> float32 [..., D]."""
    return F.layer_norm(features.float(), features.shape[-1:], eps=TARGET_NORM_EPS)


def variance_penalty(predicted: Tensor, mask: TokenMasks) -> Tensor:
    """Mean over clips and features of relu(1 - standard deviation over a clip's masked tokens).

    Args:
        predicted: float [B, M, D], or packed [U, D].
        mask: Which clip a packed token belongs to.

    Returns:
        Scalar in [0, 1]; a clip with a single masked token has no spread and counts nearly 1.
    """
    if mask.target_offsets is None:
        variance = predicted.var(dim=1, correction=min(1, predicted.shape[1] - 1))
    else:
        rows = mask.target_rows()
        lengths = mask.target_offsets.diff()[:, None]
        zeros = predicted.new_zeros(mask.batch_size, predicted.shape[-1])
        means = zeros.index_add(0, rows, predicted) / lengths
        squares = zeros.index_add(0, rows, (predicted - means[rows]).square())
        variance = squares / (lengths - 1).clamp(min=1)
    return F.relu(1 - torch.sqrt(variance + _VARIANCE_EPS)).mean()
