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

from vjepa.data.video_info import VideoInfo
from vjepa.evaluation.window_reading import Look, Pool

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
            "box": look.framing.box,
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
