"""The columns of a manifest, in one place, and the way from rows to Arrow columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from vjepa.data.video_info import VideoInfo

LABEL_PREFIX = "label."
"""Label columns are named ``label.<name>``."""

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
}

# A hand-made manifest needs these; the others have a neutral value.
REQUIRED = ("path", "num_frames", "fps", "width", "height")
_NEUTRAL: Mapping[str, object] = {
    "kind": "video",
    "weight": 1.0,
    "ok": True,
    "constant_rate": True,
    "time_base_den": 1,
}
_NULL_BY_DEFAULT = ("dataset", "split", "reason")

# Fields of VideoInfo that are columns under the same name and type.
PLAIN_FIELDS = tuple(
    name for name in COLUMNS if name in {field.name for field in fields(VideoInfo)}
)


INFO_COLUMNS = (*PLAIN_FIELDS, "time_base_num", "time_base_den")
"""Columns that say what was found in a file."""


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
        for name in PLAIN_FIELDS:
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
    said = {
        "split": [row.split for row in listed],
        "dataset": [row.dataset for row in listed],
        "weight": [row.weight for row in listed],
    }
    arrays: dict[str, Any] = {
        name: pa.array(said[name], type=kind) if name in said else found.column(name)
        for name, kind in COLUMNS.items()
    }
    for name in label_names:
        values = [row.labels.get(name) for row in listed]
        arrays[LABEL_PREFIX + name] = pa.array(values, type=label_type())
    return pa.table(arrays)


def label_type() -> pa.DataType:
    """Arrow type of a label column: each distinct label is stored once."""
    return pa.dictionary(pa.int32(), pa.string())


def to_schema(table: pa.Table) -> pa.Table:
    """Cast a table read from disk to the manifest's types; absent optional columns are filled.

    Raises:
        KeyError: A required column is missing; its name is the argument.
        pa.ArrowInvalid, pa.ArrowNotImplementedError: A column has another type.
    """
    for name in REQUIRED:
        if name not in table.column_names:
            raise KeyError(name)
    arrays: dict[str, Any] = {}
    for name, kind in COLUMNS.items():
        if name in table.column_names:
            arrays[name] = _cast(table.column(name), kind)
        else:
            arrays[name] = _filled(name, kind, table.num_rows)
    for name in table.column_names:
        if name.startswith(LABEL_PREFIX):
            arrays[name] = _cast(table.column(name), label_type())
    return pa.table(arrays)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column.unify_dictionaries() if pa.types.is_dictionary(kind) else column
    if not pa.types.is_dictionary(kind):
        return column.cast(kind)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()).dictionary_encode().unify_dictionaries().cast(kind)


def _filled(name: str, kind: pa.DataType, length: int) -> pa.Array:
    """A column for a name that the file lacks."""
    if name in _NULL_BY_DEFAULT:
        return pa.nulls(length, kind)
    if pa.types.is_large_list(kind):
        offsets = pa.array(np.zeros(length + 1, dtype=np.int64))
        return pa.LargeListArray.from_arrays(offsets, pa.array([], type=pa.int64()))
    if pa.types.is_dictionary(kind):
        codes = pa.array(np.zeros(length, dtype=np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array([str(_NEUTRAL.get(name, ""))]))
    return pa.repeat(pa.scalar(_NEUTRAL.get(name, 0), type=kind), length)


def row_to_info(table: pa.Table, row: int, path: str) -> VideoInfo:
    """One row of a manifest's table as a VideoInfo with the given (absolute) path."""
    values = {name: table.column(name)[row] for name in PLAIN_FIELDS if name != "path"}
    plain: dict[str, Any] = {
        name: value.as_py()
        for name, value in values.items()
        if name not in ("keyframe_pts", "keyframe_index")
    }
    return VideoInfo(
        path=path,
        keyframe_pts=_int_list(values["keyframe_pts"]),
        keyframe_index=_int_list(values["keyframe_index"]),
        time_base=Fraction(
            table.column("time_base_num")[row].as_py(), table.column("time_base_den")[row].as_py()
        ),
        **plain,
    )


def _int_list(scalar: Any) -> np.ndarray:
    if scalar.values is None:
        return np.zeros(0, dtype=np.int64)
    return scalar.values.to_numpy(zero_copy_only=False).astype(np.int64)
