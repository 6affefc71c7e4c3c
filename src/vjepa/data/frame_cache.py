"""All frames of a small set of videos, decoded once, in one memory-mapped file.

A cache is a folder with ``frames.npy`` (uint8, all frames of all videos one after the other) and
``index.npz`` (where each video's frames lie). Its name is a hash of all that its content depends
on, so it is never stale and any number of runs and processes share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.data.clips.crops import resize_frames, short_side_size
from vjepa.data.clips.source import FrameSource
from vjepa.data.manifest.index import unchanged_files
from vjepa.data.video.info import DecodeError, VideoInfo, within_memory
from vjepa.errors import UserError
from vjepa.runtime.files import atomic_folder, atomic_path, now_and_then, sync
from vjepa.runtime.progress import Progress
from vjepa.runtime.workers import WORKER_GIGABYTES, WorkerPool, going_on

if TYPE_CHECKING:
    from vjepa.data.loader.reading import ReadingConfig
    from vjepa.data.manifest.manifest import Manifest

_LOGGER = logging.getLogger(__name__)

_FORMAT = "vjepa frame cache 4"
_FRAMES, _INDEX = "frames.npy", "index.npz"
_Kind = Literal["decode", "hang", "crash"]
_KINDS: tuple[_Kind, ...] = ("decode", "hang", "crash")
_NOT_YET = "not decoded yet"
_TRIED: set[tuple[Path, float]] = set()
"""Caches whose videos this process has tried all, and in how many seconds each."""


class FrameCache:
    """The cached frames of one manifest's rows."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest, self._fps = manifest, manifest.fps
        self._frames = np.load(folder / _FRAMES, mmap_mode="r").view(np.ndarray)
        with np.load(folder / _INDEX) as index:
            self._shapes, self._offsets = index["shapes"], index["offsets"]
            self._reasons, self._kinds = index["reasons"], index["kinds"]
            self.is_whole = _NOT_YET not in self._reasons  # no build stopped on its way
            self.absent = index["absent"]  # rows whose files were not there, or were others
            # Also rows for which time or memory did not suffice: it may the next time.
            self.unsettled = np.union1d(self.absent, np.flatnonzero(self._kinds))
            rows = index["timed_rows"]
            # Also without such rows there is one piece, an empty one.
            pieces = np.split(index["times"], self._shapes[rows, 0].cumsum()[:-1])
            self.times = dict(zip(rows.tolist(), pieces, strict=False))

    def failure(self, row: int) -> tuple[str, _Kind] | None:
        """Why there are no frames of a row, and the kind of that, as in ``bad_videos.jsonl``."""
        reason = str(self._reasons[row])
        return (reason, _KINDS[self._kinds[row]]) if reason else None

    def failures(self) -> list[tuple[str, str]]:
        """Paths of videos without frames, and why."""
        rows = np.flatnonzero(self._reasons != "").tolist()
        return [(self._manifest.path(row), str(self._reasons[row])) for row in rows]

    def source(self, row: int) -> FrameSource:
        """A row's frames, mapped from the file and not copied."""
        frames = self._frames[self._offsets[row] : self._offsets[row + 1]]
        frames = frames.reshape(*self._shapes[row], 3)
        path, times = self._manifest.path(row), self.times.get(row)
        return FrameSource(frames, float(self._fps[row]), times, path)


def open_frame_caches(
    manifests: Sequence[Manifest], reading: ReadingConfig, short_side: int | None
) -> list[FrameCache]:
    """A cache for each manifest, made where it does not exist yet; none if they would be too large.

    `reading` says where they are, ``$XDG_CACHE_HOME/vjepa/frames`` unless it names a folder, and
    what they may take together. Larger videos are shrunk to `short_side` pixels. With 0 workers
    this process decodes, without a time limit for a video.

    Raises:
        UserError: They cannot be written.
    """
    layouts = [_layout(manifest, short_side) for manifest in manifests]
    gigabytes = sum(int(offsets[-1]) for _, offsets in layouts) / 1e9
    if gigabytes > reading.frame_cache_gigabytes:
        _LOGGER.info(
            "videos are decoded from their files: all frames would take %.3g GB, "
            "frame_cache_gigabytes is %g",
            *(gigabytes, reading.frame_cache_gigabytes),
        )
        return []
    folder = reading.frame_cache_folder
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(base) if base else Path.home() / ".cache") / "vjepa" / "frames"
    caches: list[FrameCache] = []
    for manifest, layout in zip(manifests, layouts, strict=True):
        target = folder / _name(manifest, short_side)
        seconds = reading.sample_timeout_seconds
        cache, rows = _opened(target, manifest, seconds)  # one may lie on a read-only disk
        try:
            if len(rows) or cache is None:
                folder.mkdir(parents=True, exist_ok=True)
                with _only_one_builds(folder / f"{target.name}.lock") as has_waited:
                    if has_waited:
                        _TRIED.add((target, seconds))
                    cache, rows = _opened(target, manifest, seconds)
                    if cache is None:
                        cache = _build(manifest, layout, target, reading)
                    elif len(rows):
                        cache = _mend(cache, manifest, rows, layout, reading)
                    _TRIED.add((target, seconds))
        except OSError as error:
            if cache is not None and cache.is_whole:
                _LOGGER.warning(
                    "frame cache %s: cannot be written (%s), %d videos that failed are not tried "
                    "again: choose another frame_cache_folder for that",
                    *(target, error.strerror or error, len(rows)),
                )
                caches.append(cache)
                continue
            size = f"{int(layout[1][-1]) / 1e9:.3g} GB"
            raise UserError(
                f"frame cache {target}: {size} cannot be written ({error.strerror or error}): free "
                "space, choose another frame_cache_folder, or set frame_cache_gigabytes to 0"
            ) from error
        caches.append(cache)
    return caches


def _opened(
    folder: Path, manifest: Manifest, seconds: float
) -> tuple[FrameCache | None, NDArray[np.int64]]:
    """A cache that is there, and rows that failed and are worth another try: int64 [rows]."""
    if not folder.is_dir():
        return None, np.zeros(0, dtype=np.int64)
    try:
        cache = FrameCache(folder, manifest)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"frame cache {folder}: damaged ({error}); delete the folder") from error
    rows = cache.absent if (folder, seconds) in _TRIED else cache.unsettled
    return cache, rows[unchanged_files(manifest, rows)]


@contextmanager
def _only_one_builds(lock: Path) -> Generator[bool]:
    """One process at a time builds a cache; the others wait (yielded: it has) and then use it."""
    has_waited = False
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOGGER.info("another process decodes these videos for the frame cache: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
            has_waited = True
        yield has_waited


_Layout = tuple[NDArray[np.int64], NDArray[np.int64]]


def _layout(manifest: Manifest, short_side: int | None) -> _Layout:
    """Shapes (L, H, W) of the rows, int64 [rows, 3], and where they begin, int64 [rows + 1]."""
    heights = manifest.numeric("height").astype(np.int64)
    widths = manifest.numeric("width").astype(np.int64)
    shapes = np.stack([manifest.num_frames, heights, widths], axis=1)
    if short_side is not None:
        for row in np.flatnonzero(np.minimum(heights, widths) > short_side):
            shapes[row, 1:] = short_side_size(*map(int, shapes[row, 1:]), short_side)
    sizes = np.where(manifest.ok, shapes.prod(axis=1) * 3, 0)
    return shapes, np.concatenate([[0], sizes.cumsum()])


def _name(manifest: Manifest, short_side: int | None) -> str:
    """Name of the cache: a hash of the rows, of the files' sizes and times, and of the settings."""
    digest = hashlib.sha256(repr((_FORMAT, manifest.content_hash, short_side)).encode())
    digest.update(manifest.path(0).encode("utf-8", "surrogateescape"))
    for column in ("bytes", "mtime_ns", "num_frames", "height", "width", "ok"):
        digest.update(np.ascontiguousarray(manifest.numeric(column)).tobytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _CacheOrder:
    """Decode `video` to `offset` of the frames, as `shape` (L, H, W)."""

    row: int
    offset: int
    shape: tuple[int, ...]
    video: VideoInfo

    def __str__(self) -> str:
        return self.video.path


def _decode(file: Path, order: _CacheOrder) -> NDArray[np.float64] | str | None:
    """Decode into `file`: the frames' times if uneven, else None, or why the video is bad."""
    from vjepa.data.video.decode import frame_times, read_frames

    length, height, width = order.shape
    mapped = np.load(file, mmap_mode="r+")
    out = mapped[order.offset :][: length * height * width * 3].reshape(*order.shape, 3)
    try:
        with within_memory(order.video.path):
            for frame in read_frames(order.video, np.arange(length)):
                image = frame.image
                if image.shape[:2] != (height, width):
                    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
                    small = resize_frames(whole, height, width, "antialias")
                    image = small[0].permute(1, 2, 0).numpy()
                out[frame.number] = image
                going_on()  # a film takes longer than a clip may
            return frame_times(order.video)
    except DecodeError as error:
        return error.reason


def _build(manifest: Manifest, layout: _Layout, target: Path, reading: ReadingConfig) -> FrameCache:
    """Make a cache that says that nothing is decoded yet, and decode into it.

    So a build that is stopped or killed goes on where it was the next time.
    """
    for old in target.parent.glob(f"{target.name}*/"):  # left by a kill
        shutil.rmtree(old, ignore_errors=True)
    is_ok = manifest.ok.tolist()
    reasons = [_NOT_YET if ok else "marked as unusable in the manifest" for ok in is_ok]
    kinds = np.zeros(len(manifest), dtype=np.int8)
    with atomic_folder(target) as aside:
        file = aside / _FRAMES
        np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(int(layout[1][-1]),))
        with file.open("r+b") as frames:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a SIGBUS later
                os.posix_fallocate(frames.fileno(), 0, os.fstat(frames.fileno()).st_size)
        _write_index(aside, manifest, layout, reasons, kinds, {})
    rows = np.flatnonzero(manifest.ok)
    return _mend(FrameCache(target, manifest), manifest, rows, layout, reading)


def _mend(
    cache: FrameCache,
    manifest: Manifest,
    rows: NDArray[np.int64],
    layout: _Layout,
    reading: ReadingConfig,
) -> FrameCache:
    """Decode some rows once more, to their places, which nobody reads until the index says so.

    The index is written from time to time, too, so that a kill costs little.
    """
    folder, file, (shapes, offsets) = cache.folder, cache.folder / _FRAMES, layout
    file.open("r+b").close()  # an OSError here, and not in a worker
    failures = [cache.failure(row) or ("", "decode") for row in range(len(manifest))]
    reasons = [reason for reason, _ in failures]
    kinds = np.array([_KINDS.index(kind) for _, kind in failures], dtype=np.int8)
    save = partial(_write_index, folder, manifest, layout, reasons, kinds, cache.times)
    save_if_due = now_and_then(save)
    orders = (
        _CacheOrder(row, int(offsets[row]), tuple(shapes[row].tolist()), manifest.row(row))
        for row in rows.tolist()
    )
    # All frames are mapped, which counts as memory.
    memory = WORKER_GIGABYTES + file.stat().st_size / 1e9
    workers, seconds = reading.num_workers, reading.sample_timeout_seconds
    with (
        Progress("decode videos once", len(rows)) as progress,
        closing(WorkerPool(partial(_decode, file), workers, seconds, memory)) as pool,
    ):
        outcomes = pool.map(orders, ahead=4 * workers, in_order=False)
        for done, (order, outcome) in enumerate(outcomes, start=1):
            reasons[order.row], kinds[order.row] = "", 0
            if outcome.kind != "done":
                reasons[order.row] = outcome.reason
                kinds[order.row] = _KINDS.index(outcome.kind)
            elif isinstance(outcome.value, str):
                reasons[order.row] = outcome.value
            elif outcome.value is not None:
                cache.times[order.row] = outcome.value
            progress.update(done)
            save_if_due()
    save()
    return FrameCache(folder, manifest)


def _write_index(
    folder: Path,
    manifest: Manifest,
    layout: _Layout,
    reasons: list[str],
    kinds: NDArray[np.int8],
    times: dict[int, NDArray[np.float64]],
) -> None:
    """Say of all rows how they went, once their frames are on the disk."""
    sync(folder / _FRAMES)
    known = np.array(reasons, dtype=np.str_)
    waiting = np.flatnonzero(known == _NOT_YET)
    failed = np.flatnonzero(manifest.ok & (known != "") & (known != _NOT_YET))
    with atomic_path(folder / _INDEX) as aside, aside.open("wb") as index:
        np.savez(
            index,
            shapes=layout[0],
            offsets=layout[1],
            reasons=known,
            kinds=kinds,
            absent=np.union1d(waiting, failed[~unchanged_files(manifest, failed)]),
            times=np.concatenate([np.zeros(0), *times.values()]),
            timed_rows=np.array(list(times), dtype=np.int64),
        )
