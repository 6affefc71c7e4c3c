"""From hidden tokens to index lists: the three ways of counting.

All functions take one mask kind of a batch: ``hidden`` bool [B, N], True where the mask hides.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.masking.expected_counts import TokenCounts
from vjepa.masking.random_subset import random_subset
from vjepa.masking.token_masks import TokenMasks


def count_prefix(
    hidden: NDArray[np.bool_], num_hidden: NDArray[np.int64], max_context: int | None
) -> TokenMasks:
    """Cut every clip to the smallest count of the batch, keeping the first tokens in time.

    This is what the authors' released code does; the late frames lose most of their tokens.

    Args:
        hidden: bool [B, N].
        num_hidden: int64 [B], True entries of each row.
        max_context: Show at most so many tokens.

    Returns:
        Masks with equal counts.
    """
    num_tokens = hidden.shape[1]
    num_context = num_tokens - int(num_hidden.max())
    if max_context is not None:
        num_context = min(num_context, max_context)

    def first(chosen: NDArray[np.bool_], counts: NDArray[np.int64], keep: int) -> torch.Tensor:
        flat = chosen.reshape(-1).nonzero()[0]
        ends = counts.cumsum()
        # Slices of one flat list: copying them costs less than gathering through an index array.
        parts = [flat[start : start + keep] for start in (ends - counts).tolist()]
        lists = np.concatenate(parts).reshape(len(parts), keep)
        lists -= (np.arange(len(parts)) * num_tokens)[:, None]
        return torch.from_numpy(lists)

    return TokenMasks(
        context=first(~hidden, num_tokens - num_hidden, num_context),
        target=first(hidden, num_hidden, int(num_hidden.min())),
    )


def count_fixed(
    hidden: NDArray[np.bool_],
    num_hidden: NDArray[np.int64],
    keys: NDArray[np.uint32],
    counts: TokenCounts,
    may_be_seen: int,
) -> TokenMasks:
    """The same counts for every clip: random subsets of what the blocks leave and of what they hide.

    Where the blocks leave too few tokens on one side, the missing ones are drawn at random from the
    other side first, so that context and target never overlap.

    Args:
        hidden: bool [B, N]; changed in place where a side is too small.
        num_hidden: int64 [B]; changed likewise.
        keys: uint32 [B, N], random keys.
        counts: K and M, together at most N.
        may_be_seen: Only the first so many tokens may become context (causal masks); at least K.

    Returns:
        Masks of K and M tokens.
    """
    batch, num_tokens = hidden.shape
    num_context, num_target = counts.context, counts.target
    for row in np.flatnonzero(num_tokens - num_hidden < num_context):
        candidates = np.flatnonzero(hidden[row, :may_be_seen])
        missing = num_context - (num_tokens - int(num_hidden[row]))
        hidden[row, candidates[np.argsort(keys[row, candidates])[:missing]]] = False
        num_hidden[row] -= missing
    for row in np.flatnonzero(num_hidden < num_target):
        candidates = np.flatnonzero(~hidden[row])
        missing = num_target - int(num_hidden[row])
        # The largest keys: those with the smallest are the ones that stay in the context.
        hidden[row, candidates[np.argsort(keys[row, candidates])[::-1][:missing]]] = True
        num_hidden[row] += missing
    starts = (np.arange(batch) * num_tokens)[:, None]

    def subset(chosen: NDArray[np.bool_], available: NDArray[np.int64], keep: int) -> torch.Tensor:
        flat = random_subset(chosen, keys, available, np.full(batch, keep))
        return torch.from_numpy(flat.reshape(batch, keep) - starts)

    return TokenMasks(
        context=subset(~hidden, num_tokens - num_hidden, num_context),
        target=subset(hidden, num_hidden, num_target),
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
    num_tokens = hidden.shape[1]
    num_context = num_tokens - num_hidden
    visible = ~hidden
    if max_context is not None and keys is not None:
        kept = np.minimum(num_context, max_context)
        context = random_subset(visible, keys, num_context, kept)
        num_context = kept
    else:
        context = np.flatnonzero(visible)

    def offsets(counts: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))

    return TokenMasks(
        context=torch.from_numpy(context % num_tokens),
        target=torch.from_numpy(np.flatnonzero(hidden) % num_tokens),
        context_offsets=offsets(num_context),
        target_offsets=offsets(num_hidden),
    )
