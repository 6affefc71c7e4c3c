"""The objective's losses and gradients against the reference's recorded numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, GRADIENTS, LOSSES, tensors, tiny_model
from torch import Tensor
from torch.testing import assert_close

from vjepa.masking import TokenMasks
from vjepa.tasks import FeaturePrediction

KINDS = ("short", "long")


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "pretrain_forward")


@pytest.fixture
def objective(golden_dir: Path) -> FeaturePrediction:
    return FeaturePrediction(tiny_model(golden_dir))


def _masks(recorded: dict[str, Tensor]) -> tuple[TokenMasks, ...]:
    return tuple(
        TokenMasks(
            context=recorded[f"masks/{kind}/context"], target=recorded[f"masks/{kind}/target"]
        )
        for kind in KINDS
    )


def _packed(masks: TokenMasks) -> TokenMasks:
    rising = torch.arange(masks.batch_size + 1)
    return TokenMasks(
        context=masks.context.flatten(),
        target=masks.target.flatten(),
        context_offsets=rising * masks.context.shape[1],
        target_offsets=rising * masks.target.shape[1],
    )


def test_targets(objective: FeaturePrediction, recorded: dict[str, Tensor]) -> None:
    targets = objective.targets(recorded["input/clip"])
    assert_close(targets, recorded["target/output_normed"], **FEATURES)
    for kind, mask in zip(KINDS, _masks(recorded), strict=True):
        assert_close(mask.gather_target(targets), recorded[f"target/{kind}"], **FEATURES)
        flat = _packed(mask).gather_target(targets)
        assert_close(flat, recorded[f"target/{kind}"].flatten(0, 1), **FEATURES)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_losses_and_all_gradients(
    objective: FeaturePrediction, recorded: dict[str, Tensor], packed: bool
) -> None:
    masks = _masks(recorded)
    if packed:
        masks = tuple(_packed(mask) for mask in masks)
    output = objective(recorded["input/clip"], masks)
    output.loss.backward()
    assert_close(output.loss.detach(), recorded["loss/total"], **LOSSES)
    for place, kind in enumerate(KINDS):
        assert_close(output.terms[f"loss/mask_{place}"], recorded[f"loss/{kind}"], **LOSSES)
    compared = 0
    for part, module in objective.trainable().items():
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            wanted = recorded[f"grad/{part}/{name}"]
            assert_close(parameter.grad, wanted, **GRADIENTS, msg=f"{part}/{name}")
            compared += 1
    assert compared == 72
    assert all(p.grad is None for p in objective.target_encoder.parameters())
