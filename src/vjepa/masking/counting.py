"""Token indices of a batch's masks, and the three ways to count them.

Count mode fixed keeps by default what the authors' way (prefix) leaves on average, so that its task
has the same mean difficulty as theirs at the batch size at which they trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.masking.config import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.masking.drawing import DrawnMasks, Grid, MaskDrawer, Minimum, random_subset


@dataclass(frozen=True, eq=False)
class TokenMasks:
    """Context and target tokens of a batch under one mask kind.

    Tokens are numbered time-major: index = (time step * h + row) * w + column. Indices of a clip
    ascend. Either every clip has the same counts (no offsets), or the clips' lists stand one after
    the other and clip b owns entries ``offsets[b]:offsets[b + 1]``.
    """

    context: Tensor
    """int64 [B, K], or packed [S]."""
    target: Tensor
    """int64 [B, M], or packed [U]."""
    context_offsets: Tensor | None = None
    """int64 [B + 1], packed only."""
    target_offsets: Tensor | None = None
    """int64 [B + 1], packed only."""

    @property
    def is_packed(self) -> bool:
        """Whether clips have lists of different length, told apart by offsets."""
        return self.context_offsets is not None

    @property
    def batch_size(self) -> int:
        """Number of clips B."""
        if self.context_offsets is not None:
            return self.context_offsets.shape[0] - 1
        return self.context.shape[0]

    @property
    def num_context_mean(self) -> float:
        """Context tokens a clip, on average; read from shapes, so free on any device."""
        return self.context.numel() / self.batch_size

    @property
    def num_target_mean(self) -> float:
        """Target tokens a clip, on average."""
        return self.target.numel() / self.batch_size

    def target_rows(self) -> Tensor:
        """The clip of every entry of `target`: int64 [B, 1], or packed [U]."""
        rows = torch.arange(self.batch_size, device=self.target.device)
        if self.target_offsets is None:
            return rows[:, None]
        # output_size spares the device a synchronisation to learn the sum of the lengths.
        return rows.repeat_interleave(self.target_offsets.diff(), output_size=self.target.shape[0])

    def gather_target(self, tokens: Tensor) -> Tensor:
        """The target tokens [B, M, D], or packed [U, D], out of all tokens [B, N, D]."""
        return tokens[self.target_rows(), self.target]

    def sample(self, clip: int) -> TokenMasks:
        """The masks of one clip, [1, K] and [1, M] in every count mode; for tensors on the CPU."""
        part = self.slice(clip, clip + 1)
        if not part.is_packed:
            return part
        return TokenMasks(context=part.context[None], target=part.target[None])

    def slice(self, start: int, stop: int) -> TokenMasks:
        """The masks of clips ``start:stop``. Slice before moving: offsets are read on the CPU."""
        if not 0 <= start < stop <= self.batch_size:
            raise IndexError(f"clips {start}:{stop} of a batch of {self.batch_size}")
        if self.context_offsets is None or self.target_offsets is None:
            return TokenMasks(context=self.context[start:stop], target=self.target[start:stop])
        context_offsets = self.context_offsets[start : stop + 1]
        target_offsets = self.target_offsets[start : stop + 1]
        return TokenMasks(
            context=self.context[int(context_offsets[0]) : int(context_offsets[-1])],
            target=self.target[int(target_offsets[0]) : int(target_offsets[-1])],
            context_offsets=context_offsets - context_offsets[0],
            target_offsets=target_offsets - target_offsets[0],
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenMasks:
        """The masks that `function` makes of each tensor, such as one that moves it."""
        context_offsets, target_offsets = self.context_offsets, self.target_offsets
        return TokenMasks(
            context=function(self.context),
            target=function(self.target),
            context_offsets=None if context_offsets is None else function(context_offsets),
            target_offsets=None if target_offsets is None else function(target_offsets),
        )

    def to(self, device: torch.device | str) -> TokenMasks:
        """The same masks on another device."""
        return self.map(lambda indices: indices.to(device))


def count_prefix(drawn: DrawnMasks, max_context: NDArray[np.int64]) -> tuple[TokenMasks, ...]:
    """Cut every clip to the smallest count of the batch, keeping the first tokens in time.

    This is what the authors' released code does; the late frames lose most of their tokens. At most
    `max_context` [kinds] tokens are shown.
    """
    chosen, counts = _both_sides(drawn)
    keep = counts.min(axis=-1)
    keep[0] = np.minimum(keep[0], max_context)
    return _take_first(chosen, counts, keep[..., None].repeat(counts.shape[-1], axis=-1))


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
        keep: [2, kinds], K and M of each kind, together at most N.
        may_be_seen: [kinds], only the first so many tokens may become context (causal masks); at
            least K.
    """
    _fill_up(drawn.hidden, keys.reshape(drawn.hidden.shape), keep, may_be_seen)
    chosen, counts = _both_sides(drawn)
    wanted = keep[..., None].repeat(counts.shape[-1], axis=-1)
    rows = chosen.reshape(-1, chosen.shape[-1])
    subset = random_subset(rows, np.concatenate([keys, keys]), wanted.ravel())
    return _take_first(subset.reshape(chosen.shape), wanted, wanted)


def count_packed(
    drawn: DrawnMasks, keys: NDArray[np.uint32] | None, max_context: NDArray[np.int64]
) -> tuple[TokenMasks, ...]:
    """Throw nothing away: lists of different lengths, one after the other, with offsets.

    With keys [kinds * B, N], at most `max_context` [kinds] tokens are shown, a random subset of
    what the blocks leave; None: no kind is limited.
    """
    chosen, counts = _both_sides(drawn)
    if keys is not None:
        kept = np.minimum(counts[0], max_context[:, None])
        subset = random_subset(chosen[0].reshape(keys.shape), keys, kept.ravel())
        chosen[0], counts[0] = subset.reshape(chosen[0].shape), kept
    return _take_first(chosen, counts, counts, packed=True)


def _both_sides(drawn: DrawnMasks) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Visible and hidden tokens, bool [2, kinds, B, N], and their numbers, int64 [2, kinds, B]."""
    chosen = np.stack([~drawn.hidden, drawn.hidden])
    return chosen, chosen.sum(axis=-1)


def _take_first(
    chosen: NDArray[np.bool_],
    counts: NDArray[np.int64],
    keep: NDArray[np.int64],
    packed: bool = False,
) -> tuple[TokenMasks, ...]:
    """The first `keep` of the `counts` chosen tokens of each clip: the masks of each kind.

    bool [2, kinds, B, N], int64 [2, kinds, B] twice; for dense masks `keep` is equal over B.
    """
    _, kinds, batch, num_tokens = chosen.shape
    found = chosen.reshape(-1).nonzero()[0]
    starts = [0, *counts.ravel().cumsum().tolist()]
    bounds = [0, *keep.ravel().cumsum().tolist()]
    tokens = np.empty(bounds[-1], dtype=np.int64)
    # Slices of one flat list: cheaper than a gather through an array of indices.
    for row, (first, last) in enumerate(pairwise(bounds)):
        start = starts[row]
        part = found[start : start + last - first]
        np.subtract(part, row * num_tokens, out=tokens[first:last])
    lists = [torch.from_numpy(tokens[a:b]) for a, b in pairwise(bounds[::batch])]
    if not packed:
        dense = [part.view(batch, -1) for part in lists]
        return tuple(map(TokenMasks, dense[:kinds], dense[kinds:]))
    offsets = np.zeros((2, kinds, batch + 1), dtype=np.int64)
    np.cumsum(keep, axis=-1, out=offsets[..., 1:])
    return tuple(map(TokenMasks, lists[:kinds], lists[kinds:], *torch.from_numpy(offsets)))


def _fill_up(
    hidden: NDArray[np.bool_],
    keys: NDArray[np.uint32],
    keep: NDArray[np.int64],
    may_be_seen: NDArray[np.int64],
) -> None:
    """Move tokens to the side that has too few of them, in place; keys and masks [kinds, B, N]."""
    for side, wanted in zip((False, True), keep, strict=True):  # first the visible, then the hidden
        missing = wanted[:, None] - (hidden == side).sum(axis=-1)
        for kind, clip in zip(*(missing > 0).nonzero(), strict=True):
            others = hidden[kind, clip] != side
            if side is False:
                others = others[: may_be_seen[kind]]
            candidates = others.nonzero()[0]
            order = keys[kind, clip, candidates].argsort()
            hidden[kind, clip, candidates[order[: missing[kind, clip]]]] = side


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


class TokenCounts(NamedTuple):
    """K context and M target tokens of a mask kind, each at least 1."""

    context: int
    target: int


def mean_prefix_counts(
    masks: Sequence[MaskConfig], grid: Grid, tubelet_size: int
) -> tuple[TokenCounts, ...]:
    """Mean counts of count mode prefix at the authors' batch, for each mask kind.

    For the paper's masks at 224 and 384 px they are the authors' own, measured; for any other
    setting they are estimated from 128 batches of 24 clips drawn with a fixed seed, so that they
    depend on nothing but the arguments. Their standard error is about 1 % of the tokens.
    """
    num_tokens = grid[0] * grid[1] * grid[2]
    # By the blocks alone, without what only counting reads.
    blocks = [
        replace(mask, max_context_tokens=None, context_fraction=None, target_fraction=None)
        for mask in masks
    ]
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
    minimum = Minimum.of_one(len(masks))
    smallest: list[NDArray[np.int64]] = []
    for first in range(0, _BATCHES, _BATCHES_AT_ONCE):
        batches = np.arange(first, first + _BATCHES_AT_ONCE)
        ordinals = np.arange(first * _BATCH, (first + _BATCHES_AT_ONCE) * _BATCH)
        drawn = drawer.draw(ordinals, batches.repeat(_BATCH), minimum)
        num_hidden = drawn.hidden.sum(axis=-1).reshape(len(masks), _BATCHES_AT_ONCE, _BATCH)
        context = drawer.num_tokens - num_hidden.max(axis=-1)
        smallest.append(np.stack([context, num_hidden.min(axis=-1)], axis=-1))
    return np.concatenate(smallest, axis=1).mean(axis=1)
