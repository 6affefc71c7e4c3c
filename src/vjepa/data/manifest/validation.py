"""What the values of a manifest must be like: it may come from elsewhere, or be made by hand.

Whatever passes here cannot make a reader fail in another way than with a file's own reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vjepa.data.video.info import MediaKind

_SMALLEST: Mapping[str, int] = {
    "num_frames": 0,
    "fps": 0,
    "duration_seconds": 0,
    "width": 0,
    "height": 0,
    "bytes": 0,
    "weight": 0,
    "time_base_num": 0,
    "time_base_den": 1,
}
_NEVER_NULL = (
    *_SMALLEST,
    "path",
    "ok",
    "kind",
    "rotation",
    "constant_rate",
    "mtime_ns",
    "start_pts",
)


def problem_of(table: pa.Table) -> str | None:
    """The first value that cannot be, in words; None: all can.

    Args:
        table: With the columns and types of a manifest; valid Arrow data.
    """
    for name in _NEVER_NULL:
        if table.column(name).null_count:
            row = np.flatnonzero(table.column(name).is_null().to_numpy())[0]
            return f"row {row}: no {name}"
    for name, smallest in _SMALLEST.items():
        values = table.column(name).to_numpy()
        # `not >=` and not `<`, so that NaN is found too.
        wrong = ~(values >= smallest) | ~np.isfinite(values)
        if wrong.any():
            row = int(wrong.argmax())
            return f"row {row}: {name} {values[row]} cannot be"
    for name in ("width", "height"):
        empty = table.column("ok").to_numpy() & (table.column(name).to_numpy() < 1)
        if empty.any():
            return f"row {int(empty.argmax())}: usable, but {name} 0"
    kinds = set(table.column("kind").cast(pa.string()).unique().to_pylist())
    if not kinds <= set(get_args(MediaKind)):
        return f"kind {min(kinds - set(get_args(MediaKind)))!r} is unknown"
    return _keyframe_problem(table)


def _keyframe_problem(table: pa.Table) -> str | None:
    """Key frames must ascend, the first being frame 0: decoding plans its jumps by them."""
    for name, least_step in (("keyframe_pts", 1), ("keyframe_index", 0)):
        for chunk in table.column(name).chunks:
            if chunk.values.null_count:
                return f"{name}: an empty place in a list"
            offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
            wrong = _steps_below(values, offsets, least_step)
            if wrong or (name == "keyframe_index" and _first_values(values, offsets).any()):
                return f"{name}: the key frames of a row do not ascend from the first frame"
    counts = [
        pc.call_function("list_value_length", [table.column(name)]).fill_null(0).to_numpy()
        for name in ("keyframe_pts", "keyframe_index")
    ]
    unequal = counts[0] != counts[1]
    if unequal.any():
        return f"row {int(unequal.argmax())}: not as many keyframe_pts as keyframe_index"
    return None


def _steps_below(values: NDArray[np.int64], offsets: NDArray[np.int64], least: int) -> bool:
    """Whether a value inside a list is not `least` above the one before it."""
    small = values[1:] < values[:-1] + least
    starts = offsets[(offsets > 0) & (offsets < len(values))]
    small[starts - 1] = False  # the first of a list follows nobody
    return bool(small[max(0, int(offsets[0])) : max(0, int(offsets[-1]) - 1)].any())


def _first_values(values: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first value of every list that has one."""
    return values[offsets[:-1][np.diff(offsets) > 0]]
