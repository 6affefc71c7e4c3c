"""Settings of ``vjepa data prepare``, and the videos that are prepared."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import LimitsConfig, VideoInfo, is_media
from vjepa.errors import UserError

Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


@config_dataclass
class TranscodeConfig:
    """How videos are encoded anew. Audio is dropped; still images are copied as they are."""

    mode: Literal["h264", "copy"] = "h264"
    """`h264`: encode with libx264; `copy`: take the files' bytes as they are."""
    short_side: Annotated[int, Field(ge=16)] | None = 320
    """Shrink larger videos to this short side, in pixels; smaller ones and null keep their size."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Lower a higher frame rate to this, in frames per second; null keeps all frames."""
    gop: Annotated[int, Field(ge=1, le=1000)] = 12
    """Frames from one key frame to the next at most: what decoding a clip begins with."""
    crf: Annotated[int, Field(ge=0, le=51)] = 21
    """Quality of libx264: 0 is lossless, 18 hardly visible, 28 rough."""
    preset: Preset = "veryfast"
    """Effort of libx264: slower ones make smaller files."""
    b_frames: Annotated[int, Field(ge=0, le=16)] = 2
    """Most B-frames in a row. Those that no clip takes need not be decoded."""


@config_dataclass
class TrimConfig:
    """Which part of each video is kept, and into which windows it is cut."""

    start_label: str | None = None
    """Label column that holds where the part begins, in seconds; null takes the beginning."""
    end_label: str | None = None
    """Label column that holds where the part ends, in seconds; null takes the end."""
    window_seconds: Annotated[float, Field(gt=0)] | None = None
    """Cut the part into windows of this length; null leaves it whole."""
    min_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Windows shorter than this, at the end, are left out (unless it is the only one)."""
    max_windows: Annotated[int, Field(ge=1)] | None = None
    """Keep so many windows, evenly spread over the part; null keeps all."""


@config_dataclass
class ExcludeConfig:
    """Videos that must not be in the result: a validation list."""

    path: Path
    """A manifest (.parquet): compared by id, content and pictures. Any other file is text that
    begins each line with an id, a name or a path: compared by id alone."""
    split: str | None = None
    """Only the rows of this split of a manifest; null takes all."""


@config_dataclass
class MatchConfig:
    """When two videos count as the same."""

    by_id: bool = True
    """Compare ids with those of the `exclude` lists."""
    id_pattern: str = r"(?P<id>.+?)(_\d{6}_\d{6})?"
    """What in a file's name (without suffix) is its id: the group `id` of this regular expression.
    The default takes off the times that Kinetics files end with."""
    by_content: bool = True
    """Compare the encoded pictures, byte by byte, whatever the container around them."""
    by_pictures: bool = True
    """Compare perceptual hashes of frames, which survive another encoding, size or frame rate."""
    duplicate_names: bool = False
    """Two files of the same name (without suffix), in whichever data set, are the same video."""
    hash_seconds: Annotated[float, Field(gt=0)] = 1.0
    """A frame of each so many seconds is hashed, of a short video at least eight."""
    hash_frames: Annotated[int, Field(ge=8, le=10_000)] = 128
    """Most frames hashed of one video; of a longer one they are spread over its whole length."""
    hash_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Two frames are alike if their 64-bit hashes differ in at most so many bits."""
    hash_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Two videos are the same if this share of one's hashed frames is alike one of the other's."""

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.id_pattern).groupindex
        except re.error as error:
            raise ValueError(f"id_pattern is no regular expression: {error}") from error
        if "id" not in groups:
            raise ValueError("id_pattern has no group named id, as in (?P<id>.+)")


@config_dataclass
class ShardConfig:
    """Where the prepared videos are written."""

    form: Literal["tar", "files"] = "tar"
    """`tar`: WebDataset shards; `files`: one file for each video."""
    megabytes: Annotated[int, Field(ge=1)] = 1000
    """A shard is closed when it holds so many megabytes (1e6 bytes)."""
    shuffle_seed: int | None = 0
    """Videos are mixed with this seed before they are put into shards, for readers that read
    shards from end to end (ours does not); null keeps their order."""
    url: str | None = None
    """Where the folder will stand in object storage, as s3://bucket/folder: the manifest then
    names the shards there. Copying them is up to you."""

    def __post_init__(self) -> None:
        if self.url is not None and "://" not in self.url:
            raise ValueError(f"url must be an address such as s3://bucket/folder, got {self.url}")


@config_dataclass
class PrepareConfig:
    """How videos become a training set."""

    exclude: tuple[ExcludeConfig, ...] = ()
    """Validation lists whose videos are taken out."""
    deduplicate: bool = True
    """Keep only the first of several videos that are the same for certain: by content or name."""
    near_copies: Literal["list", "remove"] = "list"
    """Of videos that are the same by their pictures alone: `list` names all but the first and keeps
    them, since a camera that does not move takes alike pictures at all times; `remove` leaves them
    out. Those like a video of `exclude` are left out in any case."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """When two videos are the same."""
    trim: TrimConfig = field(default_factory=TrimConfig)
    """Which parts are kept."""
    transcode: TranscodeConfig = field(default_factory=TranscodeConfig)
    """How they are encoded."""
    shards: ShardConfig = field(default_factory=ShardConfig)
    """How they are stored."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What a file may demand at most."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest time for which reading or encoding a video makes no progress; then its process is
    killed."""
    max_removed: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Stop before anything is encoded if a larger share of the videos would be removed: a sign of
    names that are running numbers, or of a threshold that is too high. Or before anything is stored
    if a larger share could not be read or encoded: a sign of a disk that was away."""

    def __post_init__(self) -> None:
        trim = self.trim
        is_cut = (trim.start_label, trim.end_label, trim.window_seconds) != (None, None, None)
        if self.transcode.mode == "copy" and is_cut:
            raise ValueError("trim cannot be used with transcode.mode copy: cutting means encoding")

    @property
    def needs_fingerprints(self) -> bool:
        """Whether the videos' contents must be looked at to know what is removed."""
        is_comparing = self.match.by_content or self.match.by_pictures
        return is_comparing and (self.deduplicate or bool(self.exclude))


_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 60
# Seconds, frames and windows that differ by less differ by rounding alone.
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

    def frames(self, info: VideoInfo, times: NDArray[np.float64] | None) -> tuple[int, int]:
        """First frame and the one behind the last, at least one frame.

        `times` are those of :func:`vjepa.data.video.decode.frame_times`: a part holds the frames
        that begin in it, or the one shown throughout. None: by the rate, to the nearest frame.
        """
        if times is not None:
            ends = np.array([self.start, self.end]) - _TOLERANCE
            first, end = np.searchsorted(times, ends).tolist()
            if first >= end:
                first = max(0, int(np.searchsorted(times, self.start + _TOLERANCE, "right")) - 1)
            return first, max(first + 1, end)
        first = min(max(0, round(self.start * info.fps)), info.num_frames - 1)
        if self.end == math.inf:
            return first, info.num_frames
        return first, min(max(first + 1, round(self.end * info.fps)), info.num_frames)

    def seconds(self, info: VideoInfo, times: NDArray[np.float64] | None) -> float:
        """How long its frames last together."""
        first, end = self.frames(info, times)
        if times is None:
            return (end - first) / info.fps
        return (times[end] if end < len(times) else times[-1] + 1 / info.fps) - times[first]

    def shown_at(
        self, info: VideoInfo, times: NDArray[np.float64] | None, moments: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Numbers (int64) of its frames shown at `moments`, float64, in seconds from its first."""
        first, end = self.frames(info, times)
        if times is None:
            numbers = first + np.floor(moments * info.fps + _TOLERANCE).astype(np.int64)
        else:
            numbers = np.searchsorted(times, times[first] + moments + _TOLERANCE, "right") - 1
        return np.minimum(numbers, end - 1)


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
            for name in ("bytes", "mtime_ns", "ok", "weight", "fps"):
                digest.update(np.ascontiguousarray(manifest.numeric(name)).tobytes())
            datasets = manifest.categories("dataset")
            digest.update(repr(datasets.classes).encode() + datasets.codes.tobytes())
        self.digest = digest.hexdigest()
        """Hash of everything that the result depends on."""
        tables = [manifest.rooted_at(None) for manifest in manifests]
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
    if len(cuts) > 1 and cuts[-1].end - cuts[-1].start < trim.min_seconds - _TOLERANCE:
        cuts.pop()
    if trim.max_windows is not None and len(cuts) > trim.max_windows:
        middle = (np.arange(trim.max_windows) + 0.5) * len(cuts) / trim.max_windows
        cuts = [cuts[int(place)] for place in middle]
    return cuts


def stem_of(path: str) -> str:
    """A file's name without folder and suffix."""
    name = path.rstrip("/").rpartition("/")[2]
    return PurePosixPath(name).stem if is_media(name) else name


def plain_name(text: str) -> str:
    """A text with everything but ASCII letters, digits, ``_`` and ``-`` made ``_``, and cut."""
    return _UNSAFE.sub("_", text)[:_LONGEST]


def safe_name(row: ManifestRow, part: Part, number: int) -> str:
    """A file name without suffix for a prepared video: at most 100 letters, digits, ``_``, ``-``.

    It names the data set, the file and the part for people, and ends with `number`, the video's
    place in the input: with the part's beginning, never cut off, no two are alike. Nothing in it
    can lead out of a folder.
    """
    words = "-".join(filter(None, map(plain_name, (row.dataset or "", stem_of(row.info.path)))))
    place = "" if part.is_whole else f"-{round(part.start * 1000):07d}ms"
    text = words[: _LONGEST - len(place)] + place
    return f"{text.strip('-_')}-{number:09d}".lstrip("-")
