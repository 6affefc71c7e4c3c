"""Randomness as a pure function: (seed, stream, ordinal) -> uniform numbers.

Exact resume with any number of workers and ranks needs random draws that depend on *which* sample
is drawn and never on who draws it or what was drawn before. A counter-based generator gives that:
every number is a hash of its coordinates, so nothing has a state that could be lost. The hash is
the finaliser of SplitMix64 (Steele, Lea, Flood 2014), vectorised over ordinals: a batch of samples
costs a few NumPy calls instead of one generator object per sample.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 finaliser, element by element, of an array (which wraps silently, as intended)."""
    x = x ^ (x >> np.uint64(30))
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x ^= x >> np.uint64(31)
    return x


@functools.lru_cache(maxsize=1024)
def _key(seed: int, stream: str) -> NDArray[np.uint64]:
    """A 64-bit key, shape [1], of a seed and the name of what is drawn; not to be written to."""
    seed_bits = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    name_bits = np.array([zlib.crc32(stream.encode())], dtype=np.uint64)
    return _mix(_mix(seed_bits + _GOLDEN) ^ (name_bits * _MIX_1))


@functools.lru_cache(maxsize=64)
def _steps(count: int) -> NDArray[np.uint64]:
    """The counter's steps, uint64 [count]; not to be written to."""
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def random_bits(
    seed: int, stream: str, ordinals: NDArray[np.int64] | int, count: int
) -> NDArray[np.uint64]:
    """`count` independent 64-bit words for each ordinal: uint64 [..., count].

    `seed` is any integer; `stream` says what the numbers are for, for example ``"crop"``, and
    streams are independent; `ordinals` are the samples', int64 of any shape [...], or one int.
    """
    given = np.asarray(ordinals, dtype=np.int64)
    base = given.reshape(-1).astype(np.uint64)
    base += np.uint64(1)
    base *= _GOLDEN
    per_ordinal = _mix(_key(seed, stream) ^ _mix(base))
    return _mix(per_ordinal[:, None] + _steps(count)).reshape(*given.shape, count)


def uniforms(
    seed: int, stream: str, ordinals: NDArray[np.int64] | int, count: int
) -> NDArray[np.float64]:
    """As :func:`random_bits`, but uniform numbers in [0, 1): float64 [..., count]."""
    return to_uniform(random_bits(seed, stream, ordinals, count))


def to_uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as numbers in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def derive_seed(seed: int, stream: str, ordinal: int = 0) -> int:
    """A non-negative 63-bit seed for a foreign generator (torch, NumPy), pure in its arguments."""
    return int(random_bits(seed, stream, ordinal, 1)[0] >> np.uint64(1))


def permute(
    indices: NDArray[np.int64], length: int, seed: int, stream: str, epoch: int = 0
) -> NDArray[np.int64]:
    """Where a pseudo-random permutation of ``range(length)`` sends `indices`, without a table.

    A Feistel network with cycle walking: ten million rows are shuffled without a byte of memory,
    and any position of any epoch can be asked for at once. `indices` is int64 of any shape, each in
    [0, length), and so is the result; each epoch has another permutation.
    """
    half_bits = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    keys = random_bits(seed, f"permute/{stream}", epoch, _FEISTEL_ROUNDS)
    values = np.asarray(indices, dtype=np.int64).astype(np.uint64).reshape(-1)
    todo = np.arange(values.size)
    while todo.size:
        left, right = values[todo] >> shift, values[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[todo] = (left << shift) | right
        todo = todo[values[todo] >= np.uint64(length)]
    return values.astype(np.int64).reshape(np.shape(indices))
