"""One optimiser update, and what it works on.

Nothing here waits for the device: losses, terms and norms stay there until the loop reads a whole
interval of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vjepa.errors import UserError
from vjepa.runtime.device import DeviceSetup, checkpoint_blocks, compile_blocks
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.process import set_num_threads
from vjepa.tasks import Task
from vjepa.training.guards import SpikeGate
from vjepa.training.optim import (
    EmaPairs,
    GuardedAdamW,
    build_optimizer,
    clip_gradients,
    set_schedules,
    update_ema,
)
from vjepa.training.parallel import DistributedConfig, parallelise
from vjepa.training.schedules import EmaConfig, OptimConfig, TrainingConfig, ema_momentum

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Learner:
    """Everything that one update reads or changes."""

    task: Task
    ddp: DistributedDataParallel | None
    """Called in place of the task, to add up gradients; None alone and under FSDP."""
    modules: Mapping[str, nn.Module]
    """The trained ones, by name."""
    optimizer: GuardedAdamW
    pairs: EmaPairs
    optim: OptimConfig
    ema: EmaConfig | None
    """None: the task has no moving averages."""
    setup: DeviceSetup
    group: ProcessGroup
    spikes: SpikeGate | None
    """Judges losses; None: every finite one is good."""


def build_learner(
    task: Task,
    optim: OptimConfig,
    ema: EmaConfig | None,
    training: TrainingConfig,
    *,
    group: ProcessGroup | None = None,
    distributed: DistributedConfig | None = None,
) -> Learner:
    """Put a task on its device, or on all devices of a group, and build what an update needs.

    On a CPU the whole process then keeps the memory that it frees (:mod:`vjepa.runtime.device`).
    """
    group = group or ProcessGroup()
    set_num_threads(training.num_threads)
    setup = training.set_up_device()
    task.to(setup.device)
    task.group = group
    if task.compares_samples and optim.accumulation_steps > 1:
        raise UserError(
            f"optim.accumulation_steps: {optim.accumulation_steps}, but {type(task).__name__} "
            "compares the clips of a whole batch: use 1, and smaller batches or more processes"
        )
    if loose := [name for name in task.state_dict() if "." not in name]:
        raise UserError(f"{type(task).__name__}.{loose[0]}: is not saved; put it into a submodule")
    trained = task.trainable()
    if training.activation_checkpointing:
        checkpoint_blocks(trained.values())
    ddp = parallelise(task, group, distributed or DistributedConfig(), setup)
    # After sharding, so that the pairs hold shards; before compiling.
    pairs = EmaPairs.of(task.ema_pairs())
    if pairs.target and ema is None:
        raise ValueError("ema: a task with moving averages needs it")
    optimizer = build_optimizer(trained, optim, task.lr_scale)
    factor = training.spike_factor
    spikes = None if factor is None else SpikeGate(factor, setup.device)
    if training.compile:
        compile_blocks(list(task.saved_modules().values()))
    ema = ema if pairs.target else None
    return Learner(task, ddp, trained, optimizer, pairs, optim, ema, setup, group, spikes)


@dataclass(frozen=True)
class StepValues:
    """What one update, counted from 1, leaves behind; all tensors are 0-d and on the device."""

    update: int
    values: Mapping[str, Tensor]
    """``loss``, the task's terms, ``grad_norm/<module>`` before clipping."""
    finite: Tensor
    """Loss and gradients were finite; otherwise the weights have not been changed."""
    spike: Tensor
    """The loss was far above its running median, and the weights have not been changed."""


def train_step(
    learner: Learner, micro_batches: Iterable[tuple[Any, ...]], update: int
) -> StepValues:
    """Do one optimiser update on one batch.

    The gradient is that of the whole batch whatever the number of micro-batches and processes: each
    contributes its summand. The moving average follows once, after the optimiser (the k-th update,
    from 1, uses momentum(k) and the new weights). If the loss or a gradient is not finite, or the
    loss is a spike, the fused optimiser skips the update on the device, in every process.
    """
    optimizer, group, ddp = learner.optimizer, learner.group, learner.ddp
    set_schedules(optimizer, update, learner.optim)
    optimizer.zero_grad(set_to_none=True)
    values: dict[str, Tensor] = {}
    for number, inputs in enumerate(micro_batches, start=1):
        # DDP talks at the last micro-batch only. FSDP reduces every one: to wait would cost a whole
        # gradient of memory.
        is_last = number == learner.optim.accumulation_steps
        with nullcontext() if ddp is None or is_last else ddp.no_sync():
            with learner.setup.autocast():
                output = (ddp or learner.task)(*inputs)
            # DDP and FSDP take the mean of the processes' gradients, and the batch's is their sum.
            (output.loss * group.size).backward()
        if "loss" in output.terms:
            raise ValueError("Output.terms: loss is the loss itself; give the term another name")
        for name, value in {"loss": output.loss, **output.terms}.items():
            summand = value.detach().float()
            values[name] = values[name] + summand if name in values else summand
    if group.size > 1:
        sums = group.sum_(torch.stack(list(values.values())))
        values = dict(zip(values, sums.unbind(), strict=True))
    norms = clip_gradients(learner.modules, update, learner.optim)
    finite = torch.stack([values["loss"], *norms.values()]).isfinite().all()
    spike = torch.zeros_like(finite)
    if learner.spikes is not None:
        spike = learner.spikes.is_spike(values["loss"])
        learner.spikes.add(update, values["loss"], finite & ~spike)
    optimizer.found_inf = (~finite | spike).float()
    optimizer.step()
    if learner.ema is not None:
        update_ema(learner.pairs, ema_momentum(update, learner.ema, learner.optim))
    values |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return StepValues(update, values, finite, spike)
