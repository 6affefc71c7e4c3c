from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.data.clips.load import centre_view
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.clips.windows import FramingConfig, framing_for

SIZES = {"image_size": 32, "patch_size": 8}


def _frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "seen"),
    [(72, 128, (32, 56)), (128, 72, (56, 32)), (50, 50, (32, 32)), (10, 400, (32, 1280))],
)
def test_the_whole_frame_in_whole_patches(height: int, width: int, seen: tuple[int, int]) -> None:
    framing = framing_for(FramingConfig(), height, width, **SIZES)
    assert (framing.height, framing.width) == seen
    assert framing.box == (0, 0, height, width)
    assert framing.apply(_frame(height, width)).shape == (3, *seen)


def test_another_size_and_a_square() -> None:
    framing = framing_for(FramingConfig(size=64), 72, 128, **SIZES)
    assert (framing.height, framing.width) == (64, 112)
    square = framing_for(FramingConfig(kind="stretch"), 72, 128, **SIZES)
    assert (square.height, square.width) == (32, 32)
    with pytest.raises(ValueError, match="size: 60"):
        framing_for(FramingConfig(size=60), 72, 128, **SIZES)
    with pytest.raises(ValueError, match=r"^size"):
        FramingConfig(size=0)


@pytest.mark.parametrize("resize", ["antialias", "reference"])
@pytest.mark.parametrize("shape", [(72, 128), (128, 72)])
def test_the_centre_is_the_evaluations(shape: tuple[int, int], resize: str) -> None:
    frame = _frame(*shape)
    framing = framing_for(FramingConfig(kind="centre", resize=resize), *shape, **SIZES)
    view = ViewConfig(crop_size=32, resize=resize)
    (wanted,) = centre_view(frame[None], ClipConfig(num_frames=1), view)
    assert torch.equal(framing.apply(frame), wanted)
    top, left, height, width = framing.box
    assert height == pytest.approx(32 / 36 * 72, rel=0.03)
    assert top + height / 2 == pytest.approx(shape[0] / 2, abs=2)
    assert left + width / 2 == pytest.approx(shape[1] / 2, abs=2)
