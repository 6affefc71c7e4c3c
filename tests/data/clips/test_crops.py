"""Crops: one box for all frames, sources that agree, evaluation views."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.clip_files import write_video
from torch.nn import functional

from vjepa.config import load_config
from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import NUM_UNIFORMS, TransformConfig, draw_crops
from vjepa.data.clips.cut import cut
from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.plan import ClipConfig, plan_training
from vjepa.data.clips.source import FrameSource, Source, VideoSource
from vjepa.data.clips.views import TrainingAugmentConfig, ViewConfig, plan_views
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import DecodeError
from vjepa.data.video.inspect import inspect_file
from vjepa.jobs.pretrain import PretrainConfig


def _video(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


def _u(count: int, seed: int = 0) -> np.ndarray:
    return uniforms(seed, "crop", np.arange(count), NUM_UNIFORMS)


def _training(
    source: Source, transform: TransformConfig, ordinals: range, **fields
) -> torch.Tensor:
    """The clips of some samples, uint8 [n, C, T, S, S]; of few frames all of them."""
    clip = ClipConfig(**{"num_frames": min(source.num_frames, 5), "stride": 1, **fields})
    plans = plan_training(clip, transform, source, 0, np.array(ordinals))
    size = transform.crop_size
    out = torch.zeros(len(plans), 3, clip.num_frames, size, size, dtype=torch.uint8)
    cut(source, plans, out)
    return out


def _views(video: np.ndarray, view: ViewConfig) -> torch.Tensor:
    """The views of all frames of a video: uint8 [V, C, T, S, S]."""
    source = FrameSource(video)
    clip = ClipConfig(num_frames=len(video), stride=1, sampling="exact")
    shape = (view.num_views, 3, len(video), view.crop_size, view.crop_size)
    out = torch.empty(shape, dtype=torch.uint8)
    cut(source, plan_views(clip, view, source), out)
    return out


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
    boxes, _ = draw_crops(height, width, config, _u(8, seed))
    top, left, box_h, box_w = np.array(boxes).T
    assert (box_h >= 1).all()
    assert (box_w >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + box_h <= height).all()
    assert (left + box_w <= width).all()


def test_a_shape_that_fits_no_box_gets_the_centre() -> None:
    config = TransformConfig(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    assert draw_crops(20, 100, config, _u(1))[0] == [(0, 40, 20, 20)]
    assert draw_crops(50, 10, config, _u(1))[0] == [(20, 0, 10, 10)]


def test_every_frame_gets_the_same_box_and_flip() -> None:
    video = np.repeat(_video(1, 40, 60, 3), 5, axis=0)
    clips = _training(FrameSource(video), TransformConfig(crop_size=24), range(6))
    assert (clips == clips[:, :, :1]).all()
    assert len(torch.unique(clips.flatten(1), dim=0)) == 6


def test_half_of_the_clips_are_mirrored_if_asked_for() -> None:
    u = _u(4000)
    _, flips = draw_crops(64, 64, TransformConfig(), u)
    assert abs(np.mean(flips) - 0.5) < 4 * 0.5 / np.sqrt(4000)
    off = TransformConfig(horizontal_flip=False)
    assert not any(draw_crops(64, 64, off, u)[1])
    whole = TransformConfig(crop_size=16, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    video = _video(2, 16, 16, 3)
    clips = _training(FrameSource(video), whole, range(8), sampling="exact")
    assert 0 < sum(flips[:8]) < 8
    for clip, mirrored in zip(clips, flips[:8], strict=True):
        expected = video[:, :, ::-1] if mirrored else video
        np.testing.assert_array_equal(clip.numpy(), expected.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("resize", ["antialias", "reference"])
@pytest.mark.parametrize(
    ("scale", "size"), [((0.3, 1.0), 20), ((0.3, 1.0), 32), ((1.0, 1.0), 32), ((0.9, 1.0), 32)]
)
def test_a_file_and_its_frames_give_the_same_clips_together_and_alone(
    tmp_path: Path, resize, scale, size
) -> None:
    transform = TransformConfig(crop_size=size, crop_scale=scale, resize=resize)
    info = inspect_file(str(write_video(tmp_path / "a.mp4", num_frames=30, height=32, width=32)))
    frames = FrameSource(decode_frames(info, range(30)))
    together = _training(frames, transform, range(12))
    assert torch.equal(_training(VideoSource(info), transform, range(12)), together)
    for number in range(12):
        alone = _training(frames, transform, range(number, number + 1))
        assert torch.equal(alone[0], together[number])


def test_antialias_follows_the_float_resize_to_one_grey_level() -> None:
    config = TransformConfig(crop_size=24, crop_scale=(0.9, 1.0), horizontal_flip=False)
    video, u = _video(2, 90, 90, 3), _u(1)
    ((top, left, height, width),) = draw_crops(90, 90, config, u)[0]
    part = torch.from_numpy(video).permute(0, 3, 1, 2)[..., top : top + height, left : left + width]
    expected = functional.interpolate(part.float(), (24, 24), mode="bilinear", antialias=True)
    ours = (
        _training(FrameSource(video), config, range(1), sampling="exact")[0].transpose(0, 1).float()
    )
    assert (ours - expected).abs().max() <= 1.0


def test_evaluation_views() -> None:
    video = _video(2, 30, 60, 3)
    (centre,) = _views(video, ViewConfig(crop_size=14))
    images = torch.from_numpy(video).permute(0, 3, 1, 2)
    resized = functional.interpolate(images, (16, 32), mode="bilinear", antialias=True)
    assert torch.equal(centre, resized[:, :, 1:15, 9:23].transpose(0, 1))
    views = _views(video, ViewConfig(crop_size=30, num_views=3))
    whole = torch.from_numpy(video).permute(3, 0, 1, 2)
    for number, view in enumerate(views):
        left = 15 * number
        assert torch.equal(view, whole[..., left : left + 30])
    tall = _views(video.transpose(0, 2, 1, 3), ViewConfig(crop_size=30, num_views=3))
    assert torch.equal(tall, views.transpose(-1, -2))
    (unresized,) = _views(video, ViewConfig(crop_size=30, short_side=30))
    assert torch.equal(unresized, views[1])


def test_views_along_the_long_side() -> None:
    video = _video(2, 40, 100, 3)
    whole = torch.from_numpy(video).permute(3, 0, 1, 2)
    two = _views(video, ViewConfig(crop_size=30, num_views=2, short_side=40))
    # The crops lie in the middle of a longer short side, the last one ends with the frame.
    assert torch.equal(two[0], whole[..., 5:35, :30])
    assert torch.equal(two[1], whole[..., 5:35, 70:])
    square = _views(video[:, :, :40], ViewConfig(crop_size=40, num_views=3))
    assert torch.equal(square[0], square[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
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


def test_a_sample_is_drawn_alike_whatever_is_drawn_beside_it() -> None:
    """Draws are made for many consecutive samples at once; what each gets is its own number's."""
    source = FrameSource(_video(50, 30, 40, 3))
    clip, transform = ClipConfig(num_frames=2, stride=1), TransformConfig(crop_size=8)
    ordinals = np.array([3, 95, 31, 32, 10**12])
    plans = plan_training(clip, transform, source, 7, ordinals)
    crops = uniforms(7, "crop", ordinals, NUM_UNIFORMS)
    boxes, flips = draw_crops(30, 40, transform, crops)
    assert [plan.box for plan in plans] == boxes
    assert [plan.flip for plan in plans] == flips
    starts = np.floor(uniforms(7, "clip start", ordinals, 1)[:, 0] * (50 - 2))
    assert [plan.frames[0] for plan in plans] == starts.tolist()
    assert len({plan.box for plan in plans}) > 1


@pytest.mark.parametrize(("height", "width"), [(240, 240), (240, 427), (427, 240), (240, 560)])
def test_the_small_recipe_shows_things_as_large_as_an_evaluation_does(height, width) -> None:
    """The mean side of a training crop over that of the evaluation's centre crop."""
    recipe = load_config(PretrainConfig, ["small"], recipes="pretrain")
    source, view = FrameSource(_video(2, height, width, 3)), ViewConfig(crop_size=56)
    (plan,) = plan_views(ClipConfig(num_frames=2), view, source)
    assert plan.resize_to is not None
    side = 56 * min(height, width) / min(plan.resize_to)
    seen = {}
    for of in ("square", "frame"):
        config = replace(recipe.data.transform, crop_scale_of=of)
        boxes = np.array(draw_crops(height, width, config, _u(2000))[0])
        seen[of] = np.sqrt(boxes[:, 2] * boxes[:, 3]).mean() / side
    assert recipe.data.transform.crop_scale_of == "square"
    assert seen["square"] == pytest.approx(1, abs=0.025)
    assert (seen["frame"] > 1.2) == (height != width)


def test_a_frame_that_is_shown_several_times_takes_memory_once() -> None:
    """A photograph of 24 megapixels as a clip, and clips that share frames."""
    out = torch.empty(2, 3, 64, 32, 32, dtype=torch.uint8)
    photo = FrameSource(np.zeros((1, 4000, 6000, 3), np.uint8), path="photo.jpg")
    clip, transform = ClipConfig(num_frames=64), TransformConfig(crop_size=32)
    TrainingClips(clip, transform, 0, max_gigabytes=4.0).cut(photo, np.array([0]), out[:1])
    video = FrameSource(np.zeros((64, 40, 50, 3), np.uint8), path="a.mp4")
    clip = replace(clip, stride=1)
    once = 64 * 40 * 50 * 3 / 1e9
    augment = TrainingAugmentConfig()  # changes whole frames
    TrainingClips(clip, transform, 0, once, augment).cut(video, np.arange(2), out)
    with pytest.raises(DecodeError, match="its frames of 50x40 take"):
        TrainingClips(clip, transform, 0, once / 2, augment).cut(video, np.arange(2), out)


def test_a_source_has_what_the_tour_names_and_needs_no_more() -> None:
    tour = (Path(__file__).parents[3] / "docs" / "tour.md").read_text()
    named = tour.partition("Frames that are not files at all")[2].partition("plans and cuts")[0]
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    whole = FrameSource(frames, fps=10.0, path="computed")
    parts = [name for name in re.findall(r"`(\w+)`", named) if hasattr(whole, name)]
    source: Any = SimpleNamespace(**{name: getattr(whole, name) for name in parts})
    found, wanted = (torch.empty(2, 3, 4, 16, 16, dtype=torch.uint8) for _ in range(2))
    for one, out in ((source, found), (whole, wanted)):
        clip, transform = ClipConfig(num_frames=4, stride=1), TransformConfig(crop_size=16)
        cut(one, plan_training(clip, transform, one, 0, np.arange(2)), out)
    assert torch.equal(found, wanted)
