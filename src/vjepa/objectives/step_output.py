"""What an objective returns for a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepOutput:
    """Loss and metrics of a batch.

    Attributes:
        loss: float32 scalar, differentiable.
        metrics: Detached float32 scalars on the loss's device; reading one waits for the device,
            so they are read late.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
