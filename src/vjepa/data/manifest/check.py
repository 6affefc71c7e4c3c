"""`vjepa data check`: is every file of a manifest still there and readable?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vjepa.data.manifest.index import BATCH, unchanged_files
from vjepa.data.manifest.manifest import (
    INFO_COLUMNS,
    LabelCodes,
    Manifest,
    infos_to_table,
    list_lengths,
)
from vjepa.data.video.info import LimitsConfig, VideoInfo
from vjepa.data.video.inspect import InspectOrder, inspect_files


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that gives no frames."""

    row: int
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found."""

    num_rows: int
    bad: tuple[BadRow, ...]
    """Rows that cannot be used, in the manifest's order."""
    num_changed: int
    """Files that are not as they were when indexed (size, time, or gone): index them again."""
    # All that follows counts the usable rows alone.
    num_frames: int
    duration_hours: float
    num_bytes: int
    by_codec: dict[str, int]
    """Number of rows by codec, most frequent first."""
    by_split: dict[str, int]
    """Number of rows by split ("" where none is given), most frequent first."""
    num_variable_rate: int
    """Rows whose frames do not all last equally long."""
    num_unindexed: int
    """Rows without usable timestamps: slow to read, worth re-encoding."""

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
    `progress` is called as progress(rows done, rows in all, bad rows so far).
    """
    unchanged = np.zeros(len(manifest), dtype=bool)
    if not deep:
        unchanged = unchanged_files(manifest, np.arange(len(manifest)))
    rows = np.flatnonzero(~unchanged)
    done, num_bad = int(unchanged.sum()), int((unchanged & ~manifest.ok).sum())
    if progress is not None and done:
        progress(done, len(manifest), num_bad)
    found = [manifest.table.select(INFO_COLUMNS).filter(pa.array(unchanged))]
    fresh: list[VideoInfo] = []
    orders = (_order(manifest.row(row), deep) for row in rows.tolist())
    limits = limits or LimitsConfig()
    with closing(inspect_files(orders, workers, limits, timeout_seconds)) as infos:
        for info in infos:
            fresh.append(info)
            if len(fresh) == BATCH:
                found.append(infos_to_table(fresh))
                fresh = []
            done, num_bad = done + 1, num_bad + (not info.ok)
            if progress is not None:
                progress(done, len(manifest), num_bad)
    joined = pa.concat_tables([*found, infos_to_table(fresh)]).unify_dictionaries()
    order = np.concatenate([np.flatnonzero(unchanged), rows])
    return _report(manifest, Manifest(joined, Path("/")), order)


def _order(info: VideoInfo, deep: bool) -> InspectOrder:
    fps = info.fps if info.kind == "image_folder" and info.fps > 0 else 30.0
    return InspectOrder(path=info.path, kind=info.kind, image_folder_fps=fps, deep=deep)


def _report(manifest: Manifest, now: Manifest, order: NDArray[np.int64]) -> CheckReport:
    """Compare a manifest with its files as they are `now`, which stand in the given order."""
    good = now.ok
    reasons = now.table.column("reason")
    bad = [
        BadRow(row, manifest.path(row), reasons[place].as_py() or "marked as bad when indexed")
        for place, row in enumerate(order.tolist())
        if not good[place]
    ]
    is_changed = np.zeros(len(now), dtype=bool)
    for name in ("bytes", "mtime_ns"):
        is_changed |= manifest.numeric(name)[order] != now.numeric(name)
    kinds, splits = now.categories("kind"), manifest.categories("split")
    is_video = np.array([*(kind == "video" for kind in kinds.classes), False])[kinds.codes]
    is_unindexed = is_video & (list_lengths(now.table, "keyframe_pts") == 0)
    return CheckReport(
        num_rows=len(manifest),
        bad=tuple(sorted(bad, key=lambda one: one.row)),
        num_changed=int(is_changed.sum()),
        num_frames=int(now.num_frames[good].sum()),
        duration_hours=float(now.numeric("duration_seconds")[good].sum()) / 3600,
        num_bytes=int(now.numeric("bytes")[good].sum()),
        by_codec=_counted(now.categories("codec"), good),
        by_split=_counted(LabelCodes(splits.codes[order], splits.classes), good),
        num_variable_rate=int((good & ~now.numeric("constant_rate").astype(bool)).sum()),
        num_unindexed=int((good & is_unindexed).sum()),
    )


def _counted(coded: LabelCodes, good: NDArray[np.bool_]) -> dict[str, int]:
    """How often each class stands in the good rows, most frequent first; "" where there is none."""
    counts = np.bincount(coded.codes[good] + 1, minlength=len(coded.classes) + 1)
    by_name = Counter(dict(zip(["", *coded.classes], counts.tolist(), strict=True)))
    return {name: count for name, count in by_name.most_common() if count}
