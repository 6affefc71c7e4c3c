"""`vjepa data check`: is every file of a manifest still there and readable?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vjepa.data.loader.failures import BadVideo
from vjepa.data.manifest.index import inspect_all, unchanged_files
from vjepa.data.manifest.lists import InspectConfig
from vjepa.data.manifest.manifest import INFO_COLUMNS, LabelCodes, Manifest, list_lengths
from vjepa.data.video.info import IMAGE_FOLDER_FPS, VideoInfo
from vjepa.data.video.inspect import InspectOrder


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found."""

    num_rows: int
    bad: tuple[BadVideo, ...]
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
    """Rows without usable timestamps and entry points: slow to read, worth re-encoding."""
    num_unverified: int
    """Videos indexed by an older version, which believed all that files say: index them again."""
    notes: tuple[tuple[str, str], ...]
    """Paths of unusual files, and what is unusual about them."""

    @property
    def num_ok(self) -> int:
        """Rows that can be used."""
        return self.num_rows - len(self.bad)


def check_manifest(
    manifest: Manifest, *, deep: bool = False, workers: int = 2, config: InspectConfig | None = None
) -> CheckReport:
    """Check every row against its file.

    Without `deep`, a file of unchanged size and time keeps its verdict and a changed one is looked
    into anew. With `deep`, every frame of every file is decoded. Bad files are findings, not
    errors.
    """
    unchanged = np.zeros(len(manifest), dtype=bool)
    if not deep:
        unchanged = unchanged_files(manifest, np.arange(len(manifest)))
    rows = np.argsort(~unchanged, kind="stable")  # the unchanged ones, then the others
    found = [manifest.rooted_at(None).select(INFO_COLUMNS).filter(pa.array(unchanged))]
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
    inspect_all(orders, len(manifest), found, config or InspectConfig(), workers, "check")
    now = Manifest(pa.concat_tables(found).unify_dictionaries(), Path("/"))
    return _report(manifest, now, rows, int(unchanged.sum()))


def _has_same_frames(listed: VideoInfo, found: VideoInfo) -> bool:
    """Whether frames are found in a file as a row says; one without entry points says little."""
    is_alike = listed.reading == found.reading
    names = ("keyframe_pts", "keyframe_index", "frame_pts") if listed.num_keyframes else ()
    if listed.is_counted and found.is_counted and not is_alike:  # of before entry points had places
        names, is_alike = names[2:], True
    return (
        listed.num_frames == found.num_frames
        and (not names or is_alike)
        and all(np.array_equal(getattr(listed, name), getattr(found, name)) for name in names)
    )


def _report(
    manifest: Manifest, now: Manifest, order: NDArray[np.int64], num_known: int
) -> CheckReport:
    """Compare a manifest with its files as they are `now`, which stand in the given order.

    The first `num_known` of them were not looked into.
    """
    good = now.ok
    reasons = now.table.column("reason")
    bad = [
        BadVideo(row, manifest.path(row), reasons[place].as_py() or "marked as bad when indexed")
        for place, row in enumerate(order.tolist())
        if not good[place]
    ]
    is_changed = np.zeros(len(now), dtype=bool)
    for name in ("bytes", "mtime_ns"):
        is_changed |= manifest.numeric(name)[order] != now.numeric(name)
    is_comparable = good & manifest.ok[order] & ~is_changed & (np.arange(len(now)) >= num_known)
    for place in np.flatnonzero(is_comparable).tolist():
        row = int(order[place])
        if not _has_same_frames(manifest.row(row), now.row(place)):
            reason = "its frames are not those that the manifest lists; index it again"
            bad.append(BadVideo(row, manifest.path(row), reason))
    kinds, splits = now.categories("kind"), manifest.categories("split")
    is_video = np.array([*(kind == "video" for kind in kinds.classes), False])[kinds.codes]
    readings = np.asarray(now.table.column("reading").cast(pa.string()))
    is_counted = np.isin(readings, ("counted", "placed"))
    is_unindexed = is_video & (list_lengths(now.table, "keyframe_pts") <= is_counted)
    is_unverified = is_video & np.asarray(now.table.column("stream").is_null())
    notes = now.table.column("note").to_pylist()
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
        num_unverified=int((good & is_unverified).sum()),
        notes=tuple((now.path(place), note) for place, note in enumerate(notes) if note),
    )
