"""Windows of whole videos and images, read in parts, in memory that does not grow with length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.data.clips.crops import Resize, centre_of, short_side_size, usual_short_side
from vjepa.data.clips.cut import cut_part
from vjepa.data.clips.plan import ClipConfig, ClipPlan, indices_from
from vjepa.data.clips.source import VideoSource
from vjepa.data.video.info import Box, DecodeError, VideoInfo, within_memory
from vjepa.runtime.workers import WorkerPool

_ROUNDING = 1e-6  # frames; as in the sampling of clips


@config_dataclass
class WindowConfig:
    """Which frames are looked at, and in which windows."""

    num_frames: Annotated[int, Field(gt=0)] | None = None
    """Frames of one window; null: as many as the encoder was made for (16 for an image model)."""
    stride: Annotated[int, Field(gt=0)] | None = None
    """Spacing in source frames; null, without `fps`: the spacing that the encoder was trained
    with, in frames or in time, and where its file does not say, 4."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Spacing by time instead: frames looked at per second of video."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a window that the next one sees again, in [0, 1). Tokens that several windows give
    are averaged; 0 encodes every frame once."""
    still_frames: Annotated[int, Field(gt=0)] | None = None
    """Frames that a still image is repeated to; null: as many as a window (the paper's 16 frames),
    one tubelet (2) costs an eighth of it. 1: as an image, by a model that has patches of its own
    for these (V-JEPA 2.1)."""

    def __post_init__(self) -> None:
        if self.stride is not None and self.fps is not None:
            raise ValueError("stride: stride and fps are both set; leave one out")

    def spaced_as(self, clip: ClipConfig) -> WindowConfig:
        """With the spacing of an encoder's clips, where none was asked for."""
        if self.stride or self.fps:
            return self
        fps = clip.num_frames / clip.clip_seconds if clip.clip_seconds else clip.fps
        return replace(self, stride=clip.stride, fps=fps)


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one video."""

    frames: NDArray[np.int64]  # [n], the timeline; the last frame repeats to whole tubelets
    num_tubelets: int  # t, of the video, without those that only pad a window
    tubelet_size: int  # in frames
    window_tubelets: int
    starts: tuple[int, ...]  # tubelet that each window starts with, ascending from 0

    @property
    def frame_numbers(self) -> NDArray[np.int64]:
        """Source frames of every kept tubelet: int64 [t, tubelet_size]."""
        kept = self.frames[: self.num_tubelets * self.tubelet_size]
        return kept.reshape(self.num_tubelets, self.tubelet_size)


def timeline(
    config: WindowConfig,
    num_frames_in_video: int,
    fps: float,
    times: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Source frames that are looked at: int64 [n], n at least 1, never falling.

    `times`, when each frame is shown, is read by `fps`, as in
    :func:`vjepa.data.clips.plan.clip_indices`. ValueError: the video has no frames, or sampling by
    time needs a rate that is unknown.
    """
    config = config.spaced_as(ClipConfig())
    step = config.stride or (max(fps, 0.0) or 1.0) / (config.fps or 1.0)
    count = max(1, math.ceil(num_frames_in_video / step - _ROUNDING))
    sampling = "reference" if config.stride is None else "exact"
    clip = ClipConfig(num_frames=count, stride=config.stride, fps=config.fps, sampling=sampling)
    return indices_from(clip, num_frames_in_video, fps, 0.0, times)


def plan_windows(
    frames: NDArray[np.int64], *, num_frames: int, tubelet_size: int, overlap: float
) -> WindowPlan:
    """Cut a timeline [n] into windows; the last is moved back so that it ends with the timeline.

    `overlap` is rounded to whole tubelets. ValueError: a window is not whole tubelets.
    """
    if num_frames % tubelet_size:
        raise ValueError(
            f"num_frames: {num_frames} is not a multiple of the encoder's tubelet of {tubelet_size}"
        )
    window = num_frames // tubelet_size
    tubelets = -(-len(frames) // tubelet_size)
    lacking = max(tubelets, window) * tubelet_size - len(frames)
    padded = np.concatenate([frames, np.repeat(frames[-1:], lacking)])
    hop = max(1, round(window * (1 - overlap)))
    last = max(0, tubelets - window)
    starts = (*range(0, last, hop), last)
    return WindowPlan(padded, tubelets, tubelet_size, window, starts)


class Stitcher:
    """Puts the token maps of windows together, keeping only what later windows still see."""

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan
        self._window = 0
        self._first = 0
        self._sums: Tensor | None = None
        self._counts = torch.zeros(0, dtype=torch.float32)

    @property
    def is_done(self) -> bool:
        """Whether all windows have been added."""
        return self._window == len(self._plan.starts)

    def add(self, tokens: Tensor) -> Tensor:
        """Add the next window, float32 [window_tubelets, h, w, D].

        Returns the tubelets that are finished with it, following those returned before: float32
        [m, h, w, D], the mean over the windows that saw each.
        """
        plan = self._plan
        start = plan.starts[self._window]
        self._window += 1
        end = plan.num_tubelets if self.is_done else plan.starts[self._window]
        lacking = start + plan.window_tubelets - self._first - len(self._counts)
        if self._sums is None:
            self._sums = tokens.new_zeros(0, *tokens.shape[1:])
        self._sums = torch.cat([self._sums, tokens.new_zeros(lacking, *tokens.shape[1:])])
        self._counts = torch.cat([self._counts, self._counts.new_zeros(lacking)])
        here = slice(start - self._first, start - self._first + plan.window_tubelets)
        self._sums[here] += tokens
        self._counts[here] += 1
        ready = end - self._first
        counts = self._counts[:ready].to(tokens.device)[:, None, None, None]
        finished = self._sums[:ready] / counts
        self._sums, self._counts = self._sums[ready:].clone(), self._counts[ready:].clone()
        self._first = end
        return finished


FramingKind = Literal["whole", "centre", "stretch"]


@config_dataclass
class FramingConfig:
    """Which part of a frame is seen."""

    kind: FramingKind | None = None
    """`whole`: the whole frame at its own aspect, rounded to whole patches; the position code is
    stretched to it. `centre`: the centre crop of an evaluation. `stretch`: the whole frame, made
    square. null: `whole`, and `centre` for an encoder of one size (VideoMAE, OpenCLIP, Hiera)."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Short side (`whole`) or side (`centre`, `stretch`) in pixels, in whole patches; null: the
    image size that the encoder was made for."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""


def plan_frame(
    config: FramingConfig, height: int, width: int, *, image_size: int, patch_size: int
) -> ClipPlan:
    """What is done to one frame of a video; ValueError if the size is not whole patches."""
    size = config.size or image_size
    if size % patch_size:
        raise ValueError(f"size: {size} pixels are not whole patches of {patch_size}")
    crop: Box | None = None
    resized = (size, size)
    if (config.kind or "whole") == "whole":
        long = max(1, round(max(height, width) / min(height, width) * size / patch_size))
        resized = (size, long * patch_size) if height <= width else (long * patch_size, size)
    elif config.kind == "centre":
        resized = short_side_size(height, width, usual_short_side(size))
        crop = centre_of(*resized, size)
    still = np.zeros(1, dtype=np.int64)
    return ClipPlan(frames=still, resize_to=resized, resize=config.resize, crop=crop)


Pool = Literal["none", "space", "video"]

# What is read in one go: so many bytes of resized frames, and so many source frames to decode,
# at most; one window at least. Parts overlap as their windows do, so small ones cost decoding.
_PART_BYTES = 1 << 26
_PART_FRAMES = 2048


@dataclass(frozen=True)
class Look:
    """How one file is looked at."""

    info: VideoInfo
    plan: WindowPlan
    framing: ClipPlan  # what is done to each frame
    grid: tuple[int, int, int]  # tokens (t, h, w) of the whole file

    @property
    def window_grid(self) -> tuple[int, int, int]:
        """Tokens of one window."""
        return (self.plan.window_tubelets, self.grid[1], self.grid[2])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The seen part of a source frame: top, left, height, width, in source pixels."""
        return self.framing.seen_box(self.info.height, self.info.width)


def look_at(
    info: VideoInfo,
    window: WindowConfig,
    framing: FramingConfig,
    *,
    num_frames: int,
    tubelet_size: int,
    image_size: int,
    patch_size: int,
    between: tuple[float, float] | None = None,
) -> Look:
    """Decide how a file is looked at, by the sizes that the encoder and its tokens have.

    `num_frames` 1 means an image model, which sees every frame alone; `between` takes only the part
    of a video from one second to another. DecodeError: the file is bad, or its length or rate allow
    no such look.
    """
    if not info.ok:
        raise DecodeError(info.path, info.reason or "marked as bad in the manifest")
    length = window.num_frames or (16 if num_frames == 1 else num_frames)
    try:
        if info.kind == "image":
            length = 1 if num_frames == 1 else window.still_frames or length
            frames = np.zeros(length, dtype=np.int64)
        else:
            times = VideoSource(info).times if window.fps or between else None
            frames = timeline(window, info.num_frames, info.fps, times)
            if between:
                shown = frames / info.fps if times is None else times[frames]
                frames = frames[(shown >= between[0]) & (shown <= between[1])]
                if not len(frames):
                    raise ValueError(f"shows nothing from {between[0]:g} to {between[1]:g} s")
        plan = plan_windows(
            frames, num_frames=length, tubelet_size=tubelet_size, overlap=window.overlap
        )
        seen = plan_frame(
            framing, info.height, info.width, image_size=image_size, patch_size=patch_size
        )
    except ValueError as error:
        raise DecodeError(info.path, str(error)) from error
    tall, wide = seen.size
    grid = (plan.num_tubelets, tall // patch_size, wide // patch_size)
    return Look(info, plan, seen, grid)


@dataclass(frozen=True)
class FramePart:
    """Some windows of a file, to be read in one go; told to worker processes."""

    index: int  # which file
    windows: range
    info: VideoInfo
    numbers: NDArray[np.int64]  # [n], source frames of these windows' timeline
    plan: ClipPlan  # what is done to each

    def __str__(self) -> str:
        return self.info.path


def _parts_of(index: int, look: Look) -> Iterator[FramePart]:
    """All windows of a file in parts of bounded size."""
    plan, (height, width) = look.plan, look.framing.size
    most = max(1, _PART_BYTES // (3 * height * width))
    first = 0
    while first < len(plan.starts):
        begin = plan.starts[first] * plan.tubelet_size
        stop = first
        numbers = plan.frames[:0]
        while stop < len(plan.starts):
            end = (plan.starts[stop] + plan.window_tubelets) * plan.tubelet_size
            following = plan.frames[begin:end]
            too_far = following[-1] - following[0] >= _PART_FRAMES
            if stop > first and (too_far or len(following) > most):
                break
            numbers, stop = following, stop + 1
        yield FramePart(index, range(first, stop), look.info, numbers, look.framing)
        first = stop


def read_part(part: FramePart) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | str:
    """Frames uint8 [n, C, height, width] and their times [n] in seconds, or why they fail."""
    # PyAV may be missing where only models are used.
    from vjepa.data.video.decode import read_frames

    plan, count = part.plan, len(part.numbers)
    try:
        with within_memory(part.info.path):
            out = torch.empty(count, 3, 1, *plan.size, dtype=torch.uint8)
            seconds = np.empty(count)
            previous = None
            for place, frame in enumerate(read_frames(part.info, part.numbers)):
                # A repeated frame (still image, padding) comes as the same array: resize it once.
                if frame.image is previous:
                    out[place] = out[place - 1]
                else:
                    image = np.require(frame.image, requirements="CW")
                    cut_part(image[None], [plan], [out[place]])
                previous, seconds[place] = frame.image, frame.seconds
    except DecodeError as error:
        return error.reason
    except (ValueError, RuntimeError) as error:
        # What foreign bytes make of a decoder or resizer: this file's failure, not the job's.
        return f"{type(error).__name__}: {error}"
    return out[:, :, 0].numpy(), seconds


@dataclass(frozen=True)
class ReadWindow:
    """One window of a file."""

    clip: Tensor  # uint8 [C, T, height, width], RGB
    seconds: NDArray[np.float64]  # [T], when its frames are shown


def read_files(
    looks: Iterable[tuple[int, Look | DecodeError]], *, readers: int, timeout_seconds: float
) -> Iterator[tuple[int, Look | DecodeError, ReadWindow | DecodeError]]:
    """Windows of many files, read ahead by `readers` processes (0: here, without a watchdog).

    A file of which one part takes longer than the timeout is given up. `looks`, each with the
    number of its file, are taken as their turn comes and kept no longer than needed: whole
    timelines of many files are large. Yields the number of a file, its look and its next window,
    file after file; or why it fails, which ends it. Those that cannot be looked at come last.
    """
    opened: dict[int, Look] = {}  # files of which windows are still to come
    unseen: list[tuple[int, DecodeError]] = []

    def parts() -> Iterator[FramePart]:
        for index, look in looks:
            if isinstance(look, DecodeError):
                unseen.append((index, look))
                continue
            opened[index] = look
            for part in _parts_of(index, look):
                if index in opened:
                    yield part

    with closing(WorkerPool(read_part, readers, timeout_seconds)) as pool:
        for part, outcome in pool.map(parts(), ahead=max(1, 2 * readers)):
            look = opened.get(part.index)
            if look is None:  # it has failed
                continue
            found = outcome.value if outcome.kind == "done" else outcome.reason
            plan, length = look.plan, look.plan.window_tubelets * look.plan.tubelet_size
            if isinstance(found, str) or part.windows.stop == len(plan.starts):
                del opened[part.index]
            if isinstance(found, str):
                yield part.index, look, DecodeError(part.info.path, found)
                continue
            images, seconds = found
            for number in part.windows:
                start = (plan.starts[number] - plan.starts[part.windows[0]]) * plan.tubelet_size
                here = slice(start, start + length)
                clip = torch.from_numpy(images[here]).transpose(0, 1).contiguous()
                yield part.index, look, ReadWindow(clip, seconds[here])
    yield from ((index, error, error) for index, error in unseen)
