"""`vjepa data index`: sources -> a Parquet manifest of probed files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vjepa.data.manifest.lists import IndexConfig, default_names, read_source
from vjepa.data.manifest.manifest import (
    COLUMNS,
    INFO_COLUMNS,
    LABEL_PREFIX,
    LABEL_TYPE,
    Manifest,
    infos_to_table,
)
from vjepa.data.video.info import MediaKind, VideoInfo
from vjepa.data.video.inspect import InspectOrder, inspect_files, stamp_of
from vjepa.errors import UserError

# Raised whenever probing finds out other things, so that rows of older versions are not reused.
_PROBE_VERSION = 1
_KEY = b"vjepa.probe"

Progress = Callable[[int, int, int], None]
"""Called as progress(files done, files in all, bad files so far)."""

# Rows turned into Arrow columns at a time, so that no index lives in Python lists.
BATCH = 1 << 13

_LISTING = {name: COLUMNS[name] for name in ("path", "kind", "dataset", "split", "weight")}


def partial_path(target: Path) -> Path:
    """Where an interrupted index leaves what it has."""
    return target.with_name(target.name + ".partial")


def unchanged_files(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the files of some rows are as when indexed, by size and time: bool, one a row."""
    kinds = manifest.categories("kind")
    sizes, times = manifest.numeric("bytes"), manifest.numeric("mtime_ns")
    is_same = np.zeros(len(rows), dtype=bool)
    for place, path in enumerate(manifest.paths(rows)):
        row = rows[place]
        try:
            stamp = stamp_of(path, cast("MediaKind", kinds.classes[kinds.codes[row]]))
        except OSError:
            continue  # it is gone: looking into it says so
        is_same[place] = (stamp.bytes, stamp.mtime_ns) == (sizes[row], times[row])
    return is_same


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
            holds = unchanged_files(manifest, known[rows])
            found[rows[holds]] = start + known[rows[holds]]
        return found

    def infos(self, numbers: NDArray[np.int64]) -> pa.Table:
        """What is known under numbers given by :meth:`match`: `INFO_COLUMNS`, one row each."""
        columns = [manifest.table.select(INFO_COLUMNS) for manifest in self._manifests]
        return pa.concat_tables([infos_to_table([]), *columns]).take(pa.array(numbers))


def index_sources(
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    workers: int = 2,
    config: IndexConfig | None = None,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Probe every file of the sources; write the manifest and give it, with bad rows (`ok` False).

    Files that did not change (path, size, time) since an older manifest at `out`, or since an index
    that was interrupted, are not probed again.

    Args:
        sources: Folders, lists (CSV with header, JSON lines, `path label` lines) or media files.
        out: The Parquet file to write.
        workers: Number of reader processes.
        config: How to read sources and probe.
        names: Data set name for each source; None takes their file names.
        weights: How often each source is drawn from, relative to the others, whatever its number of
            videos; None draws every video equally often.
        progress: Called after each file.

    Raises:
        UserError: A source is missing, empty or malformed; no file can be used; `out` exists and is
            no manifest, or cannot be written.
    """
    config = config or IndexConfig()
    sources = [str(source) for source in sources]
    names = _checked_names(sources, names, weights)
    target = Path(out).absolute()
    known = KnownFiles(target, config)
    listing = list_sources(sources, names, config)
    rows = _RowStore(listing, known)
    try:
        _inspect_listing(rows, config, workers, progress)
    finally:
        # After Ctrl-C or a failure, what was found waits beside the target for the next attempt.
        if 0 < len(rows) < listing.num_rows:
            Manifest(rows.table(), Path("/")).write(partial_path(target), known.metadata)
    manifest = Manifest(rows.table(), Path("/"), str(target))
    if not manifest.ok.any():
        first = [manifest.row(row) for row in range(min(3, len(manifest)))]
        reasons = "; ".join(f"{info.path}: {info.reason}" for info in first)
        raise UserError(f"none of the {len(manifest)} files can be used: {reasons}")
    if weights is not None:
        manifest = _weighted(manifest, dict(zip(names, weights, strict=True)))
    manifest.write(target, known.metadata)
    partial_path(target).unlink(missing_ok=True)
    return Manifest.open(target)


def _checked_names(
    sources: list[str], names: Sequence[str] | None, weights: Sequence[float] | None
) -> list[str]:
    """The data set name of each source.

    Raises:
        UserError: Nothing to index, lists of unequal length, a name twice, a bad weight.
    """
    if not sources:
        raise UserError("no source to index: name a folder, a list of videos or a video")
    for what, given in (("names", names), ("weights", weights)):
        if given is not None and len(given) != len(sources):
            raise UserError(f"{what}: {len(given)} given for {len(sources)} sources")
    chosen = list(names) if names is not None else default_names(sources)
    if len(set(chosen)) != len(chosen):
        raise UserError(f"names: the same name twice ({', '.join(chosen)})")
    if weights is not None and not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights: must be above 0, got {' '.join(map(str, weights))}")
    return chosen


def list_sources(sources: Sequence[str], names: Sequence[str], config: IndexConfig) -> pa.Table:
    """All rows of all sources as one flat table, read as a stream; `names` are their data sets.

    Its columns are path, kind, dataset, split, weight and `label.<name>`.

    Raises:
        UserError: A source is missing, empty or malformed.
    """
    parts: list[pa.Table] = []
    for source, dataset in zip(sources, names, strict=True):
        rows = read_source(source, config)
        while batch := list(islice(rows, BATCH)):
            arrays = {
                name: pa.array([getattr(row, name) for row in batch], type=kind)
                for name, kind in _LISTING.items()
                if name != "dataset"
            }
            arrays["dataset"] = pa.array([dataset] * len(batch), type=_LISTING["dataset"])
            for name in sorted(batch[0].labels):
                values = [row.labels.get(name) for row in batch]
                arrays[LABEL_PREFIX + name] = pa.array(values, type=LABEL_TYPE)
            parts.append(pa.table(arrays))
    return pa.concat_tables(parts, promote_options="default").combine_chunks()


class _RowStore:
    """The rows done so far, in the listing's order, as flat Arrow columns but for the newest."""

    def __init__(self, listing: pa.Table, known: KnownFiles) -> None:
        self.listing = listing
        self.reused = known.match(listing)
        self._known = known
        self._tables: list[pa.Table] = []
        self._fresh: list[VideoInfo] = []
        self._count = self._stored = 0

    def __len__(self) -> int:
        return self._count

    def add(self, fresh: VideoInfo | None) -> None:
        """The next row: what was found in its file, or None where an older row holds."""
        if fresh is not None:
            self._fresh.append(fresh)
        self._count += 1
        if self._count - self._stored == BATCH:
            self._store()

    def table(self) -> pa.Table:
        """All rows done, with the columns of a manifest."""
        self._store()
        return pa.concat_tables(self._tables)

    def _store(self) -> None:
        length = self._count - self._stored
        if not length:
            return
        said = self.listing.slice(self._stored, length)
        reused = self.reused[self._stored :][:length]
        # Fresh rows first, known ones behind them; `order` puts them back among each other.
        is_fresh = reused < 0
        older = self._known.infos(reused[~is_fresh])
        found = pa.concat_tables([infos_to_table(self._fresh), older])
        order = np.empty(length, dtype=np.int64)
        order[is_fresh] = np.arange(is_fresh.sum())
        order[~is_fresh] = np.arange(is_fresh.sum(), length)
        found = found.unify_dictionaries().combine_chunks().take(pa.array(order))
        labels = [name for name in said.column_names if name.startswith(LABEL_PREFIX)]
        columns = {
            name: said.column(name) if name in _LISTING else found.column(name) for name in COLUMNS
        }
        columns |= {name: said.column(name) for name in labels}
        self._tables.append(pa.table(columns))
        self._fresh, self._stored = [], self._count


def _inspect_listing(
    rows: _RowStore, config: IndexConfig, workers: int, progress: Progress | None
) -> None:
    """Add a row for each listed file, in order; known files are not opened."""
    listing, total, num_bad = rows.listing, rows.listing.num_rows, 0
    is_new = rows.reused < 0
    orders = (
        InspectOrder(
            path=listing.column("path")[int(row)].as_py(),
            kind=listing.column("kind")[int(row)].as_py(),
            image_folder_fps=config.image_folder_fps,
        )
        for row in np.flatnonzero(is_new)
    )
    with closing(inspect_files(orders, workers, config.limits, config.timeout_seconds)) as found:
        for row in range(total):
            info = next(found) if is_new[row] else None
            num_bad += info is not None and not info.ok
            rows.add(info)
            if progress is not None:
                progress(row + 1, total, num_bad)


def _weighted(manifest: Manifest, weights: Mapping[str, float]) -> Manifest:
    """Scale row weights so that each data set is drawn as often as its weight says.

    Within one, rows keep their ratios; the mean over all usable rows becomes 1.
    """
    scaled = manifest.weights.copy()
    datasets = manifest.categories("dataset")
    for name, weight in weights.items():
        of_source = datasets.codes == datasets.classes.index(name)
        total = scaled[of_source & manifest.ok].sum()
        if total <= 0:
            raise UserError(f"data set {name}: has a weight, but no file of it can be used")
        scaled[of_source] *= weight / total
    scaled *= manifest.ok.sum() / sum(weights.values())
    place = manifest.table.column_names.index("weight")
    table = manifest.table.set_column(place, "weight", pa.array(scaled))
    return Manifest(table, Path("/"), manifest.source)
