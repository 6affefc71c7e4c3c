"""What is known about one video, image or folder of images; which files are such.

Leaf of the data room: needs neither PyAV nor Arrow.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import PurePath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.errors import UserError

MediaKind = Literal["video", "image", "image_folder"]

Reading = Literal["stamps", "groups", "counted", "placed"]
"""How the frames of a video are found. stamps: by the timestamps of its packets; groups: likewise,
but whole groups of pictures are read, because decoding times are wrong; counted: by decoding and
counting from an entry point, because timestamps do not tell frames apart; placed: likewise, with
entry points that are known by the place of their first byte in the file."""

IMAGE_FOLDER_FPS = 30.0
"""Frame rate assumed for a folder of images unless another is given."""

Box = tuple[int, int, int, int]
"""Part of a frame: top, left, height, width, in pixels."""

Part = tuple[NDArray[np.int64], Box | None]
"""Numbers of frames, int64 [T], and the part of them that is wanted; None: all of it."""


Stage = Literal["open", "seek", "decode", "convert", "crop", "rest"]
"""Where the time of reading a clip goes. open: the file and its decoder; seek: jumps and reading of
packets; decode: the decoder; convert: to RGB, and into place; crop: resize and flip."""


STAGE_LISTENERS: list[Callable[[Stage], None]] = []
"""What is told, in the process that reads, which stage begins: `vjepa bench loader` measures so."""


def enter_stage(stage: Stage) -> None:
    """Another stage of reading begins."""
    for listener in STAGE_LISTENERS:
        listener(stage)


class DecodeError(UserError):
    """A file that cannot give the frames asked of it.

    It costs a job of many files one sample, not the run: `path` and `reason` are kept apart so that
    they can be recorded (``bad_videos.jsonl``, the manifest's `reason` column). Where only this
    file is asked for, it is the user's error as it stands. A reason may end in "; " and a remedy.
    """

    def __init__(self, path: str, reason: str) -> None:
        # Both go to Exception's args, so that the error survives pickling between processes.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        remedy = "" if "; " in self.reason else "; give another file"
        return f"{self.path}: {self.reason}{remedy}"


@contextmanager
def within_memory(path: str) -> Generator[None]:
    """A file for whose frames the memory of a process does not suffice is bad: a DecodeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class for it on a CPU.
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise DecodeError(path, "out of memory while reading it") from error


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
    reason: str | None = None
    """Why frames cannot be had from it."""
    num_frames: int = 0
    """Number of frames that can be asked for, counted from the packets, never from the header."""
    fps: float = 0.0
    duration_seconds: float = 0.0
    """Mean frame rate in frames per second, and `num_frames` / `fps`."""
    width: int = 0
    height: int = 0
    """Size in pixels as displayed (rotation applied), that is, as decoded."""
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
    keyframe_pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Timestamps of the frames where decoding can start, ascending, int64 [n]. Empty: the
    timestamps are missing, and frames are found by decoding from the start and counting."""
    keyframe_index: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Number of each key frame in display order, int64 [n]."""
    time_base: Fraction = Fraction(0)
    """Length of one tick in seconds; 0 where there are no timestamps."""
    start_pts: int = 0
    """Timestamp of frame 0, in ticks."""
    frame_pts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """When each frame is shown, in ticks, rising, int64 [L], if the packets do not say it rightly:
    their clock jumps, timestamps repeat, or frames that are counted do not last equally long."""
    reading: Reading = "stamps"
    """How frames are found. ``placed``: `keyframe_pts` holds places in the file, in bytes."""
    stream: int | None = None
    """Number of the stream of the file; None, in manifests of older versions: the first of video
    that is no cover picture. Such rows were not verified either: index them again."""
    note: str = ""
    """What is unusual about the file, in words."""

    @property
    def is_counted(self) -> bool:
        """Whether frames are found by counting, not by their timestamps."""
        return self.reading in ("counted", "placed")

    @property
    def num_keyframes(self) -> int:
        """How many entry points the key-frame index has; 0 if it is absent or incomplete."""
        return min(len(self.keyframe_pts), len(self.keyframe_index))


_ARRAYS = ("keyframe_pts", "keyframe_index", "frame_pts")


def info_to_json(info: VideoInfo) -> dict[str, Any]:
    """A VideoInfo as plain JSON values, for a journal."""
    values: dict[str, Any] = {item.name: getattr(info, item.name) for item in fields(info)}
    for name in _ARRAYS:
        values[name] = values[name].tolist()
    values["time_base"] = [info.time_base.numerator, info.time_base.denominator]
    return values


def info_from_json(values: dict[str, Any]) -> VideoInfo:
    """Inverse of :func:`info_to_json`."""
    values = dict(values)
    for name in _ARRAYS:
        values[name] = np.array(values.get(name, ()), dtype=np.int64)
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


_VIDEO = """.mp4 .m4v .mov .qt .mkv .webm .avi .divx .mpg .mpeg .mpe .m2v .vob .ts .mts .m2ts
.wmv .asf .flv .f4v .ogv .ogg .3gp .3g2 .mxf .nut .y4m .ivf .gif .rm .rmvb"""
_IMAGE = ".jpg .jpeg .png .bmp .webp .tif .tiff .ppm .pgm .pnm .jp2"

VIDEO_SUFFIXES = frozenset(_VIDEO.split())
"""Suffixes (lower case) read through FFmpeg. A GIF is a video."""

IMAGE_SUFFIXES = frozenset(_IMAGE.split())
"""Suffixes (lower case) read through Pillow as one still image."""

_LAST_NUMBER = re.compile(r"^(.*?)(\d+)$")


def is_image(path: str) -> bool:
    """Whether the suffix is an image's."""
    return PurePath(path).suffix.lower() in IMAGE_SUFFIXES


def is_media(path: str) -> bool:
    """Whether the suffix is a video's or an image's."""
    suffix = PurePath(path).suffix.lower()
    return suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES


def kind_of(path: str) -> MediaKind:
    """How `path` is read: a folder is a clip of images, an unknown suffix is tried as a video."""
    if is_image(path):
        return "image"
    return "image_folder" if os.path.isdir(path) else "video"  # noqa: PTH112 (10 M rows: no Path)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``frame_10`` after ``frame_9``."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def images_in(folder: str) -> list[str]:
    """Names of the images directly in `folder`, in the order of the numbers they contain."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
    return sorted(names, key=natural_key)


def is_numbered_sequence(names: Iterable[str]) -> bool:
    """Whether file names are one run of numbered frames: same prefix and suffix, even steps.

    Gaps mean that the folder is a collection of stills (as ImageNet's class folders, whose names
    end in numbers too) and not the frames of one clip.
    """
    numbers: list[int] = []
    prefixes: set[tuple[str, str]] = set()
    for name in names:
        path = PurePath(name)
        match = _LAST_NUMBER.match(path.stem)
        if match is None:
            return False
        prefixes.add((match[1], path.suffix.lower()))
        numbers.append(int(match[2]))
    if len(numbers) < 2 or len(prefixes) != 1:
        return False
    numbers.sort()
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    return len(steps) == 1 and 0 not in steps
