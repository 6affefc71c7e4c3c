"""Batches cut from cached frames, in the training process, without workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.cut import BatchPlan, ClipRecipe, SamplePlanner, VideoJob
from vjepa.data.frame_cache import CachedVideo, CacheFailure, FrameCache
from vjepa.data.loader.failures import BadVideo


class CachedClips:
    """Cuts clips out of cached frames: bit for bit those that decoding anew would give."""

    def __init__(
        self, recipe: ClipRecipe, planner: SamplePlanner, caches: Sequence[FrameCache]
    ) -> None:
        """Put the parts together.

        Args:
            recipe: How clips are cut.
            planner: Replaces bad videos.
            caches: One for each manifest.
        """
        self._recipe = recipe
        self._planner = planner
        self._caches = tuple(caches)

    def fill(self, plan: BatchPlan, clips: Tensor) -> None:
        """Write the clips of a batch.

        Args:
            plan: What is needed; replacements are noted in it.
            clips: uint8 [B, C, T, S, S], overwritten.
        """
        chosen: dict[tuple[int, int], list[tuple[int, CachedVideo, NDArray[np.int64]]]] = {}
        starts = self._recipe.start_uniforms(plan.ordinals)
        for job in plan.jobs:
            own_starts = starts[job.first : job.first + len(job.ordinals)]
            video, wanted = self._readable(plan, job, own_starts)
            places = range(job.first, job.first + len(job.ordinals))
            for place, indices in zip(places, wanted, strict=True):
                size = video.frames.shape[1], video.frames.shape[2]
                chosen.setdefault(size, []).append((place, video, indices))
        for (height, width), members in chosen.items():
            num_frames = len(members[0][2])
            frames = np.empty((len(members), num_frames, height, width, 3), dtype=np.uint8)
            for target, (_, video, indices) in zip(frames, members, strict=True):
                # mode "clip" lets NumPy write straight into `target`; the indices are in range.
                np.take(video.frames, indices, axis=0, out=target, mode="clip")
            places = np.array([place for place, _, _ in members])
            if len(members) == len(plan.ordinals):
                self._recipe.cut_many(frames, plan.ordinals, clips)
                continue
            part = torch.empty(len(members), *clips.shape[1:], dtype=torch.uint8)
            self._recipe.cut_many(frames, plan.ordinals[places], part)
            clips[torch.from_numpy(places)] = part

    def _readable(
        self, plan: BatchPlan, job: VideoJob, starts: NDArray[np.float64]
    ) -> tuple[CachedVideo, NDArray[np.int64]]:
        """The job's video, or the one that stands in for it, and the frames [n, T] wanted of it."""
        while True:
            job = self._planner.avoid_dangerous(plan, job)
            video = self._caches[job.source].video(job.row)
            failure = video.failure
            if failure is None:
                try:
                    num_frames = len(video.frames)
                    return video, self._recipe.indices(num_frames, video.fps, starts, video.times)
                except ValueError as error:
                    failure = CacheFailure(str(error), "decode")
            path = self._planner.sources.path(job.source, job.row)
            bad = BadVideo(path, failure.reason, plan.step, failure.kind)
            job = self._planner.replace(plan, job, bad)
