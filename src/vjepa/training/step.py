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
from vjepa.runtime.distributed import Team
from vjepa.training.optim import EmaPairs, GuardedAdamW, clip_gradients, set_schedules, update_ema
from vjepa.training.parallel import Parallel
from vjepa.training.schedules import EmaConfig, OptimConfig, ema_momentum
from vjepa.training.spikes import SpikeGate


class StepResult(Protocol):
    """What an objective returns for one micro-batch."""

    @property
    def loss(self) -> Tensor:
        """A differentiable scalar: times :attr:`MicroBatch.share` a summand of the batch's loss."""
        ...

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """Detached scalars on the device, summands in the same way."""
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
    """Weight of the objective's values: of plain means over samples the part of the whole batch's
    samples, so that the shares sum to 1 over all parts and processes; 1 where the objective has
    weighed them itself."""


Prepare = Callable[[Any, torch.device, int, int], MicroBatch]
"""``prepare(batch, device, micro, num_micro)``: part `micro` of `num_micro` of what this process
holds of a batch."""

Look = Callable[[Any, torch.device, int], tuple[Any, ...]]
"""``look(batch, device, count)``: the objective's inputs of the first `count` samples of the whole
batch (fewer if it is smaller), the same in every process."""


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
    parallel: Parallel
    """Calls the objective so that gradients are summed over processes."""
    spikes: SpikeGate | None = None
    """Judges losses; None: every finite one is good."""


@dataclass(frozen=True)
class StepValues:
    """What one update leaves behind, on the device."""

    update: int
    """Its number, from 1."""
    values: Mapping[str, Tensor]
    """0-d: ``loss``, the objective's metrics, ``grad_norm/<module>`` before clipping."""
    finite: Tensor
    """0-d bool: loss and gradients were finite; otherwise the weights have not been changed."""
    spike: Tensor | None = None
    """0-d bool: the loss was far above its running median, and the weights have not been changed;
    None: not looked for."""


def train_step(learner: Learner, micro_batches: Iterable[MicroBatch], update: int) -> StepValues:
    """Do one optimiser update on one batch.

    The gradient is that of the whole batch whatever the number of micro-batches and processes: each
    contributes its summand. The moving average follows once, after the optimiser (the k-th update
    uses momentum(k) and the new weights). If the loss or a gradient is not finite, or the loss is
    a spike, the fused optimiser skips the update on the device, in every process.

    Args:
        learner: What is trained and how.
        micro_batches: The parts of this process's part of one batch.
        update: Number of the update, from 1.

    Returns:
        Loss, metrics and gradient norms of the whole batch, not synchronised with the host.
    """
    optimizer = learner.optimizer
    set_schedules(optimizer, update, learner.optim)
    optimizer.zero_grad(set_to_none=True)
    values = _whole_batch(_accumulate(learner, micro_batches), learner.parallel.team)
    norms = clip_gradients(learner.modules, update, learner.optim)
    finite = torch.stack([values["loss"], *norms.values()]).isfinite().all()
    applied, spike = finite, None
    if learner.spikes is not None:
        spike = learner.spikes.is_spike(values["loss"])
        applied = finite & ~spike
        learner.spikes.add(update, values["loss"], applied)
    optimizer.found_inf = (~applied).float()
    optimizer.step()
    if learner.ema is not None:
        update_ema(learner.pairs, ema_momentum(update, learner.ema, learner.optim))
    values |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return StepValues(update, values, finite, spike)


def _accumulate(learner: Learner, micro_batches: Iterable[MicroBatch]) -> dict[str, Tensor]:
    """Add up the gradients of this process's micro-batches; the sums of loss and metrics."""
    parallel, parts = learner.parallel, learner.optim.accumulation_steps
    values: dict[str, Tensor] = {}
    for number, micro in enumerate(micro_batches, start=1):
        with parallel.accumulating(last=number == parts):
            with learner.setup.autocast():
                output = parallel(*micro.inputs)
            # DDP and FSDP take the mean of the processes' gradients, and the batch's is their sum.
            (output.loss * (micro.share * parallel.team.size)).backward()
        for name, value in {"loss": output.loss, **output.metrics}.items():
            weighted = value.detach().float() * micro.share
            values[name] = values[name] + weighted if name in values else weighted
    return values


def _whole_batch(values: Mapping[str, Tensor], team: Team) -> dict[str, Tensor]:
    """Sums over all processes, in one message."""
    if team.size == 1:
        return dict(values)
    return dict(zip(values, team.sum_(torch.stack(list(values.values()))).unbind(), strict=True))
