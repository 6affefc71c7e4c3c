"""Features of whole files on disk, written while they are computed, and found again.

Only what is whole has its name. It says what it was made from, so that a later run can tell whether
it may stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vjepa.data.clips.windows import Look, Pool
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.video_features import FileFeatures, Part, tokens_and_times
from vjepa.runtime.files import atomic_path

StoredType = Literal["float32", "float16"]

_PART_ROWS = 4096
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}
_META = "vjepa"

Origin = dict[str, str | int]


def origin_of(info: VideoInfo, settings: str) -> Origin:
    """What a file of features is made from: a video or image as it is now, and how.

    `settings` is the hash of everything else: weights, windows, framing, pooling, precision.
    """
    return {"path": info.path, "bytes": info.bytes, "mtime_ns": info.mtime_ns, "settings": settings}


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
        self._newest: dict[str, tuple[str, Path]] = {}  # origin of each path, and its last part
        self._parts: dict[Path, list[str]] = {}  # which paths each holds
        for part in _parts_of_table(folder):
            column = pq.read_table(part, columns=["origin"]).column("origin")
            origins = {json.loads(one)["path"]: one for one in column.unique().to_pylist()}
            self._parts[part] = [*origins]
            self._newest |= {path: (origin, part) for path, origin in origins.items()}
        self._prefix = f"part-{writer}"
        self._next_part = len(self._parts)

    def holds(self, origin: Origin) -> bool:
        """Whether the rows of its path that are on the disk, the newest, are of this origin."""
        return self._newest.get(str(origin["path"]), ("",))[0] == json.dumps(origin)

    def drop(self, paths: Set[str]) -> None:
        """Take out the rows of these paths that are on the disk, and those that a later part has.

        A part is whole or as it was, whenever this is stopped.
        """
        for part, held in self._parts.items():
            kept = [p for p in held if p not in paths and self._newest[p][1] == part]
            if not kept:
                part.unlink()
            elif len(kept) < len(held):
                rows = self._pq.read_table(part, filters=[("path", "in", kept)])
                with atomic_path(part) as aside:
                    self._pq.write_table(rows, aside)
            held[:] = kept
        self._parts = {part: held for part, held in self._parts.items() if held}
        self._newest = {p: newest for p, newest in self._newest.items() if p not in paths}

    def add(self, look: Look, origin: Origin, parts: Iterable[Part]) -> None:
        """Add rows of a file: one for each tubelet, or for the whole; for one that fails none."""
        tokens, times = tokens_and_times(parts)
        numbers = look.plan.frame_numbers
        rows = np.atleast_2d(_stored(tokens, np.dtype(self._stored)))
        if len(rows) != len(times):
            times, numbers = times[[0, -1]].mean(keepdims=True), numbers[[0, -1]].reshape(1, -1)
        columns = {
            "path": [look.info.path] * len(rows),
            "seconds": times.tolist(),
            "first_frame": numbers[:, 0].tolist(),
            "last_frame": numbers[:, -1].tolist(),
            "features": list(rows),
            "origin": [json.dumps(origin)] * len(rows),
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
        target = None
        while target is None or target.exists():
            target = self._folder / f"{self._prefix}{self._next_part:05d}.parquet"
            self._next_part += 1
        with atomic_path(target) as aside:
            self._pq.write_table(pa.table(self._columns, schema=schema), aside)
        self._columns = {}


def write_features(
    target: Path,
    look: Look,
    origin: Origin,
    parts: Iterable[Part],
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
        "origin": origin,
        "grid": look.grid,
        "box": look.box,
        "source_size": (look.info.height, look.info.width),
    }
    t, h, w = look.grid
    shape = {"none": (t, h, w, width), "space": (t, width), "video": (width,)}[pool]
    write = _write_safetensors if target.suffix == ".safetensors" else _write_npz
    numbers = look.plan.frame_numbers
    with atomic_path(target) as aside:
        write(aside, parts, numbers, shape, np.dtype(stored), json.dumps(meta))


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, SafetensorError)


def meta_of(target: Path, origin: Origin) -> dict[str, Any] | None:
    """The metadata of a file that is there, whole, and made from this very origin; else None.

    Its header and its length are looked at, not its numbers.
    """
    try:
        with _opened(target) as (meta, _):
            return meta if meta["origin"] == origin else None
    except _UNREADABLE:
        return None


def _parts_of_table(folder: Path) -> list[Path]:
    """By their numbers, whoever wrote them: the newest is last."""
    return sorted(folder.glob("part-*.parquet"), key=lambda path: path.stem.split("-")[-1])


def sources_of_table(folder: Path) -> dict[str, Path]:
    """The part of a table that holds the rows of each source: that of its last encoding."""
    import pyarrow.parquet as pq

    found: dict[str, Path] = {}
    for part in _parts_of_table(folder):
        paths = pq.read_table(part, columns=["path"]).column("path").unique().to_pylist()
        found |= dict.fromkeys(paths, part)
    return found


def read_rows(part: Path, path: str, grid: tuple[int, int, int], pool: Pool) -> FileFeatures:
    """The rows of a source in a part of a table."""
    import pyarrow.parquet as pq

    rows = pq.read_table(part, filters=[("path", "==", path)]).to_pylist()
    tokens = torch.tensor([row["features"] for row in rows])
    return FileFeatures(
        tokens[0] if pool == "video" else tokens,
        np.array([row["seconds"] for row in rows]),
        np.array([(row["first_frame"], row["last_frame"]) for row in rows]),
        grid,
        None,
        path,
    )


def read_features(target: Path) -> FileFeatures:
    """What :func:`write_features` wrote, in the stored type; UserError if it cannot be read."""
    try:
        with _opened(target) as (meta, read):
            return FileFeatures(
                torch.from_numpy(read("tokens")),
                read("times"),
                read("frame_numbers"),
                tuple(meta["grid"]),
                tuple(meta["box"]),
                meta["origin"]["path"],
            )
    except _UNREADABLE as error:
        raise UserError(
            f"{target}: missing or not whole ({error}); run the same `vjepa features` again"
        ) from error


@contextmanager
def _opened(target: Path) -> Generator[tuple[dict[str, Any], Callable[[str], NDArray[Any]]]]:
    """A file's metadata, and what reads an array of it by name."""
    if target.suffix == ".safetensors":
        with safe_open(target, "np") as file:
            yield json.loads(file.metadata()[_META]), file.get_tensor
    else:
        # A zip's table of contents is at its end: a truncated file has none.
        with np.load(target) as file:
            yield json.loads(str(file[_META])), file.__getitem__


def _write_safetensors(
    path: Path,
    parts: Iterable[Part],
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
        end = start + math.prod(shape_) * kind.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[kind.name],
            "shape": list(shape_),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        early = file.tell()
        # Times are known last; their place is written twice.
        file.write(bytes(8 * len(numbers)) + numbers.tobytes())
        times = _write_tokens(file, parts, dtype)
        file.seek(early)
        file.write(times.tobytes())


def _write_npz(
    path: Path,
    parts: Iterable[Part],
    numbers: NDArray[np.int64],
    shape: tuple[int, ...],
    dtype: np.dtype,
    meta: str,
) -> None:
    """A zip of .npy files; the tokens' header is written first, from the known shape."""
    with ZipFile(path, "w") as archive:
        with archive.open("tokens.npy", "w", force_zip64=True) as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_2_0(file, {**header, "shape": shape})
            times = _write_tokens(file, parts, dtype)
        arrays = {_META: np.array(meta), "times": times, "frame_numbers": numbers}
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_tokens(file: IO[bytes], parts: Iterable[Part], dtype: np.dtype) -> NDArray[np.float64]:
    """Write tokens as they come; returns the times that come with the last."""
    times = np.zeros(0)
    for tokens, found in parts:
        times = times if found is None else found
        if tokens is not None:
            file.write(_stored(tokens, dtype).tobytes())
    return times


def _stored(tokens: torch.Tensor, dtype: np.dtype) -> NDArray[Any]:
    """Finite tokens in the type that they are stored in; UserError: it is too narrow."""
    with np.errstate(over="ignore"):
        stored = tokens.numpy().astype(dtype)
    if not np.isfinite(stored).all():
        largest = float(tokens.abs().max())
        raise UserError(f"stored: {dtype.name} cannot hold {largest:.3g}; choose float32")
    return stored
