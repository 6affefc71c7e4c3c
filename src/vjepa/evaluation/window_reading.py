"""Windows of videos and images, read ahead by threads, in memory that does not grow with length."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.video_info import DecodeError, VideoInfo
from vjepa.evaluation.framing import Framing, FramingConfig, framing_for
from vjepa.evaluation.windows import WindowConfig, WindowPlan, plan_windows, timeline
from vjepa.models import EncoderConfig

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
    info: VideoInfo, encoder: EncoderConfig, window: WindowConfig, framing: FramingConfig
) -> Look:
    """Decide how a file is looked at.

    Args:
        info: What probing it has found.
        encoder: Sizes of the encoder.
        window, framing: What is wanted.

    Returns:
        The look.

    Raises:
        DecodeError: The file is bad, or its length or rate allow no such look.
    """
    if not info.ok:
        raise DecodeError(info.path, info.reason or "marked as bad in the manifest")
    num_frames = window.num_frames or (16 if encoder.is_image_model else encoder.num_frames)
    try:
        if info.kind == "image":
            still = 1 if encoder.is_image_model else window.still_frames or num_frames
            frames = np.zeros(still, dtype=np.int64)
            num_frames = still
        else:
            frames = timeline(window, info.num_frames, info.fps)
        plan = plan_windows(
            frames,
            num_frames=num_frames,
            tubelet_size=encoder.tubelet_size,
            overlap=window.overlap,
        )
        seen = framing_for(
            framing,
            info.height,
            info.width,
            image_size=encoder.image_size,
            patch_size=encoder.patch_size,
        )
    except ValueError as error:
        raise DecodeError(info.path, str(error)) from error
    side = encoder.patch_size
    return Look(info, plan, seen, (plan.num_tubelets, seen.height // side, seen.width // side))


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
    from vjepa.data.frame_stream import stream_frames

    plan, tubelet = look.plan, look.plan.tubelet_size
    length = plan.window_tubelets * tubelet
    frames = stream_frames(look.info, plan.frames)
    held: deque[tuple[Tensor, float]] = deque()
    first, read, previous = 0, 0, None
    for number, start in enumerate(plan.starts):
        while first < start * tubelet:
            held.popleft()
            first += 1
        while read < start * tubelet + length:
            streamed = next(frames)
            # A repeated frame (still image, padding) comes as the same array: resize it once.
            if previous is None or previous[0] is not streamed.frame:
                previous = (streamed.frame, look.framing.apply(streamed.frame))
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
