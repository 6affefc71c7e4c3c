"""One training loop for every job: schedules, optimiser, moving average, checkpoints, guards.

The loop trains a :class:`vjepa.tasks.Task` and knows nothing of video.
"""

from __future__ import annotations

from vjepa.training.guards import TrainingStopped
from vjepa.training.parallel import DistributedConfig
from vjepa.training.schedules import EmaConfig, OptimConfig, TrainingConfig
from vjepa.training.step import Learner, build_learner, train_step
from vjepa.training.trainer import Trainer, TrainingResult

__all__ = [
    "DistributedConfig",
    "EmaConfig",
    "Learner",
    "OptimConfig",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "TrainingStopped",
    "build_learner",
    "train_step",
]
