"""One training loop for every job: schedules, optimiser, moving average, checkpoints, guards.

The loop gets its objective, data and evaluators by protocol and knows nothing of video.
"""

from __future__ import annotations

from vjepa.training.ema import EmaPairs, update_ema
from vjepa.training.optim import (
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
    parameter_names,
    set_schedules,
)
from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    ema_momentum,
    learning_rate,
    weight_decay,
)

__all__ = [
    "EmaConfig",
    "EmaPairs",
    "OptimConfig",
    "build_optimizer",
    "clip_gradients",
    "ema_momentum",
    "learning_rate",
    "load_optimizer_state",
    "optimizer_state",
    "parameter_groups",
    "parameter_names",
    "set_schedules",
    "update_ema",
    "weight_decay",
]
