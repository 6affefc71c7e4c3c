"""Encoder, targets, predictor, losses and every gradient against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, tensors, tiny_model
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
