"""Which videos show the same: many videos' frame hashes compared without trying every pair.

A 64-bit hash is cut into four bands of 16 bits. Two frames that differ in a few bits agree in one
whole band, so each frame is looked up among those that share a band with it. Pairs of videos found
in this way by at least two frames are then compared frame by frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vjepa.data.prepare.frame_hash import distances

_BANDS, _BAND_BITS = 4, 16
# A band value that more frames than this share (title cards, studio walls) leads nowhere.
_MAX_CROWD = 2000
# Frames that a pair of videos must share bands in before it is compared in full.
_MIN_HITS = 2
# Frames that must show something before a video can be told by its pictures.
_MIN_FRAMES = 3
_CHUNK = 1 << 14


@dataclass(frozen=True, slots=True)
class PictureMatch:
    """Two videos that show the same.

    Attributes:
        video: Number of the one that was looked up.
        found: Number of the one it was found to be.
        share: Share of one's frames that are alike one of the other's.
    """

    video: int
    found: int
    share: float


def frame_share(left: NDArray[np.uint64], right: NDArray[np.uint64], bits: int) -> float:
    """Share of one video's frames that are alike a frame of the other: the larger of the two ways.

    So a clip out of a long video is found in it. 0 if either shows too little.

    Args:
        left: uint64 [F].
        right: uint64 [G].
        bits: Most bits in which two alike frames differ.
    """
    if min(len(left), len(right)) < _MIN_FRAMES:
        return 0.0
    is_alike = distances(left[:, None], right[None]) <= bits
    return float(max(is_alike.any(axis=1).mean(), is_alike.any(axis=0).mean()))


class PictureIndex:
    """Frame hashes of many videos, to be looked up by band."""

    def __init__(self, videos: Sequence[NDArray[np.uint64]]) -> None:
        """Sort the frames of all videos by each of their bands.

        Args:
            videos: uint64 [F_v] for each video.
        """
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

    def candidates(self, frames: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Videos that share bands with enough of the frames: int64, ascending."""
        hits: list[NDArray[np.int64]] = []
        for at in range(0, len(frames), _CHUNK):
            hits += self._hits(frames[at : at + _CHUNK], at)
        if not hits:
            return np.zeros(0, dtype=np.int64)
        # One hit for each frame and video, however many bands they share.
        pairs = np.unique(np.concatenate(hits))
        owners, counts = np.unique(pairs & 0xFFFFFFFF, return_counts=True)
        return owners[counts >= _MIN_HITS]

    def _hits(self, frames: NDArray[np.uint64], first: int) -> list[NDArray[np.int64]]:
        """(frame << 32 | video) for every frame and every video that shares a band with it."""
        found = []
        for band in range(_BANDS):
            values = _band(frames, band)
            starts, ends = self._starts[band][values], self._starts[band][values + 1]
            counts = np.where(ends - starts > _MAX_CROWD, 0, ends - starts)
            frame = np.repeat(np.arange(len(frames)), counts)
            within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            owners = self._owner[self._sorted[band][np.repeat(starts, counts) + within]]
            found.append((frame + first) << 32 | owners)
        return found

    def matches(
        self, frames: NDArray[np.uint64], bits: int, share: float
    ) -> Iterator[tuple[int, float]]:
        """Videos that show the same as these frames, with the share of frames that are alike."""
        if len(frames) < _MIN_FRAMES:
            return
        for candidate in self.candidates(frames).tolist():
            found = frame_share(frames, self._videos[candidate], bits)
            if found >= share:
                yield candidate, found


def _band(frames: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    mask = np.uint64((1 << _BAND_BITS) - 1)
    return (frames >> np.uint64(band * _BAND_BITS) & mask).astype(np.int64)
