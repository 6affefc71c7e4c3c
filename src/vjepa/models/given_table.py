"""A table of positions that comes with the weights of a video model of others."""

from __future__ import annotations

import math

from torch import Tensor


def rows_of_table(table: Tensor, own: tuple[int, int, int], grid: tuple[int, int, int]) -> Tensor:
    """The rows [1, N, D] for a grid (t, h, w) of a table [1, t*h*w, D] that was made for `own`.

    It is not stretched: its numbers may count on over all tokens. Its first rows are those of a
    shorter clip.

    Raises:
        ValueError: Another size of frames, or more of them.
    """
    if grid[1:] != own[1:] or grid[0] > own[0]:
        raise ValueError(
            f"this model's table of positions is for {' x '.join(map(str, own))} tokens at most, "
            f"not {' x '.join(map(str, grid))}, and is not stretched: give clips of its own size"
        )
    return table[:, : math.prod(grid)]
