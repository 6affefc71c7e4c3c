from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.counter_random import random_bits
from vjepa.masking.drawing import TokenKeys, random_subset


def _words(seed: int, rows: int) -> np.ndarray:
    return random_bits(seed, "test", np.arange(rows), 1)[:, 0]


def test_keys_of_a_row_are_distinct() -> None:
    keys = TokenKeys(4608)(_words(0, 20))
    assert keys.shape == (20, 4608)
    assert all(len(np.unique(row)) == 4608 for row in keys)
    assert len(np.unique(keys[:, 0])) == 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 200), st.floats(0.02, 1))
def test_takes_the_eligible_tokens_with_the_smallest_keys(
    seed: int, rows: int, num_tokens: int, density: float
) -> None:
    generator = np.random.default_rng(seed)
    eligible = generator.random((rows, num_tokens)) < density
    eligible[:, 0] = True
    counts = np.array([generator.integers(1, row.sum() + 1) for row in eligible])
    keys = TokenKeys(num_tokens)(_words(seed, rows))
    chosen = random_subset(eligible, keys, eligible.sum(axis=1), counts)
    for row in range(rows):
        order = sorted(np.flatnonzero(eligible[row]), key=lambda token: keys[row, token])
        assert set(np.flatnonzero(chosen[row])) == set(order[: counts[row]])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    keys = TokenKeys(100)(_words(1, 3))
    eligible = np.ones((3, 100), dtype=bool)
    eligible[0, 5:] = False
    counts = np.array([4, 99, 1])
    together = random_subset(eligible, keys, eligible.sum(axis=1), counts)
    for row in range(3):
        part = slice(row, row + 1)
        alone = random_subset(eligible[part], keys[part], eligible[part].sum(axis=1), counts[part])
        assert (alone == together[part]).all()


def test_keys_that_are_not_uniform_are_no_trouble() -> None:
    """The computed limit is a guess; where it is wrong, all eligible tokens are looked at."""
    keys = np.arange(1000, 0, -1, dtype=np.uint32)[None, :]
    eligible = np.ones((1, 1000), dtype=bool)
    for count in (1, 100, 999):
        chosen = random_subset(eligible, keys, np.array([1000]), np.array([count]))
        assert np.flatnonzero(chosen[0]).tolist() == list(range(1000 - count, 1000))
    high = keys + np.uint32(2**32 - 2000)
    chosen = random_subset(eligible, high, np.array([1000]), np.array([10]))
    assert np.flatnonzero(chosen[0]).tolist() == list(range(990, 1000))


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    eligible = np.ones((2, 5), dtype=bool)
    keys = TokenKeys(5)(_words(0, 2))
    with pytest.raises(ValueError, match="between 1 and"):
        random_subset(eligible, keys, np.array([5, 5]), np.array([1, count]))


def test_all_subsets_are_equally_likely() -> None:
    rows = 30_000
    eligible = np.zeros((rows, 9), dtype=bool)
    eligible[:, [0, 1, 4, 7, 8]] = True
    keys = TokenKeys(9)(_words(3, rows))
    chosen = random_subset(eligible, keys, np.full(rows, 5), np.full(rows, 2))
    found = Counter(tuple(np.flatnonzero(row)) for row in chosen)
    assert len(found) == math.comb(5, 2)
    expected = rows / 10
    chi_square = sum((number - expected) ** 2 / expected for number in found.values())
    assert chi_square < 27.9, found  # 9 degrees of freedom: exceeded once in 1 000 seeds
