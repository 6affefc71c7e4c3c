"""One training loop for every job: schedules, optimiser, moving average, checkpoints, guards.

The loop trains a :class:`vjepa.tasks.Task` and knows nothing of video.
"""

from __future__ import annotations

from vjepa.training.guards import TrainingStopped
from vjepa.training.optim import (
    EmaPairs,
    GuardedAdamW,
    build_optimizer,
    clip_gradients,
    set_schedules,
    update_ema,
)
from vjepa.training.parallel import DistributedConfig
from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    TrainingConfig,
    ema_momentum,
    learning_rate,
    weight_decay,
)
from vjepa.training.step import Learner, StepValues, build_learner, train_step
from vjepa.training.trainer import Trainer, TrainingResult

__all__ = [
    "DistributedConfig",
    "EmaConfig",
    "EmaPairs",
    "GuardedAdamW",
    "Learner",
    "OptimConfig",
    "StepValues",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "TrainingStopped",
    "build_learner",
    "build_optimizer",
    "clip_gradients",
    "ema_momentum",
    "learning_rate",
    "set_schedules",
    "train_step",
    "update_ema",
    "weight_decay",
]
