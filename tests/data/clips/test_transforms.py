"""Crops: one box for all frames, batches equal to single clips, evaluation views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import (
    NUM_UNIFORMS,
    TransformConfig,
    center_crop_clip,
    draw_crops,
    long_side_crops,
    resize_short_side,
    training_crop,
    training_crop_batch,
)


def _video(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


def _u(count: int, seed: int = 0) -> np.ndarray:
    return uniforms(seed, "crop", np.arange(count), NUM_UNIFORMS)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted).map(tuple),
    st.integers(0, 2**30),
)
def test_boxes_lie_inside_the_frame(height, width, scale, aspect, seed):
    config = TransformConfig(crop_scale=scale, crop_aspect=aspect)
    boxes = draw_crops(np.full(8, height), np.full(8, width), config, _u(8, seed)).boxes
    top, left, box_h, box_w = boxes.T
    assert (box_h >= 1).all()
    assert (box_w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + box_h <= height).all()
    assert (left + box_w <= width).all()


def test_a_shape_that_fits_no_box_gets_the_centre() -> None:
    config = TransformConfig(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    draws = draw_crops(np.array([20, 50]), np.array([100, 10]), config, _u(2))
    assert draws.boxes.tolist() == [[0, 40, 20, 20], [20, 0, 10, 10]]


def test_every_frame_gets_the_same_box_and_flip() -> None:
    picture = _video(40, 60, 3)
    video = np.repeat(picture[None], 5, axis=0)
    for number in range(6):
        clip = training_crop(video, TransformConfig(crop_size=24), _u(6)[number])
        assert clip.shape == (3, 5, 24, 24)
        assert clip.dtype == torch.uint8
        assert (clip == clip[:, :1]).all()


def test_half_of_the_clips_are_mirrored_if_asked_for() -> None:
    u = _u(4000)
    config = TransformConfig()
    sizes = np.full(4000, 64)
    share = draw_crops(sizes, sizes, config, u).flips.mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(4000)
    off = TransformConfig(horizontal_flip=False)
    assert not draw_crops(sizes, sizes, off, u).flips.any()
    whole = TransformConfig(crop_size=16, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    video = _video(2, 16, 16, 3)
    for row in u[:8]:
        mirrored = draw_crops(np.array([16]), np.array([16]), whole, row[None]).flips[0]
        expected = video[:, :, ::-1] if mirrored else video
        np.testing.assert_array_equal(
            training_crop(video, whole, row).numpy(), expected.transpose(3, 0, 1, 2)
        )


@pytest.mark.parametrize("resize", ["antialias", "reference"])
@pytest.mark.parametrize(
    ("scale", "size"), [((0.3, 1.0), 20), ((0.3, 1.0), 32), ((1.0, 1.0), 32), ((0.9, 1.0), 32)]
)
def test_a_batch_equals_its_clips_one_at_a_time(resize, scale, size) -> None:
    config = TransformConfig(crop_size=size, crop_scale=scale, resize=resize)
    videos, u = _video(12, 3, 32, 32, 3), _u(12)
    out = torch.zeros(12, 3, 3, size, size, dtype=torch.uint8)
    batch = training_crop_batch(videos, config, u, out=out)
    assert batch.data_ptr() == out.data_ptr()
    for video, row, clip in zip(videos, u, batch, strict=True):
        torch.testing.assert_close(training_crop(video, config, row), clip, rtol=0, atol=0)


def test_antialias_follows_the_float_resize_to_one_grey_level() -> None:
    config = TransformConfig(crop_size=24, crop_scale=(0.9, 1.0), horizontal_flip=False)
    video, u = _video(2, 90, 90, 3), _u(1)
    top, left, height, width = draw_crops(np.array([90]), np.array([90]), config, u).boxes[0]
    cut = torch.from_numpy(video).permute(0, 3, 1, 2)[..., top : top + height, left : left + width]
    expected = functional.interpolate(cut.float(), (24, 24), mode="bilinear", antialias=True)
    ours = training_crop(video, config, u[0]).transpose(0, 1).float()
    assert (ours - expected).abs().max() <= 1.0


def test_evaluation_views() -> None:
    video = _video(2, 30, 60, 3)
    centre = center_crop_clip(video, 14)
    assert centre.shape == (3, 2, 14, 14)
    resized = resize_short_side(video, 16)
    assert resized.shape == (2, 3, 16, 32)
    torch.testing.assert_close(centre, resized[:, :, 1:15, 9:23].transpose(0, 1))
    views = long_side_crops(video, 30, 3)
    whole = torch.from_numpy(video).permute(3, 0, 1, 2)
    for number, view in enumerate(views):
        left = 15 * number
        torch.testing.assert_close(view, whole[..., left : left + 30], rtol=0, atol=0)
    tall = long_side_crops(video.transpose(0, 2, 1, 3), 30, 3)
    torch.testing.assert_close(tall, views.transpose(-1, -2), rtol=0, atol=0)
    unresized = center_crop_clip(video, 30, short_side=30)
    torch.testing.assert_close(unresized, views[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="short_side 29 is smaller"):
        center_crop_clip(video, 30, short_side=29)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 0}, "crop_size"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.3)}, "crop_scale"),
        ({"crop_scale": (0.3, 1.1)}, "crop_scale"),
        ({"crop_aspect": (-1.0, 1.0)}, "crop_aspect"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect"),
    ],
)
def test_impossible_configs_name_their_field(fields, message) -> None:
    with pytest.raises(ValueError, match=f"^{message} "):
        TransformConfig(**fields)


def test_views_along_the_long_side() -> None:
    video = _video(2, 40, 100, 3)
    whole = torch.from_numpy(video).permute(3, 0, 1, 2)
    two = long_side_crops(video, 30, 2, short_side=40)
    assert two.shape == (2, 3, 2, 30, 30)
    # The crops lie in the middle of a longer short side, the last one ends with the frame.
    torch.testing.assert_close(two[0], whole[..., 5:35, :30], rtol=0, atol=0)
    torch.testing.assert_close(two[1], whole[..., 5:35, 70:], rtol=0, atol=0)
    square = long_side_crops(video[:, :, :40], 40, 3)
    assert torch.equal(square[0], square[2])
