"""Finding videos that show the same among many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vjepa.data.prepare.matching import PictureIndex, frame_share


def _random(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    return rng.integers(0, 1 << 64, count, dtype=np.uint64)


def _flip(rng: np.random.Generator, frames: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """The frames with so many bits of each changed."""
    changed = frames.copy()
    for place in range(len(frames)):
        for bit in rng.choice(64, bits, replace=False):
            changed[place] ^= np.uint64(1) << np.uint64(bit)
    return changed


def test_share_of_alike_frames() -> None:
    rng = np.random.default_rng(0)
    long, other = _random(rng, 40), _random(rng, 10)
    clip = _flip(rng, long[10:20], 4)
    assert frame_share(clip, long, 4) == 1.0
    assert frame_share(long, clip, 4) == 1.0
    assert frame_share(clip, long, 3) == 0.0
    assert frame_share(np.concatenate([clip[:5], other[:5]]), long, 4) == 0.5
    assert frame_share(other, long, 6) == 0.0
    assert frame_share(long[:2], long, 6) == 0.0, "two frames say too little"


def test_copies_are_found_among_many_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    videos = [_random(rng, int(rng.integers(8, 40))) for _ in range(1000)]
    index = PictureIndex(videos)
    for video in range(0, 1000, 37):
        copy = _flip(rng, videos[video], 6)
        assert [found for found, _ in index.matches(copy, 6, 0.6)] == [video]
    assert not list(index.matches(_random(rng, 200), 6, 0.6))


def test_the_index_finds_what_comparing_every_pair_finds() -> None:
    rng = np.random.default_rng(2)
    videos = [_random(rng, 12) for _ in range(60)]
    for video in range(0, 60, 3):
        videos[video + 1] = np.concatenate([_flip(rng, videos[video][:9], 5), _random(rng, 3)])
    index = PictureIndex(videos)
    for number, frames in enumerate(videos):
        pairs = {other for other in range(60) if frame_share(frames, videos[other], 6) >= 0.6}
        assert {found for found, _ in index.matches(frames, 6, 0.6)} == pairs
        assert number in pairs


def test_frames_that_thousands_share_neither_match_nor_cost() -> None:
    rng = np.random.default_rng(3)
    title = _random(rng, 1)
    videos = [np.concatenate([title.repeat(4), _random(rng, 8)]) for _ in range(1000)]
    index = PictureIndex(videos)
    assert index.candidates(videos[5]).tolist() == [5]


def test_nothing_to_compare_with() -> None:
    empty = PictureIndex([])
    assert not list(empty.matches(np.arange(5, dtype=np.uint64), 6, 0.5))
    one = PictureIndex([np.zeros(0, dtype=np.uint64)])
    assert not list(one.matches(np.arange(5, dtype=np.uint64), 6, 0.5))
