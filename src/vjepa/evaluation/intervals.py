"""95 % intervals for a share of correct answers, from counts alone.

Two kinds, both reported: Wilson's score interval, which is right for small samples and for shares
near 0 or 1, and the percentile bootstrap over videos. Every video gives one answer that is right or
wrong, so a bootstrap resample of n videos has a Binomial(n, k/n) number of right ones: it is drawn
from the counts, exactly, without the list of videos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vjepa.counter_random import derive_seed

_NORMAL_975 = 1.959963984540054  # 97.5 % point of the standard normal distribution
_BOOTSTRAP_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a share; both ends as fractions in [0, 1]."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def wilson_interval(correct: int, count: int) -> Interval:
    """Wilson's 95 % score interval (E. B. Wilson 1927) of the share `correct` / `count`.

    Args:
        correct: How many answers were right.
        count: How many there were.

    Returns:
        The interval; (0, 1) when nothing was counted.

    Raises:
        ValueError: `correct` is not in 0..count.
    """
    _check_counts(correct, count)
    if count == 0:
        return Interval(0.0, 1.0)
    share = correct / count
    z2 = _NORMAL_975**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = _NORMAL_975 * spread / (1 + z2 / count)
    # At a share of 0 or 1 the exact end is 0 or 1; floating point may miss it by an ulp.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == count else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap_interval(correct: int, count: int, seed: int = 0) -> Interval:
    """Percentile bootstrap 95 % interval of a share, resampling videos, 10 000 resamples.

    Args:
        correct: How many videos were answered rightly.
        count: How many videos there were.
        seed: The interval is a pure function of (correct, count, seed).

    Returns:
        The interval; (0, 1) when nothing was counted.

    Raises:
        ValueError: `correct` is not in 0..count.
    """
    _check_counts(correct, count)
    if count == 0:
        return Interval(0.0, 1.0)
    generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "bootstrap")))
    shares = generator.binomial(count, correct / count, size=_BOOTSTRAP_RESAMPLES) / count
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(low), float(high))


def _check_counts(correct: int, count: int) -> None:
    if not 0 <= correct <= count:
        raise ValueError(f"correct = {correct} is not in 0..{count}")
