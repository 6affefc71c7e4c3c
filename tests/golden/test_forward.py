"""Encoder, targets, predictor, losses and every gradient against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, GRADIENTS, LOSSES, tensors, tiny_model
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.models import VJEPA

KINDS = ("short", "long")


@pytest.fixture(scope="module")
def model(golden_dir: Path) -> VJEPA:
    return tiny_model(golden_dir)


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "pretrain_forward")


def test_target_encoder(model: VJEPA, recorded: dict[str, Tensor]) -> None:
    with torch.no_grad():
        out = model.target_encoder(recorded["input/clip"])
    assert_close(out, recorded["target/output"], **FEATURES)
    normed = F.layer_norm(out, (48,), eps=1e-5)
    assert_close(normed, recorded["target/output_normed"], **FEATURES)


def test_patch_embedding_is_the_convolution(model: VJEPA, recorded: dict[str, Tensor]) -> None:
    out = model.target_encoder.patch_embed(recorded["input/clip"])
    assert_close(out, recorded["debug/target_patch_embed"], **FEATURES)


def test_intermediate_layers_pass_the_final_norm(model: VJEPA, recorded: dict[str, Tensor]) -> None:
    with torch.no_grad():
        last, first = model.target_encoder(recorded["input/clip"], layers=[2, 0])
    assert_close(first, recorded["debug/target_out_layers_0"], **FEATURES)
    assert_close(last, recorded["debug/target_out_layers_2"], **FEATURES)
    assert_close(last, recorded["target/output"], **FEATURES)


@pytest.mark.parametrize("index", [0, 1])
def test_context_and_prediction(model: VJEPA, recorded: dict[str, Tensor], index: int) -> None:
    kind = KINDS[index]
    context, target = recorded[f"masks/{kind}/context"], recorded[f"masks/{kind}/target"]
    with torch.no_grad():
        tokens = model.encoder(recorded["input/clip"], context)
        predicted = model.predictor(tokens, context, target, mask_index=index)
    assert_close(tokens, recorded[f"encoder/{kind}"], **FEATURES)
    assert_close(predicted, recorded[f"predictor/{kind}"], **FEATURES)


def _losses(model: VJEPA, recorded: dict[str, Tensor], *, packed: bool) -> list[Tensor]:
    """The paper's loss per mask kind, written out here independently of the objective."""
    clip = recorded["input/clip"]
    with torch.no_grad():
        targets = F.layer_norm(model.target_encoder(clip), (48,), eps=1e-5)
    losses = []
    for index, kind in enumerate(KINDS):
        context, target = recorded[f"masks/{kind}/context"], recorded[f"masks/{kind}/target"]
        wanted = targets[torch.arange(2)[:, None], target]
        if packed:
            rising = torch.arange(3)
            context_offsets, target_offsets = rising * context.shape[1], rising * target.shape[1]
            flat = context.flatten()
            tokens = model.encoder(clip, flat, offsets=context_offsets)
            predicted = model.predictor(
                tokens,
                flat,
                target.flatten(),
                index,
                context_offsets=context_offsets,
                target_offsets=target_offsets,
            ).unflatten(0, (2, -1))
        else:
            predicted = model.predictor(model.encoder(clip, context), context, target, index)
        losses.append((predicted - wanted).abs().mean())
    return losses


@pytest.mark.parametrize("packed", [False, True])
def test_losses_and_all_gradients(model: VJEPA, recorded: dict[str, Tensor], packed: bool) -> None:
    model.zero_grad()
    losses = _losses(model, recorded, packed=packed)
    total = torch.stack(losses).mean()
    total.backward()
    for kind, loss in zip(KINDS, losses, strict=True):
        assert_close(loss.detach(), recorded[f"loss/{kind}"], **LOSSES)
    assert_close(total.detach(), recorded["loss/total"], **LOSSES)
    compared = 0
    for part in ("encoder", "predictor"):
        for name, parameter in model.get_submodule(part).named_parameters():
            assert parameter.grad is not None, name
            wanted = recorded[f"grad/{part}/{name}"]
            assert_close(parameter.grad, wanted, **GRADIENTS, msg=f"{part}/{name}")
            compared += 1
    assert compared == 72
    assert all(p.grad is None for p in model.target_encoder.parameters())
