"""What an older manifest already knows, so that unchanged files are not probed again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vjepa.data.manifest import Manifest
from vjepa.data.manifest_schema import INFO_COLUMNS
from vjepa.data.probe_file import stamp_of
from vjepa.data.source_lists import IndexConfig
from vjepa.errors import UserError

# Raised whenever probing finds out other things, so that rows of older versions are not reused.
_PROBE_VERSION = 1
_KEY = b"vjepa.probe"
# Files looked at before their paths are let go.
_BATCH = 1 << 16


def partial_path(target: Path) -> Path:
    """Where an interrupted index leaves what it has."""
    return target.with_name(target.name + ".partial")


class KnownFiles:
    """Usable rows of the manifest at the target and of an interrupted index beside it."""

    def __init__(self, target: Path, config: IndexConfig) -> None:
        """Read what is there and was probed in the same way.

        Raises:
            UserError: The target exists and is no manifest: it is not ours to replace.
        """
        way = {"version": _PROBE_VERSION, "fps": config.image_folder_fps, **asdict(config.limits)}
        self.metadata = {_KEY.decode(): json.dumps(way, sort_keys=True)}
        self._manifests = [
            manifest
            for path in (target, partial_path(target))
            if path.exists() and (manifest := self._open(path)) is not None
        ]
        self._starts = np.cumsum([0, *(len(manifest) for manifest in self._manifests)])

    def _open(self, path: Path) -> Manifest | None:
        try:
            manifest = Manifest.open(path)
            metadata = pq.read_schema(path).metadata or {}
        except (UserError, pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: exists and is no manifest; delete it or choose another --out"
            ) from error
        is_same_way = metadata.get(_KEY) == self.metadata[_KEY.decode()].encode()
        return manifest if is_same_way else None

    def match(self, listing: pa.Table) -> NDArray[np.int64]:
        """For each listed file the number of a known row that still holds, or -1: int64 [rows]."""
        found = np.full(listing.num_rows, -1, dtype=np.int64)
        kinds = np.asarray(listing.column("kind").cast(pa.string()).to_numpy())
        for start, manifest in zip(self._starts, self._manifests, strict=False):
            places = pc.call_function(
                "index_in",
                [listing.column("path")],
                pc.SetLookupOptions(value_set=manifest.absolute_paths()),
            )
            known = np.asarray(places.fill_null(-1), dtype=np.int64)
            rows = np.flatnonzero((known >= 0) & (found < 0))
            # Bad files are always tried again: what was wrong may have been mended.
            rows = rows[manifest.ok[known[rows]]]
            stored = manifest.categories("kind")
            classes = np.array(stored.classes, dtype=object)
            rows = rows[classes[stored.codes[known[rows]]] == kinds[rows]]
            holds = self._still_hold(listing, rows, kinds, manifest, known[rows])
            found[rows[holds]] = start + known[rows[holds]]
        return found

    @staticmethod
    def _still_hold(
        listing: pa.Table,
        rows: NDArray[np.int64],
        kinds: NDArray[np.object_],
        manifest: Manifest,
        known: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Whether the files are as the known rows say, by size and time: bool [rows]."""
        sizes, times = manifest.numeric("bytes")[known], manifest.numeric("mtime_ns")[known]
        holds = np.zeros(len(rows), dtype=bool)
        for begin in range(0, len(rows), _BATCH):
            part = rows[begin : begin + _BATCH]
            paths = listing.column("path").take(pa.array(part)).to_pylist()
            for place, path in enumerate(paths, start=begin):
                try:
                    stamp = stamp_of(path, kinds[rows[place]])
                except OSError:
                    continue
                holds[place] = (stamp.bytes, stamp.mtime_ns) == (sizes[place], times[place])
        return holds

    def infos(self, numbers: NDArray[np.int64]) -> pa.Table:
        """What is known under numbers given by :meth:`match`: `INFO_COLUMNS`, one row each."""
        columns = [manifest.table.select(INFO_COLUMNS) for manifest in self._manifests]
        return pa.concat_tables(columns).take(pa.array(numbers))
