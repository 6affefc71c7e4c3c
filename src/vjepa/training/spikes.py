"""Losses that jump: seen before the update is made, without asking the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WINDOW = 128
"""Updates over which the running median is taken."""
_FEWEST = 16


class SpikeGate:
    """Tells a loss that is far above the running median of the applied updates' losses.

    Everything stays on the device. The first 16 updates pass; updates that were not applied do not
    enter the median.

    Args:
        factor: How many times the median a loss may be.
        device: Where the losses are.
    """

    def __init__(self, factor: float, device: torch.device) -> None:
        self._factor = factor
        self._losses = torch.full((WINDOW,), math.nan, device=device)

    def is_spike(self, loss: Tensor) -> Tensor:
        """Whether a loss is too high: 0-d float32 -> 0-d bool."""
        enough = self._losses.isfinite().sum() >= _FEWEST
        return enough & (loss > self._factor * self._losses.nanmedian())

    def add(self, update: int, loss: Tensor, applied: Tensor) -> None:
        """Take in the loss of an update, if the update was applied (0-d bool)."""
        self._losses[update % WINDOW] = torch.where(applied, loss, math.nan)

    def state(self) -> list[float | None]:
        """The losses, for the checkpoint (plain JSON types)."""
        return [None if math.isnan(loss) else loss for loss in self._losses.tolist()]

    def load_state(self, state: Sequence[float | None]) -> None:
        """Go on from a stored :meth:`state`."""
        values = [math.nan if loss is None else loss for loss in state]
        self._losses.copy_(torch.tensor(values, dtype=torch.float32))
