"""Planned batches read: by worker processes that a thread steers, or here, for every job alike."""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import reduction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.data.clips.dataset import ClipViews, TrainingClips
from vjepa.data.clips.source import VideoSource
from vjepa.data.loader.failures import FailedVideo, FailureKind
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.process import available_bytes
from vjepa.runtime.progress import format_seconds
from vjepa.runtime.workers import WORKER_GIGABYTES, Outcome, WorkerPool

if TYPE_CHECKING:
    from vjepa.data.frame_cache import FrameCache
    from vjepa.data.manifest.manifest import Manifest

_LOGGER = logging.getLogger(__name__)
_REPORT_SECONDS, _REPORT_LATER_SECONDS = 10.0, 60.0  # while waiting for the first batch, and later
READY_BATCHES = 1  # batches copied out of the shared memory before anybody asks for them


@config_dataclass
class ReadingConfig:
    """How clips get from files into memory. Nothing here changes a pixel."""

    num_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode; 0 decodes in this process, without a watchdog for files that hang."""
    sample_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A video that takes longer twice is given up; its worker process is killed each time."""
    frame_cache_gigabytes: Annotated[float, Field(ge=0)] = 0.0
    """Decode every video once for all runs and keep its frames on disk, if they take no more than
    this, in GB, else decode from the files as with 0. Pays for small videos that are read many
    times."""
    frame_cache_folder: Path | None = None
    """Where such frames are kept; null: the user's cache folder."""
    max_queue_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """Memory that clips may take before they are used, in GB: fewer batches are read ahead then,
    but always one; null: a quarter of the memory that is free."""


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


@dataclass(frozen=True)
class VideoJob:
    """One video to open and the clips to cut from it; what a worker is told."""

    video: VideoInfo
    source: int  # number of the manifest
    row: int
    clips: slice  # their places in the batch
    numbers: NDArray[np.int64]  # what they are drawn from: ordinals [n], or the row and the pass
    slot: int  # number of the opening in the order of samples, or of the row in its batch
    group: int = 0  # the rows that a replacement comes from
    attempt: int = 0  # how many videos failed before this one

    def __str__(self) -> str:
        return f"{self.video.path} (sample {self.numbers[0]})"


@dataclass
class BatchPlan:
    """One process's share of a batch, kept up to date while videos are replaced."""

    step: int
    ordinals: NDArray[np.int64]  # [B]
    places: NDArray[np.int64]  # [B, 2], manifest and row of each sample
    jobs: list[VideoJob] = field(default_factory=list)  # as first planned
    failures: dict[int, FailedVideo] = field(default_factory=dict)  # the first for each slot
    num_bad: int = 0  # failed attempts


@dataclass(frozen=True)
class ClipTask:
    """Cuts the clips of one video into the shared batches; runs in a worker."""

    clips: TrainingClips | ClipViews
    ring: SharedArray  # [clips of all batches, C, T, S, S]

    def __call__(self, job: VideoJob) -> str | None:
        """Cut; the answer is None or why the video is bad."""
        try:
            self.clips.cut(VideoSource(job.video), job.numbers, self.ring.tensor[job.clips])
        except DecodeError as error:
            return error.reason
        return None


@dataclass
class _Building:
    """A batch in the making, and where in the ring it begins."""

    plan: BatchPlan
    first: int
    open_jobs: int


class _Prefetcher:
    """Keeps as many batches in the making as the ring has slots, and hands them over in order.

    A thread takes planned batches, feeds the workers, replaces bad videos and copies complete
    batches out of the ring, so that work goes on while the consumer computes. It ends with the
    last plan.
    """

    def __init__(
        self,
        reader: ClipReader,
        pool: WorkerPool,
        ring: SharedArray,
        most_clips: int,
        plans: Iterator[BatchPlan],
    ) -> None:
        """Begin to prepare `plans`; `pool`, a :class:`ClipTask` on `ring`, is in use till close."""
        self._reader, self._pool, self._ring = reader, pool, ring
        self._plans: Iterator[BatchPlan] | None = plans
        self._starts = range(0, ring.shape[0] - most_clips + 1, most_clips)
        self._free = deque(self._starts)
        self._building: deque[_Building] = deque()
        # Jobs under way, and whether it is the second time, after one that took too long.
        self._waiting: dict[int, tuple[_Building, VideoJob, bool]] = {}
        self._ready: deque[tuple[BatchPlan, Tensor]] = deque()
        self._changed = threading.Condition()
        self._asked: float | None = None  # since when the consumer waits
        self._stopping = False
        self._ended = False
        self._error: Exception | None = RuntimeError(
            "the loader's thread ended early; its traceback stands above"
        )
        self._thread = threading.Thread(target=self._run, name="vjepa-loader", daemon=True)
        self._thread.start()

    def take(self) -> tuple[BatchPlan, Tensor] | None:
        """Wait for the next batch: its plan and its clips, the caller's own; None after the last.

        UserError: too many bad videos, or workers that cannot start; others: the thread failed.
        """
        self._asked = time.monotonic()
        if len(self._starts) == 1:  # then a batch is copied out only for somebody who waits
            self._pool.wake()
        with self._changed:
            while not self._ready and not self._ended:
                self._changed.wait()
            self._asked = None
            if not self._ready:
                if self._error is not None:
                    raise self._error
                return None
            batch = self._ready.popleft()
        if not self._ended:
            self._pool.wake()
        return batch

    def close(self) -> bool:
        """Stop preparing. Afterwards no worker writes to the ring any more.

        False: the thread waits for a worker to start, and the pool must not be used again.
        """
        self._stopping = True
        self._pool.wake()
        self._thread.join(timeout=0.5)
        self._pool.cancel()
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._plan_ahead()
                self._hand_over()
                if not self._building and self._plans is None:
                    break
                for outcome in self._pool.wait(_REPORT_SECONDS / 2):
                    self._settle(outcome)
                if self._asked is not None and self._building:
                    first, waited = self._building[0], time.monotonic() - self._asked
                    self._reader.report(first.plan, first.open_jobs, waited, self._pool.describe())
            self._error = None
        except (UserError, OSError, RuntimeError) as error:
            self._error = error  # raised where the consumer takes the batch that cannot come
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _plan_ahead(self) -> None:
        while self._free and self._plans is not None:
            plan = next(self._plans, None)
            if plan is None:
                self._plans = None
                return
            building = _Building(plan, self._free.popleft(), len(plan.jobs))
            self._building.append(building)
            for job in plan.jobs:
                self._submit(building, job)

    def _submit(self, building: _Building, job: VideoJob, *, again: bool = False) -> None:
        start, stop = building.first + job.clips.start, building.first + job.clips.stop
        # A later attempt holds up a batch whose other clips are done: it goes first.
        placed = replace(job, clips=slice(start, stop))
        ticket = self._pool.submit(placed, first=again or job.attempt > 0)
        self._waiting[ticket] = building, job, again

    def _settle(self, outcome: Outcome) -> None:
        building, job, again = self._waiting.pop(outcome.ticket)
        following = None
        if outcome.kind == "hang" and not again:  # perhaps the disk stood still for a moment
            self._submit(building, job, again=True)
            return
        if outcome.kind != "done":
            following = self._reader.replace(building.plan, job, outcome.reason, outcome.kind)
        elif outcome.value is not None:
            following = self._reader.replace(building.plan, job, outcome.value)
        if following is None:
            building.open_jobs -= 1
        else:
            self._submit(building, following)

    def _hand_over(self) -> None:
        """Copy complete batches out of the ring, oldest first, as long as there is room."""
        while self._building and not self._building[0].open_jobs:
            is_wanted = self._asked is not None or len(self._starts) > 1
            if len(self._ready) >= READY_BATCHES or not is_wanted:
                return
            building = self._building.popleft()
            self._reader.finish(building.plan)
            # NumPy copies in one thread; torch would start a second pool of threads for this one.
            stop = building.first + building.plan.jobs[-1].clips.stop
            clips = torch.from_numpy(self._ring.tensor[building.first : stop].numpy().copy())
            self._free.append(building.first)
            with self._changed:
                self._ready.append((building.plan, clips))
                self._changed.notify()
            self._plan_ahead()


class ClipReader(AbstractContextManager):
    """Reads planned batches in order; the loaders of training and of evaluation are made of it.

    They plan, and say what comes instead of a video that fails. What is read does not depend on the
    number of workers. Use a loader as a context manager or call :meth:`close`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        clips: TrainingClips | ClipViews,
        config: ReadingConfig,
        *,
        prefetch_batches: int = 2,
        memory_gigabytes: float = WORKER_GIGABYTES,
        short_side: int | None = None,
    ) -> None:
        """Read and start nothing yet; `short_side` is that of cached frames."""
        self.manifests = tuple(manifests)
        self._clips, self._reading = clips, config
        self._prefetch, self._memory = prefetch_batches, memory_gigabytes
        self._short_side = short_side
        self._caches: list[FrameCache] | None = None  # not opened yet; none: read from the files
        self._ring: SharedArray | None = None
        self._pool: WorkerPool | None = None
        self._prefetcher: _Prefetcher | None = None
        self._generation = 0
        self._is_closed = False
        self._num_read = self._num_reports = 0  # batches of this range; about the next batch

    @abstractmethod
    def replace(
        self, plan: BatchPlan, job: VideoJob, reason: str, kind: FailureKind = "decode"
    ) -> VideoJob | None:
        """Note that a video failed; what is read instead, if anything is."""

    @abstractmethod
    def finish(self, plan: BatchPlan) -> None:
        """Judge a complete batch (UserError); called in the order of batches."""

    @property
    def uses_workers(self) -> bool:
        """Whether worker processes decode: not with `num_workers: 0` nor from cached frames."""
        from_files = self._reading.frame_cache_gigabytes == 0 or self._caches == []
        return self._reading.num_workers > 0 and from_files

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [] if self._pool is None else self._pool.worker_ids

    def _read(
        self, plans: Iterator[BatchPlan], most_clips: int, most_plans: int
    ) -> Generator[tuple[BatchPlan, Tensor]]:
        """Each plan with its clips, uint8 [clips, C, T, S, S], the caller's own, in order.

        There are at most `most_plans`, of at most `most_clips` each. Workers stay for the next
        call, which ends an older iterator that is not finished.
        """
        if self._is_closed:
            raise ValueError("the loader is closed")
        self._generation += 1
        generation = self._generation
        self._num_read = 0
        self._end_prefetching()
        self._open_caches()
        take = partial(self._read_here, plans)
        if self.uses_workers:
            self._prefetcher = self._start_prefetching(plans, most_clips, most_plans)
            take = self._prefetcher.take
        try:
            while (batch := take()) is not None:
                self._num_read, self._num_reports = self._num_read + 1, 0
                yield batch
                if generation != self._generation:
                    raise RuntimeError("this iterator was ended by a later call of the loader")
        finally:
            if generation == self._generation:
                self._end_prefetching()

    def report(self, plan: BatchPlan, open_jobs: int, waited: float, reader: str) -> None:
        """Say what a batch that is waited for is waiting for, ever more rarely."""
        every = _REPORT_SECONDS if self._num_read == 0 else _REPORT_LATER_SECONDS
        if waited < every * 2**self._num_reports:
            return
        self._num_reports = math.floor(math.log2(waited / every)) + 1
        _LOGGER.info(
            "waiting for clips since %s: %d of %d videos of batch %d are read; %s",
            *(format_seconds(waited), len(plan.jobs) - open_jobs, len(plan.jobs), plan.step),
            reader,
        )

    def _open_caches(self) -> None:
        # It reads the manifest's columns, which where only models are used may be impossible.
        from vjepa.data.frame_cache import open_frame_caches

        if self._reading.frame_cache_gigabytes > 0 and self._caches is None:
            self._caches = open_frame_caches(self.manifests, self._reading, self._short_side)

    def _read_here(self, plans: Iterator[BatchPlan]) -> tuple[BatchPlan, Tensor] | None:
        """The next batch, cut in this process."""
        plan = next(plans, None)
        if plan is None:
            return None
        clips = torch.empty(plan.jobs[-1].clips.stop, *self._clips.shape, dtype=torch.uint8)
        began = time.monotonic()
        for done, planned in enumerate(plan.jobs):
            job: VideoJob | None = planned
            self.report(plan, len(plan.jobs) - done, time.monotonic() - began, f"next: {planned}")
            while job is not None and (failure := self._cut(job, clips[job.clips])):
                job = self.replace(plan, job, *failure)
        self.finish(plan)
        return plan, clips

    def _cut(self, job: VideoJob, out: Tensor) -> tuple[str, FailureKind] | None:
        try:
            if self._caches:
                cache = self._caches[job.source]
                if (failure := cache.failure(job.row)) is not None:
                    return failure
                self._clips.cut(cache.source(job.row), job.numbers, out)
            else:
                self._clips.cut(VideoSource(job.video), job.numbers, out)
        except DecodeError as error:
            return error.reason, "decode"
        return None

    def _batches_ahead(self, most_clips: int) -> int:
        """Batches in the making at once: as many as are wanted and have room, at least one."""
        each = most_clips * math.prod(self._clips.shape)
        limit = self._reading.max_queue_gigabytes
        room = None if limit is None else limit * 1e9
        available = available_bytes()
        if available is not None:
            if each > available:
                raise UserError(
                    f"a batch of {most_clips} clips takes {each / 1e9:.3g} GB, but "
                    f"{available / 1e9:.3g} GB of memory are free: use smaller batches or clips"
                )
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that share this machine
            room = available / (4 * processes) if room is None else room
        if room is None:
            return self._prefetch
        return max(1, min(self._prefetch, int(room / each) - READY_BATCHES))

    def _start_prefetching(
        self, plans: Iterator[BatchPlan], most_clips: int, most_plans: int
    ) -> _Prefetcher:
        ahead = max(1, min(self._batches_ahead(most_clips), most_plans))
        if self._ring is not None and self._ring.shape[0] < ahead * most_clips:
            self._end_workers()
        if self._ring is None or self._pool is None:
            self._ring = SharedArray((ahead * most_clips, *self._clips.shape))
            # Batches wait in their order, so a worker never waits for another.
            self._pool = WorkerPool(
                ClipTask(self._clips, self._ring),
                self._reading.num_workers,
                self._reading.sample_timeout_seconds,
                self._memory,
            )
        return _Prefetcher(self, self._pool, self._ring, most_clips, plans)

    def _end_prefetching(self) -> None:
        if self._prefetcher is not None:
            prefetcher, self._prefetcher = self._prefetcher, None
            if not prefetcher.close():
                self._end_workers()

    def _end_workers(self) -> None:
        self._end_prefetching()
        if self._pool is not None:
            self._pool.close()
        if self._ring is not None:
            self._ring.close()
        self._pool = self._ring = None

    def close(self) -> None:
        """End the worker processes and give their memory back. Safe to call twice."""
        self._is_closed = True
        self._generation += 1
        self._end_workers()

    def __exit__(self, *_: object) -> None:
        self.close()
