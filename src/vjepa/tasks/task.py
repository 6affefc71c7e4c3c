"""The seam between training and what is trained: a batch in, a loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks.health import collapse_alarm


@dataclass(frozen=True, eq=False)
class Output:
    """What a task computes for a micro-batch: its summands of the whole batch's values."""

    loss: Tensor
    """float32 scalar, differentiable."""
    terms: dict[str, Tensor]
    """Detached float32 scalars for the log, on the loss's device; reading one waits for it. All
    processes give the same names in an update."""


class Task(nn.Module, ABC):
    """Everything that the training loop asks of what it trains.

    A task has all weights and buffers in submodules and defines two methods: :meth:`inputs` and
    ``forward``, which takes those inputs and returns an :class:`Output`. All else has a default:
    submodules are saved under their names, and trained where a parameter takes gradients.

    One rule: loss and terms of a micro-batch are *summands* of the batch's, that is, sums over its
    samples (or targets) divided by their number in the *whole* batch, over all micro-batches and
    processes. Then no way of cutting a batch changes a gradient.
    """

    has_unused = False
    """Some trained parameters never take part in the loss."""
    compares_samples = False
    """The loss compares a whole batch: processes talk in ``forward``, and no part can be alone."""
    group = ProcessGroup()
    """The processes that train together; whoever trains sets it."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    @abstractmethod
    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        """What ``forward`` takes, on the device, for a micro-batch: `part` (from 0) of `parts`.

        The batch is what this process holds of it, as the data make it.
        """

    def health(self, batch: Any, count: int, group: ProcessGroup) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Scalars that tell whether training goes well, measured now and then without gradients.

        On the first `count` samples of the whole batch, in every process.
        """
        return {}

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """A warning in words if the health reports so far, each with its ``loss``, look bad."""
        return collapse_alarm(history)

    def saved_modules(self) -> dict[str, nn.Module]:
        """All that a checkpoint holds, by name."""
        return dict(self.named_children())

    def trainable(self) -> dict[str, nn.Module]:
        """The trained modules by name, in the optimiser's order; each is clipped on its own."""
        modules = self.saved_modules().items()
        return {k: m for k, m in modules if any(p.requires_grad for p in m.parameters())}

    def lr_scale(self, name: str) -> float:  # noqa: ARG002
        """Factor of the learning rate of a trained parameter, by its full name."""
        return 1.0

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(online, target) modules whose targets follow as moving averages."""
        return []

    @property
    def encoder_for_evaluation(self) -> nn.Module | None:
        """What frozen evaluation uses: ``target_encoder``, if there is one, else ``encoder``."""
        return getattr(self, "target_encoder", getattr(self, "encoder", None))


def slice_of_part(size: int, part: int, parts: int) -> slice:
    """The samples of micro-batch `part` of `parts`, of `size` that a process holds."""
    if size < parts:
        raise ValueError(f"optim.accumulation_steps: {parts} parts of {size} samples; use fewer")
    return slice(part * size // parts, (part + 1) * size // parts)
