"""`vjepa data index`: sources -> a Parquet manifest of probed files; `vjepa data check`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from os.path import isfile
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vjepa.data.loader.failures import BadVideo
from vjepa.data.manifest.lists import (
    IndexConfig,
    InspectConfig,
    LeftOut,
    form_of,
    read_source,
    shortened,
)
from vjepa.data.manifest.manifest import (
    COLUMNS,
    INFO_COLUMNS,
    LABEL_PREFIX,
    LABEL_TYPE,
    LabelCodes,
    Manifest,
    infos_to_table,
    list_lengths,
)
from vjepa.data.video.info import IMAGE_FOLDER_FPS, MediaKind, VideoInfo
from vjepa.data.video.inspect import InspectOrder, inspect_files, stamp_of
from vjepa.errors import UserError
from vjepa.paths import local_path
from vjepa.runtime.files import check_writable, now_and_then, written
from vjepa.runtime.process import stopping_at_signals
from vjepa.runtime.progress import Progress

_LOGGER = logging.getLogger(__name__)

# Raised whenever probing finds out other things, so that rows of older versions are not reused.
_PROBE_VERSION = 3
_KEY = "vjepa.probe"

# Rows turned into Arrow columns at a time, so that no index lives in Python lists.
_BATCH = 1 << 13
_MANY = 1000  # files of which it is said how far their comparison is

_LISTING = {name: COLUMNS[name] for name in ("path", "kind", "dataset", "split", "weight")}


def _partial_path(target: Path) -> Path:
    """Where an interrupted index leaves what it has."""
    return target.with_name(target.name + ".partial")


def note_of(config: IndexConfig) -> dict[str, str]:
    """What a manifest's schema says of how its files were looked into."""
    way = {"version": _PROBE_VERSION, "fps": config.image_folder_fps, **asdict(config.limits)}
    return {_KEY: json.dumps(way, sort_keys=True)}


def known_files(target: Path, note: Mapping[str, str]) -> Manifest:
    """What an interrupted index and the manifest at its target know of files looked into so.

    Raises:
        UserError: The target exists and is no manifest: it is not ours to replace.
    """
    found = [infos_to_table([])]
    for path in (_partial_path(target), target):
        if not path.exists():
            continue
        try:
            manifest = Manifest.open(path)
            metadata = pq.read_schema(path).metadata or {}
        except (UserError, pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: exists and is no manifest or cannot be read; choose another --out"
            ) from error
        if metadata.get(_KEY.encode()) == note[_KEY].encode():
            found.append(manifest.rooted_at(None).select(INFO_COLUMNS))
    return Manifest(pa.concat_tables(found).unify_dictionaries(), Path("/"))


def still_known(known: Manifest, listing: pa.Table) -> NDArray[np.int64]:
    """For each listed file the row of a known one that has not changed since, or -1: int64 [L].

    Bad files are always looked into again: what was wrong may have been mended.
    """
    lookup = pc.SetLookupOptions(value_set=known.table.column("path"))
    places = pc.call_function("index_in", [listing.column("path")], lookup)
    found = np.asarray(places.fill_null(-1), dtype=np.int64)
    rows = np.flatnonzero(found >= 0)
    rows = rows[known.ok[found[rows]]]
    kinds = [table.column("kind").cast(pa.string()).to_numpy() for table in (listing, known.table)]
    rows = rows[kinds[0][rows] == kinds[1][found[rows]]]
    holds = unchanged_files(known, found[rows])
    still = np.full(len(found), -1, dtype=np.int64)
    still[rows[holds]] = found[rows[holds]]
    return still


def unchanged_files(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the files of some rows are as when indexed, by size and time: bool, one a row."""
    kinds = manifest.categories("kind")
    sizes, times = manifest.numeric("bytes"), manifest.numeric("mtime_ns")
    is_same = np.zeros(len(rows), dtype=bool)
    # A slow drive or server needs milliseconds for each: hours, of which nobody would hear.
    shown = Progress("comparing files", len(rows)) if len(rows) >= _MANY else nullcontext()
    with shown as progress:
        for place, path in enumerate(chain.from_iterable(manifest.paths(rows))):
            if progress is not None:
                progress.update(place + 1)
            row = rows[place]
            try:
                stamp = stamp_of(path, cast("MediaKind", kinds.classes[kinds.codes[row]]))
            except OSError:
                continue  # it is gone: looking into it says so
            is_same[place] = (stamp.bytes, stamp.mtime_ns) == (sizes[row], times[row])
    return is_same


def inspect_all(
    orders: Iterable[InspectOrder],
    total: int,
    found: list[pa.Table],
    config: InspectConfig,
    workers: int,
    what: str = "index",
    save: Callable[[], object] = lambda: None,
) -> None:
    """Look into files; what is found is added to `found`, also what was until a stop or a failure.

    `found` are tables of `INFO_COLUMNS` that count as done, of `total` files; `what` is the name of
    the work in the progress display. `save` is called from time to time.
    """
    done = sum(table.num_rows for table in found)
    num_bad = done - sum(pc.call_function("sum", [table["ok"]]).as_py() or 0 for table in found)
    fresh: list[VideoInfo] = []

    def flush() -> None:
        found.append(infos_to_table(fresh))
        fresh.clear()

    save_if_due = now_and_then(lambda: (flush(), save()))
    try:
        infos = inspect_files(orders, workers, config.limits, config.timeout_seconds)
        with Progress(what, total, done) as progress, closing(infos):
            progress.update(done, f"{num_bad} bad" if num_bad else None)
            for info in infos:
                fresh.append(info)
                if len(fresh) == _BATCH:
                    flush()
                save_if_due()
                done, num_bad = done + 1, num_bad + (not info.ok)
                progress.update(done, f"{num_bad} bad" if num_bad else None)
    finally:
        flush()


def index_sources(
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    workers: int = 2,
    config: IndexConfig | None = None,
    names: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    all_may_be_bad: bool = False,
) -> Manifest:
    """Probe every file of the sources; write the manifest and give it, with bad rows (`ok` False).

    Files that did not change (path, size, time) since an older manifest at `out`, or since an index
    that was interrupted, are not probed again.

    `names` are those of the sources' data sets (None: their file names), `weights` say how often
    each source is drawn from, relative to the others, whatever its number of videos (None: every
    video equally often).

    Raises:
        UserError: A source is missing, empty or malformed; no file can be used, unless
            `all_may_be_bad`; `out` exists and is no manifest, or cannot be written.
    """
    config = config or IndexConfig()
    sources = [local_path(source) for source in sources]
    names = _checked_names(sources, names, weights)
    for name in ("label_from_folder", "image_folders"):
        if getattr(config, name) != getattr(IndexConfig(), name) and all(map(isfile, sources)):
            raise UserError(f"{name}: is for folders, and no source is one; leave it out")
    target, note = Path(out).absolute(), note_of(config)
    with written(target):
        known = known_files(target, note)
    listing = list_sources(sources, names, config)
    check_writable(target)
    reused = still_known(known, listing)
    rows = np.argsort(reused < 0, kind="stable")  # those that are known, then the others
    num_known = int((reused >= 0).sum())
    found = [known.table.take(pa.array(reused[rows[:num_known]]))]
    orders = (
        InspectOrder(
            path=listing.column("path")[int(row)].as_py(),
            kind=listing.column("kind")[int(row)].as_py(),
            image_folder_fps=config.image_folder_fps,
        )
        for row in rows[num_known:]
    )

    def put_together(is_end: bool = False) -> Manifest:
        """After a stop, a failure or a kill what was found waits beside the target."""
        manifest = _put_together(listing, found, rows, str(target))
        is_all = is_end and len(manifest) == listing.num_rows and weights is None
        if len(manifest) and not is_all:
            manifest.write(_partial_path(target), note)
        return manifest

    with stopping_at_signals():
        try:
            inspect_all(orders, listing.num_rows, found, config, workers, save=put_together)
        finally:
            manifest = put_together(is_end=True)
    if not (all_may_be_bad or manifest.ok.any()):
        first = [manifest.row(row) for row in range(min(3, len(manifest)))]
        reasons = "; ".join(f"{info.path}: {info.reason}" for info in first)
        forms = " and ".join(sorted(set(map(form_of, sources)) - {""}))
        how = f" (read as {forms}; relative paths start at the folder of their list)"
        raise UserError(
            f"none of the {len(manifest)} files of {shortened(', '.join(sources))} can be used"
            f"{how if forms else ''}: {reasons}"
        )
    if weights is not None:
        manifest = _weighted(manifest, dict(zip(names, weights, strict=True)))
    manifest.write(target, note)
    _partial_path(target).unlink(missing_ok=True)
    return Manifest.open(target)


def _checked_names(
    sources: list[str], names: Sequence[str] | None, weights: Sequence[float] | None
) -> list[str]:
    """The data set name of each source; a UserError if they or the weights make no sense."""
    if not sources:
        raise UserError("no source to index: name a folder, a list of videos or a video")
    for what, given in (("names", names), ("weights", weights)):
        if given is not None and len(given) != len(sources):
            raise UserError(f"{what}: {len(given)} given for {len(sources)} sources; give one each")
    stems = [Path(source).absolute().stem for source in sources]
    numbered, numbers = [], {stem: count(1) for stem in stems}
    for stem in stems:  # numbered where they repeat, as no other is called
        free = (name for n in numbers[stem] if (name := f"{stem}-{n}") not in stems)
        numbered.append(stem if stems.count(stem) == 1 else next(free))
    chosen = list(names or numbered)
    if len(set(chosen)) != len(chosen):
        raise UserError(f"names: the same name twice ({', '.join(chosen)})")
    if weights is not None and not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"weights: must be above 0, got {' '.join(map(str, weights))}")
    return chosen


def list_sources(sources: Sequence[str], names: Sequence[str], config: IndexConfig) -> pa.Table:
    """All rows of all sources as one flat table, read as a stream; `names` are their data sets.

    Its columns are path, kind, dataset, split, weight and `label.<name>`.
    """
    parts: list[pa.Table] = []
    left_out = LeftOut()
    for source, dataset in zip(sources, names, strict=True):
        rows = read_source(source, config, left_out)
        while batch := list(islice(rows, _BATCH)):
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
    if left_out.has_unnamed:
        _LOGGER.warning("in all: %s", left_out)
    return pa.concat_tables(parts, promote_options="default").combine_chunks()


def _put_together(
    listing: pa.Table, found: Sequence[pa.Table], rows: NDArray[np.int64], source: str
) -> Manifest:
    """What the sources say and what was found, of those of the listed `rows` that are done."""
    infos = pa.concat_tables(found).unify_dictionaries().combine_chunks()
    order = np.argsort(rows[: infos.num_rows])
    said, infos = listing.take(pa.array(rows[order])), infos.take(pa.array(order))
    columns = {name: (said if name in _LISTING else infos).column(name) for name in COLUMNS}
    labels = [name for name in said.column_names if name.startswith(LABEL_PREFIX)]
    return Manifest(
        pa.table(columns | {name: said.column(name) for name in labels}), Path("/"), source
    )


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


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found."""

    num_rows: int
    bad: tuple[BadVideo, ...]  # rows that cannot be used, in the manifest's order
    num_changed: int
    """Files that are not as they were when indexed (size, time, or gone): index them again."""
    # All that follows counts the usable rows alone.
    num_frames: int
    duration_hours: float
    num_bytes: int
    by_codec: dict[str, int]  # number of rows by codec, most frequent first
    by_split: dict[str, int]
    """Number of rows by split ("" where none is given), most frequent first."""
    num_variable_rate: int  # rows whose frames do not all last equally long
    num_unindexed: int
    """Rows without usable timestamps and entry points: slow to read, worth re-encoding."""
    num_unverified: int
    """Videos indexed by an older version, which believed all that files say: index them again."""
    notes: tuple[tuple[str, str], ...]  # paths of unusual files, and what is unusual about them

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
