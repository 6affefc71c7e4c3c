"""Which videos are left out, and why: validation videos first, then copies of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vjepa.data.prepare.config import MatchConfig
from vjepa.data.prepare.exclusion import Exclusion, video_id
from vjepa.data.prepare.fingerprint import Fingerprint
from vjepa.data.prepare.inputs import PreparedInputs, stem_of
from vjepa.data.prepare.matching import PictureIndex

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

_NO_FRAMES = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A video, or a window of one, that is not in the result.

    Attributes:
        number: Its place in the input.
        path: Its file.
        reason: Why, in one of a few words.
        detail: What the decoder said, or how alike the pictures are.
        same_as: The video that it is the same as.
    """

    number: int
    path: str
    reason: Reason
    detail: str = ""
    same_as: str = ""


class Removal:
    """Collects what is removed; a video is removed once, for the first reason found."""

    def __init__(self, inputs: PreparedInputs, match: MatchConfig) -> None:
        """Begin with nothing removed."""
        self._inputs = inputs
        self._match = match
        self.removed: dict[int, Removed] = {}

    def kept(self) -> list[int]:
        """Numbers of the videos that stay, ascending."""
        return [number for number in range(len(self._inputs)) if number not in self.removed]

    def remove(self, number: int, reason: Reason, detail: str = "", same_as: str = "") -> None:
        """Take a video out."""
        self.removed[number] = Removed(
            number=number,
            path=self._inputs.path(number),
            reason=reason,
            detail=detail,
            same_as=same_as,
        )

    def by_name(self, exclusion: Exclusion, deduplicate: bool) -> None:
        """Take out what can be told without opening a file: bad rows, ids, repeated names."""
        seen: dict[tuple[str, object], str] = {}
        for number in range(len(self._inputs)):
            path = self._inputs.path(number)
            if not self._inputs.is_usable(number):
                why = self._inputs.info(number).reason
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
        """Take out the videos that show what a validation video shows.

        Args:
            prints: Fingerprint of each video by its number.
            excluded: Fingerprint of each validation video by its path.
        """
        paths = list(excluded)
        by_content = {excluded[path].content: path for path in reversed(paths)}
        index = PictureIndex([self._frames(excluded[path]) for path in paths])
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

    def by_likeness(self, prints: Mapping[int, Fingerprint]) -> None:
        """Take out the later ones of videos that show the same.

        Two parts of one file are meant to be two videos: only their contents are compared.
        """
        numbers = [number for number in self.kept() if number in prints]
        index = PictureIndex([self._frames(prints[number]) for number in numbers])
        is_kept = np.zeros(len(numbers), dtype=bool)
        first: dict[str, int] = {}
        for place, number in enumerate(numbers):
            mine = prints[number]
            if self._match.by_content and mine.content in first:
                same = self._inputs.path(first[mine.content])
                self.remove(number, "duplicate by content", same_as=same)
                continue
            first.setdefault(mine.content, number)
            path = self._inputs.path(number)

            def is_other(found: int, path: str = path) -> bool:
                return bool(is_kept[found]) and self._inputs.path(numbers[found]) != path

            best = self._best(index, mine, is_other)
            if best is None:
                is_kept[place] = True
            else:
                same = self._inputs.path(numbers[best[0]])
                self.remove(number, "duplicate by pictures", f"{best[1]:.0%} alike", same)

    def _frames(self, mine: Fingerprint) -> NDArray[np.uint64]:
        return mine.frames if self._match.by_pictures else _NO_FRAMES

    def _best(
        self,
        index: PictureIndex,
        mine: Fingerprint,
        is_allowed: Callable[[int], bool] = lambda _: True,
    ) -> tuple[int, float] | None:
        """The video most alike, and the share of frames that are; the first of equals."""
        best: tuple[int, float] | None = None
        found = index.matches(self._frames(mine), self._match.hash_bits, self._match.hash_share)
        for place, share in found:
            if (best is None or share > best[1]) and is_allowed(place):
                best = place, share
        return best
