"""How many tokens the authors' way of counting leaves on average.

Count mode fixed keeps these numbers by default, so that its task has the same mean difficulty as
the authors' at the batch size at which they trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vjepa.masking.blocks import Grid
from vjepa.masking.config import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.masking.drawing import MAX_DRAWS, MaskDrawer, Minimum

_BATCH = 24
_BATCHES = 128
_BATCHES_AT_ONCE = 16
_SEED = 0

# Share of context and of target tokens, measured on the authors' released code at their own batch
# for one process: 24 clips at 224 px, 10 clips at 384 px.
_MEASURED: dict[tuple[Grid, MaskConfig], tuple[float, float]] = {
    ((8, 14, 14), SHORT_RANGE): (0.233546, 0.480536),
    ((8, 14, 14), LONG_RANGE): (0.066939, 0.700230),
    ((8, 24, 24), SHORT_RANGE): (0.281363, 0.501962),
    ((8, 24, 24), LONG_RANGE): (0.090634, 0.722830),
}


@dataclass(frozen=True)
class TokenCounts:
    """K context and M target tokens of a mask kind.

    Attributes:
        context: K, at least 1.
        target: M, at least 1.
    """

    context: int
    target: int


def mean_prefix_counts(
    masks: Sequence[MaskConfig], grid: Grid, tubelet_size: int
) -> tuple[TokenCounts, ...]:
    """Mean counts of count mode prefix at the authors' batch, for each mask kind.

    For the paper's masks at 224 and 384 px they are the authors' own, measured; for any other
    setting they are estimated from 128 batches of 24 clips drawn with a fixed seed, so that they
    depend on nothing but the arguments. Their standard error is about 1 % of the tokens.

    Args:
        masks: The kinds.
        grid: Tokens in time, height and width (t, h, w).
        tubelet_size: Frames in a time step of tokens.

    Raises:
        UserError: if a kind is impossible on this grid.
    """
    num_tokens = grid[0] * grid[1] * grid[2]
    blocks = [_without_limits(mask) for mask in masks]
    measured = [_MEASURED.get((grid, mask)) for mask in blocks]
    shares = np.empty((len(masks), 2))
    if any(pair is None for pair in measured):
        shares[:] = _simulate(masks, grid, tubelet_size) / num_tokens
    for number, pair in enumerate(measured):
        if pair is not None:
            shares[number] = pair
    counts = np.maximum(np.rint(shares * num_tokens).astype(int), 1)
    return tuple(TokenCounts(int(context), int(target)) for context, target in counts)


def _simulate(masks: Sequence[MaskConfig], grid: Grid, tubelet_size: int) -> NDArray[np.float64]:
    """Mean smallest counts of a batch: float64 [kinds, 2], context and target."""
    drawer = MaskDrawer(masks, grid, tubelet_size, _SEED)
    ones = np.ones(len(masks), dtype=np.int64)
    minimum = Minimum(visible=ones, hidden=ones, max_draws=MAX_DRAWS, required=True)
    smallest: list[NDArray[np.int64]] = []
    for first in range(0, _BATCHES, _BATCHES_AT_ONCE):
        batches = np.arange(first, first + _BATCHES_AT_ONCE)
        ordinals = np.arange(first * _BATCH, (first + _BATCHES_AT_ONCE) * _BATCH)
        drawn = drawer.draw(ordinals, batches.repeat(_BATCH), minimum)
        num_hidden = drawn.num_hidden.reshape(len(masks), _BATCHES_AT_ONCE, _BATCH)
        context = drawer.num_tokens - num_hidden.max(axis=-1)
        smallest.append(np.stack([context, num_hidden.min(axis=-1)], axis=-1))
    return np.concatenate(smallest, axis=1).mean(axis=1)


def _without_limits(mask: MaskConfig) -> MaskConfig:
    """The mask by its blocks alone, without what only counting reads."""
    return replace(mask, max_context_tokens=None, context_fraction=None, target_fraction=None)
