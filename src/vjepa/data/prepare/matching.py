"""What a video is known by, and which are left out: validation videos first, then copies.

It is known by the hash of its encoded pictures, and by hashes of some of its frames.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vjepa.data.manifest.lists import list_entries
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.manifest.storage import opened
from vjepa.data.prepare.config import (
    ExcludeConfig,
    MatchConfig,
    Order,
    Part,
    PreparedInputs,
    stem_of,
)
from vjepa.data.video.container import open_video, reason_of
from vjepa.data.video.decode import frame_times, read_frames
from vjepa.data.video.images import images_in
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.workers import going_on

SIDE = 32
"""Side of the grey image that is hashed, in pixels."""

_LOW = 8
_LEAST_FRAMES = 8
# A frame whose pixels differ less than this (standard deviation in grey levels) is all but empty:
# the bits of its hash are noise.
_MIN_CONTRAST = 3.0
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def grey_thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A frame, uint8 [H, W, 3] RGB, as the mean grey of 32 x 32 equal parts: float32, 0 to 255."""
    down = _area_weights(frame.shape[0])
    across = _area_weights(frame.shape[1])
    grey = frame.reshape(-1, 3) @ _LUMA
    return down @ grey.reshape(frame.shape[:2]) @ across.T


def _area_weights(size: int) -> NDArray[np.float32]:
    """Share of each of `size` pixels in each of 32 equal parts: float32 [32, size], rows sum 1."""
    edges = np.linspace(0, size, SIDE + 1)
    pixels = np.arange(size)
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    shares = np.maximum(0.0, high - low)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def is_informative(thumbnail: NDArray[np.float32]) -> bool:
    """Whether a thumbnail shows enough for its hash to mean anything."""
    return float(thumbnail.std()) >= _MIN_CONTRAST


def hash_thumbnail(thumbnail: NDArray[np.float32]) -> int:
    """The hash of a thumbnail, float32 [32, 32]: 64 bits as an unsigned integer."""
    # The lowest rows of the orthonormal cosine transform.
    frequency, place = np.mgrid[0:_LOW, 0:SIDE]
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    cosines[0] /= np.sqrt(2)
    cosines = cosines.astype(np.float32)
    low = (cosines @ thumbnail @ cosines.T).reshape(-1)
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness says nothing
    return int(np.packbits(bits).view(">u8")[0])


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What a video, or the used part of one, is known by."""

    content: str
    """SHA-256 (hex) of its encoded pictures and of where the part begins and ends."""
    frames: NDArray[np.uint64]
    """uint64 [F], perceptual hashes of frames that show something, in order."""

    def to_json(self) -> dict[str, str]:
        """As plain values."""
        data = base64.b64encode(self.frames.astype("<u8").tobytes()).decode()
        return {"content": self.content, "frames": data}

    @classmethod
    def from_json(cls, values: dict[str, str]) -> Fingerprint:
        """Inverse of :meth:`to_json`."""
        data = np.frombuffer(base64.b64decode(values["frames"]), dtype="<u8")
        return cls(values["content"], data.astype(np.uint64))


def fingerprint(match: MatchConfig, order: Order) -> dict[str, str]:
    """A task for workers: a video's fingerprint as JSON, or why it has `failed`."""
    try:
        return take_fingerprint(order.info, order.part, match).to_json()
    except DecodeError as error:
        return {"failed": error.reason}
    except (OSError, MemoryError) as error:
        return {"failed": reason_of(error)}


def take_fingerprint(info: VideoInfo, part: Part, match: MatchConfig) -> Fingerprint:
    """Read the packets of a usable video, and decode the frames of its part that are hashed.

    Raises:
        DecodeError: It cannot be read.
    """
    digest = hashlib.sha256(b"" if part.is_whole else repr((part.start, part.end)).encode())
    for block in _encoded_pictures(info):
        digest.update(block)
    hashes: list[int] = []
    if match.by_pictures:
        for streamed in read_frames(info, hashed_frames(info, part, match)):
            going_on()
            thumbnail = grey_thumbnail(streamed.image)
            if is_informative(thumbnail):
                hashes.append(hash_thumbnail(thumbnail))
    return Fingerprint(digest.hexdigest(), np.array(hashes, dtype=np.uint64))


def hashed_frames(info: VideoInfo, part: Part, match: MatchConfig) -> NDArray[np.int64]:
    """Numbers of the frames that are hashed, ascending: int64 [F].

    Their times depend on the part's length in seconds alone, so that a copy of another frame rate
    is looked at in the same places.
    """
    times = frame_times(info)
    seconds = part.seconds(info, times)
    step = max(min(match.hash_seconds, seconds / _LEAST_FRAMES), seconds / match.hash_frames)
    return np.unique(part.shown_at(info, times, np.arange(0.5 * step, seconds, step)))


def _encoded_pictures(info: VideoInfo) -> Iterator[bytes]:
    """The video's packets without their container; or the bytes of images."""
    if info.kind == "video":
        with open_video(info.path, stream_number=info.stream) as video:
            for packet in video.packets():
                yield bytes(packet)
        return
    names = [info.path]
    if info.kind == "image_folder":
        names = [str(Path(info.path, name)) for name in images_in(info.path)]
    for name in names:
        with opened(name) as source:
            yield Path(source).read_bytes() if isinstance(source, str) else source.read() or b""


_LOGGER = logging.getLogger(__name__)

_BANDS, _BAND_BITS = 4, 16
# A band value that more frames than this share (title cards, studio walls) leads nowhere.
_MAX_CROWD = 2000
# Frames that a pair of videos must share bands in before it is compared in full.
_MIN_HITS = 2
# Frames that must show something before a video can be told by its pictures.
_MIN_FRAMES = 3
_CHUNK = 1 << 14


def frame_share(left: NDArray[np.uint64], right: NDArray[np.uint64], bits: int) -> float:
    """Share of one video's frames that are alike a frame of the other: the larger of the two ways.

    So a clip out of a long video is found in it. 0 if either shows too little. `left` is uint64
    [F], `right` uint64 [G]; frames are alike whose hashes differ in at most `bits` bits.
    """
    if min(len(left), len(right)) < _MIN_FRAMES:
        return 0.0
    is_alike = np.bitwise_count(left[:, None] ^ right[None]) <= bits
    return float(max(is_alike.any(axis=1).mean(), is_alike.any(axis=0).mean()))


class PictureIndex:
    """Frame hashes of many videos, to be looked up by band."""

    def __init__(self, videos: Sequence[NDArray[np.uint64]]) -> None:
        # The frames of all videos (uint64 [F_v] each), sorted by each of their bands.
        self._videos = videos
        lengths = [len(frames) for frames in videos]
        self._owner = np.repeat(np.arange(len(videos), dtype=np.int32), lengths)
        frames = np.concatenate([np.zeros(0, dtype=np.uint64), *videos])
        self._sorted: list[NDArray[np.int64]] = []
        self._starts: list[NDArray[np.int64]] = []
        for band in range(_BANDS):
            values = _band(frames, band)
            self._sorted.append(np.argsort(values, kind="stable"))
            counts = np.bincount(values, minlength=1 << _BAND_BITS)
            self._starts.append(np.concatenate([[0], counts.cumsum()]))

    def matches(
        self, frames: NDArray[np.uint64], bits: int, share: float
    ) -> Iterator[tuple[int, float]]:
        """Videos that show the same as these frames, with the share of frames that are alike."""
        if len(frames) < _MIN_FRAMES:
            return
        # (frame << 32 | video) for every frame and every video that shares a band with it
        hits: list[NDArray[np.int64]] = []
        for first in range(0, len(frames), _CHUNK):
            for band in range(_BANDS):
                values = _band(frames[first : first + _CHUNK], band)
                starts, ends = self._starts[band][values], self._starts[band][values + 1]
                counts = np.where(ends - starts > _MAX_CROWD, 0, ends - starts)
                frame = np.repeat(first + np.arange(len(values)), counts)
                within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
                owners = self._owner[self._sorted[band][np.repeat(starts, counts) + within]]
                hits.append(frame << 32 | owners)
        # One hit for each frame and video, however many bands they share.
        pairs = np.unique(np.concatenate(hits))
        owners, counts = np.unique(pairs & 0xFFFFFFFF, return_counts=True)
        for candidate in owners[counts >= _MIN_HITS].tolist():
            found = frame_share(frames, self._videos[candidate], bits)
            if found >= share:
                yield candidate, found


def _band(frames: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    mask = np.uint64((1 << _BAND_BITS) - 1)
    return (frames >> np.uint64(band * _BAND_BITS) & mask).astype(np.int64)


_ID_COLUMNS = ("id", "video_id", "youtube_id", "path")


@dataclass(frozen=True)
class Exclusion:
    """All validation lists: the ids of their videos with the list of each, and the manifests."""

    ids: dict[str, str] = field(default_factory=dict)
    manifests: list[Manifest] = field(default_factory=list)


def read_exclusion(lists: Sequence[ExcludeConfig], match: MatchConfig) -> Exclusion:
    """Read validation lists.

    Raises:
        UserError: A list is missing, malformed or empty.
    """
    made = Exclusion()
    for entry in lists:
        if entry.path.suffix == ".parquet":
            manifest = Manifest.open(entry.path).select(entry.split, ok_only=False)
            made.manifests.append(manifest)
            if num_bad := int((~manifest.ok).sum()):
                _LOGGER.warning(
                    "exclude %s: %d of its %d videos cannot be read: only their ids are compared",
                    *(entry.path, num_bad, len(manifest)),
                )
            names: Iterator[str] = (manifest.path(row) for row in range(len(manifest)))
        elif entry.split is not None:
            raise UserError(f"exclude {entry.path}: a split can be chosen of a manifest only")
        else:
            names = _names_in(entry.path)
        if match.by_id:
            ids = [video_id(name, match) for name in names]
            if not ids:
                raise UserError(f"exclude {entry.path}: names no video; leave it out")
            for name in ids:
                made.ids.setdefault(name, str(entry.path))
    return made


def video_id(path: str, match: MatchConfig) -> str:
    """The id of a video: what its file's name says, by `match.id_pattern`."""
    stem = stem_of(path)
    found = re.fullmatch(match.id_pattern, stem)
    return found["id"] if found and found["id"] else stem


def _names_in(path: Path) -> Iterator[str]:
    """Ids, names or paths of a list of any form that an index takes."""
    if not path.is_file():
        raise UserError(f"exclude {path}: no such file; check the path")
    for place, values in list_entries(path, _ID_COLUMNS, of_ids=True):
        given = (values.get(key) for key in _ID_COLUMNS)
        name = next((value for value in given if value not in (None, "")), None)
        if not isinstance(name, str | int) or not str(name).strip():
            raise UserError(
                f"exclude {path}, {place}: names no video; it needs {' or '.join(_ID_COLUMNS)}"
            )
        yield str(name).strip()


Reason = Literal[
    "unusable",
    "unreadable",
    "excluded by id",
    "excluded by content",
    "excluded by pictures",
    "duplicate by name",
    "duplicate by content",
    "duplicate by pictures",
    "outside the video",
    "not encoded",
]

OTHER_LABEL = "with another label"
"""What is said of a copy that is left out, whose label is lost with it."""


@dataclass(frozen=True)
class Removed:
    """A video, or a window of one, that is not in the result."""

    number: int  # its place in the input
    path: str
    reason: Reason
    detail: str = ""  # what the decoder said, or how alike the pictures are
    same_as: str = ""  # the video that it is the same as


class Removal:
    """Collects what is removed; a video is removed once, for the first reason found."""

    def __init__(self, inputs: PreparedInputs, match: MatchConfig) -> None:
        self._path = inputs.videos.path
        self._inputs = inputs
        self._match = match
        self.removed: dict[int, Removed] = {}
        self.failed_windows: list[Removed] = []
        self.near_copies: list[Removed] = []
        """Videos that stay, though their pictures are like another one's."""

    @property
    def all(self) -> list[Removed]:
        """Videos and windows of videos that are not in the result."""
        return [*self.removed.values(), *self.failed_windows]

    def kept(self) -> list[int]:
        """Numbers of the videos that stay, ascending."""
        return [number for number in range(len(self._inputs)) if number not in self.removed]

    def remove(self, number: int, reason: Reason, detail: str = "", same_as: str = "") -> None:
        """Take a video out."""
        self.removed[number] = Removed(number, self._path(number), reason, detail, same_as)

    def remove_window(self, number: int, detail: str) -> None:
        """Take out a window that could not be encoded; others of its video stay."""
        self.failed_windows.append(Removed(number, self._path(number), "not encoded", detail))

    def by_name(self, exclusion: Exclusion, deduplicate: bool) -> None:
        """Take out what can be told without opening a file: bad rows, ids, repeated names."""
        seen: dict[tuple[str, object], str] = {}
        for number, is_usable in enumerate(self._inputs.videos.ok.tolist()):
            path = self._path(number)
            if not is_usable:
                why = self._inputs.videos.row(number).reason
                self.remove(number, "unusable", why or "marked as bad in the manifest")
                continue
            name = video_id(path, self._match)
            if self._match.by_id and name in exclusion.ids:
                self.remove(number, "excluded by id", name, exclusion.ids[name])
                continue
            if deduplicate and self._match.duplicate_names:
                key = (stem_of(path), self._inputs.part(number))
                if key in seen:
                    self.remove(number, "duplicate by name", key[0], seen[key])
                seen.setdefault(key, path)

    def by_exclusion(
        self, prints: Mapping[int, Fingerprint], excluded: Mapping[str, Fingerprint]
    ) -> None:
        """Take out the videos that show what a validation video (by its path) shows."""
        paths = list(excluded)
        by_content = {excluded[path].content: path for path in reversed(paths)}
        index = PictureIndex([excluded[path].frames for path in paths])
        for number in self.kept():
            mine = prints.get(number)
            if mine is None:
                continue
            if self._match.by_content and mine.content in by_content:
                self.remove(number, "excluded by content", same_as=by_content[mine.content])
                continue
            best = self._best(index, mine)
            if best is not None:
                self.remove(number, "excluded by pictures", f"{best[1]:.0%} alike", paths[best[0]])

    def by_likeness(self, prints: Mapping[int, Fingerprint], remove_near_copies: bool) -> None:
        """Take out the later ones of videos with the same content; note or take out near-copies.

        Two parts of one file are meant to be two videos: only their contents are compared.
        """
        numbers = [number for number in self.kept() if number in prints]
        index = PictureIndex([prints[number].frames for number in numbers])
        is_kept = np.zeros(len(numbers), dtype=bool)
        first: dict[str, int] = {}
        for place, number in enumerate(numbers):
            mine = prints[number]
            if self._match.by_content and mine.content in first:
                found = first[mine.content]
                own, theirs = (self._inputs.row(one).labels for one in (number, found))
                both = [(own[name], theirs[name]) for name in own.keys() & theirs.keys()]
                agree = all(label == other or None in (label, other) for label, other in both)
                detail = "" if agree else OTHER_LABEL
                self.remove(number, "duplicate by content", detail, self._path(found))
                continue
            first.setdefault(mine.content, number)

            def is_other(found: int, path: str = self._path(number)) -> bool:
                return bool(is_kept[found]) and self._path(numbers[found]) != path

            best = self._best(index, mine, is_other)
            is_kept[place] = best is None or not remove_near_copies
            if best is not None:
                same = self._path(numbers[best[0]])
                self.remove(number, "duplicate by pictures", f"{best[1]:.0%} alike", same)
                if not remove_near_copies:
                    self.near_copies.append(self.removed.pop(number))

    def _best(
        self,
        index: PictureIndex,
        mine: Fingerprint,
        is_allowed: Callable[[int], bool] = lambda _: True,
    ) -> tuple[int, float] | None:
        """The video most alike, and the share of frames that are; the first of equals."""
        best: tuple[int, float] | None = None
        found = index.matches(mine.frames, self._match.hash_bits, self._match.hash_share)
        for place, share in found:
            if (best is None or share > best[1]) and is_allowed(place):
                best = place, share
        return best
