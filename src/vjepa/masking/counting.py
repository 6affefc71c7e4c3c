"""From hidden tokens to index lists: the three ways of counting.

All mask kinds of a batch, and both sides of each mask, pass through one set of array operations:
first what may stand in a list, bool [2, kinds, B, N] (side 0 context, side 1 target), then how many
of it, int64 [2, kinds, B].
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.masking.drawing import DrawnMasks
from vjepa.masking.random_subset import random_subset
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
