"""Blocks of hidden tokens, drawn as pure functions of the seed and the sample's number.

Everything is an array operation over mask kinds and clips at once. Section 3.2 of the paper; the
rounding rules are those of the authors' released code, so that the distributions agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vjepa.counter_random import random_bits, to_uniform
from vjepa.errors import UserError
from vjepa.masking.config import MaskConfig

Grid = tuple[int, int, int]


class BlockKinds:
    """The multi-block mask kinds of a run, at least one, drawn together."""

    def __init__(self, masks: Sequence[MaskConfig], grid: Grid) -> None:
        self._grid = grid
        counts = [mask.num_blocks for mask in masks]
        self._most = max(counts)
        self.words = 3 * sum(counts)
        """Random words a clip's positions take."""
        # Kinds with fewer blocks are padded with blocks of no size, which read any word.
        firsts = np.cumsum([0, *counts[:-1]])
        block = np.minimum(np.arange(self._most)[None, :], np.array(counts)[:, None] - 1)
        self._exists = np.arange(self._most)[None, :] < np.array(counts)[:, None]
        self._columns = (3 * (firsts[:, None] + block))[..., None] + np.arange(3)
        limits = np.array([[m.temporal_scale, m.spatial_scale, m.aspect_ratio] for m in masks])
        self._low = limits[:, None, :, 0]
        self._range = limits[:, None, :, 1] - self._low
        self._grid_sizes = np.array(grid)
        self._whole_clip = all(mask.temporal_scale == (1.0, 1.0) for mask in masks)
        self._axes = [np.arange(size, dtype=np.uint16) for size in grid]

    def sizes(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Block sizes from three draws, which all kinds share as in the authors' code.

        Length, height and width in tokens, [kinds, B, 3], from [B, 3] in [0, 1): for length, area
        and aspect ratio. With places = floor(area * h * w), height = round(sqrt(places * aspect))
        and width = round(sqrt(places / aspect)), both capped by the grid and never below 1.
        """
        drawn = self._low + uniform * self._range
        places = np.maximum(np.floor(self._grid[1] * self._grid[2] * drawn[..., 1]), 1)
        sizes = np.empty(drawn.shape)
        sizes[..., 0] = np.floor(self._grid[0] * drawn[..., 0])
        sizes[..., 1] = np.rint(np.sqrt(places * drawn[..., 2]))
        sizes[..., 2] = np.rint(np.sqrt(places / drawn[..., 2]))
        return np.minimum(np.maximum(sizes, 1), self._grid_sizes).astype(np.int64)

    def hidden(self, sizes: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """The union of blocks of these sizes, [kinds, B or 1, 3], at places from [B, words] draws.

        [kinds, B, t, h, w], or [kinds, B, 1, h, w] where every block spans the clip.
        """
        draws = uniform[:, self._columns].swapaxes(0, 1)  # [kinds, B, blocks, 3]
        starts = (draws * (self._grid_sizes + 1 - sizes)[:, :, None, :]).astype(np.uint16)
        extents = (sizes[:, :, None, :] * self._exists[:, None, :, None]).astype(np.uint16)

        def inside(axis: int) -> NDArray[np.bool_]:
            # [kinds, B, blocks, size]; unsigned, so places before the start wrap to large numbers.
            return (self._axes[axis] - starts[..., axis, None]) < extents[..., axis, None]

        rows, columns = inside(1), inside(2)
        if not self._whole_clip:
            rows = (inside(0)[..., :, None] & rows[..., None, :]).reshape(*rows.shape[:-1], -1)
        # How many blocks cover a token: a product over blocks, one small matrix for each clip.
        cover = rows.astype(np.float32).swapaxes(-1, -2) @ columns.astype(np.float32)
        return (cover > 0.5).reshape(*cover.shape[:2], -1, *self._grid[1:])


MAX_DRAWS = 1001
"""A mask that leaves no context or no target in so many draws is an error in its config."""
_SIZE_WORDS = 3
# Draws tried together where one has to be repeated: the price is in the calls, not the numbers.
_DRAWS_AT_ONCE = 4
# A clip that shares its block size with its batch gets a size of its own after so many draws: the
# shared one may be a block that covers everything.
_OWN_SIZE_AFTER = 50


@dataclass(frozen=True)
class DrawnMasks:
    """What the masks of a batch hide, before any counting."""

    hidden: NDArray[np.bool_]
    """[kinds, B, N], True where a token is hidden."""
    key_words: NDArray[np.uint64]
    """[kinds, B], random bits for choosing tokens."""


@dataclass(frozen=True)
class Minimum:
    """What a mask must leave, one number for each kind; a draw below it is repeated."""

    visible: NDArray[np.int64]
    """[kinds]; 0 for a kind whose counts never vary."""
    hidden: NDArray[np.int64]
    """Likewise."""
    max_draws: int
    """Give up after so many draws, 1 and a multiple of 4."""
    required: bool
    """Whether giving up is an error."""

    @classmethod
    def of_one(cls, kinds: int) -> Minimum:
        """At least one visible and one hidden token of each kind."""
        ones = np.ones(kinds, dtype=np.int64)
        return cls(visible=ones, hidden=ones, max_draws=MAX_DRAWS, required=True)

    def missed(self, hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which masks fall short: bool [kinds, B, N] -> bool [kinds, B]."""
        num_hidden = hidden.sum(axis=-1)
        too_dark = num_hidden > hidden.shape[-1] - self.visible[:, None]
        return too_dark | (num_hidden < self.hidden[:, None])


class MaskDrawer:
    """Draws all mask kinds of a batch together; refuses kinds that are impossible on this grid."""

    def __init__(
        self, masks: Sequence[MaskConfig], grid: Grid, tubelet_size: int, seed: int
    ) -> None:
        self.grid, self.num_tokens = grid, grid[0] * grid[1] * grid[2]
        self._seed = seed
        self._num_kinds = len(masks)
        self.seen_steps = np.array(
            [_seen_steps(number, mask, grid, tubelet_size) for number, mask in enumerate(masks)]
        )
        """int64 [kinds], time steps that may be seen; all, but for causal masks."""
        self._causal = [n for n, steps in enumerate(self.seen_steps) if steps < grid[0]]
        block_kinds = [n for n, mask in enumerate(masks) if mask.kind == "multiblock"]
        self._blocks = None
        if block_kinds:
            self._blocks = BlockKinds([masks[n] for n in block_kinds], grid)
        # A slice where possible: it is assigned to several times faster.
        self._block_kinds = slice(None) if len(block_kinds) == len(masks) else block_kinds
        self._tubes = {
            n: _kept_places(n, mask, grid, causal=n in self._causal)
            for n, mask in enumerate(masks)
            if mask.kind == "tube"
        }
        # Of each clip: bits to choose tokens and bits to choose tubes, for every kind; block sizes;
        # block positions.
        self._first_uniform = 2 * self._num_kinds
        self._words = self._first_uniform + _SIZE_WORDS
        self._words += self._blocks.words if self._blocks else 0

    def draw(
        self, ordinals: NDArray[np.int64], size_ordinals: NDArray[np.int64] | None, minimum: Minimum
    ) -> DrawnMasks:
        """Draw the masks of the samples with these ordinals [B], which leave the `minimum`.

        `size_ordinals` are what block sizes are drawn from: int64 [1], the number of the batch, for
        a size shared by all; [B] likewise for several batches at once; None: each clip has its own.
        """
        shared = None
        if size_ordinals is None:
            words = random_bits(self._seed, "masks", ordinals, self._words)
        else:
            # Samples count from 0, so batches can have the negative numbers: one call for both.
            both = np.concatenate([ordinals, -1 - size_ordinals])
            words = random_bits(self._seed, "masks", both, self._words)
            words, sizes = words[: len(ordinals)], words[len(ordinals) :]
            shared = to_uniform(sizes[:, :_SIZE_WORDS])  # [1 or B, 3]
        hidden = self._hidden(words, shared)
        missed = minimum.missed(hidden)
        for first in range(1, minimum.max_draws, _DRAWS_AT_ONCE):
            if not missed.any():
                break
            clips = np.flatnonzero(missed.any(axis=0))
            stream = f"masks/{first}"
            again = random_bits(self._seed, stream, ordinals[clips], self._words * _DRAWS_AT_ONCE)
            size = None
            if shared is not None and first < _OWN_SIZE_AFTER:
                size = np.broadcast_to(shared, (len(ordinals), _SIZE_WORDS))[clips]
                size = size.repeat(_DRAWS_AT_ONCE, axis=0)
            tries = self._hidden(again.reshape(-1, self._words), size)
            # The first of the new draws that will do, for each mask that fell short.
            bad = minimum.missed(tries)
            first_good = bad.reshape(self._num_kinds, -1, _DRAWS_AT_ONCE).argmin(axis=-1)
            kind, place = missed[:, clips].nonzero()
            source = place * _DRAWS_AT_ONCE + first_good[kind, place]
            hidden[kind, clips[place]] = tries[kind, source]
            missed = minimum.missed(hidden)
        if minimum.required and missed.any():
            kind = np.flatnonzero(missed.any(axis=1))[0]
            steps, height, width = self.grid
            raise UserError(
                f"masking.masks[{kind}]: none of {minimum.max_draws} draws on a grid of {steps} x "
                f"{height} x {width} tokens left at least {minimum.visible[kind]} context and "
                f"{minimum.hidden[kind]} target tokens: use fewer or smaller blocks"
            )
        return DrawnMasks(hidden, words[:, : self._num_kinds].T)

    def _hidden(
        self, words: NDArray[np.uint64], shared_size: NDArray[np.float64] | None
    ) -> NDArray[np.bool_]:
        """Hidden tokens of one draw, bool [kinds, B, N]."""
        hidden = np.empty((self._num_kinds, len(words), *self.grid), dtype=np.bool_)
        if self._blocks is not None:
            uniform = to_uniform(words[:, self._first_uniform :])
            size = uniform[:, :_SIZE_WORDS] if shared_size is None else shared_size
            sizes = self._blocks.sizes(size)
            hidden[self._block_kinds] = self._blocks.hidden(sizes, uniform[:, _SIZE_WORDS:])
        for kind, kept in self._tubes.items():
            # Random places, hidden over the whole clip.
            keys = token_keys(words[:, self._num_kinds + kind], self.grid[1] * self.grid[2])
            seen = random_subset(np.ones_like(keys, dtype=np.bool_), keys, np.full(len(keys), kept))
            hidden[kind] = ~seen.reshape(-1, 1, *self.grid[1:])
        for kind in self._causal:
            hidden[kind, :, self.seen_steps[kind] :] = True
        return hidden.reshape(self._num_kinds, len(words), -1)


def _seen_steps(number: int, mask: MaskConfig, grid: Grid, tubelet_size: int) -> int:
    """Time steps of tokens that may be seen: all, or the first frames of a causal mask."""
    frames = grid[0] * tubelet_size
    if mask.context_frames is None:
        return grid[0]
    if mask.context_frames > frames:
        raise UserError(
            f"masking.masks[{number}].context_frames is {mask.context_frames}, but a clip has "
            f"{frames} frames: give at most that, or null for all"
        )
    return max(1, mask.context_frames // tubelet_size)


def _kept_places(number: int, mask: MaskConfig, grid: Grid, *, causal: bool) -> int:
    """Places of a frame that a tube mask leaves; all of them only where later steps are hidden."""
    places = grid[1] * grid[2]
    kept = int(places * (1 - mask.tube_ratio))
    if kept == 0 or (kept == places and not causal):
        raise UserError(
            f"masking.masks[{number}].tube_ratio {mask.tube_ratio} leaves {kept} of the {places} "
            "places of a frame: at least one must be seen and one hidden"
        )
    return kept


_ODD = np.uint32(0x9E3779B1)
# Round constants of a 32-bit integer hash with low bias (Ettinger, "hash-prospector").
_MIX_1, _MIX_2 = np.uint32(0x21F0AAAD), np.uint32(0xD35A2D97)
_LARGEST = np.uint32(0xFFFFFFFF)


@lru_cache(maxsize=16)
def _spread(num_tokens: int) -> NDArray[np.uint32]:
    """Token numbers spread over all 32 bits, so that two rounds suffice; not to be written to."""
    spread = np.arange(num_tokens, dtype=np.uint32) * _ODD
    spread ^= spread >> np.uint32(16)
    spread *= _MIX_1
    spread ^= spread >> np.uint32(15)
    return spread


def token_keys(words: NDArray[np.uint64], num_tokens: int) -> NDArray[np.uint32]:
    """Random keys for the tokens of many rows, uint64 [R] -> uint32 [R, N]; distinct in a row.

    A 32-bit hash of a token's number: seeded for each row, it is a bijection, so the tokens of a
    row with the n smallest keys are a random subset of exactly n, whatever else is in the batch.
    """
    first = words.astype(np.uint32)[:, None]
    second = (words >> np.uint64(32)).astype(np.uint32)[:, None]
    # Xor with a constant, xor with a right shift and an odd factor are all invertible.
    keys = _spread(num_tokens) ^ first
    keys *= _MIX_1
    keys ^= keys >> np.uint32(16)
    keys ^= second
    keys *= _MIX_2
    return keys


def random_subset(
    eligible: NDArray[np.bool_], keys: NDArray[np.uint32], count: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Exactly `count` [R] of each row's eligible tokens [R, N]: those with the smallest keys."""
    if (count < 1).any() or (count > eligible.sum(axis=1)).any():
        raise ValueError("count must lie between 1 and the number of eligible tokens")
    ranked = np.where(eligible, keys, _LARGEST)
    ranked.sort(axis=1)
    last = np.take_along_axis(ranked, count[:, None] - 1, axis=1)
    return (keys <= last) & eligible
