"""Looking into files: what they hold, and whether frames can be had from them.

A bad file is no error but a result (`ok` False and a `reason`). :func:`inspect_file` runs in this
process, :func:`inspect_files` on many files in processes that may hang or crash without harm. PyAV
and Pillow are imported where a file is opened: the process that hands files out needs neither.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vjepa.data.manifest.storage import (
    FileStatus,
    absolute,
    is_address,
    member_at,
    member_status,
    status_of,
)
from vjepa.data.video.info import (
    IMAGE_FOLDER_FPS,
    DecodeError,
    LimitsConfig,
    MediaKind,
    VideoInfo,
    images_in,
    kind_of,
)
from vjepa.errors import UserError
from vjepa.runtime.files import stand_in
from vjepa.runtime.workers import INSPECT_MODULES, WorkerPool, going_on

# Files handed out ahead of the one waited for, per process: keeps all busy while one is slow.
_AHEAD = 16


def inspect_file(
    path: str,
    limits: LimitsConfig | None = None,
    kind: MediaKind | None = None,
    image_folder_fps: float = IMAGE_FOLDER_FPS,
    deep: bool = False,
) -> VideoInfo:
    """Look into a video, an image or a folder of images; `ok` False if it cannot give frames.

    `kind` None decides by folder or suffix. With `deep` every frame is decoded and has to come out.
    """
    from vjepa.data.video.container import reason_of

    limits = limits or LimitsConfig()
    path = absolute(path)
    info = VideoInfo(path=path, kind=kind or kind_of(path))
    try:
        status = stamp_of(path, info.kind)
        info = replace(info, bytes=status.bytes, mtime_ns=status.mtime_ns)
        if info.kind != "image_folder":
            if os.path.isdir(path):  # noqa: PTH112
                raise DecodeError(path, "is a folder, not a file")
            is_stored = is_address(path) or member_at(path) is not None
            if not is_stored and not os.path.isfile(path):  # noqa: PTH113
                raise DecodeError(path, "is no regular file")
            if info.bytes == 0:
                raise DecodeError(path, "empty file (0 bytes)")
            if info.bytes > limits.max_bytes:
                reason = f"{info.bytes} bytes, above max_bytes = {limits.max_bytes}"
                raise DecodeError(path, reason)
        if info.kind == "video":
            from vjepa.data.video.frame_index import index_frames

            info = index_frames(info, limits)
        else:
            from vjepa.data.video.images import inspect_images, read_images

            info = inspect_images(info, limits, image_folder_fps)
        if deep and info.kind == "video":
            from vjepa.data.video.frame_index import check_every_frame

            check_every_frame(info)
        elif deep:
            for _ in read_images(info, np.arange(info.num_frames)):
                going_on()
    except DecodeError as error:
        return replace(info, ok=False, reason=stand_in(path) or error.reason)
    except OSError as error:
        return replace(info, ok=False, reason=reason_of(error))
    return info


def stamp_of(path: str, kind: MediaKind) -> FileStatus:
    """Size and time of the last change; of a folder, summed over its images and the latest time.

    They tell an unchanged file without opening it.

    Raises:
        OSError: There is no such file, or it cannot be looked at.
    """
    if kind != "image_folder":
        member = member_at(path)
        return status_of(path) if member is None else member_status(member)
    status = os.stat(path)  # noqa: PTH116
    each = [os.stat(os.path.join(path, name)) for name in images_in(path)]  # noqa: PTH116, PTH118
    newest = max([status.st_mtime_ns, *(one.st_mtime_ns for one in each)])
    return FileStatus(sum(one.st_size for one in each), newest)


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectOrder:
    """One file to look into; with `deep`, every frame of it is decoded."""

    path: str
    kind: MediaKind | None = None
    image_folder_fps: float = IMAGE_FOLDER_FPS
    deep: bool = False

    def __str__(self) -> str:
        return self.path

    def bad(self, reason: str) -> VideoInfo:
        """The file, known to be bad."""
        return VideoInfo(path=self.path, kind=self.kind or "video", ok=False, reason=reason)


def inspect_order(order: InspectOrder, limits: LimitsConfig) -> VideoInfo:
    """What is found in one file, or why it is bad; runs in a worker process."""
    try:
        return inspect_file(order.path, limits, order.kind, order.image_folder_fps, order.deep)
    except MemoryError:
        return order.bad("out of memory while reading it")


def inspect_files(
    orders: Iterable[InspectOrder], workers: int, limits: LimitsConfig, timeout_seconds: float
) -> Generator[VideoInfo]:
    """What is found in each file, in the order of the orders, which are read lazily.

    A file at which a process makes no progress for `timeout_seconds` or dies is a bad file; the
    processes end with the generator.

    Raises:
        UserError: `workers` is below 1.
        RuntimeError: A mistake in the program, not in a file; its traceback is in the message.
    """
    if workers < 1:
        raise UserError(f"workers: must be at least 1, got {workers}")
    pool = WorkerPool(
        partial(inspect_order, limits=limits),
        workers,
        timeout_seconds,
        limits.max_memory_gigabytes,
        preload=INSPECT_MODULES,
    )
    with closing(pool):
        for order, outcome in pool.map(orders, _AHEAD * workers):
            if outcome.kind == "done":
                yield outcome.value
            elif outcome.kind == "hang":
                yield order.bad(
                    f"reading it stood still for {timeout_seconds:g} s (a longer time: "
                    "timeout_seconds)"
                )
            elif outcome.exit_code is None:
                yield order.bad(outcome.reason)
            else:
                yield order.bad(f"the decoder crashed (exit status {outcome.exit_code})")
