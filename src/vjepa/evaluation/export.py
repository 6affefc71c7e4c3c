"""Features of whole files on disk, written while they are computed, and found again.

Only what is whole has its name. It says what it was made from, so that a later run can tell whether
it may stay.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.windows import Look, Pool
from vjepa.data.video.info import VideoInfo
from vjepa.evaluation.video_features import FilePart, tokens_and_times, unless_failed
from vjepa.runtime.files import atomic_path

StoredType = Literal["float32", "float16"]

_PART_ROWS = 4096
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}
_META = "vjepa"


@dataclass(frozen=True)
class FileOrigin:
    """What a file of features was made from: a video or image, and how.

    `settings` is the hash of everything else: weights, windows, framing, pooling, precision.
    """

    path: str
    bytes: int
    mtime_ns: int
    settings: str

    @classmethod
    def of(cls, info: VideoInfo, settings: str) -> FileOrigin:
        """The origin of features of a file as it is now."""
        return cls(info.path, info.bytes, info.mtime_ns, settings)


class FeatureTable:
    """Collects rows of whole files and writes a part whenever there are enough.

    Columns: ``path``, ``seconds`` (the middle of what the row's tubelet shows; of a whole file its
    middle), ``first_frame``, ``last_frame``, ``features`` (list of D numbers), ``origin`` (JSON:
    what the row was made from).
    """

    def __init__(self, folder: Path, stored: StoredType, writer: str = "") -> None:
        """Read which files the parts ``part-00000.parquet``, ... of the folder hold already.

        `writer` is the name of this writer among several that write to the folder at the same time.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._pq = pa, pq
        self._folder = folder
        self._stored = stored
        self._columns: dict[str, list[object]] = {}
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

    def add(self, look: Look, origin: FileOrigin, parts: Iterable[FilePart]) -> None:
        """Add rows of a file: one for each tubelet, or for the whole; for one that fails none."""
        tokens, times = tokens_and_times(parts)
        numbers = look.plan.frame_numbers
        rows = np.atleast_2d(tokens.numpy()).astype(self._stored)
        if len(rows) != len(times):
            times, numbers = times[[0, -1]].mean(keepdims=True), numbers[[0, -1]].reshape(1, -1)
        columns = {
            "path": [look.info.path] * len(rows),
            "seconds": times.tolist(),
            "first_frame": numbers[:, 0].tolist(),
            "last_frame": numbers[:, -1].tolist(),
            "features": list(rows),
            "origin": [json.dumps(asdict(origin))] * len(rows),
        }
        for name, values in columns.items():
            self._columns.setdefault(name, []).extend(values)
        if len(self._columns["path"]) >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as a part of their own."""
        if not self._columns:
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
        with atomic_path(target) as aside:
            self._pq.write_table(pa.table(self._columns, schema=schema), aside)
        self._next_part += 1
        self._columns = {}


def write_features(
    target: Path,
    look: Look,
    origin: FileOrigin,
    parts: Iterable[FilePart],
    *,
    pool: Pool,
    width: int,
    stored: StoredType,
) -> None:
    """Write the features of one file to the disk as they come; of one that fails nothing is left.

    The suffix, ``.safetensors`` or ``.npz``, chooses the format. The file holds ``tokens`` (shape
    by pooling), ``times`` float64 [t] and ``frame_numbers`` int64 [t, tubelet], and the metadata
    ``vjepa``: JSON of origin, grid, box and the source's size.
    """
    meta = {
        "origin": asdict(origin),
        "grid": look.grid,
        "box": look.box,
        "source_size": (look.info.height, look.info.width),
    }
    t, h, w = look.grid
    shape = {"none": (t, h, w, width), "space": (t, width), "video": (width,)}[pool]
    write = _write_safetensors if target.suffix == ".safetensors" else _write_npz
    with atomic_path(target) as aside:
        write(
            aside,
            unless_failed(parts),
            look.plan.frame_numbers,
            shape,
            np.dtype(stored),
            json.dumps(meta),
        )


def is_written(target: Path, origin: FileOrigin) -> bool:
    """Whether a file is there, whole, and made from this very origin.

    Its header and its length are looked at, not its numbers.
    """
    read = _read_safetensors_meta if target.suffix == ".safetensors" else _read_npz_meta
    try:
        found = json.loads(read(target))["origin"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return False
    return found == asdict(origin)


def _write_safetensors(
    path: Path,
    parts: Iterable[FilePart],
    numbers: NDArray[np.int64],
    shape: tuple[int, ...],
    dtype: np.dtype,
    meta: str,
) -> None:
    """Header first, from shapes that are known beforehand; then the numbers as they come."""
    header: dict[str, object] = {"__metadata__": {_META: meta, "format": "pt"}}
    start = 0
    for name, shape_, kind in (
        # float64 and int64 first: they stay aligned to 8 bytes whatever the tokens' type.
        ("times", numbers.shape[:1], np.dtype(np.float64)),
        ("frame_numbers", numbers.shape, np.dtype(np.int64)),
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
    times = np.zeros(len(numbers))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        early = file.tell()
        # Times are known last; their place is written twice.
        file.write(times.tobytes() + numbers.tobytes())
        for part in parts:
            times = times if part.times is None else part.times
            file.write(_bytes(part.tokens, dtype))
        file.seek(early)
        file.write(times.tobytes())


def _write_npz(
    path: Path,
    parts: Iterable[FilePart],
    numbers: NDArray[np.int64],
    shape: tuple[int, ...],
    dtype: np.dtype,
    meta: str,
) -> None:
    """A zip of .npy files; the tokens' header is written first, from the known shape."""
    times = np.zeros(len(numbers))
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("tokens.npy", "w", force_zip64=True) as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_2_0(file, {**header, "shape": shape})
            for part in parts:
                times = times if part.times is None else part.times
                file.write(_bytes(part.tokens, dtype))
        arrays = {_META: np.array(meta), "times": times, "frame_numbers": numbers}
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _bytes(tokens: Tensor | None, dtype: np.dtype) -> bytes:
    return b"" if tokens is None else tokens.numpy().astype(dtype).tobytes()


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
    with zipfile.ZipFile(path) as archive, archive.open(f"{_META}.npy") as file:
        return str(np.lib.format.read_array(file, allow_pickle=False))
