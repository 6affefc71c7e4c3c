"""Looking into many files at once, each in a process that may hang or crash without harm."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass

from vjepa.data.video.info import LimitsConfig, MediaKind, VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

# Files handed out ahead of the one waited for, per process: keeps all busy while one is slow.
_AHEAD = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectOrder:
    """One file to look into; with `deep`, every frame of it is decoded."""

    path: str
    kind: MediaKind | None = None
    image_folder_fps: float = 30.0
    deep: bool = False

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class InspectTask:
    """Looks into files; runs in a worker process."""

    limits: LimitsConfig

    def __call__(self, order: InspectOrder) -> VideoInfo:
        """What is found in one file, or why it is bad."""
        try:
            return inspect_file(
                order.path, self.limits, order.kind, order.image_folder_fps, deep=order.deep
            )
        except MemoryError:
            return _bad(order, "out of memory while reading it")


def _bad(order: InspectOrder, reason: str) -> VideoInfo:
    return VideoInfo(path=order.path, kind=order.kind or "video", ok=False, reason=reason)


def inspect_files(
    orders: Iterable[InspectOrder], workers: int, limits: LimitsConfig, timeout_seconds: float
) -> Generator[VideoInfo]:
    """What is found in each file, in the order of the orders, which are read lazily.

    A file at which a process hangs or dies is a bad file; the processes end with the generator.

    Args:
        orders: The files.
        workers: Number of processes, at least 1.
        limits: What a file may demand at most.
        timeout_seconds: Longest time for one file.

    Raises:
        UserError: `workers` is below 1.
        RuntimeError: A mistake in the program, not in a file; its traceback is in the message.
    """
    if workers < 1:
        raise UserError(f"workers: must be at least 1, got {workers}")
    pool = WorkerPool(
        InspectTask(limits),
        workers,
        timeout_seconds,
        limits.max_memory_gigabytes,
        preload=["vjepa.data.video.inspect_pool"],
        imports_main=False,
    )
    with closing(pool):
        for order, outcome in pool.map(orders, _AHEAD * workers):
            if outcome.kind == "done":
                yield outcome.value
            elif outcome.kind == "hang":
                yield _bad(order, f"reading it took longer than {timeout_seconds:g} s")
            else:
                yield _bad(order, f"the decoder crashed (exit status {outcome.exit_code})")
