"""What is known about one video, image or folder of images, and the limits it must keep.

Leaf of the data room: needs neither PyAV nor Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vjepa.config import config_dataclass

MediaKind = Literal["video", "image", "image_folder"]

Box = tuple[int, int, int, int]
"""Part of a frame: top, left, height, width, in pixels."""

Part = tuple[NDArray[np.int64], Box | None]
"""Numbers of frames, int64 [T], and the part of them that is wanted; None: all of it."""


class DecodeError(Exception):
    """A file that cannot give the frames asked of it.

    It costs the caller one sample, not the run. `path` and `reason` are kept apart so that they can
    be recorded (``bad_videos.jsonl``, the manifest's `reason` column).
    """

    def __init__(self, path: str, reason: str) -> None:
        # Both go to Exception's args, so that the error survives pickling between processes.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def _no_keyframes() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoInfo:
    """One row of a manifest: all that exact decoding and clip sampling need to know.

    A file that is not `ok` has a `reason`; its other fields hold what was learnt before it failed.
    """

    path: str
    """Absolute path of the file, or of the folder of images."""
    kind: MediaKind = "video"
    """A video file, one still image, or a folder of numbered images that is one clip."""
    ok: bool = True
    """Whether frames can be had from it."""
    reason: str | None = None
    """Why not."""
    num_frames: int = 0
    """Number of frames that can be asked for, counted from the packets, never from the header."""
    fps: float = 0.0
    """Mean frame rate in frames per second."""
    duration_seconds: float = 0.0
    """`num_frames` / `fps`, in seconds."""
    width: int = 0
    """Width in pixels as displayed (rotation applied), that is, as decoded."""
    height: int = 0
    """Height in pixels as displayed."""
    rotation: int = 0
    """Counter-clockwise rotation in degrees that the file asks for: 0, 90, 180 or 270."""
    codec: str = ""
    """FFmpeg's name of the decoder, or Pillow's of the image format."""
    bytes: int = 0
    """Size on disk (sum over a folder's images), in bytes."""
    mtime_ns: int = 0
    """Time of the last change, in ns; with `bytes` it tells an unchanged file."""
    constant_rate: bool = True
    """Whether all frames last equally long (to one tick of the time base)."""
    keyframe_pts: NDArray[np.int64] = field(default_factory=_no_keyframes)
    """Timestamps of the frames where decoding can start, ascending, int64 [n]. Empty: the
    timestamps are missing or unusable, and frames are found by decoding and counting."""
    keyframe_index: NDArray[np.int64] = field(default_factory=_no_keyframes)
    """Number of each key frame in display order, int64 [n]."""
    time_base: Fraction = Fraction(0)
    """Length of one tick in seconds; 0 where there are no timestamps."""
    start_pts: int = 0
    """Timestamp of frame 0, in ticks."""

    @property
    def num_keyframes(self) -> int:
        """How many entry points the key-frame index has; 0 if it is absent or incomplete."""
        return min(len(self.keyframe_pts), len(self.keyframe_index))


def info_to_json(info: VideoInfo) -> dict[str, Any]:
    """A VideoInfo as plain JSON values, for a journal."""
    values: dict[str, Any] = {item.name: getattr(info, item.name) for item in fields(info)}
    for name in ("keyframe_pts", "keyframe_index"):
        values[name] = values[name].tolist()
    values["time_base"] = [info.time_base.numerator, info.time_base.denominator]
    return values


def info_from_json(values: dict[str, Any]) -> VideoInfo:
    """Inverse of :func:`info_to_json`."""
    values = dict(values)
    for name in ("keyframe_pts", "keyframe_index"):
        values[name] = np.array(values[name], dtype=np.int64)
    values["time_base"] = Fraction(*values["time_base"])
    return VideoInfo(**values)


@config_dataclass
class LimitsConfig:
    """What a file may demand before it is refused instead of decoded."""

    max_pixels: Annotated[int, Field(ge=1)] = 8192 * 8192
    """Largest width x height of a frame, in pixels."""
    max_frames: Annotated[int, Field(ge=1)] = 10_000_000
    """Largest number of frames."""
    max_bytes: Annotated[int, Field(ge=1)] = 1 << 40
    """Largest size on disk, in bytes."""
    max_memory_gigabytes: Annotated[float, Field(gt=0)] = 8.0
    """Memory (address space, in GB) that a reader process may take for the file it reads; Linux."""
