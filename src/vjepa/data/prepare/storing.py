"""Encoded videos -> shards or files, and the manifest that names them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vjepa.data.manifest.manifest import ManifestRow, rows_to_table
from vjepa.data.manifest.storage import ShardEntry, member_at, write_shard
from vjepa.data.prepare.config import ShardConfig
from vjepa.data.prepare.inputs import Part, plain_name
from vjepa.data.video.info import VideoInfo
from vjepa.runtime.files import atomic_path, atomic_write, sync

PLAN = "plan.json"
_MOST_FILES = 1000  # in one folder, where videos are stored as files

_INDEX_COLUMNS: Mapping[str, pa.DataType] = {
    "shard": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "source_path": pa.large_string(),
    "source_start_seconds": pa.float64(),
    "source_end_seconds": pa.float64(),
}


@dataclass(frozen=True, slots=True)
class PreparedVideo:
    """An encoded video that waits to be stored."""

    key: str
    """What its order was noted under."""
    name: str
    """Its name in the result, without suffix."""
    file: Path
    """Where it waits."""
    row: ManifestRow
    """What the manifest said of its source."""
    part: Part
    """The part of the source that it is."""
    info: VideoInfo
    """What it is itself."""

    @property
    def end_seconds(self) -> float | None:
        """Where the part ends; None: with the source."""
        return None if self.part.end == np.inf else self.part.end

    @property
    def facts(self) -> dict[str, object]:
        """What a reader of the shard alone should know of it."""
        return {
            "source": self.row.info.path,
            "start_seconds": self.part.start,
            "end_seconds": self.end_seconds,
            "split": self.row.split,
            "dataset": self.row.dataset,
            "weight": self.row.weight,
            "labels": dict(self.row.labels),
            "num_frames": self.info.num_frames,
            "fps": self.info.fps,
            "width": self.info.width,
            "height": self.info.height,
        }


@dataclass(frozen=True)
class Store:
    """The folder of the result and how it is laid out. What cannot be written is an OSError."""

    out: Path
    work: Path
    """Folder of unfinished work in it."""
    config: ShardConfig
    label_names: Sequence[str]
    """Label columns of the manifest."""

    def plan(self, videos: Sequence[PreparedVideo]) -> dict[str, list[str]]:
        """Keys of the videos of each shard (or folder of files), by its name.

        Fixed once and read back ever after: from then on the set of videos is fixed.
        """
        file = self.work / PLAN
        if not file.exists():
            atomic_write(file, json.dumps(dict(self._grouped(videos))))
        return json.loads(file.read_text())

    def _grouped(self, videos: Sequence[PreparedVideo]) -> Iterator[tuple[str, list[str]]]:
        order = np.arange(len(videos))
        if self.config.shuffle_seed is not None:
            order = np.random.default_rng(self.config.shuffle_seed).permutation(len(videos))
        by_split: dict[str, list[PreparedVideo]] = {}
        for place in order.tolist():
            by_split.setdefault(videos[place].row.split or "all", []).append(videos[place])
        for split, members in sorted(by_split.items()):
            safe = plain_name(split)
            for number, group in enumerate(self._cut(members)):
                yield f"{safe}-{number:06d}", [video.key for video in group]

    def _cut(self, videos: Sequence[PreparedVideo]) -> Iterator[list[PreparedVideo]]:
        most = _MOST_FILES if self.config.form == "files" else len(videos)
        group: list[PreparedVideo] = []
        size = 0
        for video in videos:
            is_full = size + video.info.bytes > self.config.megabytes * 1_000_000
            if group and (is_full or len(group) == most):
                yield group
                group, size = [], 0
            group.append(video)
            size += video.info.bytes
        if group:
            yield group

    def is_stored(self, name: str) -> bool:
        """Whether a group of videos is in its place, and its rows are written."""
        return self._rows_file(name).exists()

    def store(self, name: str, videos: Sequence[PreparedVideo]) -> None:
        """Put a group of videos in its place and write its rows of the manifest."""
        store = self._store_shard if self.config.form == "tar" else self._store_files
        table = store(name, videos)
        with atomic_path(self._rows_file(name)) as aside:
            pq.write_table(table, aside)
        for video in videos:
            video.file.unlink(missing_ok=True)

    def _store_shard(self, name: str, videos: Sequence[PreparedVideo]) -> pa.Table:
        shard = self.out / "shards" / f"{name}.tar"
        entries = (ShardEntry(video.name, video.file, video.facts) for video in videos)
        members = write_shard(shard, entries)
        paths = [replace(member, shard=f"shards/{shard.name}").address for member in members]
        return self._rows(videos, paths, [shard.stat().st_mtime_ns] * len(videos))

    def _store_files(self, name: str, videos: Sequence[PreparedVideo]) -> pa.Table:
        folder = self.out / "videos" / name
        folder.mkdir(parents=True, exist_ok=True)
        paths, changed = [], []
        for video in videos:
            target = folder / f"{video.name}{video.file.suffix}"
            if video.file.exists():
                video.file.replace(target)
            paths.append(f"videos/{name}/{target.name}")
            changed.append(target.stat().st_mtime_ns)
        sync(folder)
        return self._rows(videos, paths, changed)

    def _rows(
        self, videos: Sequence[PreparedVideo], paths: Sequence[str], changed: Sequence[int]
    ) -> pa.Table:
        base = "" if self.config.url is None else self.config.url.rstrip("/") + "/"
        rows = [
            replace(video.row, info=replace(video.info, path=base + path, mtime_ns=mtime))
            for video, path, mtime in zip(videos, paths, changed, strict=True)
        ]
        members = [member_at(base + path) for path in paths]
        columns: dict[str, list[object]] = {
            name: [getattr(member, name, None) for member in members]
            for name in ("shard", "offset", "length")
        }
        columns["source_path"] = [video.row.info.path for video in videos]
        columns["source_start_seconds"] = [video.part.start for video in videos]
        columns["source_end_seconds"] = [video.end_seconds for video in videos]
        table = rows_to_table(rows, self.label_names)
        for column, kind in _INDEX_COLUMNS.items():
            table = table.append_column(column, pa.array(columns[column], type=kind))
        return table

    def all_rows(self, names: Sequence[str]) -> pa.Table:
        """Rows of all groups, with weights whose mean is 1."""
        table = pa.concat_tables(pq.read_table(self._rows_file(name)) for name in names)
        table = table.unify_dictionaries().combine_chunks()
        weights = table.column("weight").to_numpy()
        mean = weights.mean()
        place = table.column_names.index("weight")
        return table.set_column(place, "weight", pa.array(weights / mean if mean > 0 else weights))

    def _rows_file(self, name: str) -> Path:
        return self.work / "rows" / f"{name}.parquet"
