"""Blocks of hidden tokens: how large, where, and what their union covers.

Everything is an array operation over mask kinds and clips at once. Section 3.2 of the paper; the
rounding rules are those of the authors' released code, so that the distributions agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
