from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.data.clips.cut import cut
from vjepa.data.clips.dataset import centre_view
from vjepa.data.clips.plan import ClipConfig, ClipPlan
from vjepa.data.clips.source import FrameSource
from vjepa.data.clips.views import ViewConfig
from vjepa.data.clips.windows import (
    FramingConfig,
    Stitcher,
    WindowConfig,
    plan_frame,
    plan_windows,
    timeline,
)


def test_a_timeline_by_stride_and_by_time() -> None:
    assert timeline(WindowConfig(stride=4), 10, 30.0).tolist() == [0, 4, 8]
    by_time = WindowConfig(stride=None, fps=10)
    assert timeline(by_time, 9, 30.0).tolist() == [0, 3, 6]
    assert timeline(by_time, 9, 25.0).tolist() == [0, 2, 5, 7]
    assert timeline(by_time, 3, 5.0).tolist() == [0, 0, 1, 1, 2, 2]  # slower than asked for
    assert timeline(by_time, 1, 1.0).tolist() == [0] * 10


@pytest.mark.parametrize(("frames", "fps", "message"), [(0, 30.0, "no frames"), (5, 0.0, "rate")])
def test_what_has_no_timeline(frames: int, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timeline(WindowConfig(stride=None, fps=2), frames, fps)


def test_frames_of_a_variable_rate_are_chosen_by_when_they_are_shown() -> None:
    """A second at 10 frames a second, then one at 30."""
    times = np.concatenate([np.arange(10) / 10, 1 + np.arange(30) / 30])
    by_time = WindowConfig(fps=5)
    assert timeline(by_time, 40, 20.0, times).tolist() == [0, 2, 4, 6, 8, 10, 16, 22, 28, 34]
    assert timeline(by_time, 40, 20.0).tolist() == list(range(0, 40, 4))
    assert timeline(WindowConfig(stride=8), 40, 20.0, times).tolist() == [0, 8, 16, 24, 32]


@pytest.mark.parametrize(
    ("asked", "own", "spacing"),
    [
        (WindowConfig(), ClipConfig(stride=2), (2, None)),
        (WindowConfig(), ClipConfig(stride=None, fps=4), (None, 4)),
        (WindowConfig(), ClipConfig(num_frames=8, stride=None, clip_seconds=2), (None, 4)),
        (WindowConfig(stride=4), ClipConfig(stride=None, fps=4), (4, None)),
        (WindowConfig(fps=9), ClipConfig(stride=2), (None, 9)),
    ],
)
def test_the_spacing_is_the_encoders_unless_asked_for(
    asked: WindowConfig, own: ClipConfig, spacing: tuple[int | None, float | None]
) -> None:
    found = asked.spaced_as(own)
    assert (found.stride, found.fps) == spacing
    assert timeline(WindowConfig(), 10, 30.0).tolist() == [0, 4, 8], "nobody says"


def test_one_spacing_at_most_is_given() -> None:
    with pytest.raises(ValueError, match=r"^stride: stride and fps are both set"):
        WindowConfig(stride=4, fps=3.0)


def test_windows_of_a_long_video() -> None:
    plan = plan_windows(np.arange(0, 83 * 4, 4), num_frames=16, tubelet_size=2, overlap=0.5)
    assert plan.num_tubelets == 42
    assert plan.starts == (0, 4, 8, 12, 16, 20, 24, 28, 32, 34)  # the last ends with the video
    assert plan.frame_numbers.shape == (42, 2)
    assert plan.frame_numbers[-1].tolist() == [82 * 4, 82 * 4]  # an odd count: the last is held


def test_a_video_shorter_than_a_window_keeps_only_its_own_tubelets() -> None:
    plan = plan_windows(np.arange(5), num_frames=16, tubelet_size=2, overlap=0.5)
    assert plan.starts == (0,)
    assert plan.num_tubelets == 3
    assert plan.frames.tolist() == [0, 1, 2, 3, 4] + [4] * 11
    whole = torch.arange(8.0)[:, None, None, None]
    assert Stitcher(plan).add(whole).flatten().tolist() == [0, 1, 2]


def test_a_window_in_half_tubelets_is_refused() -> None:
    with pytest.raises(ValueError, match="num_frames: 15"):
        plan_windows(np.arange(40), num_frames=15, tubelet_size=2, overlap=0.0)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 90),
    window=st.integers(1, 8),
    tubelet=st.integers(1, 3),
    overlap=st.floats(0, 0.99),
)
def test_stitching_is_the_mean_of_all_windows_over_a_tubelet(
    length: int, window: int, tubelet: int, overlap: float
) -> None:
    plan = plan_windows(
        np.arange(length), num_frames=window * tubelet, tubelet_size=tubelet, overlap=overlap
    )
    generator = torch.Generator().manual_seed(length)
    maps = [torch.randn(window, 2, 1, 3, generator=generator) for _ in plan.starts]
    stitcher = Stitcher(plan)
    held = []
    parts = []
    for tokens in maps:
        parts.append(stitcher.add(tokens))
        held.append(len(stitcher._counts))
    assert stitcher.is_done
    found = torch.cat(parts)
    assert len(found) == plan.num_tubelets == -(-length // tubelet)
    for place in range(plan.num_tubelets):
        seen = [
            tokens[place - start]
            for start, tokens in zip(plan.starts, maps, strict=True)
            if start <= place < start + window
        ]
        assert seen
        torch.testing.assert_close(found[place], torch.stack(seen).mean(dim=0))
    assert max(held) <= window  # however long the video is


SIZES = {"image_size": 32, "patch_size": 8}


def _frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _seen(framing: ClipPlan, frame: np.ndarray) -> torch.Tensor:
    """uint8 [C, h, w]."""
    out = torch.empty(1, 3, 1, *framing.size, dtype=torch.uint8)
    cut(FrameSource(frame[None]), [framing], out)
    return out[0, :, 0]


@pytest.mark.parametrize(
    ("height", "width", "seen"),
    [(72, 128, (32, 56)), (128, 72, (56, 32)), (50, 50, (32, 32)), (10, 400, (32, 1280))],
)
def test_the_whole_frame_in_whole_patches(height: int, width: int, seen: tuple[int, int]) -> None:
    framing = plan_frame(FramingConfig(), height, width, **SIZES)
    assert framing.size == seen
    assert framing.seen_box(height, width) == (0, 0, height, width)
    assert _seen(framing, _frame(height, width)).shape == (3, *seen)


def test_another_size_and_a_square() -> None:
    framing = plan_frame(FramingConfig(size=64), 72, 128, **SIZES)
    assert framing.size == (64, 112)
    square = plan_frame(FramingConfig(kind="stretch"), 72, 128, **SIZES)
    assert square.size == (32, 32)
    with pytest.raises(ValueError, match="size: 60"):
        plan_frame(FramingConfig(size=60), 72, 128, **SIZES)


@pytest.mark.parametrize("resize", ["antialias", "reference"])
@pytest.mark.parametrize("shape", [(72, 128), (128, 72)])
def test_the_centre_is_the_evaluations(shape: tuple[int, int], resize: str) -> None:
    frame = _frame(*shape)
    framing = plan_frame(FramingConfig(kind="centre", resize=resize), *shape, **SIZES)
    view = ViewConfig(crop_size=32, resize=resize)
    (wanted,) = centre_view(frame[None], ClipConfig(num_frames=1), view)
    assert torch.equal(_seen(framing, frame), wanted)
    top, left, height, width = framing.seen_box(*shape)
    assert height == pytest.approx(32 / 36 * 72, rel=0.03)
    assert top + height / 2 == pytest.approx(shape[0] / 2, abs=2)
    assert left + width / 2 == pytest.approx(shape[1] / 2, abs=2)
