from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch.testing import assert_close

from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.tasks import PixelPrediction
from vjepa.tasks.pixel_prediction import normalise_patches


def _masks(count: str, batch: int = 3) -> tuple[TokenMasks, ...]:
    return MaskSampler(MaskingConfig(count=count), ENCODER.grid, 2, 0).sample(np.arange(batch), 0)


def test_targets_are_the_pixels_of_their_tubelet() -> None:
    task, clip = PixelPrediction(MODEL), clips()
    targets = task.targets(clip)
    assert targets.shape == (3, 32, 3 * 2 * 4 * 4)
    # Token 1 * 16 + 2 * 4 + 3: second time step, row 2, column 3.
    patch = clip[1, :, 2:4, 8:12, 12:16].reshape(-1)
    wanted = (patch - patch.mean()) / patch.std()
    assert_close(targets[1, 27], wanted, atol=1e-4, rtol=1e-4)


def test_patches_are_normalised_one_by_one() -> None:
    patches = 5 + torch.arange(1, 4)[:, None] * torch.randn(3, 96)
    normal = normalise_patches(patches)
    assert_close(normal.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(normal.std(dim=1), torch.ones(3), atol=1e-4, rtol=0)
    assert normalise_patches(torch.full((1, 96), 3.0)).abs().max() == 0


@pytest.mark.parametrize("count", ["prefix", "fixed", "packed"])
def test_loss_is_the_mean_squared_error_at_the_masked_tokens(count: str) -> None:
    task, clip, masks = shaken(PixelPrediction(MODEL)), clips(), _masks(count)
    output = task(clip, masks)
    targets, losses = task.targets(clip), []
    for kind, mask in enumerate(masks):
        errors = []
        for row in range(3):
            own = mask.sample(row)
            context = task.encoder(clip[row : row + 1], own.context)
            predicted = task.predictor(context, own.context, own.target, kind)
            errors.append((predicted[0] - targets[row, own.target[0]]).square().flatten())
        losses.append(torch.cat(errors).mean())
        assert_close(output.terms[f"loss/mask_{kind}"], losses[-1].detach(), atol=1e-4, rtol=1e-5)
    assert_close(output.loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-5)


def test_what_is_trained_and_evaluated() -> None:
    task = shaken(PixelPrediction(MODEL))
    assert task.trainable() == {"encoder": task.encoder, "predictor": task.predictor}
    assert task.ema_pairs() == []
    assert task.encoder_for_evaluation is task.encoder
    assert task.config is MODEL
    task(clips(), _masks("prefix")).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters())


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    task, clip, masks = PixelPrediction(MODEL), clips(), _masks("prefix")
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = task(clip, masks).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, abs=0.1), "untrained: the variance of the targets"
    assert losses[-1] < 0.9 * losses[0]


def test_no_value_is_read_from_the_device() -> None:
    task = PixelPrediction(MODEL).to("meta")
    masks = tuple(mask.to("meta") for mask in _masks("fixed"))
    task(clips().to("meta"), masks).loss.backward()


def test_health() -> None:
    task = shaken(PixelPrediction(MODEL))
    health = task.health_of(clips(), _masks("packed"))
    wanted = {"target_std", "effective_rank", "pairwise_cosine", "explained_vs_mean_token"}
    assert wanted <= set(health)
    assert "teacher_student_distance" not in health
    assert all(torch.isfinite(value) for value in health.values())
    assert health["target_std"] == pytest.approx(1.0, abs=0.1)
