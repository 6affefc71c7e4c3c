"""A table of positions that comes with the weights of a video model of others."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def rows_of_table(
    table: Tensor, own: tuple[int, int, int], grid: tuple[int, int, int], *, stretched: bool = False
) -> Tensor:
    """The rows [1, N, D] for a grid (t, h, w) of a table [1, t*h*w, D] that was made for `own`.

    Its first rows are those of a shorter clip. With `stretched` each time step is brought to other
    sides bicubically, as an image's table is; where numbers count on over all tokens, as in
    VideoMAE, that is a guess.

    Raises:
        ValueError: More time steps, or other sides and not `stretched`.
    """
    if grid[0] > own[0] or (grid[1:] != own[1:] and not stretched):
        raise ValueError(
            f"this model's table of positions is for {' x '.join(map(str, own))} tokens at most, "
            f"not {' x '.join(map(str, grid))}, and is not stretched: give clips of its own size"
        )
    rows = table[:, : grid[0] * math.prod(own[1:])]
    if grid[1:] == own[1:]:
        return rows
    places = rows.float().reshape(grid[0], *own[1:], -1).permute(0, 3, 1, 2)
    places = F.interpolate(places, size=grid[1:], mode="bicubic", align_corners=False)
    return places.flatten(2).transpose(1, 2).reshape(1, -1, table.shape[2]).to(table.dtype)
