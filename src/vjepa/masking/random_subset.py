"""Uniformly random subsets of many rows of tokens at once.

Every token gets a key: a 32-bit hash, seeded for each row, that is a bijection of the token's
number. Keys of a row are therefore distinct, and the tokens with the n smallest keys are a random
subset of exactly n, whatever else is in the batch.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_ODD = np.uint32(0x9E3779B1)
# Round constants of a 32-bit integer hash with low bias (Ettinger, "hash-prospector").
_MIX_1, _MIX_2 = np.uint32(0x21F0AAAD), np.uint32(0xD35A2D97)
_LARGEST = np.uint32(0xFFFFFFFF)


class TokenKeys:
    """Random keys for the tokens of a grid.

    Args:
        num_tokens: N, tokens of a clip.
    """

    def __init__(self, num_tokens: int) -> None:
        # Spread over all 32 bits by the same kind of hash, so that two rounds suffice below.
        spread = np.arange(num_tokens, dtype=np.uint32) * _ODD
        spread ^= spread >> np.uint32(16)
        spread *= _MIX_1
        spread ^= spread >> np.uint32(15)
        self._spread = spread

    def __call__(self, words: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Keys for every row.

        Args:
            words: uint64 [R], random bits of each row.

        Returns:
            uint32 [R, N]; the keys of a row are distinct.
        """
        first = words.astype(np.uint32)[:, None]
        second = (words >> np.uint64(32)).astype(np.uint32)[:, None]
        # Xor with a constant, xor with a right shift and an odd factor are all invertible.
        keys = self._spread ^ first
        keys *= _MIX_1
        keys ^= keys >> np.uint32(16)
        keys ^= second
        keys *= _MIX_2
        return keys


def random_subset(
    eligible: NDArray[np.bool_],
    keys: NDArray[np.uint32],
    num_eligible: NDArray[np.int64],
    count: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Choose exactly `count` of each row's eligible tokens, uniformly at random.

    Args:
        eligible: bool [R, N].
        keys: uint32 [R, N], distinct in a row.
        num_eligible: int64 [R], number of eligible tokens of each row.
        count: int64 [R], how many to choose, from 1 to `num_eligible`.

    Returns:
        bool [R, N], the chosen tokens.

    Raises:
        ValueError: if `count` leaves that range.
    """
    if (count < 1).any() or (count > num_eligible).any():
        raise ValueError("count must lie between 1 and the number of eligible tokens")
    chosen = keys <= _last_key(eligible, keys, num_eligible, count)[:, None]
    chosen &= eligible
    return chosen


def _last_key(
    eligible: NDArray[np.bool_],
    keys: NDArray[np.uint32],
    num_eligible: NDArray[np.int64],
    count: NDArray[np.int64],
) -> NDArray[np.uint32]:
    """The largest of each row's `count` smallest eligible keys: uint32 [R].

    Keys are uniform, so a limit can be computed below which nearly always lie as many tokens and
    few more, or, where fewer are left out than chosen, one above which lie the tokens left out.
    Only those tokens are looked at, which costs half of a partition of whole rows.
    """
    num_rows, num_tokens = eligible.shape
    left_out = num_eligible - count
    from_top = left_out < count
    rank = np.where(from_top, left_out + 1, count)
    share = (rank + 4 * np.sqrt(rank * (1 - rank / num_eligible)) + 5) / num_eligible
    while True:
        width = (np.minimum(share, 1) * float(_LARGEST)).astype(np.uint32)
        start = np.where(from_top, _LARGEST - width, np.uint32(0))
        # Unsigned, so keys before the start wrap to large numbers.
        near = keys - start[:, None] <= width[:, None]
        near &= eligible
        places = near.reshape(-1).nonzero()[0]
        bounds = places.searchsorted(np.arange(num_rows + 1) * num_tokens)
        found = np.diff(bounds)
        too_few = found < rank
        if not too_few.any():
            break
        share[too_few] = 1
    candidates = keys.reshape(-1)[places]
    position = np.where(from_top, found - rank, rank - 1)
    last = np.empty(num_rows, dtype=np.uint32)
    for row, (first, end) in enumerate(pairwise(bounds.tolist())):
        part = candidates[first:end]
        part.partition(position[row])
        last[row] = part[position[row]]
    return last
