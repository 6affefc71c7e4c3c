from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.counter_random import derive_seed, permute, random_bits, uniforms

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def _expected(seed: int, stream: str, ordinal: int, count: int) -> list[int]:
    name = zlib.crc32(stream.encode()) * 0xBF58476D1CE4E5B9 % WORD
    key = _mix(_mix((seed + GOLDEN) % WORD) ^ name)
    start = _mix(key ^ _mix((ordinal + 1) * GOLDEN % WORD))
    return [_mix((start + step * GOLDEN) % WORD) for step in range(1, count + 1)]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(-(2**63), 2**70),
    st.text(max_size=8),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(1, 9),
)
def test_words_are_the_documented_hash(seed: int, stream: str, ordinal: int, count: int) -> None:
    words = random_bits(seed, stream, ordinal, count)
    assert words.tolist() == _expected(seed, stream, ordinal, count)


def test_values_never_change() -> None:
    """Masks and crops of old runs must be found again: these values are for ever."""
    assert random_bits(7, "crop", 42, 2).tolist() == [15606299036238840097, 16629129953010405616]
    assert random_bits(0, "", 0, 1).tolist() == [18024816006822906239]
    assert derive_seed(0, "") == 18024816006822906239 >> 1
    assert permute(np.arange(7), 7, 0, "x").tolist() == [3, 2, 0, 1, 6, 4, 5]


def test_shape_follows_the_ordinals() -> None:
    ordinals = np.arange(6).reshape(2, 3)
    words = random_bits(3, "a", ordinals, 4)
    assert words.shape == (2, 3, 4)
    assert words.dtype == np.uint64
    assert random_bits(3, "a", 5, 4).shape == (4,)
    assert (words[1, 2] == random_bits(3, "a", 5, 4)).all()
    assert random_bits(3, "a", np.array([], dtype=np.int64), 4).shape == (0, 4)


def test_a_sample_does_not_depend_on_its_neighbours_nor_on_how_many_words_are_drawn() -> None:
    many = random_bits(3, "a", np.arange(100), 10)
    assert (many[40:50] == random_bits(3, "a", np.arange(40, 50), 10)).all()
    assert (many[:, :3] == random_bits(3, "a", np.arange(100), 3)).all()
    copy = many.copy()
    many[:] = 0  # the result may be written to
    assert (random_bits(3, "a", np.arange(100), 10) == copy).all()


def test_seeds_streams_and_ordinals_give_other_words() -> None:
    words = [
        random_bits(seed, stream, np.arange(1000), 5).ravel()
        for seed in (0, 1)
        for stream in ("crop", "mask", "masks")
    ]
    everything = np.concatenate(words)
    assert len(np.unique(everything)) == everything.size


def test_overflow_raises_no_warning() -> None:
    with np.errstate(all="raise"):
        random_bits(-1, "a", np.array([2**63 - 1, -(2**63)]), 3)
        random_bits(2**64 + 5, "b", 2**63 - 1, 3)


def test_uniforms_are_uniform_and_independent() -> None:
    draws = uniforms(11, "test", np.arange(20_000), 4)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    cells = np.floor(draws * 10).astype(int)
    for first in range(4):
        for second in range(first + 1, 4):
            numbers = np.bincount(cells[:, first] * 10 + cells[:, second], minlength=100)
            chi_square = ((numbers - 200) ** 2 / 200).sum()
            assert chi_square < 150, (first, second)  # 99 degrees of freedom: once in 1 000
    # Neighbouring ordinals are no more alike than any two.
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 4 / np.sqrt(20_000)


def test_derived_seeds_fit_any_generator() -> None:
    seeds = [derive_seed(5, stream, ordinal) for stream in ("a", "b") for ordinal in range(50)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**40), st.integers(0, 5))
def test_permute_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(length), length, seed, "rows", epoch)
    assert sorted(image.tolist()) == list(range(length))


def test_permute_works_on_any_part_of_a_huge_range() -> None:
    length = 10**13 + 7
    some = np.array([[0, 1, 2], [length - 1, 5, 10**12]])
    image = permute(some, length, 1, "rows")
    assert image.shape == some.shape
    assert len(set(image.ravel().tolist())) == 6
    assert ((image >= 0) & (image < length)).all()
    assert permute(some[1, 2], length, 1, "rows") == image[1, 2]


@pytest.mark.parametrize("change", ["seed", "stream", "epoch"])
def test_permutations_differ(change: str) -> None:
    arguments = {"seed": 1, "stream": "rows", "epoch": 0}
    other = arguments | {change: {"seed": 2, "stream": "other", "epoch": 1}[change]}
    first = permute(np.arange(1000), 1000, **arguments)
    second = permute(np.arange(1000), 1000, **other)
    assert (first == second).mean() < 0.02


def test_permute_sends_every_place_everywhere() -> None:
    images = np.stack([permute(np.arange(6), 6, seed, "x") for seed in range(6000)])
    for place in range(6):
        numbers = np.bincount(images[:, place], minlength=6)
        assert ((numbers - 1000) ** 2 / 1000).sum() < 20.6  # 5 degrees of freedom: once in 1 000
