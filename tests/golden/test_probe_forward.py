"""Released probes of one and two layers: outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import GRADIENTS, LOGITS, LOSSES, tensors
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.checkpoint import read_probe

FILES = {1: "attentive_probe_tiny.pth.tar", 2: "attentive_probe_tiny_depth2.pth.tar"}


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "attentive_probe_forward")


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("count", [16, 128])
def test_pooled_and_logits(
    golden_dir: Path, recorded: dict[str, Tensor], depth: int, count: int
) -> None:
    probe = read_probe(golden_dir / FILES[depth], num_heads=3)[0]
    tokens = recorded[f"forward/input_{count}"]
    with torch.no_grad():
        pooled, logits = probe.pooler(tokens), probe(tokens)
    assert_close(pooled[:, None], recorded[f"forward/depth{depth}/pooled_{count}"], **LOGITS)
    assert_close(logits, recorded[f"forward/depth{depth}/logits_{count}"], **LOGITS)


def test_gradients_of_every_parameter(golden_dir: Path, recorded: dict[str, Tensor]) -> None:
    probe = read_probe(golden_dir / FILES[1], num_heads=3)[0]
    loss = F.cross_entropy(probe(recorded["train/features_0"]), recorded["train/labels"][0])
    loss.backward()
    assert_close(loss.detach(), recorded["grad/depth1/loss"], **LOSSES)
    gradients = {k for k in recorded if k.startswith("grad/depth1/")} - {"grad/depth1/loss"}
    ours = {f"grad/depth1/{name}": p.grad for name, p in probe.named_parameters()}
    assert set(ours) == gradients
    for name, gradient in ours.items():
        assert gradient is not None, name
        assert_close(gradient, recorded[name], **GRADIENTS, msg=name)
