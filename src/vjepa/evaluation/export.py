"""Features of one file on disk, written while they are computed, and found again.

A file is written aside and renamed when it is whole. It says what it was made from, so that a later
run can tell whether it may stay.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.windows import Look, Pool
from vjepa.data.video.info import VideoInfo

_PART_ROWS = 4096


class FeatureTable:
    """Collects rows of whole files and writes a part whenever there are enough.

    Columns: ``path``, ``seconds`` (the middle of what the row's tubelet shows; of a whole file its
    middle), ``first_frame``, ``last_frame``, ``features`` (list of D numbers), ``origin`` (JSON:
    what the row was made from).
    """

    def __init__(self, folder: Path, stored: StoredType, writer: str = "") -> None:
        """Read which files the parts hold already.

        Args:
            folder: Of the parts ``part-00000.parquet``, ...; made when new.
            stored: Type of the numbers.
            writer: Name of this writer among several that write to the folder at the same time.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._pq = pa, pq
        self._folder = folder
        self._stored = stored
        self._columns: dict[str, list[object]] = {}
        self._rows = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._origins: set[str] = set()
        parts = sorted(folder.glob("part-*.parquet"))
        for part in parts:
            column = pq.read_table(part, columns=["origin"]).column("origin")
            self._origins.update(column.unique().to_pylist())
        self._prefix = f"part-{writer}"
        self._next_part = len(parts)

    def holds(self, origin: FileOrigin) -> bool:
        """Whether a part that is on the disk holds the rows of this origin."""
        return json.dumps(asdict(origin)) in self._origins

    def sink(self, look: Look, origin: FileOrigin) -> TableSink:
        """The sink of one file."""
        return TableSink(self, look, json.dumps(asdict(origin)))

    def add(self, look: Look, origin: str, tokens: NDArray, times: NDArray[np.float64]) -> None:
        """Add the rows of a finished file.

        Args:
            look: How it was looked at.
            origin: JSON.
            tokens: [t, D], or [1, D] for the whole file.
            times: float64 [t].
        """
        numbers = look.plan.frame_numbers
        if len(tokens) != len(times):
            times, numbers = times[[0, -1]].mean(keepdims=True), numbers[[0, -1]].reshape(1, -1)
        rows = {
            "path": [look.info.path] * len(tokens),
            "seconds": times.tolist(),
            "first_frame": numbers[:, 0].tolist(),
            "last_frame": numbers[:, -1].tolist(),
            "features": list(tokens.astype(self._stored)),
            "origin": [origin] * len(tokens),
        }
        for name, values in rows.items():
            self._columns.setdefault(name, []).extend(values)
        self._rows += len(tokens)
        if self._rows >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as a part of their own."""
        if not self._rows:
            return
        pa = self._pa
        number = pa.float32() if self._stored == "float32" else pa.float16()
        schema = pa.schema(
            [
                ("path", pa.string()),
                ("seconds", pa.float64()),
                ("first_frame", pa.int64()),
                ("last_frame", pa.int64()),
                ("features", pa.list_(number)),
                ("origin", pa.dictionary(pa.int32(), pa.string())),
            ]
        )
        target = self._folder / f"{self._prefix}{self._next_part:05d}.parquet"
        while target.exists():
            self._next_part += 1
            target = self._folder / f"{self._prefix}{self._next_part:05d}.parquet"
        aside = target.with_suffix(".partial")
        self._pq.write_table(pa.table(self._columns, schema=schema), aside)
        aside.replace(target)
        self._next_part += 1
        self._columns, self._rows = {}, 0


class TableSink:
    """Collects the pooled features of one file."""

    def __init__(self, table: FeatureTable, look: Look, origin: str) -> None:
        """Hold nothing yet."""
        self._table, self._look, self._origin = table, look, origin
        self._parts: list[NDArray] = []

    def write(self, tokens: Tensor) -> None:
        """Keep them."""
        self._parts.append(np.atleast_2d(tokens.numpy()))

    def finish(self, times: NDArray[np.float64]) -> None:
        """Hand the rows to the table."""
        self._table.add(self._look, self._origin, np.concatenate(self._parts), times)

    def abandon(self) -> None:
        """Forget them."""
        self._parts = []


FileFormat = Literal["safetensors", "npz"]
StoredType = Literal["float32", "float16"]

_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}
_META = "vjepa"


@dataclass(frozen=True)
class FileOrigin:
    """What a file of features was made from.

    Attributes:
        path: The video or image.
        bytes, mtime_ns: Its size and time of change.
        settings: Hash of everything else: weights, windows, framing, pooling, precision.
    """

    path: str
    bytes: int
    mtime_ns: int
    settings: str

    @classmethod
    def of(cls, info: VideoInfo, settings: str) -> FileOrigin:
        """The origin of features of a file as it is now."""
        return cls(info.path, info.bytes, info.mtime_ns, settings)


def tokens_shape(look: Look, pool: Pool, width: int) -> tuple[int, ...]:
    """Shape of the tokens of one file: [t, h, w, D], [t, D] or [D]."""
    t, h, w = look.grid
    return {"none": (t, h, w, width), "space": (t, width), "video": (width,)}[pool]


class FeatureFileWriter:
    """A sink that writes tokens to the disk as they come.

    The file holds ``tokens`` (shape by pooling), ``times`` float64 [t] and ``frame_numbers`` int64
    [t, tubelet], and the metadata ``vjepa``: JSON of origin, grid, box and the source's size.
    """

    def __init__(
        self, target: Path, look: Look, shape: tuple[int, ...], stored: StoredType, meta: str
    ) -> None:
        """Open the file aside.

        Args:
            target: Where it goes; the suffix, ``.safetensors`` or ``.npz``, chooses the format.
            look: How the source is looked at.
            shape: Of the tokens.
            stored: Their type on disk.
            meta: JSON for the metadata (:func:`metadata`).
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._aside = target.with_name(target.name + ".partial")
        self._dtype = np.dtype(stored)
        self._numbers = look.plan.frame_numbers
        count, tubelet = self._numbers.shape
        make = _SafetensorsFile if target.suffix == ".safetensors" else _NpzFile
        self._file = make(self._aside, shape, self._dtype, (count, tubelet), meta)

    def write(self, tokens: Tensor) -> None:
        """Append tokens."""
        self._file.append(np.ascontiguousarray(tokens.numpy().astype(self._dtype)))

    def finish(self, times: NDArray[np.float64]) -> None:
        """Write times and frame numbers, close, rename."""
        self._file.finish(times, self._numbers)
        self._aside.replace(self._target)

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._aside.unlink(missing_ok=True)


def metadata(look: Look, origin: FileOrigin) -> str:
    """The metadata of a file as JSON."""
    return json.dumps(
        {
            "origin": asdict(origin),
            "grid": look.grid,
            "box": look.box,
            "source_size": (look.info.height, look.info.width),
        }
    )


def is_written(target: Path, origin: FileOrigin) -> bool:
    """Whether a file is there, whole, and made from this very origin.

    Its header and its length are looked at, not its numbers.

    Args:
        target: The file.
        origin: What it should have been made from.
    """
    read = _read_safetensors_meta if target.suffix == ".safetensors" else _read_npz_meta
    try:
        found = json.loads(read(target))["origin"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return False
    return found == asdict(origin)


class _SafetensorsFile:
    """Header first, from shapes that are known beforehand; then the numbers as they come."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        numbers_shape: tuple[int, int],
        meta: str,
    ) -> None:
        header: dict[str, object] = {"__metadata__": {_META: meta, "format": "pt"}}
        start = 0
        for name, shape_, kind in (
            # float64 and int64 first: they stay aligned to 8 bytes whatever the tokens' type.
            ("times", numbers_shape[:1], np.dtype(np.float64)),
            ("frame_numbers", numbers_shape, np.dtype(np.int64)),
            ("tokens", shape, dtype),
        ):
            end = start + int(np.prod(shape_, dtype=np.int64)) * kind.itemsize
            header[name] = {
                "dtype": _SAFETENSORS_NAMES[kind.name],
                "shape": list(shape_),
                "data_offsets": [start, end],
            }
            start = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file: IO[bytes] = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._early = self._file.tell()
        # Times are known last; their place is left free. All of both are 8-byte numbers.
        self._file.seek(8 * (numbers_shape[0] + numbers_shape[0] * numbers_shape[1]), 1)

    def append(self, tokens: NDArray[np.generic]) -> None:
        self._file.write(tokens.tobytes())

    def finish(self, times: NDArray[np.float64], numbers: NDArray[np.int64]) -> None:
        self._file.seek(self._early)
        self._file.write(np.ascontiguousarray(times).tobytes())
        self._file.write(np.ascontiguousarray(numbers).tobytes())
        self._file.close()

    def close(self) -> None:
        self._file.close()


class _NpzFile:
    """A zip of .npy files; the tokens' header is written first, from the known shape."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        _numbers_shape: tuple[int, int],
        meta: str,
    ) -> None:
        self._zip = zipfile.ZipFile(path, "w", allowZip64=True)
        self._save("vjepa", np.array(meta))
        self._tokens = self._zip.open("tokens.npy", "w", force_zip64=True)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_2_0(self._tokens, {**header, "shape": shape})

    def _save(self, name: str, array: NDArray[np.generic]) -> None:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def append(self, tokens: NDArray[np.generic]) -> None:
        self._tokens.write(tokens.tobytes())

    def finish(self, times: NDArray[np.float64], numbers: NDArray[np.int64]) -> None:
        self._tokens.close()
        self._save("times", times)
        self._save("frame_numbers", numbers)
        self._zip.close()

    def close(self) -> None:
        self._tokens.close()
        self._zip.close()


def _read_safetensors_meta(path: Path) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 0 < length <= size - 8:
            raise ValueError("truncated")
        header = json.loads(file.read(length))
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if size != 8 + length + end:
        raise ValueError("truncated")
    return header["__metadata__"][_META]


def _read_npz_meta(path: Path) -> str:
    # A zip's table of contents is at its end: a truncated file has none.
    with zipfile.ZipFile(path) as archive, archive.open("vjepa.npy") as file:
        return str(np.lib.format.read_array(file, allow_pickle=False))
