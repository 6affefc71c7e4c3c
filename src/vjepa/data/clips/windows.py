"""Windows of videos and images, read ahead by threads, in memory that does not grow with length."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.data.clips.crops import (
    Resize,
    centre_of,
    resize_frames,
    short_side_size,
    usual_short_side,
)
from vjepa.data.video.info import DecodeError, VideoInfo

_ROUNDING = 1e-6  # frames; as in the sampling of clips


@config_dataclass
class WindowConfig:
    """Which frames are looked at, and in which windows."""

    num_frames: Annotated[int, Field(gt=0)] | None = None
    """Frames of one window; null: as many as the encoder was made for (16 for an image model)."""
    stride: Annotated[int, Field(gt=0)] | None = 4
    """Spacing in source frames, as in pretraining."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Spacing by time instead: frames looked at per second of video (set `stride: null`)."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a window that the next one sees again, in [0, 1). Tokens that several windows give
    are averaged; 0 encodes every frame once."""
    still_frames: Annotated[int, Field(gt=0)] | None = None
    """Frames that a still image is repeated to; null: as many as a window (the paper's 16 frames),
    one tubelet (2) costs an eighth of it."""

    def __post_init__(self) -> None:
        if (self.stride is None) == (self.fps is None):
            raise ValueError("stride: exactly one of stride and fps must be set")


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one video.

    Attributes:
        frames: int64 [n], source frames of the timeline, a whole number of windows' tubelets; a
            padded one repeats the last frame.
        num_tubelets: t, tubelets of the video that are kept.
        tubelet_size: Frames of one.
        window_tubelets: Tubelets of one window.
        starts: Tubelet that each window starts with, ascending from 0.
    """

    frames: NDArray[np.int64]
    num_tubelets: int
    tubelet_size: int
    window_tubelets: int
    starts: tuple[int, ...]

    @property
    def frame_numbers(self) -> NDArray[np.int64]:
        """Source frames of every kept tubelet: int64 [t, tubelet_size]."""
        kept = self.frames[: self.num_tubelets * self.tubelet_size]
        return kept.reshape(self.num_tubelets, self.tubelet_size)


def timeline(config: WindowConfig, num_frames_in_video: int, fps: float) -> NDArray[np.int64]:
    """Source frames that are looked at: int64 [n], n at least 1, never falling.

    Args:
        config: The spacing.
        num_frames_in_video: L, at least 1.
        fps: Frame rate of the video in frames per second; read only when sampling by time.

    Raises:
        ValueError: The video has no frames, or sampling by time needs a rate that is unknown.
    """
    if num_frames_in_video < 1:
        raise ValueError("the video has no frames")
    if config.stride is not None:
        return np.arange(0, num_frames_in_video, config.stride, dtype=np.int64)
    if not fps > 0:
        raise ValueError("the frame rate is unknown: give window.stride instead of window.fps")
    step = fps / (config.fps or fps)
    count = max(1, int(np.ceil(num_frames_in_video / step - _ROUNDING)))
    places = np.floor(np.arange(count) * step + _ROUNDING).astype(np.int64)
    return np.minimum(places, num_frames_in_video - 1)


def plan_windows(
    frames: NDArray[np.int64], *, num_frames: int, tubelet_size: int, overlap: float
) -> WindowPlan:
    """Cut a timeline into windows.

    The last window is moved back so that it ends with the timeline.

    Args:
        frames: int64 [n], the timeline.
        num_frames: Frames of one window, whole tubelets.
        tubelet_size: Frames of one token.
        overlap: As :attr:`WindowConfig.overlap`; rounded to whole tubelets.

    Returns:
        The plan.

    Raises:
        ValueError: A window is not whole tubelets.
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
        """Start before the first window of `plan`."""
        self._plan = plan
        self._window = 0
        self._first = 0
        self._sums: Tensor | None = None
        self._counts = torch.zeros(0)

    @property
    def is_done(self) -> bool:
        """Whether all windows have been added."""
        return self._window == len(self._plan.starts)

    def add(self, tokens: Tensor) -> Tensor:
        """Add the next window.

        Args:
            tokens: float32 [window_tubelets, h, w, D].

        Returns:
            The tubelets that are finished with this window, following those returned before:
            float32 [m, h, w, D], the mean over the windows that saw each.
        """
        plan = self._plan
        start = plan.starts[self._window]
        self._window += 1
        end = plan.num_tubelets if self.is_done else plan.starts[self._window]
        lacking = start + plan.window_tubelets - self._first - len(self._counts)
        if self._sums is None:
            self._sums = tokens.new_zeros(0, *tokens.shape[1:])
        self._sums = torch.cat([self._sums, tokens.new_zeros(lacking, *tokens.shape[1:])])
        self._counts = torch.cat([self._counts, torch.zeros(lacking)])
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

    kind: FramingKind = "whole"
    """`whole`: the whole frame at its own aspect, rounded to whole patches; the position code is
    stretched to it. `centre`: the centre crop of an evaluation. `stretch`: the whole frame, made
    square."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Short side (`whole`) or side (`centre`, `stretch`) in pixels, in whole patches; null: the
    image size that the encoder was made for."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""


@dataclass(frozen=True)
class Framing:
    """The way of one video's frames to the encoder.

    Attributes:
        resized: Height and width that the frame is brought to, in pixels.
        top, left: Where the seen part begins in the resized frame, in pixels.
        height, width: Of the seen part, in pixels.
        box: The seen part in the source frame: top, left, height, width, in source pixels.
        resize: How frames are resized.
    """

    resized: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    box: tuple[float, float, float, float]
    resize: Resize

    def apply(self, frame: NDArray[np.uint8]) -> Tensor:
        """Resize and cut one frame: uint8 [H, W, 3] -> uint8 [3, height, width]."""
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        scaled = resize_frames(image, *self.resized, self.resize)
        cut = scaled[0, :, self.top : self.top + self.height, self.left : self.left + self.width]
        return cut.contiguous()


def framing_for(
    config: FramingConfig, height: int, width: int, *, image_size: int, patch_size: int
) -> Framing:
    """The framing of a video whose frames have a given size.

    Args:
        config: What is wanted.
        height, width: Of the source frames, in pixels.
        image_size: What the encoder was made for, in pixels.
        patch_size: Of the encoder, in pixels.

    Returns:
        The framing.

    Raises:
        ValueError: The size is not whole patches.
    """
    size = config.size or image_size
    if size % patch_size:
        raise ValueError(f"size: {size} pixels are not whole patches of {patch_size}")
    whole = (0.0, 0.0, float(height), float(width))
    if config.kind == "stretch":
        return Framing((size, size), 0, 0, size, size, whole, config.resize)
    if config.kind == "whole":
        long = max(1, round(max(height, width) / min(height, width) * size / patch_size))
        tall, wide = (size, long * patch_size) if height <= width else (long * patch_size, size)
        return Framing((tall, wide), 0, 0, tall, wide, whole, config.resize)
    tall, wide = short_side_size(height, width, usual_short_side(size))
    top, left, _, _ = centre_of(tall, wide, size)
    down, across = height / tall, width / wide
    box = (top * down, left * across, size * down, size * across)
    return Framing((tall, wide), top, left, size, size, box, config.resize)


Pool = Literal["none", "space", "video"]

_WINDOWS_AHEAD = 4
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Look:
    """How one file is looked at.

    Attributes:
        info: The file.
        plan: Its windows.
        framing: The seen part of its frames.
        grid: Tokens (t, h, w) of the whole file.
    """

    info: VideoInfo
    plan: WindowPlan
    framing: Framing
    grid: tuple[int, int, int]

    @property
    def window_grid(self) -> tuple[int, int, int]:
        """Tokens of one window."""
        return (self.plan.window_tubelets, self.grid[1], self.grid[2])


def look_at(
    info: VideoInfo,
    window: WindowConfig,
    framing: FramingConfig,
    *,
    num_frames: int,
    tubelet_size: int,
    image_size: int,
    patch_size: int,
) -> Look:
    """Decide how a file is looked at.

    Args:
        info: What probing it has found.
        window, framing: What is wanted.
        num_frames, tubelet_size: Frames that the encoder was made for (1: an image model, which
            sees every frame alone), and those of one token.
        image_size, patch_size: The same in pixels.

    Returns:
        The look.

    Raises:
        DecodeError: The file is bad, or its length or rate allow no such look.
    """
    if not info.ok:
        raise DecodeError(info.path, info.reason or "marked as bad in the manifest")
    length = window.num_frames or (16 if num_frames == 1 else num_frames)
    try:
        if info.kind == "image":
            still = 1 if num_frames == 1 else window.still_frames or length
            frames = np.zeros(still, dtype=np.int64)
            length = still
        else:
            frames = timeline(window, info.num_frames, info.fps)
        plan = plan_windows(
            frames,
            num_frames=length,
            tubelet_size=tubelet_size,
            overlap=window.overlap,
        )
        seen = framing_for(
            framing,
            info.height,
            info.width,
            image_size=image_size,
            patch_size=patch_size,
        )
    except ValueError as error:
        raise DecodeError(info.path, str(error)) from error
    rows, columns = seen.height // patch_size, seen.width // patch_size
    return Look(info, plan, seen, (plan.num_tubelets, rows, columns))


@dataclass(frozen=True)
class ReadWindow:
    """One window of a file.

    Attributes:
        number: Of the window in its file.
        clip: uint8 [C, T, height, width], RGB.
        seconds: float64 [T], when its frames are shown.
    """

    number: int
    clip: Tensor
    seconds: NDArray[np.float64]


def read_windows(look: Look) -> Iterator[ReadWindow]:
    """The windows of one file in order; every frame is decoded and resized once.

    Raises:
        DecodeError: A frame cannot be had.
    """
    from vjepa.data.video.decode import read_frames

    plan, tubelet = look.plan, look.plan.tubelet_size
    length = plan.window_tubelets * tubelet
    frames = read_frames(look.info, plan.frames)
    held: deque[tuple[Tensor, float]] = deque()
    first, read, previous = 0, 0, None
    for number, start in enumerate(plan.starts):
        while first < start * tubelet:
            held.popleft()
            first += 1
        while read < start * tubelet + length:
            streamed = next(frames)
            # A repeated frame (still image, padding) comes as the same array: resize it once.
            if previous is None or previous[0] is not streamed.image:
                previous = (streamed.image, look.framing.apply(streamed.image))
            held.append((previous[1], streamed.seconds))
            read += 1
        clip = torch.stack([frame for frame, _ in held], dim=1)
        yield ReadWindow(number, clip, np.array([seconds for _, seconds in held]))


class _Reader:
    """Reads the windows of one file in a thread, a few ahead of their use."""

    def __init__(self, index: int, look: Look, timeout_seconds: float) -> None:
        self.index, self.look, self._timeout = index, look, timeout_seconds
        self._queue: queue.Queue[ReadWindow | DecodeError | None] = queue.Queue(_WINDOWS_AHEAD)
        self._stopped = threading.Event()
        # A daemon: a decoder that hangs can be left behind, but not ended.
        self._thread = threading.Thread(target=self._work, name="vjepa-windows", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for window in read_windows(self.look):
                if not self._put(window):
                    return
            self._put(None)
        except DecodeError as error:
            self._put(error)
        except (ValueError, RuntimeError, MemoryError) as error:
            # What foreign bytes make of a decoder or resizer: this file's failure, not the job's.
            self._put(DecodeError(self.look.info.path, f"{type(error).__name__}: {error}"))

    def _put(self, item: ReadWindow | DecodeError | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def windows(self) -> Iterator[ReadWindow]:
        """The windows; a file that gives none for too long counts as bad.

        Raises:
            DecodeError: The file failed.
        """
        while True:
            try:
                item = self._queue.get(timeout=self._timeout)
            except queue.Empty:
                raise DecodeError(
                    self.look.info.path, f"no frame within {self._timeout:g} s (decoder hangs)"
                ) from None
            if item is None:
                return
            if isinstance(item, DecodeError):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()


@dataclass(frozen=True)
class FileEvent:
    """What comes out of reading many files: a window, or that a file has failed.

    Attributes:
        index: Which file.
        look: How it is looked at; None when that could not be decided.
        window: The next window of it, or None for a failure.
        failure: Why the file failed, or None.
    """

    index: int
    look: Look | None
    window: ReadWindow | None = None
    failure: str | None = None


def read_files(
    looks: Sequence[Look | DecodeError], *, readers: int, timeout_seconds: float
) -> Iterator[FileEvent]:
    """Windows of many files, file after file, several files being read ahead.

    Args:
        looks: The files, or why one cannot be looked at.
        readers: Files that are read at the same time, each by a thread.
        timeout_seconds: A file that gives no window for so long is given up.

    Yields:
        All windows of file 0, then those of file 1, and so on; a failure ends its file.
    """
    open_readers: deque[_Reader] = deque()
    upcoming = 0
    try:
        for index, look in enumerate(looks):
            while upcoming < len(looks) and len(open_readers) < readers:
                following = looks[upcoming]
                if isinstance(following, Look):
                    open_readers.append(_Reader(upcoming, following, timeout_seconds))
                upcoming += 1
            if isinstance(look, DecodeError):
                yield FileEvent(index, None, failure=look.reason)
                continue
            reader = open_readers.popleft()
            try:
                for window in reader.windows():
                    yield FileEvent(index, look, window=window)
            except DecodeError as error:
                yield FileEvent(index, look, failure=error.reason)
            finally:
                reader.stop()
    finally:
        for reader in open_readers:
            reader.stop()
