"""How many tokens the authors' way of counting leaves on average.

Count mode fixed keeps these numbers by default, so that its task has the same mean difficulty as
the authors' at the batch size at which they trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.masking.blocks import Grid
from vjepa.masking.config import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.masking.drawing import MAX_DRAWS, DrawnMasks, MaskDrawer, Minimum, random_subset
from vjepa.masking.token_masks import TokenMasks


def count_prefix(drawn: DrawnMasks, max_context: NDArray[np.int64]) -> tuple[TokenMasks, ...]:
    """Cut every clip to the smallest count of the batch, keeping the first tokens in time.

    This is what the authors' released code does; the late frames lose most of their tokens.

    Args:
        drawn: What the masks hide.
        max_context: int64 [kinds], show at most so many tokens.

    Returns:
        Masks with equal counts, one for each kind.
    """
    chosen, counts = _both_sides(drawn)
    smallest = counts.min(axis=-1)
    smallest[0] = np.minimum(smallest[0], max_context)
    batch = counts.shape[-1]
    tokens = _first_tokens(chosen, counts.ravel(), smallest.repeat(batch))
    return _dense_masks(tokens, smallest, batch)


def count_fixed(
    drawn: DrawnMasks,
    keys: NDArray[np.uint32],
    keep: NDArray[np.int64],
    may_be_seen: NDArray[np.int64],
) -> tuple[TokenMasks, ...]:
    """The same counts for every clip: random subsets of what the blocks leave and what they hide.

    Where the blocks leave too few tokens on one side, the missing ones are drawn at random from the
    other side first, so that context and target never overlap.

    Args:
        drawn: What the masks hide; changed in place where a side is too small.
        keys: uint32 [kinds * B, N], random keys.
        keep: int64 [2, kinds], K and M of each kind, together at most N.
        may_be_seen: int64 [kinds], only the first so many tokens may become context (causal masks);
            at least K.

    Returns:
        Masks of K and M tokens, one for each kind.
    """
    _fill_up(drawn, keys.reshape(drawn.hidden.shape), keep, may_be_seen)
    chosen, counts = _both_sides(drawn)
    batch, num_tokens = chosen.shape[-2:]
    wanted = keep.repeat(batch)
    rows = chosen.reshape(-1, num_tokens)
    subset = random_subset(rows, np.concatenate([keys, keys]), counts.ravel(), wanted)
    return _dense_masks(_first_tokens(subset, wanted, wanted), keep, batch)


def count_packed(
    drawn: DrawnMasks, keys: NDArray[np.uint32] | None, max_context: NDArray[np.int64]
) -> tuple[TokenMasks, ...]:
    """Throw nothing away: lists of different lengths, one after the other, with offsets.

    Args:
        drawn: What the masks hide.
        keys: uint32 [kinds * B, N], random keys; None where no kind is limited.
        max_context: int64 [kinds], show at most so many tokens, a random subset of what the blocks
            leave.

    Returns:
        Packed masks, one for each kind.
    """
    chosen, counts = _both_sides(drawn)
    if keys is not None:
        kept = np.minimum(counts[0], max_context[:, None])
        visible = chosen[0].reshape(keys.shape)
        subset = random_subset(visible, keys, counts[0].ravel(), kept.ravel())
        chosen[0], counts[0] = subset.reshape(chosen[0].shape), kept
    rows = counts.ravel()
    lists = _split(_first_tokens(chosen, rows, rows), counts.sum(axis=-1))
    offsets = np.zeros((*counts.shape[:-1], counts.shape[-1] + 1), dtype=np.int64)
    np.cumsum(counts, axis=-1, out=offsets[..., 1:])
    kinds = counts.shape[1]
    return tuple(
        TokenMasks(
            context=torch.from_numpy(lists[kind]),
            target=torch.from_numpy(lists[kinds + kind]),
            context_offsets=torch.from_numpy(offsets[0, kind]),
            target_offsets=torch.from_numpy(offsets[1, kind]),
        )
        for kind in range(kinds)
    )


def _both_sides(drawn: DrawnMasks) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Visible and hidden tokens, bool [2, kinds, B, N], and their numbers, int64 [2, kinds, B]."""
    hidden, num_hidden = drawn.hidden, drawn.num_hidden
    chosen = np.empty((2, *hidden.shape), dtype=np.bool_)
    np.logical_not(hidden, out=chosen[0])
    chosen[1] = hidden
    counts = np.empty((2, *num_hidden.shape), dtype=np.int64)
    np.subtract(hidden.shape[-1], num_hidden, out=counts[0])
    counts[1] = num_hidden
    return chosen, counts


def _first_tokens(
    chosen: NDArray[np.bool_], counts: NDArray[np.int64], keep: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Numbers of the first `keep` of the `counts` chosen tokens of each row, row after row.

    bool [..., N] of R rows, int64 [R], int64 [R] -> int64 [sum of keep].
    """
    num_tokens = chosen.shape[-1]
    found = chosen.reshape(-1).nonzero()[0]
    starts = [0, *counts.cumsum().tolist()]
    bounds = [0, *keep.cumsum().tolist()]
    tokens = np.empty(bounds[-1], dtype=np.int64)
    # Slices of one flat list: cheaper than a gather through an array of indices.
    for row, (first, last) in enumerate(pairwise(bounds)):
        start = starts[row]
        part = found[start : start + last - first]
        np.subtract(part, row * num_tokens, out=tokens[first:last])
    return tokens


def _split(tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut a list into parts of the given lengths, in order."""
    bounds = [0, *lengths.cumsum().tolist()]
    return [tokens[start:end] for start, end in pairwise(bounds)]


def _dense_masks(
    tokens: NDArray[np.int64], keep: NDArray[np.int64], batch: int
) -> tuple[TokenMasks, ...]:
    """Cut the list of all tokens into masks of equal counts; `keep` int64 [2, kinds]."""
    lists = [torch.from_numpy(part.reshape(batch, -1)) for part in _split(tokens, keep * batch)]
    kinds = keep.shape[1]
    return tuple(
        TokenMasks(context=lists[kind], target=lists[kinds + kind]) for kind in range(kinds)
    )


def _fill_up(
    drawn: DrawnMasks,
    keys: NDArray[np.uint32],
    keep: NDArray[np.int64],
    may_be_seen: NDArray[np.int64],
) -> None:
    """Move tokens to the side that has too few of them, in place; `keys` uint32 [kinds, B, N]."""
    hidden, num_hidden = drawn.hidden, drawn.num_hidden
    num_tokens = hidden.shape[-1]
    dark = num_tokens - num_hidden < keep[0][:, None]
    for kind, clip in zip(*dark.nonzero(), strict=True):
        row = hidden[kind, clip]
        candidates = row[: may_be_seen[kind]].nonzero()[0]
        missing = keep[0, kind] - (num_tokens - num_hidden[kind, clip])
        row[candidates[keys[kind, clip, candidates].argsort()[:missing]]] = False
        num_hidden[kind, clip] -= missing
    bright = num_hidden < keep[1][:, None]
    for kind, clip in zip(*bright.nonzero(), strict=True):
        row = hidden[kind, clip]
        candidates = (~row).nonzero()[0]
        missing = keep[1, kind] - num_hidden[kind, clip]
        row[candidates[keys[kind, clip, candidates].argsort()[:missing]]] = True
        num_hidden[kind, clip] += missing


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
