"""From an objective and its configs to what the training step works on."""

from __future__ import annotations

from vjepa.runtime.device import checkpoint_blocks, set_up_device
from vjepa.runtime.distributed import Team
from vjepa.runtime.process import set_num_threads
from vjepa.training.optim import EmaPairs, build_optimizer
from vjepa.training.parallel import DistributedConfig, parallelise
from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    TrainingConfig,
    ema_momentum,
    learning_rate,
    weight_decay,
)
from vjepa.training.spikes import SpikeGate
from vjepa.training.step import Learner, Objective


def build_learner(
    objective: Objective,
    optim: OptimConfig,
    ema: EmaConfig | None,
    training: TrainingConfig,
    *,
    team: Team | None = None,
    distributed: DistributedConfig | None = None,
    has_unused: bool = False,
) -> Learner:
    """Put an objective on its device, or on all devices, and build what an update needs.

    On a CPU the whole process then keeps the memory that it frees
    (:mod:`vjepa.runtime.device`).

    Args:
        objective: What is trained; moved in place.
        optim: Optimiser and schedules.
        ema: Momentum, exactly when the objective has moving averages.
        training: Gives device, precision, threads and what counts as a spike.
        team: The processes that train together; None: this one alone.
        distributed: How they do; None: the defaults.
        has_unused: Some trained parameters never take part in the loss.

    Returns:
        The learner, with a fresh optimiser.

    Raises:
        UserError: No such device, or nothing to train.
        ValueError: `ema` does not go with the objective.
    """
    set_num_threads(training.num_threads)
    setup = set_up_device(training.device, training.precision)
    objective.to(setup.device)
    trained = dict(objective.trainable())
    if training.activation_checkpointing:
        checkpoint_blocks(trained.values())
    parallel = parallelise(
        objective, team or Team(), distributed or DistributedConfig(), setup, has_unused=has_unused
    )
    # After sharding, so that the pairs hold shards; before compiling.
    pairs = EmaPairs.of(objective.ema_pairs())
    if bool(pairs.target) != (ema is not None):
        raise ValueError("ema: an objective with moving averages needs it, others must not have it")
    optimizer = build_optimizer(trained, optim)
    factor = training.spike_factor
    spikes = None if factor is None else SpikeGate(factor, setup.device)
    return Learner(objective, trained, optimizer, pairs, optim, ema, setup, parallel, spikes)


def scheduled(update: int, learner: Learner) -> dict[str, float]:
    """Learning rate, weight decay and, where there is one, momentum of an update, for the log."""
    optim = learner.optim
    values = {
        "learning_rate": learning_rate(update, optim),
        "weight_decay": weight_decay(update, optim),
    }
    if learner.ema is not None:
        values["momentum"] = ema_momentum(update, learner.ema, optim)
    return values
