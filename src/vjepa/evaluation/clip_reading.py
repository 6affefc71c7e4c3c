"""Reading evaluation clips from files, here or in worker processes that may be killed.

A file that hangs or crashes its decoder costs itself and nothing else: the worker that reads it is
given up after a time limit and the file counts as bad.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.data.clip_sampling import ClipConfig, segment_indices
from vjepa.data.transforms import Resize, center_crop_clip
from vjepa.data.video_info import DecodeError, VideoInfo
from vjepa.data.workers import WorkerPool

if TYPE_CHECKING:
    from vjepa.data import Manifest
    from vjepa.data.frame_cache import CachedVideo, FrameCache

_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The centre view of an evaluated clip."""

    crop_size: int = 224
    """Height and width of the crop, in pixels."""
    short_side: int | None = None
    """Length that the frame's short side is brought to first, in pixels; null: 256/224 of
    `crop_size`, as in the paper's evaluation with one view."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"crop_size: must be at least 1, got {self.crop_size}")
        if self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(
                f"short_side: {self.short_side} is smaller than crop_size {self.crop_size}"
            )


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How evaluation clips get from files into memory. Nothing here changes a pixel."""

    num_workers: int = 2
    """Processes that decode; 0 decodes in this process, without a watchdog for files that hang."""
    sample_timeout_seconds: float = 60.0
    """A video that takes longer is given up and its worker process killed."""
    frame_cache_gigabytes: float = 0.0
    """Decode every video once for all runs and keep its frames on disk, if the manifest's take no
    more than this, in GB; 0: off. Pays where several encoders are compared on small videos."""
    frame_cache_folder: Path | None = None
    """Where such frames are kept; null: the user's cache folder."""

    def __post_init__(self) -> None:
        if self.frame_cache_gigabytes < 0:
            raise ValueError(
                f"frame_cache_gigabytes: must not be negative, got {self.frame_cache_gigabytes}"
            )
        if self.num_workers < 0:
            raise ValueError(f"num_workers: must not be negative, got {self.num_workers}")
        if not self.sample_timeout_seconds > 0:
            raise ValueError(
                f"sample_timeout_seconds: must be above 0, got {self.sample_timeout_seconds}"
            )


@dataclass(frozen=True)
class ReadFailure:
    """Why a clip could not be read."""

    reason: str


@dataclass(frozen=True)
class CentreClip:
    """Reads the clip around the middle of a video, centre crop: nothing random.

    Called in worker processes, so that it must be picklable.

    Attributes:
        clip: Which frames.
        view: Which part of them.
    """

    clip: ClipConfig
    view: ViewConfig

    def __call__(self, info: VideoInfo) -> NDArray[np.uint8] | ReadFailure:
        """Read one video: uint8 [C, T, S, S], RGB, or why that cannot be."""
        from vjepa.data.decode import decode_frames

        if not info.ok:
            return ReadFailure(info.reason or "marked as bad in the manifest")
        indices = self._indices(info.num_frames, info.fps)
        if isinstance(indices, ReadFailure):
            return indices
        try:
            return self._crop(decode_frames(info, indices))
        except DecodeError as error:
            return ReadFailure(error.reason)

    def from_cache(self, video: CachedVideo) -> NDArray[np.uint8] | ReadFailure:
        """The same from frames that are decoded already."""
        if video.failure is not None:
            return ReadFailure(video.failure.reason)
        indices = self._indices(len(video.frames), video.fps)
        return indices if isinstance(indices, ReadFailure) else self._crop(video.frames[indices])

    def _indices(self, num_frames: int, fps: float) -> NDArray[np.int64] | ReadFailure:
        """Frames that the clip takes: int64 [T]."""
        try:
            return segment_indices(self.clip, num_frames, fps, 1, "centre")[0]
        except ValueError as error:  # too short, without frames, or of an unknown rate
            return ReadFailure(str(error))

    def _crop(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut decoded frames: uint8 [T, H, W, C] -> uint8 [C, T, S, S]."""
        view = self.view
        return center_crop_clip(frames, view.crop_size, view.resize, view.short_side).numpy()


class ClipReader:
    """Reads the rows of a manifest in order, a little ahead of their use."""

    def __init__(self, manifest: Manifest, task: CentreClip, reading: ReadingConfig) -> None:
        """Start nothing yet."""
        self._manifest, self._task, self._reading = manifest, task, reading
        self._pool: WorkerPool | None = None
        self._cache: FrameCache | None = None

    def read(
        self, rows: Sequence[int] | NDArray[np.int64], ahead: int
    ) -> Iterator[NDArray[np.uint8] | ReadFailure]:
        """The clip of each row, or why there is none, in the order of `rows`.

        Args:
            rows: Manifest rows.
            ahead: How many clips may wait to be used.
        """
        if self._reading.frame_cache_gigabytes > 0:
            cache = self._open_cache()
            for row in rows:
                yield self._task.from_cache(cache.video(int(row)))
        elif self._reading.num_workers == 0:
            for row in rows:
                yield self._task(self._manifest.row(int(row)))
        else:
            yield from self._from_workers(rows, ahead)

    def _from_workers(
        self, rows: Sequence[int] | NDArray[np.int64], ahead: int
    ) -> Iterator[NDArray[np.uint8] | ReadFailure]:
        if self._pool is None:
            self._pool = WorkerPool(
                self._task, self._reading.num_workers, self._reading.sample_timeout_seconds
            )
        tickets: list[int] = []
        ready: dict[int, NDArray[np.uint8] | ReadFailure] = {}
        for index in range(len(rows)):
            while len(tickets) < min(len(rows), index + ahead):
                row = int(rows[len(tickets)])
                tickets.append(self._pool.submit(self._manifest.row(row)))
            while tickets[index] not in ready:
                for outcome in self._pool.wait(_LONGEST_WAIT_SECONDS):
                    failed = outcome.kind != "done"
                    ready[outcome.ticket] = ReadFailure(outcome.reason) if failed else outcome.value
            yield ready.pop(tickets[index])

    def _open_cache(self) -> FrameCache:
        """The decoded frames of the whole manifest, decoded now if nobody has yet."""
        from vjepa.data.frame_cache import open_frame_caches

        if self._cache is None:
            self._cache = open_frame_caches(
                [self._manifest],
                self._reading.frame_cache_folder,
                self._reading.frame_cache_gigabytes,
                None,
                max(1, self._reading.num_workers),
                self._reading.sample_timeout_seconds,
            )[0]
        return self._cache

    def close(self) -> None:
        """End the worker processes. Safe to call twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
