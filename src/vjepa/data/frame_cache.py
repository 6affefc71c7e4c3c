"""All frames of a small set of videos, decoded once, in one memory-mapped file.

A cache is a folder with ``frames.npy`` (uint8, all frames of all videos one after the other) and
``index.npz`` (where each video's frames lie). Its name is a hash of all that its content depends
on, so it is never stale and any number of runs and processes share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from vjepa.data.clips.crops import resize_short_side, short_side_size
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.progress import open_progress
from vjepa.runtime.workers import WORKER_GIGABYTES, Outcome, WorkerPool

if TYPE_CHECKING:
    from vjepa.data.manifest.manifest import Manifest

_FORMAT = "vjepa frame cache 2"
_FRAMES, _INDEX = "frames.npy", "index.npz"
_KINDS: tuple[Literal["decode", "hang", "crash"], ...] = ("decode", "hang", "crash")


@dataclass(frozen=True)
class CacheFailure:
    """Why a video has no frames in the cache, as in ``bad_videos.jsonl``."""

    reason: str
    kind: Literal["decode", "hang", "crash"]


@dataclass(frozen=True)
class CachedVideo:
    """One video's frames.

    Attributes:
        frames: uint8 [L, H, W, 3], mapped from the file.
        fps: Frame rate in frames per second.
        failure: Why there are none, for a bad video.
        times: When each frame is shown, float64 [L], in seconds; None: evenly.
    """

    frames: NDArray[np.uint8]
    fps: float
    failure: CacheFailure | None
    times: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class _Layout:
    """Where each row's frames lie: int64 `shapes` [rows, 3] (L, H, W), `offsets` [rows + 1]."""

    shapes: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, manifest: Manifest, short_side: int | None) -> _Layout:
        heights = manifest.numeric("height").astype(np.int64)
        widths = manifest.numeric("width").astype(np.int64)
        shapes = np.stack([manifest.num_frames, heights, widths], axis=1)
        if short_side is not None:
            for row in np.flatnonzero(np.minimum(heights, widths) > short_side):
                shapes[row, 1:] = short_side_size(*map(int, shapes[row, 1:]), short_side)
        sizes = np.where(manifest.ok, shapes.prod(axis=1) * 3, 0)
        return cls(shapes, np.concatenate([[0], sizes.cumsum()]))

    @property
    def num_bytes(self) -> int:
        return int(self.offsets[-1])


class FrameCache:
    """The cached frames of one manifest's rows."""

    def __init__(self, folder: Path, fps: NDArray[np.float64]) -> None:
        """Map a complete cache.

        Args:
            folder: The cache.
            fps: Frame rate of each row, float64 [rows].
        """
        self.folder = folder
        self._fps = fps
        self._frames = np.load(folder / _FRAMES, mmap_mode="r").view(np.ndarray)
        with np.load(folder / _INDEX) as index:
            self._layout = _Layout(index["shapes"], index["offsets"])
            self._reasons = index["reasons"]
            self._kinds = index["kinds"]
            self._times = _ragged(index["times"], index["timed_rows"], self._layout.shapes)

    def video(self, row: int) -> CachedVideo:
        """One row's frames, not copied."""
        fps = float(self._fps[row])
        if self._reasons[row]:
            failure = CacheFailure(str(self._reasons[row]), _KINDS[self._kinds[row]])
            return CachedVideo(np.empty((0, 1, 1, 3), dtype=np.uint8), fps, failure)
        start, end = self._layout.offsets[row], self._layout.offsets[row + 1]
        frames = self._frames[start:end].reshape(*self._layout.shapes[row], 3)
        return CachedVideo(frames, fps, None, self._times.get(row))


def _ragged(
    joined: NDArray[np.float64], rows: NDArray[np.int64], shapes: NDArray[np.int64]
) -> dict[int, NDArray[np.float64]]:
    """The times of some rows, one after the other in `joined`, by row."""
    ends = shapes[rows, 0].cumsum()
    return dict(zip(rows.tolist(), np.split(joined, ends[:-1]), strict=True)) if len(rows) else {}


def open_frame_caches(
    manifests: Sequence[Manifest],
    folder: Path | None,
    max_gigabytes: float,
    short_side: int | None,
    num_workers: int,
    timeout_seconds: float,
) -> list[FrameCache]:
    """The caches of some manifests, made where they do not exist yet.

    Args:
        manifests: The videos.
        folder: Folder of all caches; None takes ``$XDG_CACHE_HOME/vjepa/frames``.
        max_gigabytes: Largest size of all these caches together, in GB.
        short_side: Shrink larger videos to this short side, in pixels.
        num_workers: Processes that decode; 0 decodes here, without a time limit.
        timeout_seconds: Longest time for one video.

    Returns:
        One cache for each manifest.

    Raises:
        UserError: They would be too large, or cannot be written.
    """
    layouts = [_Layout.of(manifest, short_side) for manifest in manifests]
    gigabytes = sum(layout.num_bytes for layout in layouts) / 1e9
    if gigabytes > max_gigabytes:
        raise UserError(
            f"loader.frame_cache_gigabytes is {max_gigabytes:g} but the decoded frames take "
            f"{gigabytes:.3g} GB: raise it, set loader.frame_cache_short_side, or set it to 0 to "
            "decode videos each time"
        )
    root = folder if folder is not None else _default_folder()
    caches = []
    for manifest, layout in zip(manifests, layouts, strict=True):
        target = root / _key(manifest, short_side)
        try:
            with _locked(root, target.name):
                if not target.is_dir():
                    _build(manifest, layout, target, num_workers, timeout_seconds)
        except OSError as error:
            raise UserError(
                f"frame cache {target}: cannot be written ({error.strerror or error}): free space, "
                "choose another loader.frame_cache_folder, or set loader.frame_cache_gigabytes to 0"
            ) from error
        caches.append(FrameCache(target, manifest.fps))
    return caches


def _default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vjepa" / "frames"


def _key(manifest: Manifest, short_side: int | None) -> str:
    """Name of the cache: a hash of the rows, of the files' sizes and times, and of the settings."""
    digest = hashlib.sha256(repr((_FORMAT, manifest.content_hash, short_side)).encode())
    digest.update(manifest.path(0).encode("utf-8", "surrogateescape"))
    for column in ("bytes", "mtime_ns", "num_frames", "height", "width", "ok"):
        digest.update(np.ascontiguousarray(manifest.numeric(column)).tobytes())
    return digest.hexdigest()[:32]


@contextmanager
def _locked(root: Path, name: str) -> Generator[None]:
    """Let one process at a time build a cache; the others wait and then use it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _CacheOrder:
    """Decode `video` to `offset` of the frames, as `shape` (L, H, W)."""

    row: int
    offset: int
    shape: tuple[int, int, int]
    video: VideoInfo

    def __str__(self) -> str:
        return self.video.path


@dataclass(frozen=True)
class _CacheTask:
    """Decodes whole videos into the file `frames`; runs in a worker."""

    frames: Path

    def __call__(self, order: _CacheOrder) -> NDArray[np.float64] | str | None:
        """Decode; the answer is the frames' times if uneven, else None, or why the video is bad."""
        from vjepa.data.video.decode import decode_frames, frame_times

        mapped = np.load(self.frames, mmap_mode="r+")
        size = int(np.prod(order.shape)) * 3
        out = mapped[order.offset : order.offset + size].reshape(*order.shape, 3)
        try:
            decoded = decode_frames(order.video, np.arange(order.shape[0]))
            times = frame_times(order.video)
        except DecodeError as error:
            return error.reason
        if decoded.shape != out.shape:
            short_side = min(order.shape[1:])
            decoded = resize_short_side(decoded, short_side).permute(0, 2, 3, 1).numpy()
        out[:] = decoded
        return times


def _build(
    manifest: Manifest,
    layout: _Layout,
    target: Path,
    num_workers: int,
    timeout_seconds: float,
) -> None:
    """Decode everything into a folder aside, then rename it."""
    aside = target.with_name(f"{target.name}.building")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    file = aside / _FRAMES
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(layout.num_bytes,))
    with file.open("r+b") as frames:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a SIGBUS later
            os.posix_fallocate(frames.fileno(), 0, os.fstat(frames.fileno()).st_size)
    reasons, kinds = [""] * len(manifest), np.zeros(len(manifest), dtype=np.int8)
    times: dict[int, NDArray[np.float64]] = {}
    for row in np.flatnonzero(~manifest.ok):
        reasons[row] = "marked as unusable in the manifest"
    with closing(_decode_rows(manifest, layout, file, num_workers, timeout_seconds)) as outcomes:
        for row, outcome in outcomes:
            if outcome.kind != "done":
                reasons[row], kinds[row] = outcome.reason, _KINDS.index(outcome.kind)
            elif isinstance(outcome.value, str):
                reasons[row] = outcome.value
            elif outcome.value is not None:
                times[row] = outcome.value
    np.savez(
        aside / _INDEX,
        shapes=layout.shapes,
        offsets=layout.offsets,
        reasons=np.array(reasons, dtype=np.str_),
        kinds=kinds,
        times=np.concatenate([np.zeros(0), *times.values()]),
        timed_rows=np.array(list(times), dtype=np.int64),
    )
    for name in (_FRAMES, _INDEX):
        with (aside / name).open("rb") as written:
            os.fsync(written.fileno())
    aside.rename(target)


def _decode_rows(
    manifest: Manifest,
    layout: _Layout,
    file: Path,
    num_workers: int,
    timeout_seconds: float,
) -> Generator[tuple[int, Outcome]]:
    """Decode all usable rows; gives each row with how it went."""
    rows = np.flatnonzero(manifest.ok).tolist()
    orders = (
        _CacheOrder(
            row,
            int(layout.offsets[row]),
            cast("tuple[int, int, int]", tuple(layout.shapes[row].tolist())),
            manifest.row(row),
        )
        for row in rows
    )
    task = _CacheTask(file)
    # All frames are mapped, and those of one video lie beside them, twice while they are shrunk.
    memory = WORKER_GIGABYTES + 3 * file.stat().st_size / 1e9
    with (
        open_progress("decode videos once", len(rows)) as progress,
        closing(WorkerPool(task, num_workers, timeout_seconds, memory)) as pool,
    ):
        outcomes = pool.map(orders, ahead=4 * num_workers, in_order=False)
        for done, (order, outcome) in enumerate(outcomes, start=1):
            yield order.row, outcome
            progress.update(done)
