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
from vjepa.data.probe_file import stamp_of
from vjepa.data.source_lists import IndexConfig
from vjepa.data.video_info import MediaKind, VideoInfo
from vjepa.errors import UserError

# Raised whenever probing finds out other things, so that rows of older versions are not reused.
_PROBE_VERSION = 1
_KEY = b"vjepa.probe"


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
        for start, manifest in zip(self._starts, self._manifests, strict=False):
            places = pc.call_function(
                "index_in",
                [listing.column("path")],
                pc.SetLookupOptions(value_set=manifest.absolute_paths()),
            )
            known = np.asarray(places.fill_null(-1), dtype=np.int64)
            for row in np.flatnonzero((known >= 0) & (found < 0)):
                path, kind = (
                    listing.column("path")[row].as_py(),
                    listing.column("kind")[row].as_py(),
                )
                if self._still_holds(manifest.row(int(known[row])), path, kind):
                    found[row] = start + known[row]
        return found

    @staticmethod
    def _still_holds(info: VideoInfo, path: str, kind: MediaKind) -> bool:
        """Whether a row describes the file as it is now. Bad files are always tried again."""
        if not info.ok or info.kind != kind:
            return False
        try:
            stamp = stamp_of(path, kind)
        except OSError:
            return False
        return (stamp.bytes, stamp.mtime_ns) == (info.bytes, info.mtime_ns)

    def info(self, number: int) -> VideoInfo:
        """What is known under a number given by :meth:`match`."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._manifests[place].row(number - int(self._starts[place]))
