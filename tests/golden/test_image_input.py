"""Still images through the video model against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, LOGITS, tensors, tiny_model
from torch import Tensor
from torch.testing import assert_close

from vjepa.checkpoint import read_probe
from vjepa.models import VJEPA, still_clip


@pytest.fixture(scope="module")
def model(golden_dir: Path) -> VJEPA:
    return tiny_model(golden_dir)


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "image_input")


@pytest.mark.parametrize(
    ("name", "frames", "rebuilt"),
    [("repeat_16", 16, False), ("repeat_2", 2, True), ("repeat_2_in_16_frame_model", 2, False)],
)
def test_repeated_images(
    model: VJEPA, recorded: dict[str, Tensor], name: str, frames: int, rebuilt: bool
) -> None:
    encoder = model.target_encoder
    if rebuilt:
        encoder = encoder.rebuilt_for(image_size=64, num_frames=frames)
    with torch.no_grad():
        out = encoder(still_clip(recorded["input/images"], frames))
    assert_close(out, recorded[f"output/{name}"], **FEATURES)


def test_the_two_ways_to_encode_two_frames_differ(recorded: dict[str, Tensor]) -> None:
    gap = recorded["output/repeat_2"] - recorded["output/repeat_2_in_16_frame_model"]
    assert gap.abs().max() > 0.1


def test_probe_on_images(golden_dir: Path, model: VJEPA, recorded: dict[str, Tensor]) -> None:
    probe = read_probe(golden_dir / "attentive_probe_tiny.pth.tar", num_heads=3)[0]
    images = recorded["input/images"]
    two_frames = model.target_encoder.rebuilt_for(image_size=64, num_frames=2)
    with torch.no_grad():
        many = probe(model.target_encoder(still_clip(images, 16)))
        few = probe(two_frames(still_clip(images, 2)))
    assert_close(many, recorded["logits/repeat_16"], **LOGITS)
    assert_close(few, recorded["logits/repeat_2"], **LOGITS)
