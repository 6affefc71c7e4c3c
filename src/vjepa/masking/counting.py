"""From hidden tokens to index lists: the three ways of counting.

All functions take one mask kind of a batch: ``hidden`` bool [B, N], True where the mask hides, and
``num_hidden`` int64 [B], its sum over each row.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.masking.expected_counts import TokenCounts
from vjepa.masking.random_subset import TokenKeys, random_subset
from vjepa.masking.token_masks import TokenMasks

def count_prefix(
    hidden: NDArray[np.bool_], num_hidden: NDArray[np.int64], max_context: int | None
) -> TokenMasks:
    """Cut every clip to the smallest count of the batch, keeping the first tokens in time.

    This is what the authors' released code does; the late frames lose most of their tokens.

    Args:
        hidden: bool [B, N].
        num_hidden: int64 [B].
        max_context: Show at most so many tokens.

    Returns:
        Masks with equal counts.
    """
    num_visible = hidden.shape[1] - num_hidden
    num_context = int(num_visible.min())
    if max_context is not None:
        num_context = min(num_context, max_context)
    return TokenMasks(
        context=_first_tokens(~hidden, num_visible, num_context),
        target=_first_tokens(hidden, num_hidden, int(num_hidden.min())),
    )


def count_fixed(
    hidden: NDArray[np.bool_],
    num_hidden: NDArray[np.int64],
    token_keys: TokenKeys,
    key_words: NDArray[np.uint64],
    counts: TokenCounts,
    may_be_seen: int,
) -> TokenMasks:
    """The same counts for every clip: random subsets of what the blocks leave and of what they hide.

    Where the blocks leave too few tokens on one side, the missing ones are drawn at random from the
    other side first, so that context and target never overlap.

    Args:
        hidden: bool [B, N]; changed in place where a side is too small.
        num_hidden: int64 [B]; changed likewise.
        token_keys: Makes random keys.
        key_words: uint64 [B], their seeds.
        counts: K and M, together at most N.
        may_be_seen: Only the first so many tokens may become context (causal masks); at least K.

    Returns:
        Masks of K and M tokens.
    """
    batch, num_tokens = hidden.shape
    keys = token_keys(key_words)
    _fill_up(hidden, num_hidden, keys, counts, may_be_seen)
    starts = (np.arange(batch) * num_tokens)[:, None]

    def subset(
        eligible: NDArray[np.bool_], num_eligible: NDArray[np.int64], count: int
    ) -> torch.Tensor:
        chosen = random_subset(eligible, keys, num_eligible, np.full(batch, count))
        tokens = chosen.reshape(-1).nonzero()[0].reshape(batch, count)
        tokens -= starts
        return torch.from_numpy(tokens)

    return TokenMasks(
        context=subset(~hidden, num_tokens - num_hidden, counts.context),
        target=subset(hidden, num_hidden, counts.target),
    )


def count_packed(
    hidden: NDArray[np.bool_],
    num_hidden: NDArray[np.int64],
    keys: NDArray[np.uint32] | None,
    max_context: int | None,
) -> TokenMasks:
    """Throw nothing away: lists of different lengths, one after the other, with offsets.

    Args:
        hidden: bool [B, N].
        num_hidden: int64 [B].
        keys: uint32 [B, N], random keys; needed only with `max_context`.
        max_context: Show at most so many tokens, a random subset of what the blocks leave.

    Returns:
        Packed masks.
    """
    visible, num_visible = ~hidden, hidden.shape[1] - num_hidden
    if max_context is not None and keys is not None:
        kept = np.minimum(num_visible, max_context)
        visible, num_visible = random_subset(visible, keys, num_visible, kept), kept
    context_offsets, target_offsets = _offsets(num_visible), _offsets(num_hidden)
    return TokenMasks(
        context=_all_tokens(visible, context_offsets),
        target=_all_tokens(hidden, target_offsets),
        context_offsets=torch.from_numpy(context_offsets),
        target_offsets=torch.from_numpy(target_offsets),
    )


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each clip's list begins and the last one ends: int64 [B + 1]."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _first_tokens(
    chosen: NDArray[np.bool_], counts: NDArray[np.int64], keep: int
) -> torch.Tensor:
    """The first `keep` chosen tokens of each row: bool [B, N] -> int64 [B, keep]."""
    batch, num_tokens = chosen.shape
    flat = chosen.reshape(-1).nonzero()[0]
    lists = np.empty((batch, keep), dtype=np.int64)
    # Slices of one flat list: cheaper than a gather through an array of indices.
    for row, start in enumerate(_offsets(counts)[:-1].tolist()):
        np.subtract(flat[start : start + keep], row * num_tokens, out=lists[row])
    return torch.from_numpy(lists)


def _all_tokens(chosen: NDArray[np.bool_], offsets: NDArray[np.int64]) -> torch.Tensor:
    """The chosen tokens of all rows: bool [B, N] -> int64 [sum of counts]."""
    flat = chosen.reshape(-1).nonzero()[0]
    for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
        flat[start:stop] -= row * chosen.shape[1]
    return torch.from_numpy(flat)


def _fill_up(
    hidden: NDArray[np.bool_],
    num_hidden: NDArray[np.int64],
    keys: NDArray[np.uint32],
    counts: TokenCounts,
    may_be_seen: int,
) -> None:
    """Move tokens to the side that has too few of them, in place: arguments of `count_fixed`."""
    num_tokens = hidden.shape[1]
    for row in (num_tokens - num_hidden < counts.context).nonzero()[0]:
        candidates = hidden[row, :may_be_seen].nonzero()[0]
        missing = counts.context - (num_tokens - int(num_hidden[row]))
        hidden[row, candidates[np.argsort(keys[row, candidates])[:missing]]] = False
        num_hidden[row] -= missing
    for row in (num_hidden < counts.target).nonzero()[0]:
        candidates = (~hidden[row]).nonzero()[0]
        missing = counts.target - int(num_hidden[row])
        hidden[row, candidates[np.argsort(keys[row, candidates])[:missing]]] = True
        num_hidden[row] += missing
