"""Training batches: uint8 clips, in an order that depends on nothing but the seed and the step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import Source, VideoSource
from vjepa.data.frame_cache import open_frame_caches
from vjepa.data.loader.failures import BadVideoLimit, BadVideoLog, FailedVideo
from vjepa.data.loader.prefetch import READY_BATCHES, ClipTask, Prefetcher, SharedArray
from vjepa.data.loader.sampler import BatchPlan, SamplePlanner, VideoJob, VideoSources
from vjepa.data.video.info import NO_CLOCK, DecodeError, StageClock
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

if TYPE_CHECKING:
    from vjepa.data.manifest.manifest import Manifest

_CHANNELS = 3


@config_dataclass
class LoaderConfig:
    """How clips get from files to batches.

    Of videos that can be read, only `frame_cache_short_side` changes what a batch holds.
    """

    num_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode; 0 decodes in the training process, without a watchdog."""
    prefetch_batches: Annotated[int, Field(gt=0)] = 4
    """Batches in the making ahead of the one in use."""
    sample_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A video that takes longer is given up and its worker process killed."""
    max_retries: Annotated[int, Field(ge=0)] = 10
    """Replacements tried for one sample before the run stops."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops when a larger share of the last 1000 videos could not be read."""
    min_bad_videos: Annotated[int, Field(ge=0)] = 10
    """So many bad videos at least before `max_bad_fraction` is looked at."""
    max_clip_gigabytes: Annotated[float, Field(gt=0)] = 4.0
    """Largest memory for the decoded frames of one opened video, in GB; more counts as bad."""
    max_worker_gigabytes: float = 16.0
    """Memory (address space, in GB) that a worker process may take for the video it reads; a video
    that needs more counts as bad. Linux."""
    frame_cache_gigabytes: Annotated[float, Field(ge=0)] = 0.0
    """Decode every video once and keep its frames, if they take no more than this, in GB; 0:
    off."""
    frame_cache_folder: Path | None = None
    """Where such frames are kept; null: the user's cache folder."""
    frame_cache_short_side: Annotated[int, Field(ge=1)] | None = None
    """Shrink cached frames to this short side in pixels, which changes pixels; null keeps their
    size."""

    def __post_init__(self) -> None:
        if not self.max_worker_gigabytes > self.max_clip_gigabytes:
            raise ValueError(
                f"max_worker_gigabytes must be above max_clip_gigabytes {self.max_clip_gigabytes}, "
                f"got {self.max_worker_gigabytes}"
            )


@dataclass(frozen=True)
class ClipBatch:
    """One process's clips of a step; B is its part of the batch."""

    step: int
    ordinals: NDArray[np.int64]  # [B], the samples' numbers; masks are drawn from them
    clips: Tensor  # uint8 [B, C, T, S, S], RGB, 0..255
    labels: Tensor | None  # int64 [B], places in `ClipLoader.class_names`; None if not asked for
    rows: NDArray[np.int64]  # [B, 2], manifest and row of each clip, replacements included
    num_bad: int  # videos that failed while this batch was made
    wait_seconds: float  # how long the consumer waited for it


class ClipLoader(AbstractContextManager):
    """Batches of random training clips from manifests.

    The batch of a step is bitwise the same whatever the number of workers or processes, and whether
    the run was resumed or not. Use it as a context manager or call :meth:`close`.

    `clock` is told where the time goes while this process itself decodes; none unless set.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        weights: Sequence[float | None] | None,
        clip: ClipConfig,
        transform: TransformConfig,
        loader: LoaderConfig,
        batch_size: int,
        seed: int,
        label: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        bad_videos_log: Path | None = None,
    ) -> None:
        """Check everything that can be checked; worker processes start with the first batch.

        `manifests`, `weights` and `label` are as for :class:`VideoSources`; `batch_size` counts the
        clips of all processes; without `bad_videos_log` bad videos are recorded in memory only.
        """
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} does not divide equally among {world_size} processes"
            )
        self._sources = VideoSources(manifests, weights, label)
        self._clips = TrainingClips(clip, transform, seed, loader.max_clip_gigabytes)
        self.clock: StageClock = NO_CLOCK
        self.bad_videos = BadVideoLog(bad_videos_log)
        self._planner = SamplePlanner(
            self._sources,
            clip.clips_per_video,
            seed,
            batch_size,
            rank,
            world_size,
            self.bad_videos,
            BadVideoLimit(loader.max_bad_fraction, loader.min_bad_videos),
            loader.max_retries,
        )
        size = transform.crop_size
        self._batch_shape = (batch_size // world_size, _CHANNELS, clip.num_frames, size, size)
        self._config = loader
        self._caches = None
        if loader.frame_cache_gigabytes > 0:
            self._caches = open_frame_caches(
                self._sources.manifests,
                loader.frame_cache_folder,
                loader.frame_cache_gigabytes,
                loader.frame_cache_short_side,
                loader.num_workers,
                loader.sample_timeout_seconds,
            )
        self._ring: SharedArray | None = None
        self._pool: WorkerPool | None = None
        self._prefetcher: Prefetcher | None = None
        self._generation = 0
        self._is_closed = False

    @property
    def class_names(self) -> list[str] | None:
        """Names of the label's classes, in the order of their numbers."""
        return self._sources.class_names

    @property
    def uses_workers(self) -> bool:
        """Whether worker processes decode: not with `num_workers: 0` nor from cached frames."""
        return self._config.num_workers > 0 and self._caches is None

    @property
    def queue_bytes(self) -> int:
        """Memory that waiting batches take at most, in bytes; the batch in use comes on top."""
        waiting = self._config.prefetch_batches + READY_BATCHES if self.uses_workers else 0
        return waiting * int(np.prod(self._batch_shape))

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [] if self._pool is None else self._pool.worker_ids

    def batches(self, start_step: int, stop_step: int) -> Iterator[ClipBatch]:
        """The batches of the steps start_step .. stop_step - 1, in order.

        Nothing beyond `stop_step` is prepared. Workers stay for the next call. A new call ends an
        older iterator that is not finished. A batch's tensors belong to the caller. UserError: too
        many bad videos.
        """
        if self._is_closed:
            raise ValueError("the loader is closed")
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"steps {start_step} .. {stop_step} are not a range from 0 on")
        self._generation += 1
        generation = self._generation
        self._end_prefetching()
        steps = range(start_step, stop_step)
        if self.uses_workers and steps:
            self._prefetcher = self._start_prefetching(steps)
        try:
            for step in steps:
                if generation != self._generation:
                    raise RuntimeError("this iterator was ended by a later call of the loader")
                yield self._next_batch(step)
        finally:
            if generation == self._generation:
                self._end_prefetching()

    def _next_batch(self, step: int) -> ClipBatch:
        began = time.perf_counter()
        if self._prefetcher is not None:
            plan, clips = self._prefetcher.take()
        else:
            plan = self._planner.plan(step)
            clips = torch.empty(self._batch_shape, dtype=torch.uint8)
            for job in plan.jobs:
                self._read_here(plan, job, clips)
            self._planner.finish(plan)
        labels = self._sources.labels(plan.places)
        return ClipBatch(
            step=plan.step,
            ordinals=plan.ordinals,
            clips=clips,
            labels=None if labels is None else torch.from_numpy(labels),
            rows=plan.places,
            num_bad=plan.num_bad,
            wait_seconds=time.perf_counter() - began,
        )

    def _read_here(self, plan: BatchPlan, job: VideoJob, clips: Tensor) -> None:
        """Cut the clips of a job in this process, from its video or the one that replaces it."""
        out = clips[job.first : job.first + len(job.ordinals)]
        while True:
            job = self._planner.avoid_dangerous(plan, job)
            failure = self._cut(plan, job, out)
            if failure is None:
                return
            job = self._planner.replace(plan, job, failure)

    def _cut(self, plan: BatchPlan, job: VideoJob, out: Tensor) -> FailedVideo | None:
        source: Source
        try:
            if self._caches is None:
                source = VideoSource(self._sources.video(job.source, job.row))
            else:
                cache = self._caches[job.source]
                if (failure := cache.failure(job.row)) is not None:
                    reason, kind = failure
                    path = self._sources.path(job.source, job.row)
                    return FailedVideo(path, reason, plan.step, kind)
                source = cache.source(job.row)
            self._clips.cut(source, job.ordinals, out, self.clock)
        except DecodeError as error:
            return FailedVideo(self._sources.path(job.source, job.row), error.reason, plan.step)
        return None

    def _start_prefetching(self, steps: range) -> Prefetcher:
        if self._ring is None:
            self._ring = SharedArray((self._config.prefetch_batches, *self._batch_shape))
        if self._pool is None:
            # Batches wait in the order of steps, so a worker never waits for another.
            self._pool = WorkerPool(
                ClipTask(self._clips, self._ring),
                self._config.num_workers,
                self._config.sample_timeout_seconds,
                self._config.max_worker_gigabytes,
            )
        return Prefetcher(self._planner, self._pool, self._ring, steps)

    def _end_prefetching(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def close(self) -> None:
        """End the worker processes and give their memory back. Safe to call twice."""
        self._is_closed = True
        self._generation += 1
        self._end_prefetching()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def __exit__(self, *_: object) -> None:
        self.close()
