"""Several manifests as one set to draw from: usable rows, weights, labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.data.sampler import SampleOrder, Samples
from vjepa.data.video_info import VideoInfo
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.data.manifest import Manifest

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

        Args:
            manifests: At least one, each with at least one usable row.
            weights: Relative share of samples of each manifest; None means by number of videos.
            label: Name of a label that every usable row must have; None for no labels.
        """
        if not manifests:
            raise UserError("no source of videos: name at least one manifest")
        if weights is not None and len(weights) != len(manifests):
            raise UserError(
                f"{len(weights)} weights for {len(manifests)} manifests: give one for each"
            )
        self.manifests = tuple(manifests)
        self._manifest_of: list[int] = []
        self._rows_of: list[NDArray[np.int64]] = []
        self._weights: list[float | None] = []
        given = [None] * len(manifests) if weights is None else list(weights)
        if any(weight is None for weight in given) and any(weight is not None for weight in given):
            raise UserError("weight: give one to every manifest or to none")
        for number, (manifest, weight) in enumerate(zip(manifests, given, strict=True)):
            self._add(number, manifest, weight)
        if len(self._rows_of) > MAX_GROUPS:
            raise UserError(
                f"the manifests hold {len(self._rows_of)} different row weights, at most "
                f"{MAX_GROUPS} are possible: give weights to data sets, not to single videos"
            )
        self.class_names: list[str] | None = None
        self._codes: list[NDArray[np.int64]] = []
        if label is not None:
            self._read_labels(label)

    def _add(self, number: int, manifest: Manifest, weight: float | None) -> None:
        usable = np.flatnonzero(manifest.ok)
        if usable.size == 0:
            raise UserError(
                f"manifest {manifest.source}: none of its {len(manifest)} videos can be used; see "
                f"`vjepa data check {manifest.source}`"
            )
        row_weights = manifest.weights[usable]
        total = float(row_weights.sum())
        for value in np.unique(row_weights):
            rows = usable[row_weights == value]
            self._manifest_of.append(number)
            self._rows_of.append(rows)
            share = float(value) * len(rows)
            self._weights.append(share if weight is None else weight * share / total)

    def _read_labels(self, label: str) -> None:
        coded = [manifest.label_codes(label) for manifest in self.manifests]
        names = {name for codes in coded for name in codes.classes}
        by_number = all(name.isdecimal() for name in names)
        classes = sorted(names, key=lambda name: (int(name) if by_number else 0, name))
        places = {name: number for number, name in enumerate(classes)}
        for manifest, codes in zip(self.manifests, coded, strict=True):
            lacking = int(((codes.codes < 0) & manifest.ok).sum())
            if lacking:
                raise UserError(
                    f"manifest {manifest.source}: {lacking} of {int(manifest.ok.sum())} usable "
                    f"rows have no label {label!r}: label them, drop them, or "
                    "train without this label"
                )
            table = np.array([places[name] for name in codes.classes] + [-1], dtype=np.int64)
            self._codes.append(table[codes.codes])
        self.class_names = classes

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

    def video(self, source: int, row: int) -> VideoInfo:
        """All that is known about one video."""
        return self.manifests[source].row(row)

    def path(self, source: int, row: int) -> str:
        """Absolute path of one video."""
        return self.manifests[source].path(row)

    def labels(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Class numbers int64 [n] of places int64 [n, 2]; None where no label was asked for."""
        if self.class_names is None:
            return None
        labels = np.empty(len(places), dtype=np.int64)
        for source, codes in enumerate(self._codes):
            mine = places[:, 0] == source
            labels[mine] = codes[places[mine, 1]]
        return labels
