"""The videos that are prepared: rows of manifests, the part of each that is kept, their names."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.prepare.config import TrimConfig
from vjepa.data.video.info import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoInfo
from vjepa.errors import UserError

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 60
# Windows that are this much (of one) too long are not cut off by rounding.
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a video in seconds from its first frame; `end` may be infinite: to its end."""

    start: float = 0.0
    end: float = math.inf

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole video."""
        return self.start == 0.0 and self.end == math.inf

    def frames(self, info: VideoInfo) -> tuple[int, int]:
        """First frame and the one behind the last; by the mean rate, at least one frame."""
        first = min(max(0, round(self.start * info.fps)), info.num_frames - 1)
        if self.end == math.inf:
            return first, info.num_frames
        return first, min(max(first + 1, round(self.end * info.fps)), info.num_frames)


@dataclass(frozen=True, slots=True)
class Order:
    """Look at a part of a video; or encode it into the file `target`."""

    key: str
    info: VideoInfo
    part: Part
    target: str = ""

    def __str__(self) -> str:
        return self.info.path


class PreparedInputs:
    """Rows of several manifests under one numbering, and which part of each is used."""

    def __init__(self, manifests: Sequence[Manifest], trim: TrimConfig) -> None:
        if not manifests:
            raise UserError("nothing to prepare: name a manifest made by `vjepa data index`")
        self._starts = _seconds(manifests, trim.start_label, 0.0)
        self._ends = _seconds(manifests, trim.end_label, math.inf)
        digest = hashlib.sha256()
        for manifest in manifests:
            digest.update(manifest.content_hash.encode())
            for name in ("bytes", "mtime_ns", "ok", "weight"):
                digest.update(np.ascontiguousarray(manifest.numeric(name)).tobytes())
        self.digest = digest.hexdigest()
        """Hash of everything that the result depends on."""
        tables = [
            one.table.set_column(one.table.column_names.index("path"), "path", one.absolute_paths())
            for one in manifests
        ]
        joined = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
        self.videos = Manifest(joined, Path("/"))
        """All rows."""
        self._ends_of = np.cumsum([len(one) for one in manifests])
        self._labels_of = [one.label_names for one in manifests]

    def __len__(self) -> int:
        return len(self.videos)

    def row(self, number: int) -> ManifestRow:
        """A video with its split, data set, weight, and the labels that its own manifest has."""
        row = self.videos.full_row(number)
        names = self._labels_of[int(np.searchsorted(self._ends_of, number, side="right"))]
        return replace(row, labels={name: row.labels[name] for name in names})

    def part(self, number: int) -> Part:
        """The part of a video that is used, before it is cut into windows."""
        return Part(float(self._starts[number]), float(self._ends[number]))


def _seconds(
    manifests: Sequence[Manifest], label: str | None, default: float
) -> NDArray[np.float64]:
    """A label column of all manifests as numbers, float64 [rows]; `default` where there is none."""
    found = [np.full(len(manifest), default) for manifest in manifests]
    if label is None:
        return np.concatenate(found)
    for place, manifest in enumerate(manifests):
        coded = manifest.label_codes(label)
        for value in coded.classes:
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if not 0 <= seconds < math.inf:
                raise UserError(
                    f"manifest {manifest.source}: label {label} is {value!r}, not a number"
                    " of seconds; see trim.start_label and trim.end_label"
                )
        found[place] = np.array([*map(float, coded.classes), default])[coded.codes]
    return np.concatenate(found)


def windows(part: Part, duration: float, trim: TrimConfig) -> list[Part]:
    """Cut a part of a video of `duration` seconds into windows; none if it lies behind its end."""
    end = min(part.end, duration)
    if end <= part.start:
        return []
    if trim.window_seconds is None:
        return [part]
    length = trim.window_seconds
    count = max(1, math.ceil((end - part.start) / length - _TOLERANCE))
    cuts = [
        Part(part.start + k * length, min(end, part.start + (k + 1) * length)) for k in range(count)
    ]
    if len(cuts) > 1 and cuts[-1].end - cuts[-1].start < trim.min_seconds:
        cuts.pop()
    if trim.max_windows is not None and len(cuts) > trim.max_windows:
        middle = (np.arange(trim.max_windows) + 0.5) * len(cuts) / trim.max_windows
        cuts = [cuts[int(place)] for place in middle]
    return cuts


def stem_of(path: str) -> str:
    """A file's name without folder and suffix."""
    name = path.rstrip("/").rpartition("/")[2]
    suffix = PurePosixPath(name).suffix.lower()
    is_media = suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES
    return name[: -len(suffix)] if is_media else name


def plain_name(text: str) -> str:
    """A text with everything but ASCII letters, digits, ``_`` and ``-`` made ``_``, and cut."""
    return _UNSAFE.sub("_", text)[:_LONGEST]


def safe_name(row: ManifestRow, part: Part, number: int) -> str:
    """A file name without suffix for a prepared video: at most 100 letters, digits, ``_``, ``-``.

    It names the data set, the file and the part for people, and ends with `number`, the video's
    place in the input, so that no two are alike. Nothing in it can lead out of a folder.
    """
    words = [row.dataset or "", stem_of(row.info.path)]
    if not part.is_whole:
        words.append(f"{round(part.start * 1000):07d}ms")
    text = "-".join(filter(None, map(plain_name, words)))
    return f"{text[:_LONGEST].strip('-_')}-{number:09d}".lstrip("-")
