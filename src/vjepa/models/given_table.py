"""A table of positions that comes with the weights of a video model of others."""

from __future__ import annotations

import math

from torch import Tensor

from vjepa.models.embedding import resample_position_code


def rows_of_table(
    table: Tensor, own: tuple[int, int, int], grid: tuple[int, int, int], *, stretched: bool = False
) -> Tensor:
    """The rows [1, N, D] for a grid (t, h, w) of a table [1, t*h*w, D] that was made for `own`.

    Its first rows are those of a shorter clip. With `stretched` each time step is brought to other
    sides bicubically, as an image's table is; where numbers count on over all tokens, as in
    VideoMAE, that is a guess. ValueError: more time steps, or other sides and not `stretched`.
    """
    if grid[0] > own[0] or (grid[1:] != own[1:] and not stretched):
        raise ValueError(
            f"this model's table of positions is for {' x '.join(map(str, own))} tokens at most, "
            f"not {' x '.join(map(str, grid))}, and is not stretched: give clips of its own size"
        )
    rows = table[:, : grid[0] * math.prod(own[1:])]
    if grid[1:] == own[1:]:
        return rows
    return resample_position_code(rows, (grid[0], *own[1:]), grid, is_image=True)
