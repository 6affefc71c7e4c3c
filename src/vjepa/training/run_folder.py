"""Where a job keeps what it makes, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vjepa.runtime.distributed import Team
from vjepa.training.checkpoint import CheckpointStore
from vjepa.training.config import TrainingConfig
from vjepa.training.saving import CheckpointWriter


@dataclass(frozen=True)
class RunFolder:
    """Where a job keeps what it makes; a job without one only trains."""

    path: Path
    """For diagnostics."""
    store: CheckpointStore
    """Its checkpoints."""
    config: Mapping[str, Any]
    """``objective``, ``model`` and ``run`` for each checkpoint's `config.json`."""

    @classmethod
    def open(cls, path: Path, training: TrainingConfig, config: Mapping[str, Any]) -> RunFolder:
        """The run folder at `path`, which keeps as many checkpoints as the config says."""
        path.mkdir(parents=True, exist_ok=True)
        store = CheckpointStore(path / "checkpoints", training.keep_last, training.keep_every_steps)
        return cls(path, store, config)

    def writer(self, training: TrainingConfig, team: Team) -> CheckpointWriter:
        """Writes its checkpoints as the config says, together with all processes of the team."""
        return CheckpointWriter(self.store, team, background=training.async_checkpoint)


@dataclass(frozen=True)
class TrainingResult:
    """How a training run ended."""

    step: int
    """Updates done in total, those before a resume included."""
    interrupted: bool
    """Stopped by a signal before the last update."""
    checkpoint: Path | None
    """The newest checkpoint."""
    skipped_steps: int
    """Updates of this process that were skipped because they were not finite or a spike."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last interval's means; empty when nothing was left to do."""
    requeue: bool = False
    """It was not a person who stopped it but the system (SIGTERM, SIGUSR1): start it again."""
