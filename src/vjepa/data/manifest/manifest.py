"""The manifest: one row per video, in a Parquet file, flat in memory.

Columns live in Arrow buffers, so ten million rows are a handful of objects that forked loader
workers share without copying; a row becomes Python objects only when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vjepa.data.manifest.storage import absolute, is_address
from vjepa.data.video.info import MediaKind, Reading, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.files import atomic_path, written

_LOGGER = logging.getLogger(__name__)

LABEL_PREFIX = "label."
"""Label columns are named ``label.<name>``."""
LABEL_TYPE = pa.dictionary(pa.int32(), pa.string())
"""Of a label column: each distinct label is stored once."""

# large_string: 64-bit offsets, so that ten million paths stay in one buffer.
COLUMNS: Mapping[str, pa.DataType] = {
    "path": pa.large_string(),
    "kind": pa.dictionary(pa.int32(), pa.string()),
    "dataset": pa.dictionary(pa.int32(), pa.string()),
    "split": pa.dictionary(pa.int32(), pa.string()),
    "weight": pa.float64(),
    "ok": pa.bool_(),
    "reason": pa.large_string(),
    "num_frames": pa.int64(),
    "fps": pa.float64(),
    "duration_seconds": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "rotation": pa.int32(),
    "codec": pa.dictionary(pa.int32(), pa.string()),
    "bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "constant_rate": pa.bool_(),
    "keyframe_pts": pa.large_list(pa.int64()),
    "keyframe_index": pa.large_list(pa.int64()),
    "time_base_num": pa.int64(),
    "time_base_den": pa.int64(),
    "start_pts": pa.int64(),
    "frame_pts": pa.large_list(pa.int64()),
    "reading": pa.dictionary(pa.int32(), pa.string()),
    "stream": pa.int32(),
    "note": pa.large_string(),
}

# A hand-made manifest needs these; the others have a neutral value.
REQUIRED = ("path", "num_frames", "fps", "width", "height")
_NEUTRAL = {
    "kind": "video",
    "weight": 1.0,
    "ok": True,
    "constant_rate": True,
    "time_base_den": 1,
    "reading": "stamps",
    "note": "",
}
_NULL_BY_DEFAULT = ("dataset", "split", "reason", "stream")
_SAID = ("split", "dataset", "weight")  # by the source; the other columns were found in the file

# What values must be like: a manifest may come from elsewhere, or be made by hand. Whatever passes
# cannot make a reader fail in another way than with a file's own reason.
_SIGNED = ("rotation", "mtime_ns", "start_pts", "stream")
_SMALLEST = {
    name: int(name == "time_base_den")
    for name, kind in COLUMNS.items()
    if kind in (pa.int32(), pa.int64(), pa.float64()) and name not in _SIGNED
}
_MAY_BE_NULL = (*_NULL_BY_DEFAULT, "codec", "keyframe_pts", "keyframe_index", "frame_pts", "note")

# Fields of VideoInfo that are columns under the same name and type.
_PLAIN_FIELDS = tuple(name for name in COLUMNS if name in {one.name for one in fields(VideoInfo)})

INFO_COLUMNS = (*_PLAIN_FIELDS, "time_base_num", "time_base_den")
"""Columns that say what was found in a file."""

# Rows turned into Python objects at a time where a column must be walked.
_BATCH = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestRow:
    """One row to be written: what was found in the file, and what the source says about it."""

    info: VideoInfo
    split: str | None = None
    dataset: str | None = None
    weight: float = 1.0
    labels: Mapping[str, str | None] = field(default_factory=dict)


def infos_to_table(infos: Iterable[VideoInfo]) -> pa.Table:
    """What was found in files -> an Arrow table with the columns `INFO_COLUMNS`."""
    columns: dict[str, list[Any]] = {name: [] for name in INFO_COLUMNS}
    for info in infos:
        for name in _PLAIN_FIELDS:
            columns[name].append(getattr(info, name))
        columns["time_base_num"].append(info.time_base.numerator)
        columns["time_base_den"].append(info.time_base.denominator)
    return pa.table(
        {name: pa.array(values, type=COLUMNS[name]) for name, values in columns.items()}
    )


def rows_to_table(rows: Iterable[ManifestRow], label_names: Iterable[str]) -> pa.Table:
    """Rows -> an Arrow table with all columns of a manifest."""
    listed = list(rows)
    found = infos_to_table(row.info for row in listed)
    said = {name: [getattr(row, name) for row in listed] for name in _SAID}
    arrays: dict[str, Any] = {
        name: pa.array(said[name], type=kind) if name in said else found.column(name)
        for name, kind in COLUMNS.items()
    }
    for name in label_names:
        values = [row.labels.get(name) for row in listed]
        arrays[LABEL_PREFIX + name] = pa.array(values, type=LABEL_TYPE)
    return pa.table(arrays)


def to_schema(table: pa.Table) -> pa.Table:
    """Cast a table read from disk to the manifest's types; absent optional columns are filled.

    Raises:
        KeyError: A required column is missing; its name is the argument.
        pa.ArrowInvalid, pa.ArrowNotImplementedError: A column has another type.
    """
    lacking = [name for name in REQUIRED if name not in table.column_names]
    if lacking:
        raise KeyError(lacking[0])
    labels = [name for name in table.column_names if name.startswith(LABEL_PREFIX)]
    arrays: dict[str, Any] = {}
    for name, kind in {**COLUMNS, **dict.fromkeys(labels, LABEL_TYPE)}.items():
        if name in table.column_names:
            arrays[name] = _cast(table.column(name), kind)
        else:
            arrays[name] = _filled(name, kind, table.num_rows)
    return pa.table(arrays)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column.unify_dictionaries() if pa.types.is_dictionary(kind) else column
    if not pa.types.is_dictionary(kind):
        return column.cast(kind)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()).dictionary_encode().unify_dictionaries().cast(kind)


def _filled(name: str, kind: pa.DataType, length: int) -> pa.ChunkedArray:
    """A column for a name that the file lacks."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    neutral = [] if pa.types.is_large_list(kind) else "" if pa.types.is_dictionary(kind) else 0
    value = None if name in _NULL_BY_DEFAULT else _NEUTRAL.get(name, neutral)
    return _cast(pa.chunked_array([pa.repeat(pa.scalar(value, plain), length)]), kind)


def _problem_of(table: pa.Table) -> str | None:
    """The first value that cannot be, in words; None: all can. The table is valid Arrow data."""
    for name in COLUMNS:
        if name not in _MAY_BE_NULL and table.column(name).null_count:
            row = np.flatnonzero(table.column(name).is_null().to_numpy())[0]
            return f"row {row}: no {name}"
    for name, smallest in _SMALLEST.items():
        values = table.column(name).to_numpy()
        # `not >=` and not `<`, so that NaN is found too.
        wrong = ~(values >= smallest) | ~np.isfinite(values)
        if wrong.any():
            row = int(wrong.argmax())
            return f"row {row}: {name} {values[row]} cannot be"
    for name in ("width", "height", "fps"):
        empty = table.column("ok").to_numpy() & (table.column(name).to_numpy() <= 0)
        if empty.any():
            return f"row {int(empty.argmax())}: usable, but {name} 0"
    for name, known in (("kind", get_args(MediaKind)), ("reading", get_args(Reading))):
        unknown = set(table.column(name).cast(pa.string()).unique().to_pylist()) - set(known)
        if unknown:
            return f"{name} {min(unknown)!r} is unknown"
    return _keyframe_problem(table)


def _keyframe_problem(table: pa.Table) -> str | None:
    """Key frames must ascend, the first being frame 0: decoding plans its jumps by them."""
    for name, least_step in (("keyframe_pts", 1), ("keyframe_index", 0), ("frame_pts", 1)):
        for chunk in table.column(name).chunks:
            if chunk.values.null_count:
                return f"{name}: an empty place in a list"
            offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
            small = values[1:] < values[:-1] + least_step
            starts = offsets[(offsets > 0) & (offsets < len(values))]
            small[starts - 1] = False  # the first of a list follows nobody
            wrong = small[max(0, int(offsets[0])) : max(0, int(offsets[-1]) - 1)].any()
            firsts = values[offsets[:-1][np.diff(offsets) > 0]]
            if wrong or (name == "keyframe_index" and firsts.any()):
                what = "frames" if name == "frame_pts" else "key frames"
                return f"{name}: the {what} of a row do not ascend from the first frame"
    unequal = list_lengths(table, "keyframe_pts") != list_lengths(table, "keyframe_index")
    if unequal.any():
        return f"row {int(unequal.argmax())}: not as many keyframe_pts as keyframe_index"
    lengths = list_lengths(table, "frame_pts")
    unequal = (lengths > 0) & (lengths != table.column("num_frames").to_numpy())
    if unequal.any():
        return f"row {int(unequal.argmax())}: not as many frame_pts as frames"
    return None


def list_lengths(table: pa.Table, column: str) -> NDArray[np.int64]:
    """Length of each row's list, int64 [rows]; 0 where there is none."""
    lengths = pc.call_function("list_value_length", [table.column(column)])
    return lengths.fill_null(0).to_numpy()


def sorted_classes(names: Iterable[str]) -> list[str]:
    """The order in which classes are numbered: by value if all are numbers, else by name."""
    listed = list(names)
    by_value = all(re.fullmatch(r"[-+]?\d{1,99}(\.\d{1,99})?", name) for name in listed)
    return sorted(listed, key=lambda name: (Fraction(name) if by_value else 0, name))


@dataclass(frozen=True, slots=True)
class LabelCodes:
    """A label column as numbers."""

    codes: NDArray[np.int32]  # int32 [rows], place in `classes`, -1 where the row has no label
    classes: list[str]  # the distinct labels, in the order of :func:`sorted_classes`

    def counts(self, rows: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """How many rows (of all, or of some) have each class, most first; "" for those of none."""
        codes = self.codes if rows is None else self.codes[rows]
        found = np.bincount(codes + 1, minlength=len(self.classes) + 1).tolist()
        by_name = Counter(dict(zip(["", *self.classes], found, strict=True)))
        return {name: count for name, count in by_name.most_common() if count}

    def numbered_by(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Places in another list of classes, which has all of these: int64 [rows], -1 for none."""
        place = {name: number for number, name in enumerate(classes)}
        return np.array([*(place[name] for name in self.classes), -1], dtype=np.int64)[self.codes]


def _is_parquet(file: Path) -> bool:
    """Whether it begins as a Parquet file does; True if it cannot be read, which is told later."""
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"PAR1"
    except OSError:
        return True


class Manifest:
    """Videos, what is known about them, their splits and labels.

    Made by :meth:`open`, :meth:`from_rows` or :func:`vjepa.data.index_sources`. Never changes.
    """

    def __init__(self, table: pa.Table, root: Path, source: str = "manifest") -> None:
        """Wrap a table with `COLUMNS` and ``label.<name>``; `source` names it in messages.

        Relative paths start from the absolute folder `root`.
        """
        self._table = table.combine_chunks()
        self._root = absolute(str(root))
        self._prefix = self._root.rstrip("/") + "/"
        self._source = source

    @classmethod
    def open(cls, path: Path | str) -> Manifest:
        """Read a Parquet manifest.

        Raises:
            UserError: Missing, not Parquet, without rows, or lacking a column.
        """
        file = Path(path)
        # Videos, or a list of them, in place of a manifest are what one is made of.
        is_source = file.is_dir() or (file.is_file() and not _is_parquet(file))
        source = shlex.quote(str(file)) if is_source else "SRC"
        remedy = f"make one with `vjepa data index {source} --out manifest.parquet`"
        if is_source:
            what = "a folder" if file.is_dir() else "no Parquet file"
            raise UserError(f"manifest {file}: cannot be read (is {what}); {remedy}")
        if not file.is_file():
            raise UserError(f"manifest {file}: no such file; {remedy}")
        try:
            table = to_schema(_read_columns(file))
            table.validate(full=True)  # text that is none, offsets that point outside
        except KeyError as error:
            raise UserError(f"manifest {file}: no column {error}; {remedy}") from error
        except (pa.ArrowException, OSError, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"manifest {file}: cannot be read ({reason}); {remedy}") from error
        if table.num_rows == 0:
            raise UserError(f"manifest {file}: has no rows; {remedy}")
        if (problem := _problem_of(table)) is not None:
            raise UserError(f"manifest {file}: {problem}; {remedy}")
        has_keys = list_lengths(table, "keyframe_pts") > 0
        if (has_keys & table.column("stream").is_null().to_numpy()).any():
            _LOGGER.warning(
                "manifest %s: made by an older version, which did not verify key frames and "
                "timestamps; `vjepa data index` with the same sources and --out does",
                file,
            )
        return cls(table, file.absolute().parent, str(file))

    @classmethod
    def from_rows(cls, rows: Iterable[ManifestRow], root: Path | str) -> Manifest:
        """Build a manifest in memory from rows with absolute paths; kept relative to `root`."""
        listed = list(rows)
        names = sorted({name for row in listed for name in row.labels})
        made = cls(rows_to_table(listed, names), Path("/"))
        folder = absolute(str(root))
        return cls(made.rooted_at(folder), Path(folder))

    def __len__(self) -> int:
        return self._table.num_rows

    @property
    def table(self) -> pa.Table:
        """The columns, for vectorised work."""
        return self._table

    @property
    def source(self) -> str:
        """The file it was read from, for messages."""
        return self._source

    def path(self, row: int) -> str:
        """Absolute path of a row's file."""
        return self._absolute(self._table.column("path")[self._checked(row)].as_py())

    def row(self, row: int) -> VideoInfo:
        """All that is known about a row's file, ready for decode_frames."""
        values: dict[str, Any] = {}
        for name in INFO_COLUMNS:
            scalar = self._table.column(name)[self._checked(row)]
            if pa.types.is_large_list(COLUMNS[name]):
                listed = scalar.values
                found = [] if listed is None else listed.to_numpy(zero_copy_only=False)
                values[name] = np.array(found, dtype=np.int64)
            else:
                values[name] = scalar.as_py()
        values["time_base"] = Fraction(values.pop("time_base_num"), values.pop("time_base_den"))
        values["path"] = self.path(row)
        return VideoInfo(**values)

    def full_row(self, row: int) -> ManifestRow:
        """A row as it can be written again: its file, its split, weight and labels."""
        stored = {name: self._table.column(name)[self._checked(row)].as_py() for name in _SAID}
        labels = {
            name: self._table.column(LABEL_PREFIX + name)[row].as_py() for name in self.label_names
        }
        return ManifestRow(info=self.row(row), labels=labels, **stored)

    def paths(self, rows: NDArray[np.int64] | None = None) -> Iterator[list[str]]:
        """Absolute paths of some rows (None: of all), in lists of bounded length."""
        stored = self._table.column("path")
        if rows is not None:
            stored = stored.take(pa.array(rows))
        for at in range(0, len(stored), _BATCH):
            yield list(map(self._absolute, stored.slice(at, _BATCH).to_pylist()))

    def _checked(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a manifest with {len(self)} rows")
        return int(row)

    def _absolute(self, stored: str) -> str:
        is_whole = stored.startswith("/") or is_address(stored)
        return stored if is_whole else self._prefix + stored

    def numeric(self, name: str) -> NDArray[np.generic]:
        """A number or bool column as a NumPy array [rows], without a copy where Arrow allows."""
        return self._table.column(name).to_numpy()

    @property
    def num_frames(self) -> NDArray[np.int64]:
        """Frames of each row, int64 [rows]."""
        return self.numeric("num_frames").astype(np.int64, copy=False)

    @property
    def fps(self) -> NDArray[np.float64]:
        """Mean frame rate of each row in frames per second, float64 [rows]."""
        return self.numeric("fps").astype(np.float64, copy=False)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether each row's file can be used, bool [rows]."""
        return self.numeric("ok").astype(np.bool_, copy=False)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Relative probability of drawing each row, float64 [rows]."""
        return self.numeric("weight").astype(np.float64, copy=False)

    @property
    def label_names(self) -> list[str]:
        """Names of the label columns."""
        names = self._table.column_names
        return [name.removeprefix(LABEL_PREFIX) for name in names if name.startswith(LABEL_PREFIX)]

    def labels(self, name: str) -> NDArray[np.object_]:
        """One label column: str or None for each row, object [rows]; equal labels share one str."""
        coded = self.label_codes(name)
        return np.array([*coded.classes, None], dtype=object)[coded.codes]

    def label_codes(self, name: str) -> LabelCodes:
        """One label column as numbers and class names; a UserError if there is none such."""
        if name not in self.label_names:
            found = ", ".join(self.label_names) or "none"
            raise UserError(f"manifest {self._source}: no label {name!r} (labels: {found})")
        return self.categories(LABEL_PREFIX + name)

    def categories(self, column: str) -> LabelCodes:
        """A text column of few values (`split`, `dataset`, `kind`, `codec`) as numbers."""
        values = self._table.column(column).unify_dictionaries().combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0)
        codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        stored = values.dictionary.to_pylist()
        used = np.unique(codes[codes >= 0])
        classes = sorted_classes(stored[code] for code in used)
        place = {label: number for number, label in enumerate(classes)}
        new_code = np.full(len(stored) + 1, -1, dtype=np.int32)
        new_code[used] = [place[stored[code]] for code in used]
        return LabelCodes(new_code[codes], classes)

    @property
    def splits(self) -> list[str]:
        """Names of the splits that occur, by alphabet."""
        return self.categories("split").classes

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of every row's path, split and labels, in order.

        Paths count from the deepest folder that holds all files. So the same files under the same
        labels give the same hash wherever they and the manifest are moved together or apart, and
        whatever is probed anew.
        """
        digest = hashlib.sha256()
        for name in ["split", *(LABEL_PREFIX + name for name in sorted(self.label_names))]:
            coded = self.categories(name)
            digest.update(json.dumps([name, coded.classes]).encode())
            digest.update(coded.codes.astype("<i4").tobytes())
        for block in self._path_blocks():
            digest.update(block)
        return digest.hexdigest()

    @cached_property
    def order_hash(self) -> str:
        """SHA-256 (hex) of what decides which video is drawn when: each row's path and weight.

        Paths as in `content_hash`. Labels do not count: they may be added to what a run trains on.
        """
        digest = hashlib.sha256(self.weights.astype("<f8").tobytes())
        for block in self._path_blocks():
            digest.update(block)
        return digest.hexdigest()

    def _path_blocks(self) -> Iterator[bytes]:
        lowest, highest = min(map(min, self.paths())), max(map(max, self.paths()))
        # All strings between two share what those two share.
        common = os.path.commonprefix([lowest, highest])  # noqa: RUF071 (cut at a slash below)
        start = common.rfind("/") + 1
        for paths in self.paths():
            yield json.dumps([path[start:] for path in paths]).encode()

    def select(self, split: str | None = None, *, ok_only: bool = True) -> Manifest:
        """The rows of one split (None: of all), without unusable ones.

        Raises:
            UserError: No row is left; the message says what there is instead.
        """
        mask = np.ones(len(self), dtype=bool)
        if split is not None:
            splits = self.categories("split")
            if split not in splits.classes:
                found = ", ".join(splits.classes) or "none; leave the split out to take all rows"
                raise UserError(
                    f"manifest {self._source}: no row of split {split!r} (splits: {found})"
                )
            mask &= splits.codes == splits.classes.index(split)
        usable = mask & self.ok if ok_only else mask
        if not usable.any():
            first = (self.row(row) for row in np.flatnonzero(mask)[:3].tolist())
            reasons = "; ".join(f"{info.path}: {info.reason}" for info in first)
            raise UserError(
                f"manifest {self._source}: none of its {int(mask.sum())} videos can be used"
                f" ({reasons or 'no row is left'}); see `vjepa data check`"
            )
        # Nothing is copied where nothing is left out; otherwise one column after the other.
        if usable.all():
            return self
        keep = pa.array(usable)
        columns = {
            name: self._table.column(name).filter(keep).combine_chunks()
            for name in self._table.column_names
        }
        return Manifest(pa.table(columns), Path(self._root), self._source)

    def take(self, rows: NDArray[np.int64]) -> Manifest:
        """Some of the rows, in their order."""
        return Manifest(self._table.take(pa.array(rows)), Path(self._root), self._source)

    def write(self, path: Path | str, metadata: dict[str, str] | None = None) -> None:
        """Write the manifest as Parquet, with notes in its schema; whole, or the older file stays.

        Paths beneath the file's folder are stored relative to it, so that folder and manifest can
        be moved together.

        Raises:
            UserError: It cannot be written (no such folder, no right, disk full).
        """
        target = Path(absolute(str(path)))
        table = self.rooted_at(str(target.parent)).replace_schema_metadata(metadata)
        with written(target), atomic_path(target) as aside, aside.open("wb") as file:
            pq.write_table(table, file, compression="zstd")

    def rooted_at(self, folder: str | None) -> pa.Table:
        """The table with paths relative to `folder` where they lie beneath it; None: absolute."""
        if folder == self._root:
            return self._table
        prefix = "" if folder is None else folder.rstrip("/") + "/"
        batches = [
            pa.array([path.removeprefix(prefix) for path in paths], type=COLUMNS["path"])
            for paths in self.paths()
        ]
        place = self._table.column_names.index("path")
        return self._table.set_column(place, "path", pa.chunked_array(batches, COLUMNS["path"]))


def _read_columns(file: Path) -> pa.Table:
    """All columns that a manifest can have, read one after the other.

    So only one of them stands in memory twice, while its pieces are joined. No memory map: the file
    may be replaced while it is open.
    """
    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        wanted = [name for name in names if name in COLUMNS or name.startswith(LABEL_PREFIX)]
        return pa.table(
            {name: parquet.read(columns=[name]).column(name).combine_chunks() for name in wanted}
        )
