"""Training batches: uint8 clips, in an order that depends on nothing but the seed and the step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
from vjepa.data.clips.views import TrainingAugmentConfig
from vjepa.data.loader.failures import BadVideoLimit, BadVideoLog, FailedVideo, FailureKind
from vjepa.data.loader.reading import READY_BATCHES, BatchPlan, ClipReader, ReadingConfig, VideoJob
from vjepa.data.loader.sampler import VideoSources
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.data.manifest.manifest import Manifest

_DANGEROUS = "made a worker hang or die before"


@config_dataclass
class LoaderConfig(ReadingConfig):
    """How clips get from files to batches.

    Of videos that can be read, only `frame_cache_short_side` changes what a batch holds.
    """

    prefetch_batches: Annotated[int, Field(gt=0)] = 4
    """Batches in the making ahead of the one in use."""
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
    images: ClipBatch | None = None  # those trained on beside the clips, likewise of this process


class ClipLoader(ClipReader):
    """Batches of random training clips from manifests.

    The batch of a step is bitwise the same whatever the number of workers or processes, and whether
    the run was resumed or not.
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
        augment: TrainingAugmentConfig | None = None,
    ) -> None:
        """Check everything that can be checked; worker processes start with the first batch.

        `manifests`, `weights` and `label` are as for :class:`VideoSources`; `batch_size` counts the
        clips of all processes; without `bad_videos_log` bad videos are recorded in memory only.
        With `augment` the clips of one opened video show the same frames, each augmented anew.
        """
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} does not divide equally; give a multiple "
                f"of the {world_size} processes"
            )
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank}: of {world_size} processes it is 0 .. {world_size - 1}")
        super().__init__(
            manifests,
            TrainingClips(clip, transform, seed, loader.max_clip_gigabytes, augment),
            loader,
            prefetch_batches=loader.prefetch_batches,
            memory_gigabytes=loader.max_worker_gigabytes,
            short_side=loader.frame_cache_short_side,
        )
        self._sources = VideoSources(manifests, weights, label)
        self._order = self._sources.order(seed, clip.clips_per_video)
        self.bad_videos = BadVideoLog(bad_videos_log)
        self._limit = BadVideoLimit(loader.max_bad_fraction, loader.min_bad_videos)
        self._max_retries = loader.max_retries
        self._batch_size, self._own = batch_size, batch_size // world_size
        self._first = rank * self._own
        self._open_caches()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the label's classes, in the order of their numbers."""
        return self._sources.class_names

    @property
    def queue_bytes(self) -> int:
        """Memory that waiting batches take at most, in bytes; the batch in use comes on top."""
        if not self.uses_workers:
            return 0
        ahead = self._batches_ahead(self._own)
        waiting = ahead + READY_BATCHES if ahead > 1 else 1
        return waiting * self._own * math.prod(self._clips.shape)

    def batches(self, start_step: int, stop_step: int) -> Iterator[ClipBatch]:
        """The batches of the steps start_step .. stop_step - 1, in order.

        Nothing beyond `stop_step` is prepared. Workers stay for the next call. A new call ends an
        older iterator that is not finished. A batch's tensors belong to the caller. UserError: too
        many bad videos.
        """
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"steps {start_step} .. {stop_step} are not a range from 0 on")
        steps = range(start_step, stop_step)
        plans = (self._plan(step) for step in steps)
        began = time.perf_counter()
        with closing(self._read(plans, self._own, len(steps))) as read:
            for plan, clips in read:
                labels = self._sources.labels(plan.places)
                yield ClipBatch(
                    step=plan.step,
                    ordinals=plan.ordinals,
                    clips=clips,
                    labels=None if labels is None else torch.from_numpy(labels),
                    rows=plan.places,
                    num_bad=plan.num_bad,
                    wait_seconds=time.perf_counter() - began,
                )
                began = time.perf_counter()

    def _plan(self, step: int) -> BatchPlan:
        """What this process needs for a step: a pure function of the seed and the step.

        But for videos that made a worker hang or die before: they are replaced without being tried.
        """
        first = step * self._batch_size + self._first
        ordinals = np.arange(first, first + self._own, dtype=np.int64)
        samples = self._order.at(ordinals)
        plan = BatchPlan(step, ordinals, self._sources.locate(samples))
        starts = np.flatnonzero(np.diff(samples.slots, prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], self._own), strict=True):
            source, row = plan.places[start].tolist()
            clips = slice(int(start), int(end))
            slot, group = int(samples.slots[start]), int(samples.sources[start])
            job = VideoJob(
                self._video(source, row), source, row, clips, ordinals[start:end], slot, group
            )
            if self.bad_videos.is_dangerous(job.video.path):
                job = self.replace(plan, job, _DANGEROUS)
            plan.jobs.append(job)
        return plan

    def _video(self, source: int, row: int) -> VideoInfo:
        """What is known of a row's file: only its path, which is cheap, where frames are cached."""
        manifest = self.manifests[source]
        return VideoInfo(path=manifest.path(row)) if self._caches else manifest.row(row)

    def replace(
        self, plan: BatchPlan, job: VideoJob, reason: str, kind: FailureKind = "decode"
    ) -> VideoJob:
        """Record a failure and name the video that comes instead: pure in (seed, slot, attempt).

        UserError: so many failed in a row that something else must be wrong.
        """
        while True:
            failure = FailedVideo(job.video.path, reason, plan.step, kind)
            plan.num_bad += 1
            plan.failures.setdefault(job.slot, failure)
            self.bad_videos.add(failure)
            attempt = job.attempt + 1
            if attempt > self._max_retries:
                raise UserError(
                    f"{attempt} videos in a row could not be read for sample {job.numbers[0]}, the "
                    f"last: {failure.path}: {reason}; see `vjepa data check --deep`"
                )
            member = self._order.replacement(job.slot, job.group, attempt)
            row = self._sources.row_of(job.group, member)
            plan.places[job.clips, 1] = row
            video = self._video(job.source, row)
            job = replace(job, video=video, row=row, attempt=attempt)
            if not self.bad_videos.is_dangerous(video.path):
                return job
            reason, kind = _DANGEROUS, "decode"

    def finish(self, plan: BatchPlan) -> None:
        """Count a complete batch against the limit (UserError)."""
        reasons = [failure.reason for failure in plan.failures.values()]
        self._limit.count(len(plan.jobs) - len(reasons), reasons)


def beside(clips: ClipLoader, images: ClipLoader) -> Callable[[int, int], Iterator[ClipBatch]]:
    """Batches of clips with those of images beside them."""

    def batches(start: int, stop: int) -> Iterator[ClipBatch]:
        both = zip(clips.batches(start, stop), images.batches(start, stop), strict=True)
        for batch, still in both:
            yield replace(
                batch,
                images=still,
                num_bad=batch.num_bad + still.num_bad,
                wait_seconds=batch.wait_seconds + still.wait_seconds,
            )

    return batches
