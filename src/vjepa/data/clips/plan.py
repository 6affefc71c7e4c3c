"""What a clip takes of its video: frames in time and a part in space, planned before any is read.

Plans are pure functions of a config, of what is known of the video, and of uniform numbers. Frames
are numbered from 0 in display order. T is the number of frames of a clip, L that of the video.

Two ways of spacing frames stand side by side:

* by frames (`stride`), as the paper trains: 16 frames over a window of 64, whatever the frame rate;
* by time (`fps` or `clip_seconds`), which gives the same motion per step at any frame rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import NUM_UNIFORMS, Resize, TransformConfig, draw_crops
from vjepa.data.clips.source import Source
from vjepa.data.video.info import Box, DecodeError

Change = Callable[[Tensor], Tensor]
"""An operation on frames uint8 [T, C, H, W] that keeps type and number: the same on every frame."""

ShortVideo = Literal["repeat_last", "loop", "stretch", "error"]

_DRAWN_TOGETHER = 32  # samples
_ROUNDING = 1e-6  # frames; 3 * (1 / 25) * 25 must be frame 3 although it comes out a hair below


@config_dataclass
class ClipConfig:
    """Which frames a clip takes. Exactly one of `stride`, `fps` and `clip_seconds` is set."""

    num_frames: Annotated[int, Field(gt=0)] = 16
    """Frames of a clip."""
    stride: Annotated[int, Field(gt=0)] | None = 4
    """Spacing in source frames; the paper takes 16 frames over a window of 64."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Spacing by time instead: frames of the clip per second of video (set `stride: null`)."""
    clip_seconds: Annotated[float, Field(gt=0)] | None = None
    """Spacing by time instead: seconds that the whole clip covers (set `stride: null`)."""
    sampling: Literal["reference", "exact", "uniform"] = "reference"
    """How a stride is taken. `reference`: `num_frames` places spread over `num_frames * stride`
    frames, as the released code does (steps of 4 and 5 for stride 4, mean 64/15); `exact`: every
    stride-th frame; `uniform`: the stride does not count, a clip takes one frame of each of
    `num_frames` equal parts of the whole video."""
    clips_per_video: Annotated[int, Field(gt=0)] = 1
    """Clips cut from one opened file, one after the other in the order of samples."""
    short_video: ShortVideo = "repeat_last"
    """For a video shorter than its clip. `repeat_last`: hold the last frame, as the released code
    does in pretraining; `loop`: begin again; `stretch`: spread the frames there are (slower
    motion); `error`: count it as a bad video."""

    def __post_init__(self) -> None:
        ways = ("stride", "fps", "clip_seconds")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"{given[-1] if given else 'stride'}: exactly one of stride, fps and clip_seconds "
                f"must be set, found {found}: give the others as null"
            )
        if self.sampling != "reference" and self.stride is None:
            raise ValueError(
                f"sampling: {self.sampling} says how a stride is taken, but {given[0]} is set: "
                "leave it out"
            )

    @property
    def is_by_time(self) -> bool:
        """Whether frames are taken by the times at which they are shown."""
        return self.stride is None

    def check_length(self, length: int, window: float) -> None:
        """ValueError: a video has fewer frames than a clip takes, which is to be an error."""
        if self.short_video == "error" and length < window:
            takes = f"a clip takes {window:g} (short_video: error)"
            raise ValueError(f"the video has {length} frame{'s' * (length != 1)}, {takes}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipPlan:
    """What one clip takes of its video: frames int64 [T] and what is done to them.

    In this order: whole frames are changed (`before`), the `box` (None: all) of the source frame is
    taken and brought to `resize_to` (height, width), the `crop` (None: all) of that is taken,
    mirrored and changed (`after`). Training crops and then resizes (`box`), evaluation resizes and
    then crops (`crop`), as the released code does.
    """

    frames: NDArray[np.int64]
    resize_to: tuple[int, int]
    resize: Resize
    before: tuple[Change, ...] = ()
    box: Box | None = None
    crop: Box | None = None
    flip: bool = False
    after: tuple[Change, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the clip, in pixels."""
        return self.resize_to if self.crop is None else self.crop[2:]

    def seen_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of such a source frame that the clip shows: top, left, height, width."""
        top, left, height, width = self.box or (0, 0, height, width)
        if self.crop is None:
            return float(top), float(left), float(height), float(width)
        down, across = height / self.resize_to[0], width / self.resize_to[1]
        first_row, first_column, rows, columns = self.crop
        seen = (first_row * down, first_column * across, rows * down, columns * across)
        return top + seen[0], left + seen[1], seen[2], seen[3]


def plan_training(
    clip: ClipConfig,
    transform: TransformConfig,
    source: Source,
    seed: int,
    ordinals: NDArray[np.int64],
    *,
    same_frames: bool = False,
) -> list[ClipPlan]:
    """Plans of n random clips of one video: a random place, a random resized crop and a flip.

    What is random follows from the seed and the samples' numbers, `ordinals` int64 [n]; with
    `same_frames` the place is that of the first clip of the opened video.
    DecodeError: no clip can be cut from such a video.
    """
    times, side = source.times if clip.is_by_time else None, transform.crop_size
    plans, size, how = [], (side, side), transform.resize
    uniform = clip.sampling == "uniform"
    for ordinal in ordinals.tolist():
        block, place = divmod(ordinal, _DRAWN_TOGETHER)
        u, box, flip = _drawn(transform, source.height, source.width, seed, block)[place]
        if same_frames or uniform:
            first = ordinal - ordinal % clip.clips_per_video if same_frames else ordinal
            u = uniforms(seed, "clip start", first, clip.num_frames if uniform else 1)
        try:
            frames = clip_indices(clip, source.num_frames, source.fps, u, times)
        except ValueError as error:  # too short, without frames, or of an unknown rate
            raise DecodeError(source.path, str(error)) from error
        plans.append(ClipPlan(frames=frames, box=box, resize_to=size, resize=how, flip=flip))
    return plans


@lru_cache(maxsize=256)
def _drawn(
    transform: TransformConfig, height: int, width: int, seed: int, block: int
) -> list[tuple[float, Box, bool]]:
    """Start, box and flip of consecutive samples, drawn at once: hardly dearer than for one."""
    ordinals = block * _DRAWN_TOGETHER + np.arange(_DRAWN_TOGETHER)
    starts = uniforms(seed, "clip start", ordinals, 1)[:, 0].tolist()
    crop_u = uniforms(seed, "crop", ordinals, NUM_UNIFORMS)
    return list(zip(starts, *draw_crops(height, width, transform, crop_u), strict=True))


@dataclass(frozen=True)
class _Spacing:
    """The frames of a clip that starts at frame 0 of a long enough video."""

    offsets: NDArray[np.float64]  # [T], in source frames
    window: float  # frames that a video must have for a clip without a short-video policy
    latest_included: bool  # whether a clip may start at the very last place where it fits


@lru_cache(maxsize=256)
def _spacing(config: ClipConfig, fps: float) -> _Spacing:
    count = config.num_frames
    if config.stride is not None and config.sampling == "reference":
        window = count * config.stride
        places = np.minimum(np.linspace(0, window, count), window - 1)
        return _Spacing(np.floor(places), window, False)
    if config.stride is not None:
        offsets = np.arange(count, dtype=np.float64) * config.stride
        return _Spacing(offsets, (count - 1) * config.stride + 1, True)
    period = 1 / config.fps if config.fps is not None else (config.clip_seconds or 0.0) / count
    offsets = np.arange(count, dtype=np.float64) * (period * fps)
    return _Spacing(offsets, float(np.floor(offsets[-1] + _ROUNDING)) + 1, True)


def checked_spacing(
    config: ClipConfig, num_frames_in_video: int, fps: float, times: NDArray[np.float64] | None
) -> tuple[_Spacing, NDArray[np.float64] | None]:
    """The spacing, and when frames are shown [L], in frames of the mean rate (None: evenly)."""
    if num_frames_in_video < 1:
        raise ValueError("the video has no frames")
    if config.stride is not None:
        return _spacing(config, 0.0), None
    if not fps > 0 and num_frames_in_video > 1:
        raise ValueError("the frame rate is unknown; sample by stride instead of by time")
    return _spacing(config, max(fps, 0.0)), None if times is None else times * fps


def frames_at(
    places: NDArray[np.float64], num_frames_in_video: int, shown: NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """The frames shown at some places, which count in frames of the mean rate."""
    if shown is None:
        found = np.floor(places + _ROUNDING).astype(np.int64)
    else:
        found = np.searchsorted(shown, places + _ROUNDING, side="right") - 1
    return np.clip(found, 0, num_frames_in_video - 1)


def short_clip(
    config: ClipConfig, spacing: _Spacing, length: int, shown: NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """Frames [T] of a clip from a video of `length` frames that is shorter than the clip."""
    config.check_length(length, spacing.window)
    if config.short_video == "stretch":
        steps = np.arange(config.num_frames, dtype=np.int64) * length
        return frames_at(steps / config.num_frames, length, shown)
    if config.short_video == "loop":
        return frames_at((spacing.offsets + _ROUNDING) % length, length, shown)
    if config.stride is not None and config.sampling == "reference":
        return reference_short(length, config.num_frames, config.stride)
    return frames_at(spacing.offsets, length, shown)


def reference_short(length: int, num_frames: int, stride: int) -> NDArray[np.int64]:
    """The released code's short video: length // stride places, then the last frame again."""
    taken = length // stride
    places = np.concatenate([np.linspace(0, length, taken), np.full(num_frames - taken, length)])
    return np.clip(places, 0, length - 1).astype(np.int64)


def clip_indices(
    config: ClipConfig,
    num_frames_in_video: int,
    fps: float,
    u: float | NDArray[np.float64],
    times: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Frames of one training clip at a random place: int64 [T], each in [0, L).

    With `sampling: reference` the start is uniform in 0 .. L - window - 1, so that the video's last
    frame is never seen, as in the released code; otherwise every place where the clip fits is
    equally likely. A clip by time rounds each of its times down to the frame shown then.

    Args:
        fps: (Mean) frame rate of the video; read only when sampling by time.
        u: Uniform number in [0, 1) that chooses the start (an array of one will do); with
            `sampling: uniform` [T], one for each part.
        times: When each frame is shown, float64 [L], seconds from 0, ascending; read only when
            sampling by time. None: evenly, at `fps`.

    Raises:
        ValueError: The video is shorter than the clip and the policy is ``error``; it has no
            frames; or sampling by time needs a rate that is unknown.
    """
    spacing, shown = checked_spacing(config, num_frames_in_video, fps, times)
    if config.sampling == "uniform":
        return uniform_places(config, num_frames_in_video, u)
    if num_frames_in_video < spacing.window:
        return short_clip(config, spacing, num_frames_in_video, shown)
    if config.stride is None:
        # Any moment may be the start, not only those of frames: with 30 fps sampled at 7 fps the
        # phase between the two grids is part of the draw.
        start = u * (num_frames_in_video - spacing.offsets[-1])
        return frames_at(spacing.offsets + start, num_frames_in_video, shown)
    starts = num_frames_in_video - int(spacing.window) + int(spacing.latest_included)
    return frames_at(spacing.offsets + np.floor(u * starts), num_frames_in_video, shown)


def uniform_places(
    config: ClipConfig, length: int, phase: float | NDArray[np.float64]
) -> NDArray[np.int64]:
    """A frame of each of T equal parts of a video, at a place [..., T] or one in [0, 1) of each."""
    config.check_length(length, config.num_frames)
    places = (np.arange(config.num_frames) + phase) * (length / config.num_frames)
    return np.minimum(np.floor(places).astype(np.int64), length - 1)


def indices_from(
    config: ClipConfig,
    num_frames_in_video: int,
    fps: float,
    start_seconds: float,
    times: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Frames [T] of the clip that begins at a given time; past the end the last frame repeats.

    The time is rounded to a frame unless `times` are given, of which every spacing takes its first
    frame; the rest as in :func:`clip_indices`.
    """
    spacing, shown = checked_spacing(config, num_frames_in_video, fps, times)
    first = start_seconds * fps if times is not None else round(start_seconds * fps)
    if times is not None and shown is None:  # the frame shown then, and others behind it
        first = frames_at(np.array([first]), num_frames_in_video, times * fps)
    return frames_at(spacing.offsets + first, num_frames_in_video, shown)


def frames_around(
    config: ClipConfig,
    num_frames_in_video: int,
    fps: float,
    seconds: float,
    times: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Frames [T] of the clip whose frame T // 2 is the one shown at a moment of the video.

    Where it would reach beyond the video, the first or last frame is repeated (whatever
    `short_video` says); the rest is as in :func:`clip_indices`.
    """
    if not fps > 0 and num_frames_in_video > 1:
        raise ValueError("the frame rate is unknown, so no moment can be found")
    spacing, shown = checked_spacing(config, num_frames_in_video, fps, times)
    offsets = spacing.offsets - spacing.offsets[config.num_frames // 2]
    if config.stride is None:
        return frames_at(seconds * fps + offsets, num_frames_in_video, shown)
    place = np.array([seconds * fps])
    key = frames_at(place, num_frames_in_video + 1, None if times is None else times * fps)
    return np.clip(key + offsets, 0, num_frames_in_video - 1).astype(np.int64)
