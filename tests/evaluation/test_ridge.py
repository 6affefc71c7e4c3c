from __future__ import annotations

import pytest
import torch

from vjepa.evaluation.heads import fit_ridge


def _clusters(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 10, generator=torch.Generator().manual_seed(5))
    return centres[labels] + noise * torch.randn(count, 10, generator=generator), labels


def test_weights_solve_the_ridge_equations() -> None:
    features, labels = _clusters(40, 0.5)
    fitted = fit_ridge(features, labels, 3)
    standard = (features.double() - fitted.mean) / fitted.scale
    targets = torch.nn.functional.one_hot(labels, 3).double() - fitted.bias
    gram = standard.T @ standard + 40 * fitted.penalty * torch.eye(10, dtype=torch.float64)
    assert torch.allclose(fitted.weight, torch.linalg.solve(gram, standard.T @ targets), atol=1e-10)


def test_penalty_is_the_one_with_the_least_leave_one_out_error() -> None:
    """Against n explicit refits at neighbouring penalties, mean and scale held."""
    features, labels = _clusters(15, 1.5)
    fitted = fit_ridge(features, labels, 3)
    standard = (features.double() - fitted.mean) / fitted.scale
    targets = torch.nn.functional.one_hot(labels, 3).double()

    def explicit(penalty: float) -> float:
        total = 0.0
        for row in range(15):
            keep = torch.arange(15) != row
            x = torch.cat([standard[keep], torch.ones(14, 1, dtype=torch.float64)], dim=1)
            ridge = 15 * penalty * torch.eye(11, dtype=torch.float64)
            ridge[10, 10] = 0.0
            weight = torch.linalg.solve(x.T @ x + ridge, x.T @ targets[keep])
            guess = torch.cat([standard[row], torch.ones(1, dtype=torch.float64)]) @ weight
            total += float((targets[row] - guess).square().sum())
        return total

    own = explicit(fitted.penalty)
    assert own <= explicit(fitted.penalty * 10**0.5) + 1e-9
    assert own <= explicit(fitted.penalty / 10**0.5) + 1e-9


def test_separable_classes_are_found_and_noise_is_not() -> None:
    features, labels = _clusters(60, 0.2)
    fresh, truth = _clusters(90, 0.2, seed=1)
    fitted = fit_ridge(features, labels, 3)
    assert float((fitted.scores(fresh).argmax(1) == truth).double().mean()) > 0.95
    noise = torch.randn(60, 10, generator=torch.Generator().manual_seed(2))
    guess = fit_ridge(noise, labels, 3).scores(fresh).argmax(1)
    assert float((guess == truth).double().mean()) < 0.7


def test_more_features_than_rows_and_constant_features() -> None:
    features = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 3.0
    fitted = fit_ridge(features, torch.arange(8) % 2, 2)
    assert torch.isfinite(fitted.scores(features)).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        fit_ridge(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="finite"):
        fit_ridge(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long), 2)
