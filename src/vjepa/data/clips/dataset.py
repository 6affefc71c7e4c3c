"""Reading evaluation clips from files, here or in worker processes that may be killed.

A file that hangs or crashes its decoder costs itself and nothing else: the worker that reads it is
given up after a time limit and the file counts as bad.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import uniforms
from vjepa.data.clips.augment import AugmentConfig, ClipDraws, augment_clip, draw_clips
from vjepa.data.clips.crops import center_crop_clip, long_side_crops
from vjepa.data.clips.plan import ClipConfig, Placement, segment_indices
from vjepa.data.clips.views import ViewConfig
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

if TYPE_CHECKING:
    from vjepa.data import Manifest
    from vjepa.data.frame_cache import CachedVideo, FrameCache


OnBadVideo = Literal["error", "list"]


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be evaluated, listed in the result and never replaced by another.

    Attributes:
        row: Its row in the manifest.
        path: Its file.
        reason: Why.
    """

    row: int
    path: str
    reason: str


@dataclass(frozen=True)
class ClipRows:
    """Clips of some manifest rows, as the encoder's input is made from them.

    Attributes:
        rows: int64 [B], manifest rows in ascending order.
        clips: uint8 [B, R, C, T, S, S], RGB; empty when there is no row.
        bad: Videos of the same span of rows that could not be read; they are not in `rows`.
    """

    rows: NDArray[np.int64]
    clips: Tensor
    bad: tuple[BadVideo, ...] = ()


def read_centre_clip(info: VideoInfo, clip: ClipConfig, view: ViewConfig) -> Tensor:
    """The clip around the middle of one video, centre crop: nothing random.

    Args:
        info: A manifest row, or what probing a file has found.
        clip: Which frames.
        view: Which part of them.

    Returns:
        uint8 [C, T, S, S], RGB.

    Raises:
        DecodeError: The frames cannot be had.
    """
    read = ClipViews(clip, replace(view, num_segments=1, num_views=1))(ViewRequest(info))
    if isinstance(read, ReadFailure):
        raise DecodeError(info.path, read.reason)
    return torch.from_numpy(read[0])


class EvaluationClips:
    """The clips of a manifest in row order. A context manager: it may hold worker processes.

    Attributes:
        rows: int64 [n], ascending: the manifest rows that are read.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipConfig,
        view: ViewConfig,
        reading: ReadingConfig,
        *,
        rows: NDArray[np.int64] | None = None,
        on_bad_video: OnBadVideo = "error",
        augment: AugmentConfig | None = None,
        pass_index: int = 0,
    ) -> None:
        """Read nothing yet.

        Args:
            manifest: The videos, also those that the manifest knows to be bad.
            clip, view: What is seen of each.
            reading: Workers.
            rows: int64 [n], ascending; None reads all rows.
            on_bad_video: ``error`` stops at the first video that cannot be read; ``list`` leaves it
                out and reports it. It is never replaced by another video.
            augment: What is random about the clips, for training.
            pass_index: Which pass over the data :meth:`batches` gives.
        """
        self.rows = np.arange(len(manifest), dtype=np.int64) if rows is None else rows
        self._manifest, self._on_bad_video, self._pass_index = manifest, on_bad_video, pass_index
        self._task = ClipViews(clip, view, augment)
        self._reader = ClipReader(manifest, self._task, reading)

    def __len__(self) -> int:
        """Number of rows n."""
        return len(self.rows)

    def path(self, row: int) -> str:
        """The file of a manifest row."""
        return self._manifest.path(row)

    @property
    def clips_per_video(self) -> int:
        """R, clips of each video."""
        return self._task.clips_per_video

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[ClipRows]:
        """Clips of ``rows[start:stop]``, `batch_size` rows at a time.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed.
        """
        rows = self.rows[start:stop]
        read = self._reader.read(((row, self._pass_index) for row in rows.tolist()), 2 * batch_size)
        for first in range(0, len(rows), batch_size):
            yield self._collect(rows[first : first + batch_size], read)

    def stream(
        self, batches: Iterable[Sequence[tuple[int, int]]], ahead: int
    ) -> Iterator[ClipRows]:
        """The clips of any rows in any passes, a batch at a time, read ahead over their ends.

        Args:
            batches: For each batch the (manifest row, number of the pass) of its samples.
            ahead: How many videos may wait to be used.

        Raises:
            UserError: As :meth:`batches`.
        """
        to_read, to_collect = itertools.tee(batches)
        read = self._reader.read(itertools.chain.from_iterable(to_read), ahead)
        for batch in to_collect:
            yield self._collect(np.array([row for row, _ in batch], dtype=np.int64), read)

    def _collect(
        self, rows: NDArray[np.int64], read: Iterator[NDArray[np.uint8] | ReadFailure]
    ) -> ClipRows:
        good: list[int] = []
        clips: list[Tensor] = []
        bad: list[BadVideo] = []
        for row, found in zip(rows.tolist(), read, strict=False):
            if isinstance(found, ReadFailure):
                bad.append(self._refuse(row, found.reason))
            else:
                clips.append(torch.from_numpy(found))
                good.append(row)
        stacked = torch.stack(clips) if clips else torch.empty(0, dtype=torch.uint8)
        return ClipRows(np.array(good, dtype=np.int64), stacked, tuple(bad))

    def _refuse(self, row: int, reason: str) -> BadVideo:
        path = self._manifest.path(row)
        if self._on_bad_video == "error":
            raise UserError(
                f"{path}: cannot be evaluated ({reason}); mend it, take it out of the manifest, or "
                "set on_bad_video: list"
            )
        return BadVideo(row, path, reason)

    def close(self) -> None:
        """End the worker processes. Safe to call twice."""
        self._reader.close()

    def __enter__(self) -> Self:
        """Nothing starts before the first batch."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


@config_dataclass
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
class ViewRequest:
    """One video to be read.

    Attributes:
        info: Its row of the manifest.
        row: The row's number, which random views depend on.
        pass_index: Which pass over the data it is for; only random views differ between passes.
    """

    info: VideoInfo
    row: int = 0
    pass_index: int = 0


@dataclass(frozen=True)
class ClipViews:
    """Reads all clips of a video, decoding it once.

    Called in worker processes, so that it must be picklable.

    Attributes:
        clip: Which frames.
        view: Which segments and which part of the frames.
        augment: What is random about them; None or policy ``none``: nothing.
    """

    clip: ClipConfig
    view: ViewConfig
    augment: AugmentConfig | None = None

    @property
    def is_random(self) -> bool:
        """Whether another pass gives other clips."""
        return self.augment is not None and self.augment.policy != "none"

    @property
    def clips_per_video(self) -> int:
        """R: for random views one crop of each segment."""
        return self.view.num_segments if self.is_random else self.view.clips_per_video

    def __call__(self, request: ViewRequest) -> NDArray[np.uint8] | ReadFailure:
        """Read one video: uint8 [R, C, T, S, S], RGB, or why that cannot be."""
        from vjepa.data.video.decode import decode_frames, frame_times

        info = request.info
        if not info.ok:
            return ReadFailure(info.reason or "marked as bad in the manifest")
        draws = self._draws(request)
        try:
            times = frame_times(info) if self.clip.is_by_time else None
        except DecodeError as error:
            return ReadFailure(error.reason)
        indices = self._indices(info.num_frames, info.fps, times, info.path, draws)
        if isinstance(indices, ReadFailure):
            return indices
        # Frames that several clips share are decoded once.
        wanted, places = np.unique(indices, return_inverse=True)
        try:
            frames = decode_frames(info, wanted)
        except DecodeError as error:
            return ReadFailure(error.reason)
        return self._cut(frames, places.reshape(indices.shape), draws)

    def from_cache(
        self, video: CachedVideo, request: ViewRequest
    ) -> NDArray[np.uint8] | ReadFailure:
        """The same from frames that are decoded already."""
        if video.failure is not None:
            return ReadFailure(video.failure.reason)
        draws = self._draws(request)
        num_frames, times = len(video.frames), video.times
        indices = self._indices(num_frames, video.fps, times, request.info.path, draws)
        return (
            indices if isinstance(indices, ReadFailure) else self._cut(video.frames, indices, draws)
        )

    def _draws(self, request: ViewRequest) -> ClipDraws | None:
        if self.augment is None or not self.is_random:
            return None
        return draw_clips(
            self.augment.seed, request.row, request.pass_index, self.view.num_segments
        )

    def _indices(
        self,
        num_frames: int,
        fps: float,
        times: NDArray[np.float64] | None,
        path: str,
        draws: ClipDraws | None,
    ) -> NDArray[np.int64] | ReadFailure:
        """Frames of the segments' clips: int64 [S, T]."""
        view = self.view
        released = view.placement.startswith("reference")
        placement: Placement = "reference" if released else "random"
        if draws is not None:
            u = draws.windows
        elif view.placement == "reference_random":
            u = uniforms(0, f"evaluation/{Path(path).name}", 0, view.num_segments)
        else:
            u, placement = None, "reference" if released else view.placement
        try:
            return segment_indices(
                self.clip, num_frames, fps, view.num_segments, placement, u, times
            )
        except ValueError as error:  # too short, without frames, or of an unknown rate
            return ReadFailure(str(error))

    def _cut(
        self, frames: NDArray[np.uint8], places: NDArray[np.int64], draws: ClipDraws | None
    ) -> NDArray[np.uint8]:
        """Cut decoded frames uint8 [F, H, W, C] at places int64 [S, T] to uint8 [R, C, T, S, S]."""
        view = self.view
        if draws is not None:
            assert self.augment is not None
            clips = [
                self._augment(frames, own, u, noise)
                for own, u, noise in zip(places, draws.pixels, draws.noise_seeds, strict=True)
            ]
        elif view.num_views == 1:
            clips = [
                center_crop_clip(
                    frames[_once(own)], view.crop_size, view.resize, view.short_side
                ).expand(-1, len(own), -1, -1)
                for own in places
            ]
        else:
            by_segment = [
                long_side_crops(
                    frames[own], view.crop_size, view.num_views, view.resize, view.short_side
                )
                for own in places
            ]
            clips = [segment[v] for v in range(view.num_views) for segment in by_segment]
        return torch.stack(clips).numpy()

    def _augment(
        self,
        frames: NDArray[np.uint8],
        own: NDArray[np.int64],
        u: NDArray[np.float64],
        noise_seed: int,
    ) -> torch.Tensor:
        """One random clip; a still image is changed once and then repeated."""
        assert self.augment is not None
        view = self.view
        clip = augment_clip(
            frames[_once(own)], self.augment, view.crop_size, view.resize, u, noise_seed
        )
        return clip.expand(-1, len(own), -1, -1)


def _once(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """A still clip's one frame, or all frames [T] of any other clip."""
    return numbers[:1] if np.all(numbers == numbers[0]) else numbers


class ClipReader:
    """Reads the rows of a manifest in order, a little ahead of their use."""

    def __init__(self, manifest: Manifest, task: ClipViews, reading: ReadingConfig) -> None:
        """Start nothing yet."""
        self._manifest, self._task, self._reading = manifest, task, reading
        self._pool: WorkerPool | None = None
        self._cache: FrameCache | None = None

    def read(
        self, rows: Iterable[tuple[int, int]], ahead: int
    ) -> Iterator[NDArray[np.uint8] | ReadFailure]:
        """The clips of videos, or why there are none, in the order of `rows`.

        Args:
            rows: (manifest row, number of the pass over the data) of each, also an endless stream.
            ahead: How many videos may wait to be used.
        """
        requests = (ViewRequest(self._manifest.row(row), row, index) for row, index in rows)
        if self._reading.frame_cache_gigabytes > 0:
            cache = self._open_cache()
            for request in requests:
                yield self._task.from_cache(cache.video(request.row), request)
        elif self._reading.num_workers == 0:
            yield from map(self._task, requests)
        else:
            yield from self._from_workers(requests, max(1, ahead))

    def _from_workers(
        self, requests: Iterator[ViewRequest], ahead: int
    ) -> Iterator[NDArray[np.uint8] | ReadFailure]:
        if self._pool is None:
            self._pool = WorkerPool(
                self._task, self._reading.num_workers, self._reading.sample_timeout_seconds
            )
        for _, outcome in self._pool.map(requests, ahead):
            yield outcome.value if outcome.kind == "done" else ReadFailure(outcome.reason)

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
