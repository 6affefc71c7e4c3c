"""Batches prepared ahead by worker processes, steered by one thread of the parent."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.source import VideoSource
from vjepa.data.loader.failures import FailedVideo
from vjepa.data.loader.sampler import BatchPlan, SamplePlanner, VideoJob
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.workers import Outcome, WorkerPool


class SharedArray:
    """uint8 array in anonymous shared memory.

    The memory belongs to an open file without a name: when the last process that holds it ends,
    however it ends, the memory is free. It can be handed to a process only while that one is being
    started.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        if hasattr(os, "memfd_create"):  # Linux; not bounded by /dev/shm's size in a container
            self._file = os.memfd_create("vjepa-batches")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        try:
            os.ftruncate(self._file, self._size)
            if hasattr(os, "posix_fallocate"):  # take it now rather than die of SIGBUS later
                os.posix_fallocate(self._file, 0, self._size)
        except OSError as error:
            os.close(self._file)
            raise UserError(
                f"loader: no {self._size / 1e9:.1f} GB of shared memory for batches "
                f"({error.strerror or error}): lower loader.prefetch_batches or the batch size"
            ) from error
        self._map()

    @property
    def _size(self) -> int:
        return max(1, math.prod(self.shape))

    def _map(self) -> None:
        self.tensor: Tensor = torch.frombuffer(
            mmap.mmap(self._file, self._size), dtype=torch.uint8, count=self._size
        )[: math.prod(self.shape)].view(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (reduction.DupFd(self._file), self.shape)

    def close(self) -> None:
        """Let go of the memory; tensors made from it stay valid until they are gone."""
        self.tensor = torch.empty(0, dtype=torch.uint8)
        os.close(self._file)


def _attach(handle: Any, shape: tuple[int, ...]) -> SharedArray:
    array = SharedArray.__new__(SharedArray)
    array.shape = shape
    array._file = handle.detach()
    array._map()
    return array


READY_BATCHES = 1  # batches copied out of the shared memory before anybody asks for them


@dataclass(frozen=True)
class ClipOrder:
    """What a worker is told: open `video`, write the clips of `job` into batch `slot`."""

    slot: int
    job: VideoJob
    video: VideoInfo

    def __str__(self) -> str:
        return f"{self.video.path} (sample {self.job.ordinals[0]})"


@dataclass(frozen=True)
class ClipTask:
    """Cuts the clips of one video into the shared batches; runs in a worker."""

    clips: TrainingClips
    ring: SharedArray  # [slots, B, C, T, S, S]

    def __call__(self, order: ClipOrder) -> str | None:
        """Cut; the answer is None or why the video is bad."""
        first, ordinals = order.job.first, order.job.ordinals
        out = self.ring.tensor[order.slot, first : first + len(ordinals)]
        try:
            self.clips.cut(VideoSource(order.video), ordinals, out)
        except DecodeError as error:
            return error.reason
        return None


@dataclass
class _Building:
    """A batch in the making, in a slot of the ring."""

    plan: BatchPlan
    slot: int
    open_jobs: int


class Prefetcher:
    """Keeps as many batches in the making as the ring has slots, and hands them over in order.

    A thread plans batches, feeds the workers, replaces bad videos and copies complete batches out
    of the ring, so that work goes on while the consumer computes. It ends with the last step.
    """

    def __init__(
        self, planner: SamplePlanner, pool: WorkerPool, ring: SharedArray, steps: range
    ) -> None:
        """Begin to prepare `steps`; `pool`, a :class:`ClipTask` on `ring`, is in use till close."""
        self._planner = planner
        self._pool = pool
        self._ring = ring
        self._steps = iter(steps)
        self._has_steps = True
        self._free = deque(range(ring.shape[0]))
        self._building: deque[_Building] = deque()
        self._waiting: dict[int, tuple[_Building, VideoJob]] = {}
        self._ready: deque[tuple[BatchPlan, Tensor]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="vjepa-loader", daemon=True)
        self._thread.start()

    def take(self) -> tuple[BatchPlan, Tensor]:
        """Wait for the next batch: its plan and its clips, uint8 [B, C, T, S, S], the caller's own.

        UserError: too many bad videos, or workers that cannot start; others: the thread failed.
        """
        with self._changed:
            while not self._ready and not self._ended:
                self._changed.wait()
            if not self._ready:
                raise self._error or RuntimeError(
                    "the loader's thread ended early; its traceback stands above"
                )
            batch = self._ready.popleft()
        if not self._ended:
            self._pool.wake()
        return batch

    def close(self) -> None:
        """Stop preparing. Afterwards no worker writes to the ring any more."""
        self._stopping = True
        self._pool.wake()
        self._thread.join()
        self._pool.cancel()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._plan_ahead()
                self._hand_over()
                if not self._building and not self._has_steps:
                    return
                for outcome in self._pool.wait(60.0):
                    self._settle(outcome)
        except (UserError, OSError, RuntimeError) as error:
            self._error = error  # raised where the consumer takes the batch that cannot come
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _plan_ahead(self) -> None:
        while self._free and self._has_steps:
            step = next(self._steps, None)
            if step is None:
                self._has_steps = False
                return
            plan = self._planner.plan(step)
            building = _Building(plan, self._free.popleft(), len(plan.jobs))
            self._building.append(building)
            for job in plan.jobs:
                self._submit(building, job)

    def _submit(self, building: _Building, job: VideoJob) -> None:
        job = self._planner.avoid_dangerous(building.plan, job)
        video = self._planner.sources.video(job.source, job.row)
        order = ClipOrder(building.slot, job, video)
        # A replacement holds up a batch whose other clips are done: it goes first.
        ticket = self._pool.submit(order, first=job.attempt > 0)
        self._waiting[ticket] = building, job

    def _settle(self, outcome: Outcome) -> None:
        building, job = self._waiting.pop(outcome.ticket)
        if outcome.kind == "done" and outcome.value is None:
            building.open_jobs -= 1
            return
        path = self._planner.sources.path(job.source, job.row)
        reason = outcome.value if outcome.kind == "done" else outcome.reason
        kind = "decode" if outcome.kind == "done" else outcome.kind
        failure = FailedVideo(path, reason, building.plan.step, kind)
        self._submit(building, self._planner.replace(building.plan, job, failure))

    def _hand_over(self) -> None:
        """Copy complete batches out of the ring, oldest first, as long as there is room."""
        while self._building and not self._building[0].open_jobs:
            if len(self._ready) >= READY_BATCHES:
                return
            building = self._building.popleft()
            self._planner.finish(building.plan)
            # NumPy copies in one thread; torch would start a second pool of threads for this one.
            clips = torch.from_numpy(self._ring.tensor[building.slot].numpy().copy())
            self._free.append(building.slot)
            with self._changed:
                self._ready.append((building.plan, clips))
                self._changed.notify()
            self._plan_ahead()
