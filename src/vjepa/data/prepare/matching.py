"""Which videos are left out, and why: validation videos first, then copies of earlier ones."""

from __future__ import annotations

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
from vjepa.data.prepare.config import ExcludeConfig, MatchConfig, PreparedInputs, stem_of
from vjepa.data.prepare.fingerprint import Fingerprint
from vjepa.errors import UserError

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

    number: int
    """Its place in the input."""
    path: str
    reason: Reason
    detail: str = ""
    """What the decoder said, or how alike the pictures are."""
    same_as: str = ""
    """The video that it is the same as."""


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
                same, found = self._path(first[mine.content]), first[mine.content]
                detail = "" if self._agree(found, number) else OTHER_LABEL
                self.remove(number, "duplicate by content", detail, same)
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

    def _agree(self, one: int, other: int) -> bool:
        """Whether no label of two videos differs, of those that both have."""
        mine, theirs = (self._inputs.row(number).labels for number in (one, other))
        both = [(mine[name], theirs[name]) for name in mine.keys() & theirs.keys()]
        return all(first == second or None in (first, second) for first, second in both)

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
