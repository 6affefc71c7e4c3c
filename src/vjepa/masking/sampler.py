"""Masks of a batch as a pure function of the seed and the samples' ordinals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError
from vjepa.masking.blocks import Grid
from vjepa.masking.config import MaskConfig, MaskingConfig
from vjepa.masking.counting import (
    TokenCounts,
    count_fixed,
    count_packed,
    count_prefix,
    mean_prefix_counts,
)
from vjepa.masking.drawing import MAX_DRAWS, DrawnMasks, MaskDrawer, Minimum, TokenKeys
from vjepa.masking.token_masks import TokenMasks

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

    Args:
        config: Mask kinds and count mode.
        grid: Tokens in time, height and width (t, h, w).
        tubelet_size: Frames in a time step of tokens.
        seed: Of the run.

    Attributes:
        counts: K and M of each mask kind in count mode fixed, otherwise None.

    Raises:
        UserError: if a mask kind is impossible on this grid.
    """

    counts: tuple[TokenCounts, ...] | None

    def __init__(self, config: MaskingConfig, grid: Grid, tubelet_size: int, seed: int) -> None:
        self._config = config
        self._drawer = MaskDrawer(config.masks, grid, tubelet_size, seed)
        self._token_keys = TokenKeys(self._drawer.num_tokens)
        ones = np.ones(len(config.masks), dtype=np.int64)
        places = grid[1] * grid[2]
        self._may_be_seen = self._drawer.seen_steps * places
        most = [mask.max_context_tokens or self._drawer.num_tokens for mask in config.masks]
        self._max_context = np.array(most)
        self.counts, self._keep = None, None
        self._minimum = Minimum(visible=ones, hidden=ones, max_draws=MAX_DRAWS, required=True)
        if config.count == "fixed":
            self.counts = self._fixed_counts(grid, tubelet_size)
            self._keep = np.array([(c.context, c.target) for c in self.counts]).T
            self._minimum = self._minimum_of(self._keep)
        # Masks that can never be drawn are refused here, not in the middle of a run.
        self._draw(np.arange(_TRIAL_CLIPS), 0)

    def sample(self, ordinals: NDArray[np.int64], batch_index: int) -> tuple[TokenMasks, ...]:
        """The masks of a batch.

        Args:
            ordinals: int64 [B], the samples' ordinals.
            batch_index: Number of the batch; used by count mode prefix only.

        Returns:
            One TokenMasks for each mask kind, on the CPU.
        """
        drawn = self._draw(ordinals, batch_index)
        if self._config.count == "prefix":
            return count_prefix(drawn, self._max_context)
        if self._keep is None:
            limited = any(mask.max_context_tokens for mask in self._config.masks)
            return count_packed(drawn, self._keys(drawn) if limited else None, self._max_context)
        return count_fixed(drawn, self._keys(drawn), self._keep, self._may_be_seen)

    def full(self, ordinals: NDArray[np.int64], batch_index: int) -> NDArray[np.bool_]:
        """What the masks hide before counting, for pictures and statistics.

        Args:
            ordinals: int64 [B].
            batch_index: As in :meth:`sample`.

        Returns:
            bool [kinds, B, t, h, w], True where a token is hidden.
        """
        hidden = self._draw(ordinals, batch_index).hidden
        return hidden.reshape(*hidden.shape[:2], *self._drawer.grid)

    def _draw(self, ordinals: NDArray[np.int64], batch_index: int) -> DrawnMasks:
        batch = np.array([batch_index]) if self._config.count == "prefix" else None
        return self._drawer.draw(ordinals, batch, self._minimum)

    def _keys(self, drawn: DrawnMasks) -> NDArray[np.uint32]:
        """Random keys of all tokens: uint32 [kinds * B, N]."""
        return self._token_keys(drawn.key_words.reshape(-1))

    def _fixed_counts(self, grid: Grid, tubelet_size: int) -> tuple[TokenCounts, ...]:
        masks = self._config.masks
        means: tuple[TokenCounts, ...] | None = None
        if any(m.context_fraction is None or m.target_fraction is None for m in masks):
            means = mean_prefix_counts(masks, grid, tubelet_size)
        return tuple(
            self._counts_of(kind, mask, None if means is None else means[kind])
            for kind, mask in enumerate(masks)
        )

    def _counts_of(self, kind: int, mask: MaskConfig, mean: TokenCounts | None) -> TokenCounts:
        """K and M of one kind, checked against the grid."""
        num_tokens, may_be_seen = self._drawer.num_tokens, int(self._may_be_seen[kind])
        context = _share(mask.context_fraction, num_tokens, mean.context if mean else 1)
        target = _share(mask.target_fraction, num_tokens, mean.target if mean else 1)
        context = min(context, mask.max_context_tokens or context)
        where = f"masking.masks[{kind}]"
        if context > may_be_seen:
            raise UserError(
                f"{where}.context_fraction asks for {context} tokens, but the first "
                f"{mask.context_frames} frames have {may_be_seen}: lower it or raise context_frames"
            )
        if context + target > num_tokens:
            raise UserError(
                f"{where}: {context} context and {target} target tokens are more than the grid's "
                f"{num_tokens}: lower context_fraction or target_fraction"
            )
        return TokenCounts(context, target)

    def _minimum_of(self, keep: NDArray[np.int64]) -> Minimum:
        """What a draw should leave for K and M; nothing for tubes, whose counts never vary."""
        varies = np.array([mask.kind == "multiblock" for mask in self._config.masks])
        return Minimum(
            visible=keep[0] * varies,
            hidden=keep[1] * varies,
            max_draws=_MAX_DRAWS_FIXED,
            required=False,
        )


def _share(fraction: float | None, num_tokens: int, otherwise: int) -> int:
    """A fraction of the tokens, at least one token."""
    return otherwise if fraction is None else max(1, round(fraction * num_tokens))
