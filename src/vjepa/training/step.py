"""One optimiser update, and the protocols by which the loop meets objectives, data and evaluators.

Nothing here waits for the device: losses, metrics and norms stay there until the loop reads a whole
interval of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.runtime.device import DeviceSetup
from vjepa.training.ema import EmaPairs, update_ema
from vjepa.training.optim import GuardedAdamW, clip_gradients, set_schedules
from vjepa.training.schedules import EmaConfig, OptimConfig, ema_momentum


class StepResult(Protocol):
    """What an objective returns for one micro-batch."""

    @property
    def loss(self) -> Tensor:
        """Mean loss, a differentiable scalar."""
        ...

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """Detached scalars on the device, means over the micro-batch."""
        ...


class Objective(Protocol):
    """What is trained: usually an ``nn.Module`` that holds the models."""

    def __call__(self, *inputs: Any) -> StepResult:
        """Loss and metrics of a micro-batch as :data:`Prepare` made it."""
        ...

    def trainable(self) -> Mapping[str, nn.Module]:
        """The trained modules by name, in the optimiser's order."""
        ...

    def ema_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        """(online, target) modules whose targets follow as moving averages; may be empty."""
        ...

    def to(self, device: torch.device) -> object:
        """Move all models to a device, in place."""
        ...


@runtime_checkable
class HealthReporting(Protocol):
    """An objective that can also look at the health of its features."""

    def health(self, *inputs: Any) -> Mapping[str, Tensor]:
        """Scalars that tell whether training goes well; called without gradients."""
        ...


class Batch(Protocol):
    """One batch of data; what else it holds only :data:`Prepare` knows."""

    @property
    def ordinals(self) -> NDArray[np.int64]:
        """int64 [B]: the samples' places in the run's order, for counting and diagnostics."""
        ...


@runtime_checkable
class BadVideoCounting(Protocol):
    """A batch that knows how many videos failed while it was made."""

    @property
    def num_bad(self) -> int:
        """Videos that could not be read and were replaced."""
        ...


class BatchSource(Protocol):
    """Data as a pure function of the step."""

    def batches(self, start_step: int, stop_step: int) -> Iterator[Any]:
        """The batches of updates ``start_step + 1`` to ``stop_step``, in order."""
        ...


class Evaluator(Protocol):
    """Something that is measured now and then while training, for example an online probe."""

    @property
    def every_steps(self) -> int | None:
        """After how many updates each time; None: as the training config says."""
        ...

    def run(self, step: int) -> Mapping[str, float]:
        """Measure after `step` updates."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch, ready for the objective."""

    inputs: tuple[Any, ...]
    """The objective's arguments, on the device."""
    share: float
    """Samples in it / samples in the batch; the shares of a batch sum to 1."""


Prepare = Callable[[Any, torch.device, int, int], MicroBatch]
"""``prepare(batch, device, micro, num_micro)``: cuts out part `micro` of `num_micro`."""


@dataclass(frozen=True)
class Learner:
    """Everything that one update reads or changes."""

    objective: Objective
    modules: Mapping[str, nn.Module]
    optimizer: GuardedAdamW
    pairs: EmaPairs
    optim: OptimConfig
    ema: EmaConfig | None
    setup: DeviceSetup


@dataclass(frozen=True)
class StepValues:
    """What one update leaves behind, on the device."""

    update: int
    """Its number, from 1."""
    values: Mapping[str, Tensor]
    """0-d: ``loss``, the objective's metrics, ``grad_norm/<module>`` before clipping."""
    finite: Tensor
    """0-d bool: loss and gradients were finite; otherwise the weights have not been changed."""


def train_step(learner: Learner, micro_batches: Iterable[MicroBatch], update: int) -> StepValues:
    """Do one optimiser update on one batch.

    The gradient is that of the whole batch whatever the number of micro-batches: each counts with
    its share of the samples. The moving average follows once, after the optimiser (the k-th update
    uses momentum(k) and the new weights). If the loss or a gradient is not finite, the fused
    optimiser skips the update on the device.

    Args:
        learner: What is trained and how.
        micro_batches: The parts of one batch.
        update: Number of the update, from 1.

    Returns:
        Loss, metrics and gradient norms, not synchronised with the host.
    """
    optimizer = learner.optimizer
    set_schedules(optimizer, update, learner.optim)
    optimizer.zero_grad(set_to_none=True)
    values: dict[str, Tensor] = {}
    for micro in micro_batches:
        with learner.setup.autocast():
            output = learner.objective(*micro.inputs)
        (output.loss * micro.share).backward()
        for name, value in {"loss": output.loss, **output.metrics}.items():
            weighted = value.detach().float() * micro.share
            values[name] = values[name] + weighted if name in values else weighted
    norms = clip_gradients(learner.modules, update, learner.optim)
    finite = torch.stack([values["loss"], *norms.values()]).isfinite().all()
    optimizer.found_inf = (~finite).float()
    optimizer.step()
    if learner.ema is not None:
        update_ema(learner.pairs, ema_momentum(update, learner.ema, learner.optim))
    values |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return StepValues(update, values, finite)
