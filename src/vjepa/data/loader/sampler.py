"""Which videos samples take, from one or several manifests, and what replaces a bad one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.counter_random import permute, random_bits, uniforms
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.data.manifest.manifest import Manifest


BLOCK = 256  # slots in which sources are interleaved in random order
_SHARE_BITS = 28  # shares of sources are multiples of 2**-28; ordinals stay below 2**35


@dataclass(frozen=True)
class Samples:
    """Where n samples come from, each int64 [n]; samples of one slot share their opened video."""

    sources: NDArray[np.int64]
    rows: NDArray[np.int64]
    clips: NDArray[np.int64]  # which clip of that opening, 0 .. clips_per_video - 1
    slots: NDArray[np.int64]


class SampleOrder:
    """Endless order of samples over one or several weighted sources.

    `clips_per_video` consecutive ordinals make a slot, which is one opened video. Of the first n
    slots a source with share w gets n w, to within one slot for each halving of the list of
    sources, at any n that is a multiple of `BLOCK`; inside a block the sources stand in random
    order. Each source deals its rows without replacement, in a new pseudo-random order at each
    pass. No table of rows is ever made: ten million cost as much as ten.
    """

    def __init__(
        self, lengths: Sequence[int], weights: Sequence[float], seed: int, clips_per_video: int = 1
    ) -> None:
        """Take sources of `lengths` rows each, at least 1, and of relative shares `weights`."""
        if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise UserError(f"weights must not be negative and not all 0, got {list(weights)}")
        self.lengths = tuple(int(length) for length in lengths)
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.seed = seed
        self.clips_per_video = clips_per_video

    def at(self, ordinals: NDArray[np.int64]) -> Samples:
        """Where samples come from: of ordinals int64 [n], not negative, in any order."""
        ordinals = np.asarray(ordinals, dtype=np.int64)
        slots, clips = np.divmod(ordinals, self.clips_per_video)
        unique, inverse = np.unique(slots, return_inverse=True)
        sources, turns = self._sources_and_turns(unique)
        rows = np.empty_like(unique)
        for source, length in enumerate(self.lengths):
            mine = np.flatnonzero(sources == source)
            passes, places = np.divmod(turns[mine], length)
            for number in np.unique(passes):
                chosen = passes == number
                rows[mine[chosen]] = permute(
                    places[chosen], length, self.seed, f"rows of source {source}", int(number)
                )
        return Samples(sources[inverse], rows[inverse], clips, slots)

    def replacement(self, slot: int, source: int, attempt: int) -> int:
        """Row of the same source, so that shares hold, for a slot whose video cannot be read.

        It depends on nothing but the arguments; `attempt` is 1 for the first replacement.
        """
        u = uniforms(self.seed, f"replacement {attempt}", slot, 1)[0]
        return int(u * self.lengths[source])

    def _sources_and_turns(
        self, slots: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of each slot [n] and how many earlier slots that source had [n]."""
        if len(self.lengths) == 1:
            return np.zeros_like(slots), slots
        blocks, inverse = np.unique(slots // BLOCK, return_inverse=True)
        members = blocks[:, None] * BLOCK + np.arange(BLOCK)
        sources = _deal(members.reshape(-1), self.shares)
        order = random_bits(self.seed, "order of sources", members, 1)[..., 0].argsort(
            1, kind="stable"
        )
        sources = np.take_along_axis(sources.reshape(members.shape), order, axis=1)
        turns = np.empty_like(sources)
        for source in range(len(self.lengths)):
            mine = sources == source
            before = _turns_before(blocks * BLOCK, source, self.shares)
            turns[mine] = (before[:, None] + mine.cumsum(axis=1) - 1)[mine]
        return sources[inverse, slots % BLOCK], turns[inverse, slots % BLOCK]


def _left_share(shares: tuple[float, ...]) -> int:
    """Share of the first half of the sources among these, in units of 2**-28."""
    half = (len(shares) + 1) // 2
    total = sum(shares)
    return round(sum(shares[:half]) / total * (1 << _SHARE_BITS)) if total else 0


def _left_of(counts: NDArray[np.int64], share: int) -> NDArray[np.int64]:
    """How many of the first `counts` slots go left: counts * share, rounded, in exact integers.

    It grows by 0 or 1 with each slot, which is what makes the dealing below consistent.
    """
    return (counts * share + (1 << (_SHARE_BITS - 1))) >> _SHARE_BITS


def _deal(slots: NDArray[np.int64], shares: tuple[float, ...]) -> NDArray[np.int64]:
    """Source of each slot, dealt evenly by halving the list of sources."""
    if len(shares) == 1:
        return np.zeros_like(slots)
    half = (len(shares) + 1) // 2
    share = _left_share(shares)
    before = _left_of(slots, share)
    left = _left_of(slots + 1, share) > before
    sources = np.empty_like(slots)
    sources[left] = _deal(before[left], shares[:half])
    sources[~left] = _deal((slots - before)[~left], shares[half:]) + half
    return sources


def _turns_before(
    counts: NDArray[np.int64], source: int, shares: tuple[float, ...]
) -> NDArray[np.int64]:
    """How many of the first `counts` slots a source has."""
    if len(shares) == 1:
        return counts
    half = (len(shares) + 1) // 2
    left = _left_of(counts, _left_share(shares))
    if source < half:
        return _turns_before(left, source, shares[:half])
    return _turns_before(counts - left, source - half, shares[half:])


MAX_GROUPS = 64


class VideoSources:
    """Rows of one or several manifests, drawn by weight.

    A manifest can itself hold several data sets with weights of their own (its `weight` column).
    Rows of equal weight make one group that is shuffled as a whole; rows that are marked unusable
    belong to none and are never drawn.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        weights: Sequence[float | None] | None,
        label: str | None = None,
    ) -> None:
        """Group the rows.

        `weights` are relative shares of samples; None (or all None) means by the weights of the
        rows: where these are equal every video is equally likely, as the paper mixes its sets.
        Every usable row must have the `label`.
        """
        if not manifests:
            raise UserError("no source of videos: name at least one manifest")
        if weights is not None and len(weights) != len(manifests):
            raise UserError(
                f"{len(weights)} weights for {len(manifests)} manifests: give one for each"
            )
        given = [None] * len(manifests) if weights is None else list(weights)
        if any(weight is None for weight in given) and any(weight is not None for weight in given):
            raise UserError("weight: give one to every manifest or to none")
        self.manifests = tuple(manifests)
        self._manifest_of: list[int] = []
        self._rows_of: list[NDArray[np.int64]] = []
        self._weights: list[float] = []
        for number, (manifest, weight) in enumerate(zip(manifests, given, strict=True)):
            usable = np.flatnonzero(manifest.ok)
            if usable.size == 0:
                raise UserError(
                    f"manifest {manifest.source}: none of its {len(manifest)} videos can be used; "
                    "see `vjepa data check`"
                )
            row_weights = manifest.weights[usable]
            total = float(row_weights.sum())
            if weight is not None and not total:
                raise UserError(
                    f"manifest {manifest.source}: all of its usable videos have weight 0"
                )
            for value in np.unique(row_weights):
                rows = usable[row_weights == value]
                self._manifest_of.append(number)
                self._rows_of.append(rows)
                share = float(value) * len(rows)
                self._weights.append(share if weight is None else weight * share / total)
        if len(self._rows_of) > MAX_GROUPS:
            raise UserError(
                f"the manifests hold {len(self._rows_of)} different row weights, at most "
                f"{MAX_GROUPS} are possible: give weights to data sets, not to single videos"
            )
        self.class_names: list[str] | None = None
        self._codes: list[NDArray[np.int64]] = []
        if label is None:
            return
        from vjepa.data.manifest.manifest import sorted_classes

        coded = [manifest.label_codes(label) for manifest in manifests]
        self.class_names = sorted_classes({name for codes in coded for name in codes.classes})
        for manifest, codes in zip(manifests, coded, strict=True):
            lacking = int(((codes.codes < 0) & manifest.ok).sum())
            if lacking:
                raise UserError(
                    f"manifest {manifest.source}: {lacking} of {int(manifest.ok.sum())} usable "
                    f"rows have no label {label!r}: label them, drop them, or "
                    "train without this label"
                )
            self._codes.append(codes.numbered_by(self.class_names))

    def order(self, seed: int, clips_per_video: int) -> SampleOrder:
        """The order of samples over the groups; give its answers to :meth:`locate`."""
        lengths = [len(rows) for rows in self._rows_of]
        return SampleOrder(lengths, self._weights, seed, clips_per_video)

    def locate(self, samples: Samples) -> NDArray[np.int64]:
        """Where samples lie: int64 [n, 2], number of the manifest and row in it."""
        places = np.empty((len(samples.rows), 2), dtype=np.int64)
        for group in np.unique(samples.sources):
            mine = samples.sources == group
            places[mine, 0] = self._manifest_of[group]
            places[mine, 1] = self._rows_of[group][samples.rows[mine]]
        return places

    def row_of(self, group: int, place: int) -> int:
        """Row, in its manifest, of the member `place` of a group."""
        return int(self._rows_of[group][place])

    def labels(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Class numbers int64 [n] of places int64 [n, 2]; None where no label was asked for."""
        if self.class_names is None:
            return None
        labels = np.empty(len(places), dtype=np.int64)
        for source, codes in enumerate(self._codes):
            mine = places[:, 0] == source
            labels[mine] = codes[places[mine, 1]]
        return labels
