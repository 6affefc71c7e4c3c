"""What part of a batch the inputs of an objective are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vjepa.masking import TokenMasks


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


@dataclass(frozen=True)
class BatchPart:
    """A part of a batch that is cut over micro-batches and processes.

    The loss of a batch is a mean over all its masked tokens, and parts may hold different numbers
    of them. An objective that is told its part returns its summand of the batch's values, so that
    no way of cutting changes them.
    """

    clips: float
    """The part's clips / the batch's."""
    targets: tuple[float, ...]
    """For each mask kind: the part's masked tokens / the batch's."""

    @classmethod
    def of(cls, part: Sequence[TokenMasks], batch: Sequence[TokenMasks]) -> BatchPart:
        """From the masks of the part and of the whole batch; reads shapes only."""
        return cls(
            part[0].batch_size / batch[0].batch_size,
            tuple(a.target.numel() / b.target.numel() for a, b in zip(part, batch, strict=True)),
        )


def target_summand(mean: Tensor, part: BatchPart | None, kind: int) -> Tensor:
    """A mean over the masked tokens of one kind as a summand of the batch's; None: it is whole."""
    return mean if part is None else mean * part.targets[kind]
