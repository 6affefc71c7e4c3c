"""A tiny task, data set and job with every feature that the loop knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.logging import MetricLog
from vjepa.tasks import Output, Task
from vjepa.training import EmaConfig, OptimConfig, Trainer, TrainingConfig

OPTIM = OptimConfig(
    steps=12, warmup_steps=3, start_lr=1e-3, peak_lr=1e-2, final_lr=1e-4, clip_norm=0.5
)
TRAINING = TrainingConfig(
    device="cpu",
    num_threads=1,
    log_every_steps=4,
    checkpoint_every_steps=5,
    health_every_steps=6,
    evaluate_every_steps=7,
)


class ToyTask(Task):
    """Predicts a moving-average target; dropout makes it depend on the step's seed."""

    def __init__(self, seed: int = 0, dropout: float = 0.25) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
        self.target_encoder = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)).requires_grad_(False)
        self.target_encoder.load_state_dict(self.encoder.state_dict())
        self.predictor = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 8))

    def inputs(self, batch: ToyBatch, part: int, parts: int) -> tuple[Tensor, int]:
        """Cut unevenly when the size is no multiple."""
        inputs = torch.tensor_split(batch.inputs, parts)[part]
        return inputs.to(self.device), len(batch.inputs)

    def forward(self, inputs: Tensor, size: int | None = None) -> Output:
        size = size or len(inputs)
        with torch.no_grad():
            target = self.target_encoder(inputs) + inputs.sum(1, keepdim=True)
        error = (self.predictor(self.encoder(inputs)) - target).abs()
        return Output(error.sum() / (8 * size), {"target_mean": target.sum() / (8 * size)})

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.encoder, self.target_encoder)]

    def health(self, batch: ToyBatch, count: int, group: ProcessGroup) -> dict[str, Tensor]:
        return {"feature_std": self.encoder(batch.inputs[:count]).std(0).mean()}


@dataclass(frozen=True)
class ToyBatch:
    ordinals: NDArray[np.int64]
    inputs: Tensor


class ToyData:
    """Batches of random numbers: a pure function of the step."""

    def __init__(self, batch_size: int = 8, bad_updates: Sequence[int] = ()) -> None:
        self.batch_size, self.bad_updates = batch_size, bad_updates
        self.served: list[int] = []

    def batches(self, start_step: int, stop_step: int) -> Iterator[ToyBatch]:
        for step in range(start_step, stop_step):
            self.served.append(step)
            yield self.batch(step)

    def batch(self, step: int) -> ToyBatch:
        generator = torch.Generator().manual_seed(1000 + step)
        inputs = torch.randn(self.batch_size, 6, generator=generator)
        if step + 1 in self.bad_updates:
            inputs[0, 0] = torch.nan
        first = step * self.batch_size
        return ToyBatch(np.arange(first, first + self.batch_size), inputs)


@dataclass
class ToyEvaluator:
    """Draws random numbers, which must not change the training."""

    every_steps: int | None = None
    is_early: bool = False

    def run(self, step: int) -> dict[str, float]:
        torch.randn(3)
        return {"accuracy": step / 100}


def make_trainer(folder: Path | None, data: ToyData | None = None, **changes: Any) -> Trainer:
    """A job in a run folder; fields of the trainer may be replaced."""
    fields: dict[str, Any] = {
        "task": ToyTask(),
        "batches": (data or ToyData()).batches,
        "optim": OPTIM,
        "training": TRAINING,
        "seed": 1,
        "ema": EmaConfig(start_momentum=0.9),
        "folder": str(folder) if folder else None,  # a path or text
        "about": {"objective": "toy", "model": {}, "run": {"seed": 1}},
        "sinks": [MetricLog(folder / "metrics.jsonl")] if folder else [],
        "evaluators": [ToyEvaluator()],
    }
    return Trainer(**(fields | changes))


def short_optim(steps: int, **changes: Any) -> OptimConfig:
    """The toy schedule with another length."""
    return replace(OPTIM, steps=steps, **changes)
