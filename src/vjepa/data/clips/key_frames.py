"""Clips around moments of videos, and boxes moved by what is done to the frames.

A clip's middle frame (number T // 2) is the one shown at that time; where the clip would reach
beyond the video, the first or last frame is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import Resize, short_side_size
from vjepa.data.clips.cut import cut
from vjepa.data.clips.plan import ClipConfig, ClipPlan, frames_around
from vjepa.data.clips.source import Source, VideoSource
from vjepa.data.clips.windows import FramingConfig, plan_frame
from vjepa.data.loader.failures import FailedVideo
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

_UNIFORMS = 4  # short side, top, left, flip


@config_dataclass
class KeyFrameViewConfig:
    """What is seen of the frames around a key frame. The defaults are those of SlowFast's code."""

    short_side: Annotated[int, Field(ge=1)] = 256
    """Tested are whole frames: their short side, in pixels and whole patches."""
    augment: bool = True
    """Train on random sizes, crops and flips; false: on what is tested."""
    crop_size: Annotated[int, Field(ge=1)] = 224
    """Side of the random crop of a training clip, in pixels."""
    train_short_sides: tuple[int, int] = (256, 320)
    """Range of the short side of a training clip before its crop; its inverse is uniform."""
    horizontal_flip: bool = True
    """Mirror every second training clip; turn it off where left and right carry meaning."""
    key_frame_only: bool = False
    """Show the key frame T times instead of its neighbours: what a still picture tells, beside
    which a figure for video must stand."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it."""
    enlarge_boxes: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    """Look at boxes that are wider and higher by these shares (AlphAction: 0.1 and 0.05). The
    answer is still about the box as it was given."""
    jitter_boxes: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.0, 0.0)
    """Of training clips: each side of a box is moved by a draw of its own, evenly between so large
    a share of the box's width (or height) outwards and half of that inwards, so that a head learns
    to bear boxes that are not exact (AlphAction: 0.2 and 0.1)."""

    def __post_init__(self) -> None:
        if any(self.jitter_boxes) and not self.augment:
            raise ValueError("jitter_boxes: moves boxes of random clips only; set augment true")
        low, high = self.train_short_sides
        if not self.crop_size <= low <= high:
            raise ValueError(
                f"train_short_sides: {low} to {high} must rise from crop_size {self.crop_size} on"
            )


@dataclass(frozen=True)
class Moment:
    """A time of a video, in seconds from its start; told to worker processes."""

    info: VideoInfo
    seconds: float
    plan: tuple[ClipConfig, KeyFrameViewConfig, int]  # and the patch size
    draw: tuple[int, int, int] | None = None  # seed, pass, number of the sample; None: as tested

    def __str__(self) -> str:
        return f"{self.info.path} at {self.seconds:g} s"


def plan_moment(moment: Moment, source: Source) -> ClipPlan:
    """What the clip around a moment takes of its video; DecodeError: its rate is unknown."""
    clip, view, patch = moment.plan
    times = source.times
    try:
        frames = frames_around(clip, source.num_frames, source.fps, moment.seconds, times)
    except ValueError as error:
        raise DecodeError(source.path, str(error)) from error
    if view.key_frame_only:
        frames = np.repeat(frames[len(frames) // 2], len(frames))
    height, width = source.height, source.width
    if moment.draw is None:
        whole = FramingConfig(kind="whole", size=view.short_side, resize=view.resize)
        plan = plan_frame(whole, height, width, image_size=view.short_side, patch_size=patch)
        return replace(plan, frames=frames)
    seed, pass_index, number = moment.draw
    u = uniforms(seed, f"key frame/{pass_index}", number, _UNIFORMS)
    low, high = view.train_short_sides
    short = round(1.0 / (1.0 / high + float(u[0]) * (1.0 / low - 1.0 / high)))
    resized = short_side_size(height, width, short)
    top, left = (int(u[axis + 1] * (resized[axis] - view.crop_size + 1)) for axis in range(2))
    crop = (top, left, view.crop_size, view.crop_size)
    flip = bool(view.horizontal_flip and u[3] < 0.5)
    return ClipPlan(frames=frames, resize_to=resized, resize=view.resize, crop=crop, flip=flip)


def moved_boxes(
    plan: ClipPlan,
    boxes: NDArray[np.float64],
    height: int,
    width: int,
    enlarge: tuple[float, float] = (0.0, 0.0),
    outwards: NDArray[np.float64] | float = 0.0,
) -> NDArray[np.float64]:
    """Boxes [n, 4] (x1, y1, x2, y2 as shares of such a source frame) in the pixels of a clip.

    Enlarged by shares of their width and height, their sides moved `outwards` [n, 4] by further
    such shares, cut at the clip's borders, in continuous coordinates; one that is not seen comes
    out empty.
    """
    out = np.tile(boxes[:, 2:] - boxes[:, :2], 2) * (np.tile(enlarge, 2) / 2 + outwards)
    boxes = boxes + out * (-1, -1, 1, 1)
    top, left, seen_height, seen_width = plan.seen_box(height, width)
    rows, columns = plan.size
    x = (boxes[:, 0::2] * width - left) * (columns / seen_width)
    y = (boxes[:, 1::2] * height - top) * (rows / seen_height)
    if plan.flip:
        x = columns - x[:, ::-1]
    x, y = np.clip(x, 0, columns), np.clip(y, 0, rows)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


@dataclass(frozen=True)
class MomentClip:
    """The clip around a moment: uint8 [C, T, H, W], and what was done to its frames."""

    clip: Tensor
    plan: ClipPlan


def _read(moment: Moment) -> tuple[NDArray[np.uint8], ClipPlan] | str:
    """The clip of a moment, or why it cannot be had."""
    try:
        source = VideoSource(moment.info)
        plan = plan_moment(moment, source)
        out = torch.empty(1, 3, len(plan.frames), *plan.size, dtype=torch.uint8)
        cut(source, [plan], out)
    except DecodeError as error:
        return error.reason
    return out[0].numpy(), plan


def read_moments(
    moments: Iterable[Moment], *, readers: int, timeout_seconds: float
) -> Iterator[MomentClip | FailedVideo]:
    """The clips of moments in their order, read ahead by `readers` processes (0: in this one).

    A moment of which the reading takes longer than the timeout is given up.
    """
    with closing(WorkerPool(_read, readers, timeout_seconds)) as pool:
        ended = pool.map(moments, ahead=max(1, 4 * readers))
        for number, (moment, outcome) in enumerate(ended):
            if outcome.kind != "done":
                yield FailedVideo(moment.info.path, outcome.reason, number, outcome.kind)
            elif isinstance(outcome.value, str):
                yield FailedVideo(moment.info.path, outcome.value, number)
            else:
                pixels, plan = outcome.value
                yield MomentClip(torch.from_numpy(pixels), plan)


def checked_patches(view: KeyFrameViewConfig, clip: ClipConfig, patch: int, tubelet: int) -> None:
    """Refuse sizes that are not whole patches and tubelets of an encoder."""
    for name, size in (("short_side", view.short_side), ("crop_size", view.crop_size)):
        if size % patch:
            near = max(1, math.floor(size / patch)) * patch
            raise UserError(f"data.view.{name}: {size} is not whole patches of {patch}: {near} is")
    if clip.num_frames % tubelet:
        raise UserError(
            f"data.clip.num_frames: {clip.num_frames} is not whole tubelets; "
            f"give a multiple of {tubelet}"
        )
