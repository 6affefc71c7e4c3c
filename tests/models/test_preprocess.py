from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import vjepa
from vjepa.models import PIXEL_MEAN, PIXEL_STD, InputConfig, far_from_input, normalise_clip

PIXELS = torch.randint(0, 256, (1, 3, 2, 4, 4), dtype=torch.uint8)
_HOW = InputConfig(mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (3, 4, 5, 6)])
def test_normalisation_is_the_formula_in_any_dtype(shape: tuple[int, ...]) -> None:
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    out = normalise_clip(clips)
    assert out.dtype == torch.float32
    small = normalise_clip(clips, torch.bfloat16)
    assert_close(small, out.bfloat16(), atol=0, rtol=0)
    for channel in range(3):
        wanted = (clips.select(-4, channel) / 255 - PIXEL_MEAN[channel]) / PIXEL_STD[channel]
        assert_close(out.select(-4, channel), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5, 6), (1, 3, 4, 5, 6, 7), (3, 4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="clips"):
        normalise_clip(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        (PIXELS / 255, "between 0 and 1"),
        (PIXELS > 100, "between 0 and 1"),
        (PIXELS / 127.5 - 1, "normalised before"),
        (normalise_clip(PIXELS), "normalised before"),
        (PIXELS.to(torch.int32) * 257, "between .* and 6"),
        (torch.full((3, 1, 2, 2), torch.nan), "not finite"),
    ],
)
def test_another_scale_is_refused(clips: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=rf"{says}.*scale 0 to 255"):
        normalise_clip(clips)


def test_any_type_on_the_scale_of_pixels_gives_the_same() -> None:
    wanted = normalise_clip(PIXELS)
    for dtype in (torch.float32, torch.float64, torch.int64, torch.int16):
        assert torch.equal(normalise_clip(PIXELS.to(dtype)), wanted)
    black = torch.zeros(3, 1, 2, 2)
    assert torch.equal(normalise_clip(black), normalise_clip(black.to(torch.uint8)))
    normalise_clip(PIXELS * 1.1 - 10)  # what a bicubic filter overshoots by


class _Pixels(nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return normalise_clip(clips, how=_HOW)


def test_no_mode_of_an_earlier_call_is_left_in_the_process() -> None:
    with torch.inference_mode():
        normalise_clip(PIXELS, how=_HOW)
    torch.export.export(_Pixels(), (PIXELS,))
    with FakeTensorMode() as mode:
        normalise_clip(mode.from_tensor(PIXELS), how=_HOW)
    found = normalise_clip(PIXELS, how=_HOW)
    assert type(found) is torch.Tensor
    assert not found.is_inference()
    weight = torch.ones(1, requires_grad=True)
    (found * weight).sum().backward()
    assert_close(found[0, 1], (PIXELS[0, 1] / 255 - 0.2) / PIXEL_STD[1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (362, 202), (16, 24)])
def test_frames_of_any_size_become_an_encoders_input(size: tuple[int, int]) -> None:
    encoder = vjepa.load_encoder("demo")
    frames = np.full((20, *size, 3), 255, dtype=np.uint8)
    video = encoder.preprocess([frames, frames])
    assert video.shape == (2, 3, 8, 32, 32)
    white = (1 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    assert_close(video.mean(dim=(0, 2, 3, 4)), white, atol=1e-4, rtol=0)
    assert encoder(video).shape == (2, 64, 96)


def test_clips_unlike_those_of_the_training_are_told_with_both_numbers() -> None:
    how = InputConfig(mean=(0.5, 0.5, 0.5), deviation=(0.1, 0.1, 0.1))
    torch.manual_seed(0)
    noise = torch.randn(4, 3, 2, 16, 16)
    noise = (noise - noise.mean((0, 2, 3, 4), keepdim=True)) / noise.std()

    def clips(mean: float, deviation: float) -> Tensor:
        return (255 * (mean + deviation * noise)).round().clamp(0, 255).to(torch.uint8)

    assert far_from_input(clips(0.5, 0.1), how) is None
    assert far_from_input(clips(0.55, 0.2), how) is None
    dark = far_from_input(clips(0.3, 0.1), how)
    assert dark is not None
    assert "mean 0.30 0.30 0.30 and deviation 0.10 0.10 0.10" in dark
    assert "made for 0.50 0.50 0.50 and 0.10 0.10 0.10" in dark
    assert far_from_input(clips(0.5, 0.02), how) is not None
    assert far_from_input(clips(0.5, 0.1), InputConfig(content="change")) is None
    still = clips(0.5, 0.1)[:, :, :1].expand(-1, -1, 2, -1, -1)
    assert far_from_input(still, InputConfig(content="change")) is not None, "nothing changes"


@pytest.mark.parametrize(("count", "is_far"), [(1, False), (3, False), (4, True)])
def test_a_few_clips_may_differ_more_than_many(count: int, is_far: bool) -> None:
    """One clip of a set is often darker than the set: 44 of 96 of VizDoom's own were told."""
    how = InputConfig(mean=(0.5, 0.5, 0.5), deviation=(0.1, 0.1, 0.1))
    noise = torch.randn(count, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    darker, black = (
        (255 * (mean + deviation * noise)).round().clamp(0, 255).to(torch.uint8)
        for mean, deviation in ((0.35, 0.1), (0.02, 0.01))
    )
    assert (far_from_input(darker, how) is not None) == is_far
    assert far_from_input(black, how) is not None
