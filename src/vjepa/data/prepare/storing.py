"""Encoded videos -> shards or files, and the manifest that names them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vjepa.data.manifest.manifest import ManifestRow, rows_to_table
from vjepa.data.manifest.storage import Member, ShardEntry, member_at, write_shard
from vjepa.data.prepare.config import ShardConfig
from vjepa.data.prepare.inputs import Part, plain_name
from vjepa.data.video.info import VideoInfo

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
    """An encoded video that waits to be stored.

    Attributes:
        key: What its order was noted under.
        name: Its name in the result, without suffix.
        file: Where it waits.
        row: What the manifest said of its source.
        part: The part of the source that it is.
        info: What it is itself.
    """

    key: str
    name: str
    file: Path
    row: ManifestRow
    part: Part
    info: VideoInfo

    @property
    def facts(self) -> dict[str, object]:
        """What a reader of the shard alone should know of it."""
        return {
            "source": self.row.info.path,
            "start_seconds": self.part.start,
            "end_seconds": None if self.part.end == np.inf else self.part.end,
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
    """The folder of the result and how it is laid out.

    Attributes:
        out: The folder.
        work: Folder of unfinished work in it.
        config: Shards or files.
        label_names: Label columns of the manifest.
    """

    out: Path
    work: Path
    config: ShardConfig
    label_names: Sequence[str]

    def plan(self, videos: Sequence[PreparedVideo], largest: int) -> dict[str, list[str]]:
        """Which videos go into which shard (or files); fixed once and read back ever after.

        Args:
            videos: All of them.
            largest: Most videos in one group of files; shards are closed by size.

        Returns:
            Keys of videos by name of the shard.

        Raises:
            OSError: It cannot be written.
        """
        file = self.work / "plan.json"
        if not file.exists():
            groups = dict(self._grouped(videos, largest))
            aside = file.with_suffix(".tmp")
            aside.write_text(json.dumps(groups))
            aside.replace(file)
        return json.loads(file.read_text())

    @property
    def is_planned(self) -> bool:
        """Whether storing has begun: from then on the set of videos is fixed."""
        return (self.work / "plan.json").exists()

    def _grouped(
        self, videos: Sequence[PreparedVideo], largest: int
    ) -> Iterator[tuple[str, list[str]]]:
        order = np.arange(len(videos))
        if self.config.shuffle_seed is not None:
            order = np.random.default_rng(self.config.shuffle_seed).permutation(len(videos))
        by_split: dict[str, list[PreparedVideo]] = {}
        for place in order.tolist():
            by_split.setdefault(videos[place].row.split or "all", []).append(videos[place])
        for split, members in sorted(by_split.items()):
            safe = plain_name(split)
            for number, group in enumerate(self._cut(members, largest)):
                yield f"{safe}-{number:06d}", [video.key for video in group]

    def _cut(self, videos: Sequence[PreparedVideo], largest: int) -> Iterator[list[PreparedVideo]]:
        group: list[PreparedVideo] = []
        size = 0
        for video in videos:
            is_full = size + video.info.bytes > self.config.megabytes * 1_000_000
            if group and (is_full or len(group) == largest):
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
        """Put a group of videos in its place and write its rows of the manifest.

        Raises:
            OSError: It cannot be written.
        """
        if self.config.form == "tar":
            table = self._store_shard(name, videos)
        else:
            table = self._store_files(name, videos)
        file = self._rows_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp")
        pq.write_table(table, aside)
        aside.replace(file)
        for video in videos:
            video.file.unlink(missing_ok=True)

    def _store_shard(self, name: str, videos: Sequence[PreparedVideo]) -> pa.Table:
        shard = self.out / "shards" / f"{name}.tar"
        entries = (ShardEntry(video.name, video.file, video.facts) for video in videos)
        members = write_shard(shard, entries)
        changed = shard.stat().st_mtime_ns
        return self._rows(
            videos,
            [
                Member(f"shards/{shard.name}", member.offset, member.length, member.name).address
                for member in members
            ],
            [changed] * len(videos),
        )

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
            "shard": [member.shard if member else None for member in members],
            "offset": [member.offset if member else None for member in members],
            "length": [member.length if member else None for member in members],
            "source_path": [video.row.info.path for video in videos],
            "source_start_seconds": [video.part.start for video in videos],
            "source_end_seconds": [
                video.part.end if video.part.end != np.inf else None for video in videos
            ],
        }
        table = rows_to_table(rows, self.label_names)
        for column, kind in _INDEX_COLUMNS.items():
            table = table.append_column(column, pa.array(columns[column], type=kind))
        return table

    def all_rows(self, names: Sequence[str]) -> pa.Table:
        """Rows of all groups, with weights whose mean is 1.

        Raises:
            OSError: They cannot be read.
        """
        table = pa.concat_tables(pq.read_table(self._rows_file(name)) for name in names)
        table = table.unify_dictionaries().combine_chunks()
        weights = table.column("weight").to_numpy()
        mean = weights.mean()
        place = table.column_names.index("weight")
        return table.set_column(place, "weight", pa.array(weights / mean if mean > 0 else weights))

    def _rows_file(self, name: str) -> Path:
        return self.work / "rows" / f"{name}.parquet"


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a power cut does not undo renames in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
