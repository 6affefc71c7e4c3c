"""The videos that are prepared: rows of manifests, the part of each that is kept, their names."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from vjepa.data.manifest.manifest import LabelCodes, Manifest, ManifestRow
from vjepa.data.prepare.config import TrimConfig
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
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


class PreparedInputs:
    """Rows of several manifests under one numbering; a row becomes an object when asked for."""

    def __init__(self, manifests: Sequence[Manifest], trim: TrimConfig) -> None:
        """Put them together.

        Raises:
            UserError: None, or a label column that `trim` names is missing or holds no numbers.
        """
        if not manifests:
            raise UserError("nothing to prepare: name a manifest made by `vjepa data index`")
        self._manifests = tuple(manifests)
        self._ends = np.cumsum([len(manifest) for manifest in manifests])
        self._ok = [manifest.ok for manifest in manifests]
        self._labels = [
            {name: manifest.label_codes(name) for name in manifest.label_names}
            for manifest in manifests
        ]
        self._texts = [
            {name: manifest.categories(name) for name in ("split", "dataset")}
            for manifest in manifests
        ]
        self._trim = trim
        self._check_times()

    def __len__(self) -> int:
        """Number of videos."""
        return int(self._ends[-1])

    def _place(self, number: int) -> tuple[int, int]:
        manifest = int(np.searchsorted(self._ends, number, side="right"))
        return manifest, number - int(self._ends[manifest]) + len(self._manifests[manifest])

    @property
    def usable_bytes(self) -> int:
        """Size of all usable files, in bytes."""
        return sum(int(one.numeric("bytes")[one.ok].sum()) for one in self._manifests)

    def is_usable(self, number: int) -> bool:
        """Whether a video's row is marked as good."""
        manifest, row = self._place(number)
        return bool(self._ok[manifest][row])

    def info(self, number: int) -> VideoInfo:
        """All that is known about a video."""
        manifest, row = self._place(number)
        return self._manifests[manifest].row(row)

    def path(self, number: int) -> str:
        """Its path."""
        manifest, row = self._place(number)
        return self._manifests[manifest].path(row)

    def row(self, number: int) -> ManifestRow:
        """A video with its split, data set, weight and labels."""
        manifest, row = self._place(number)
        texts = self._texts[manifest]
        label_of = {name: _text(codes, row) for name, codes in self._labels[manifest].items()}
        return ManifestRow(
            info=self.info(number),
            split=_text(texts["split"], row),
            dataset=_text(texts["dataset"], row),
            weight=float(self._manifests[manifest].weights[row]),
            labels=label_of,
        )

    def part(self, number: int) -> Part:
        """The part of a video that is used, before it is cut into windows."""
        manifest, row = self._place(number)
        start, end = 0.0, math.inf
        if self._trim.start_label is not None:
            start = _seconds(self._labels[manifest][self._trim.start_label], row, 0.0)
        if self._trim.end_label is not None:
            end = _seconds(self._labels[manifest][self._trim.end_label], row, math.inf)
        return Part(start, end)

    @property
    def label_names(self) -> list[str]:
        """Labels of any of the manifests."""
        return sorted({name for manifest in self._manifests for name in manifest.label_names})

    @property
    def digest(self) -> str:
        """Hash of everything that the result depends on."""
        made = hashlib.sha256()
        for manifest in self._manifests:
            made.update(manifest.content_hash.encode())
            for name in ("bytes", "mtime_ns", "ok", "weight"):
                made.update(np.ascontiguousarray(manifest.numeric(name)).tobytes())
        return made.hexdigest()

    def _check_times(self) -> None:
        for name in (self._trim.start_label, self._trim.end_label):
            for manifest in self._manifests if name is not None else ():
                for value in manifest.label_codes(str(name)).classes:
                    if not _is_time(value):
                        raise UserError(
                            f"manifest {manifest.source}: label {name} is {value!r}, not a number"
                            " of seconds; see trim.start_label and trim.end_label"
                        )


def _text(codes: LabelCodes, row: int) -> str | None:
    code = int(codes.codes[row])
    return None if code < 0 else codes.classes[code]


def _is_time(value: str) -> bool:
    try:
        return 0 <= float(value) < math.inf
    except ValueError:
        return False


def _seconds(codes: LabelCodes, row: int, default: float) -> float:
    text = _text(codes, row)
    return default if text is None else float(text)


def windows(part: Part, duration: float, trim: TrimConfig) -> list[Part]:
    """Cut a part into windows.

    Args:
        part: What is used of a video.
        duration: Length of the video in seconds.
        trim: Length and number of windows.

    Returns:
        The windows in order; none if the part lies behind the end of the video.
    """
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
