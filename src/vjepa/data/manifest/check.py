"""`vjepa data check`: is every file of a manifest still there and readable?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vjepa.data.manifest.index import Progress, inspect_all, unchanged_files
from vjepa.data.manifest.lists import IndexConfig
from vjepa.data.manifest.manifest import INFO_COLUMNS, LabelCodes, Manifest, list_lengths
from vjepa.data.video.info import IMAGE_FOLDER_FPS
from vjepa.data.video.inspect import InspectOrder


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
    config: IndexConfig | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every row against its file.

    Without `deep`, a file of unchanged size and time keeps its verdict and a changed one is looked
    into anew. With `deep`, every frame of every file is decoded. Bad files are findings, not
    errors. Of the config, the limits and the time for one file are used.
    """
    unchanged = np.zeros(len(manifest), dtype=bool)
    if not deep:
        unchanged = unchanged_files(manifest, np.arange(len(manifest)))
    rows = np.argsort(~unchanged, kind="stable")  # the unchanged ones, then the others
    found = [manifest.table.select(INFO_COLUMNS).filter(pa.array(unchanged))]
    infos = (manifest.row(row) for row in rows[unchanged.sum() :].tolist())
    orders = (
        InspectOrder(
            path=info.path,
            kind=info.kind,
            image_folder_fps=(info.kind == "image_folder" and info.fps) or IMAGE_FOLDER_FPS,
            deep=deep,
        )
        for info in infos
    )
    inspect_all(orders, len(manifest), found, config or IndexConfig(), workers, progress)
    now = Manifest(pa.concat_tables(found).unify_dictionaries(), Path("/"))
    return _report(manifest, now, rows)


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
        by_codec=now.categories("codec").counts(good),
        by_split=LabelCodes(splits.codes[order], splits.classes).counts(good),
        num_variable_rate=int((good & ~now.numeric("constant_rate").astype(bool)).sum()),
        num_unindexed=int((good & is_unindexed).sum()),
    )
