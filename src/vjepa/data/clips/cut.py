"""From ordinals to clips: what every batch needs, what becomes of failures, and the pixels.

B is the number of clips of this process's batch, n that of the clips cut from one opened video; T,
C, S are frames, channels and crop size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import (
    NUM_UNIFORMS,
    TransformConfig,
    draw_crops,
    resize_cut,
    training_crop_batch,
)
from vjepa.data.clips.plan import ClipConfig, clip_indices
from vjepa.data.loader.failures import BadVideo, BadVideoLimit, BadVideoLog
from vjepa.data.loader.sampler import VideoSources
from vjepa.data.stage_clock import NO_CLOCK, StageClock
from vjepa.data.video.info import CropOrder, DecodeError, VideoInfo
from vjepa.errors import UserError

_GIGABYTE = 1e9


@dataclass(frozen=True)
class VideoJob:
    """One video to open and the clips to cut from it.

    Attributes:
        slot: Number of the opening in the order of samples.
        group: Group of rows that a replacement comes from.
        source: Number of the manifest.
        row: Row of the manifest.
        attempt: 0, or how many videos failed before this one.
        first: Place of the first clip in the batch.
        ordinals: int64 [n], consecutive.
    """

    slot: int
    group: int
    source: int
    row: int
    attempt: int
    first: int
    ordinals: NDArray[np.int64]


@dataclass
class BatchPlan:
    """One process's share of a step's batch, kept up to date while videos are replaced.

    Attributes:
        step: The step.
        ordinals: int64 [B].
        places: int64 [B, 2], manifest and row that each clip comes from.
        jobs: The videos to open, as first planned.
        failures: First reason for each slot that needed a replacement.
        num_bad: Failed attempts.
    """

    step: int
    ordinals: NDArray[np.int64]
    places: NDArray[np.int64]
    jobs: list[VideoJob]
    failures: dict[int, str] = field(default_factory=dict)
    num_bad: int = 0


class SamplePlanner:
    """Knows which videos a step needs and what stands in for one that fails."""

    def __init__(
        self,
        sources: VideoSources,
        clips_per_video: int,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        bad_videos: BadVideoLog,
        limit: BadVideoLimit,
        max_retries: int,
    ) -> None:
        """Fix the run.

        Args:
            sources: The videos.
            clips_per_video: Consecutive ordinals that share a video.
            seed: The run's seed.
            batch_size: Clips of a step over all processes.
            rank: Number of this process.
            world_size: Number of processes; they take equal, contiguous parts of a batch.
            bad_videos: Record of bad videos.
            limit: Stops the run when too many are bad.
            max_retries: Replacements tried for one sample.
        """
        self.sources = sources
        self.order = sources.order(seed, clips_per_video)
        self.batch_size = batch_size
        self.rank = rank
        self.local_batch_size = batch_size // world_size
        self.bad_videos = bad_videos
        self._limit = limit
        self._max_retries = max_retries

    def plan(self, step: int) -> BatchPlan:
        """What this process needs for a step: a pure function of the seed and the step."""
        first = step * self.batch_size + self.rank * self.local_batch_size
        ordinals = np.arange(first, first + self.local_batch_size, dtype=np.int64)
        samples = self.order.at(ordinals)
        places = self.sources.locate(samples)
        starts = np.flatnonzero(np.diff(samples.slots, prepend=-1))
        ends = np.append(starts[1:], len(ordinals))
        jobs = [
            VideoJob(
                slot=int(samples.slots[start]),
                group=int(samples.sources[start]),
                source=int(places[start, 0]),
                row=int(places[start, 1]),
                attempt=0,
                first=int(start),
                ordinals=ordinals[start:end],
            )
            for start, end in zip(starts, ends, strict=True)
        ]
        return BatchPlan(step, ordinals, places, jobs)

    def avoid_dangerous(self, plan: BatchPlan, job: VideoJob) -> VideoJob:
        """The job itself, or its replacement if its video made a worker hang or die before.

        Such a video fails without being tried, which changes nothing but the time it takes.
        """
        while self.bad_videos.num_dangerous and self.bad_videos.is_dangerous(
            path := self.sources.path(job.source, job.row)
        ):
            failure = BadVideo(path, "made a worker hang or die before", plan.step)
            job = self.replace(plan, job, failure)
        return job

    def replace(self, plan: BatchPlan, job: VideoJob, failure: BadVideo) -> VideoJob:
        """Record a failure and name the video that stands in: pure in (seed, slot, attempt).

        Raises:
            UserError: So many replacements failed in a row that something else must be wrong.
        """
        plan.num_bad += 1
        plan.failures.setdefault(job.slot, failure.reason)
        self.bad_videos.add(failure)
        attempt = job.attempt + 1
        if attempt > self._max_retries:
            raise UserError(
                f"{attempt} videos in a row could not be read for sample {job.ordinals[0]}, the "
                f"last: {failure.path}: {failure.reason}; check the disk and run `vjepa data check`"
            )
        place = self.order.replacement(job.slot, job.group, attempt)
        row = self.sources.row_of(job.group, place)
        plan.places[job.first : job.first + len(job.ordinals), 1] = row
        return VideoJob(job.slot, job.group, job.source, row, attempt, job.first, job.ordinals)

    def finish(self, plan: BatchPlan) -> None:
        """Count a complete batch against the limit; call in the order of steps.

        Raises:
            UserError: Too many of the recent videos were bad.
        """
        self._limit.count(len(plan.jobs) - len(plan.failures), list(plan.failures.values()))


@dataclass(frozen=True)
class ClipRecipe:
    """How clips are cut; everything random is a pure function of (seed, ordinal).

    Attributes:
        clip: Which frames.
        transform: Crop, resize, flip.
        seed: The run's seed.
        max_clip_gigabytes: Largest memory that the decoded frames of one opening may take.
    """

    clip: ClipConfig
    transform: TransformConfig
    seed: int
    max_clip_gigabytes: float

    def start_uniforms(self, ordinals: NDArray[np.int64]) -> NDArray[np.float64]:
        """Random numbers of the clips' places in their videos: float64 [n]."""
        return uniforms(self.seed, "clip start", ordinals, 1)[:, 0]

    def indices(
        self,
        num_frames: int,
        fps: float,
        starts: NDArray[np.float64],
        times: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        """Frames of n clips of one video: int64 [n, T]; `times` as in :func:`clip_indices`.

        Raises:
            ValueError: No clip can be cut from such a video.
        """
        return np.stack([clip_indices(self.clip, num_frames, fps, u, times) for u in starts])

    def crop_uniforms(self, ordinals: NDArray[np.int64]) -> NDArray[np.float64]:
        """Random numbers of the crops: float64 [n, `NUM_UNIFORMS`]."""
        return uniforms(self.seed, "crop", ordinals, NUM_UNIFORMS)

    def cut(
        self,
        video: VideoInfo,
        ordinals: NDArray[np.int64],
        out: Tensor,
        clock: StageClock = NO_CLOCK,
    ) -> None:
        """Decode what n clips of one video need, once, and write the clips.

        Args:
            video: A manifest row.
            ordinals: int64 [n].
            out: uint8 [n, C, T, S, S], overwritten.
            clock: Told where the time goes.

        Raises:
            DecodeError: The video cannot give its frames.
        """
        # PyAV may be missing where only models are used; only here is it needed.
        from vjepa.data.video.decode import decode_crops, frame_times

        clock.enter("seek")
        times = frame_times(video) if self.clip.is_by_time else None
        try:
            starts = self.start_uniforms(ordinals)
            wanted = self.indices(video.num_frames, video.fps, starts, times)
        except ValueError as error:
            raise DecodeError(video.path, str(error)) from error
        size = (np.full(len(ordinals), video.height), np.full(len(ordinals), video.width))
        draws = draw_crops(*size, self.transform, self.crop_uniforms(ordinals))
        orders = [CropOrder(*order) for order in zip(wanted, draws.boxes, strict=True)]
        gigabytes = sum(order.num_bytes for order in orders) / _GIGABYTE
        if gigabytes > self.max_clip_gigabytes:
            raise DecodeError(
                video.path,
                f"{wanted.size} frames of {video.width}x{video.height} take {gigabytes:.1f} GB, "
                f"loader.max_clip_gigabytes is {self.max_clip_gigabytes:g}",
            )
        cuts = decode_crops(video, orders, clock)
        clock.enter("crop")
        for cut, flip, target in zip(cuts, draws.flips, out, strict=True):
            resize_cut(cut, bool(flip), self.transform, target)
        clock.enter("rest")

    def cut_many(self, frames: NDArray[np.uint8], ordinals: NDArray[np.int64], out: Tensor) -> None:
        """The clips of n equally large videos whose frames are at hand, bit for bit as :meth:`cut`.

        Args:
            frames: uint8 [n, T, H, W, C].
            ordinals: int64 [n].
            out: uint8 [n, C, T, S, S], overwritten.
        """
        training_crop_batch(frames, self.transform, self.crop_uniforms(ordinals), out=out)
