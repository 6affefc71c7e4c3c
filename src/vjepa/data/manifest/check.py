"""`vjepa data check`: is every file of a manifest still there and readable?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vjepa.data.manifest.manifest import Manifest, list_lengths
from vjepa.data.video.info import LimitsConfig, MediaKind, VideoInfo
from vjepa.data.video.inspect import stamp_of
from vjepa.data.video.inspect_pool import InspectOrder, inspect_files


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that gives no frames: its number, file and reason."""

    row: int
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found."""

    num_rows: int
    """Rows of the manifest."""
    bad: tuple[BadRow, ...]
    """Rows that cannot be used, in the manifest's order."""
    num_changed: int
    """Files that are not as they were when indexed (size, time, or gone): index them again."""
    num_frames: int
    """Frames of the usable rows."""
    duration_hours: float
    """Duration of the usable rows in hours."""
    num_bytes: int
    """Size of the usable rows' files, in bytes."""
    by_codec: dict[str, int]
    """Number of usable rows by codec, most frequent first."""
    by_split: dict[str, int]
    """Number of usable rows by split ("" where none is given), most frequent first."""
    num_variable_rate: int
    """Usable rows whose frames do not all last equally long."""
    num_unindexed: int
    """Usable rows without usable timestamps: slow to read, worth re-encoding."""

    @property
    def num_ok(self) -> int:
        """Rows that can be used."""
        return self.num_rows - len(self.bad)


def check_manifest(
    manifest: Manifest,
    *,
    deep: bool = False,
    workers: int = 2,
    timeout_seconds: float = 60.0,
    limits: LimitsConfig | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> CheckReport:
    """Check every row against its file.

    Without `deep`, a file of unchanged size and time keeps its verdict and a changed one is probed
    anew. With `deep`, every frame of every file is decoded. Bad files are findings, not errors.

    Args:
        manifest: The rows to check.
        deep: Decode everything.
        workers: Number of reader processes.
        timeout_seconds: Longest time for one file.
        limits: What a file may demand at most.
        progress: Called as progress(rows done, rows in all, bad rows so far).

    Returns:
        Counts and the bad rows with reasons.
    """
    tally = _Tally(manifest)
    unchanged = np.zeros(len(manifest), dtype=bool) if deep else _unchanged(manifest)
    tally.add_unchanged(unchanged)
    done = int(unchanged.sum())
    if progress is not None and done:
        progress(done, len(manifest), len(tally.bad))
    rows = np.flatnonzero(~unchanged).tolist()
    orders = _orders(manifest, unchanged, deep)
    limits = limits or LimitsConfig()
    with closing(inspect_files(orders, workers, limits, timeout_seconds)) as infos:
        for row, found in zip(rows, infos, strict=True):
            tally.add(row, manifest.row(row), found)
            done += 1
            if progress is not None:
                progress(done, len(manifest), len(tally.bad))
    return tally.report()


def _unchanged(manifest: Manifest) -> NDArray[np.bool_]:
    """Whether each file is as when indexed; no where the manifest never recorded that."""
    kinds = manifest.categories("kind")
    sizes, times = manifest.numeric("bytes"), manifest.numeric("mtime_ns")
    unchanged = np.zeros(len(manifest), dtype=bool)
    row = 0
    for chunk in manifest.absolute_paths().chunks:
        for path in chunk.to_pylist():
            try:
                stamp = stamp_of(path, cast("MediaKind", kinds.classes[kinds.codes[row]]))
                unchanged[row] = (stamp.bytes, stamp.mtime_ns) == (sizes[row], times[row])
            except OSError:
                pass  # it is gone: probing it says so
            row += 1
    return unchanged


def _orders(manifest: Manifest, unchanged: NDArray[np.bool_], deep: bool) -> Iterator[InspectOrder]:
    for row in np.flatnonzero(~unchanged).tolist():
        info = manifest.row(row)
        fps = info.fps if info.kind == "image_folder" and info.fps > 0 else 30.0
        yield InspectOrder(path=info.path, kind=info.kind, image_folder_fps=fps, deep=deep)


class _Tally:
    """Adds up a report row by row."""

    def __init__(self, manifest: Manifest) -> None:
        self.bad: list[BadRow] = []
        self._manifest = manifest
        self._splits = manifest.categories("split")
        self._changed = self._frames = self._bytes = self._variable = self._unindexed = 0
        self._seconds = 0.0
        self._codecs: Counter[str] = Counter()
        self._split_counts: Counter[str] = Counter()

    def add_unchanged(self, unchanged: NDArray[np.bool_]) -> None:
        """Count all rows whose files are as when indexed, column by column."""
        manifest = self._manifest
        good = unchanged & manifest.ok
        for row in np.flatnonzero(unchanged & ~manifest.ok).tolist():
            reason = manifest.table.column("reason")[row].as_py()
            self._add_bad(row, manifest.path(row), reason)
        self._frames += int(manifest.num_frames[good].sum())
        self._bytes += int(manifest.numeric("bytes")[good].sum())
        self._seconds += float(manifest.numeric("duration_seconds")[good].sum())
        self._variable += int((~manifest.numeric("constant_rate").astype(bool) & good).sum())
        codecs, kinds = manifest.categories("codec"), manifest.categories("kind")
        self._codecs.update(_counted(codecs.codes[good], codecs.classes))
        self._split_counts.update(_counted(self._splits.codes[good], self._splits.classes))
        is_video = kinds.codes == (
            kinds.classes.index("video") if "video" in kinds.classes else len(kinds.classes)
        )
        lengths = list_lengths(manifest.table, "keyframe_pts")
        self._unindexed += int((is_video & (lengths == 0) & good).sum())

    def _add_bad(self, row: int, path: str, reason: str | None) -> None:
        self.bad.append(BadRow(row, path, reason or "marked as bad when indexed"))

    def add(self, row: int, recorded: VideoInfo, found: VideoInfo) -> None:
        """Count one row: as the manifest has it, and as the file is."""
        is_same = (recorded.bytes, recorded.mtime_ns) == (found.bytes, found.mtime_ns)
        self._changed += not is_same
        if not found.ok:
            self._add_bad(row, found.path, found.reason)
            return
        code = self._splits.codes[row]
        self._split_counts["" if code < 0 else self._splits.classes[code]] += 1
        self._codecs[found.codec] += 1
        self._frames += found.num_frames
        self._seconds += found.duration_seconds
        self._bytes += found.bytes
        self._variable += not found.constant_rate
        self._unindexed += found.kind == "video" and found.num_keyframes == 0

    def report(self) -> CheckReport:
        """The sums."""
        return CheckReport(
            num_rows=len(self._manifest),
            bad=tuple(sorted(self.bad, key=lambda bad: bad.row)),
            num_changed=self._changed,
            num_frames=self._frames,
            duration_hours=self._seconds / 3600,
            num_bytes=self._bytes,
            by_codec=dict(self._codecs.most_common()),
            by_split=dict(self._split_counts.most_common()),
            num_variable_rate=self._variable,
            num_unindexed=self._unindexed,
        )


def _counted(codes: NDArray[np.int32], classes: list[str]) -> dict[str, int]:
    """How often each class stands there; "" for rows without one (code -1)."""
    counts = np.bincount(codes + 1, minlength=len(classes) + 1)
    names = ["", *classes]
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
