"""`vjepa data index`: sources -> a Parquet manifest of probed files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vjepa.data.manifest.lists import IndexConfig, SourceRow, default_names, read_source
from vjepa.data.manifest.manifest import (
    COLUMNS,
    INFO_COLUMNS,
    LABEL_PREFIX,
    LABEL_TYPE,
    Manifest,
    infos_to_table,
)
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import stamp_of
from vjepa.data.video.inspect_pool import InspectOrder, inspect_files
from vjepa.errors import UserError

# Raised whenever probing finds out other things, so that rows of older versions are not reused.
_PROBE_VERSION = 1
_KEY = b"vjepa.probe"
# Files looked at before their paths are let go.
_ROWS_AT_ONCE = 1 << 16


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
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[begin : begin + _ROWS_AT_ONCE]
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


__all__ = ["IndexConfig", "index_sources"]

Progress = Callable[[int, int, int], None]
"""Called as progress(files done, files in all, bad files so far)."""

_Row = TypeVar("_Row")

# Rows turned into Arrow columns at a time, so that no index lives in Python lists.
_BATCH = 1 << 13

_LISTING = {
    "path": pa.large_string(),
    "kind": pa.dictionary(pa.int32(), pa.string()),
    "dataset": pa.dictionary(pa.int32(), pa.string()),
    "split": pa.dictionary(pa.int32(), pa.string()),
    "weight": pa.float64(),
}


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
    """Probe every file of the sources and write the manifest.

    Files that did not change (path, size, time) since an older manifest at `out`, or since an index
    that was interrupted, are not probed again.

    Args:
        sources: Folders, lists (CSV with header, JSON lines, `path label` lines) or media files.
        out: The Parquet file to write.
        workers: Number of reader processes.
        config: How to read sources and probe; None takes the defaults.
        names: Data set name for each source; None takes their file names.
        weights: How often each source is drawn from, relative to the others, whatever its number of
            videos; None draws every video equally often.
        progress: Called after each file.

    Returns:
        The manifest as written, with its bad rows (`ok` False).

    Raises:
        UserError: A source is missing, empty or malformed; no file can be used; `out` exists and is
            no manifest, or cannot be written.
    """
    config = config or IndexConfig()
    plan = _Plan.checked([str(source) for source in sources], names, weights)
    target = Path(out).absolute()
    known = KnownFiles(target, config)
    listing = list_sources(plan.sources, plan.names, config)
    rows = _RowStore(listing, known)
    try:
        _probe_listing(rows, config, workers, progress)
    finally:
        # After Ctrl-C or a failure, what was probed waits beside the target for the next attempt.
        if 0 < len(rows) < listing.num_rows:
            Manifest(rows.table(), Path("/")).write(partial_path(target), known.metadata)
    manifest = Manifest(rows.table(), Path("/"), str(target))
    _refuse_all_bad(manifest)
    _weighted(manifest, plan).write(target, known.metadata)
    partial_path(target).unlink(missing_ok=True)
    return Manifest.open(target)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The sources, the data set name of each, and their weights (None: by number of videos)."""

    sources: list[str]
    names: list[str]
    weights: list[float] | None

    @classmethod
    def checked(
        cls, sources: list[str], names: Sequence[str] | None, weights: Sequence[float] | None
    ) -> _Plan:
        """Compare the three lists.

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
        return cls(sources, chosen, None if weights is None else list(weights))


def list_sources(sources: Sequence[str], names: Sequence[str], config: IndexConfig) -> pa.Table:
    """All rows of all sources as one flat table, read as a stream.

    Args:
        sources: Folders, lists or media files.
        names: The data set name of each.
        config: How to read them.

    Returns:
        Columns path, kind, dataset, split, weight and `label.<name>`.

    Raises:
        UserError: A source is missing, empty or malformed.
    """
    parts: list[pa.Table] = []
    for source, dataset in zip(sources, names, strict=True):
        for rows in _in_batches(read_source(source, config)):
            parts.append(_listing_part(rows, dataset))
    return pa.concat_tables(parts, promote_options="default").combine_chunks()


def _listing_part(rows: Sequence[SourceRow], dataset: str) -> pa.Table:
    columns: dict[str, list[object]] = {
        "path": [row.path for row in rows],
        "kind": [row.kind for row in rows],
        "dataset": [dataset] * len(rows),
        "split": [row.split for row in rows],
        "weight": [row.weight for row in rows],
    }
    arrays = {name: pa.array(values, type=_LISTING[name]) for name, values in columns.items()}
    for name in sorted(rows[0].labels):
        values = [row.labels.get(name) for row in rows]
        arrays[LABEL_PREFIX + name] = pa.array(values, type=LABEL_TYPE)
    return pa.table(arrays)


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
        if self._count - self._stored == _BATCH:
            self._store()

    def table(self) -> pa.Table:
        """All rows done, with the columns of a manifest."""
        self._store()
        return pa.concat_tables(self._tables)

    def _store(self) -> None:
        length = self._count - self._stored
        if not length:
            return
        said, reused = (
            self.listing.slice(self._stored, length),
            self.reused[self._stored :][:length],
        )
        # Fresh rows first, known ones behind them; `order` puts them back among each other.
        is_fresh = reused < 0
        found = pa.concat_tables(
            [infos_to_table(self._fresh), self._known.infos(reused[~is_fresh])]
            if not is_fresh.all()
            else [infos_to_table(self._fresh)]
        )
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


def _probe_listing(
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


def _in_batches(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _refuse_all_bad(manifest: Manifest) -> None:
    if manifest.ok.any():
        return
    first = [manifest.row(row) for row in range(min(3, len(manifest)))]
    reasons = "; ".join(f"{info.path}: {info.reason}" for info in first)
    raise UserError(f"none of the {len(manifest)} files can be used: {reasons}")


def _weighted(manifest: Manifest, plan: _Plan) -> Manifest:
    """Scale row weights so that each source is drawn as often as its weight says.

    Within a source, rows keep their ratios; the mean over all usable rows becomes 1.
    """
    if plan.weights is None:
        return manifest
    scaled = manifest.weights.copy()
    datasets = manifest.categories("dataset")
    for name, weight in zip(plan.names, plan.weights, strict=True):
        of_source = datasets.codes == datasets.classes.index(name)
        total = scaled[of_source & manifest.ok].sum()
        if total <= 0:
            raise UserError(f"data set {name}: has a weight, but no file of it can be used")
        scaled[of_source] *= weight / total
    scaled *= manifest.ok.sum() / sum(plan.weights)
    place = manifest.table.column_names.index("weight")
    table = manifest.table.set_column(place, "weight", pa.array(scaled))
    return Manifest(table, Path("/"), manifest.source)
