"""Masks of a batch as a pure function of the seed and the samples' ordinals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError
from vjepa.masking.config import MaskingConfig
from vjepa.masking.counting import (
    TokenCounts,
    TokenMasks,
    count_fixed,
    count_packed,
    count_prefix,
    mean_prefix_counts,
)
from vjepa.masking.drawing import DrawnMasks, Grid, MaskDrawer, Minimum, token_keys

# Count mode fixed can fill up what is missing, so it stops redrawing early.
_MAX_DRAWS_FIXED = 9
_TRIAL_CLIPS = 24


class MaskSampler:
    """Draws the masks of batches.

    Positions of the blocks follow from (seed, ordinal). Block sizes follow from (seed, batch index)
    in count mode prefix, where a batch shares one size as in the authors' code, and from (seed,
    ordinal) in the modes fixed and packed, whose masks therefore do not depend on what else is in
    the batch. All mask kinds share the draws for the block size. A mask that leaves no context or
    no target is drawn again; in count mode fixed so is one that leaves fewer than K or M tokens, up
    to 9 draws, after which the missing tokens are taken at random from the other side.

    The grid is of tokens in time, height and width, and a tubelet is so many frames long. A mask
    kind that is impossible on it is refused at once.
    """

    counts: tuple[TokenCounts, ...] | None = None
    """K and M of each mask kind in count mode fixed."""

    def __init__(self, config: MaskingConfig, grid: Grid, tubelet_size: int, seed: int) -> None:
        masks = config.masks
        self._config = config
        self._drawer = MaskDrawer(masks, grid, tubelet_size, seed)
        num_tokens = self._drawer.num_tokens
        self._may_be_seen = self._drawer.seen_steps * (grid[1] * grid[2])
        self._max_context = np.array([mask.max_context_tokens or num_tokens for mask in masks])
        if config.count == "fixed":
            self.counts = self._fixed_counts(grid, tubelet_size)
            self._keep = np.array(self.counts).T
            # Tubes are drawn once: their counts never vary.
            varies = np.array([mask.kind == "multiblock" for mask in masks])
            self._minimum = Minimum(
                visible=self._keep[0] * varies,
                hidden=self._keep[1] * varies,
                max_draws=_MAX_DRAWS_FIXED,
                required=False,
            )
        else:
            self._minimum = Minimum.of_one(len(masks))
        # Masks that can never be drawn are refused here, not in the middle of a run.
        self._draw(np.arange(_TRIAL_CLIPS), 0)

    def sample(self, ordinals: NDArray[np.int64], batch_index: int) -> tuple[TokenMasks, ...]:
        """The masks of samples with these ordinals [B], one for each mask kind, on the CPU.

        The number of the batch matters in count mode prefix only.
        """
        drawn = self._draw(ordinals, batch_index)
        if self._config.count == "prefix":
            return count_prefix(drawn, self._max_context)
        fixed = self._config.count == "fixed"
        keys = None
        if fixed or any(mask.max_context_tokens for mask in self._config.masks):
            keys = token_keys(drawn.key_words.reshape(-1), self._drawer.num_tokens)
        if fixed and keys is not None:
            return count_fixed(drawn, keys, self._keep, self._may_be_seen)
        return count_packed(drawn, keys, self._max_context)

    def one(self, ordinal: int) -> list[TokenMasks]:
        """The masks of one sample, indices [1, K] and [1, M] of each mask kind."""
        drawn = self.sample(np.array([ordinal], dtype=np.int64), 0)
        return [masks.sample(0) for masks in drawn]

    def full(self, ordinals: NDArray[np.int64], batch_index: int) -> NDArray[np.bool_]:
        """What the masks hide before counting, [kinds, B, t, h, w], for pictures and statistics."""
        hidden = self._draw(ordinals, batch_index).hidden
        return hidden.reshape(*hidden.shape[:2], *self._drawer.grid)

    def _draw(self, ordinals: NDArray[np.int64], batch_index: int) -> DrawnMasks:
        batch = np.array([batch_index]) if self._config.count == "prefix" else None
        return self._drawer.draw(ordinals, batch, self._minimum)

    def _fixed_counts(self, grid: Grid, tubelet_size: int) -> tuple[TokenCounts, ...]:
        """K and M of each kind, checked against the grid."""
        masks, num_tokens = self._config.masks, self._drawer.num_tokens
        means = (TokenCounts(1, 1),) * len(masks)
        if any(m.context_fraction is None or m.target_fraction is None for m in masks):
            means = mean_prefix_counts(masks, grid, tubelet_size)
        counts = []
        for kind, (mask, (context, target)) in enumerate(zip(masks, means, strict=True)):
            if mask.context_fraction is not None:
                context = max(1, round(mask.context_fraction * num_tokens))
            if mask.target_fraction is not None:
                target = max(1, round(mask.target_fraction * num_tokens))
            context = min(context, mask.max_context_tokens or context)
            where = f"masking.masks[{kind}]"
            if context > self._may_be_seen[kind]:
                raise UserError(
                    f"{where}.context_fraction asks for {context} tokens, but the first "
                    f"{mask.context_frames} frames have {self._may_be_seen[kind]}: lower it or "
                    "raise context_frames"
                )
            if context + target > num_tokens:
                raise UserError(
                    f"{where}: {context} context and {target} target tokens are more than the "
                    f"grid's {num_tokens}: lower context_fraction or target_fraction"
                )
            counts.append(TokenCounts(context, target))
        return tuple(counts)
