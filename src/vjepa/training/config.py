"""How a training job runs; every job's root config holds one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vjepa.runtime.device import DeviceName, Precision


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a job runs: device, precision, and what happens every so many updates."""

    device: DeviceName = "auto"
    """`auto` takes a GPU when there is one."""
    precision: Precision = "float32"
    """Of matrix products; `bfloat16` is what the paper trains with. Weights are float32 always."""
    compile: bool = False
    """Compile the transformer blocks: slow first steps, then faster ones."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: a fraction of
    the memory for about a third more work. The same numbers."""
    num_threads: int | None = None
    """CPU threads of torch; null: torch's choice. Bit-exact resume needs the same number."""
    max_minutes: float | None = None
    """Stop, with a checkpoint, after so many minutes of training in all, resumes included; null: at
    the last update. The schedules do not know of it, so let them be flat where it is used."""
    log_every_steps: int = 50
    """Updates between two lines of metrics (means over them)."""
    checkpoint_every_steps: int = 1000
    """Updates between two checkpoints; the last update always gets one."""
    async_checkpoint: bool = False
    """Write checkpoints beside the training, from a copy of all weights and moments in memory."""
    keep_last: int = 2
    """How many of the newest checkpoints stay."""
    keep_every_steps: int | None = None
    """Checkpoints at multiples of this stay for ever; null: none."""
    health_every_steps: int | None = 500
    """Updates between two looks at the features' health; null: never."""
    health_clips: int = 32
    """Such a look takes the first so many samples of the batch, at any number of processes."""
    evaluate_every_steps: int | None = 5000
    """Updates between two evaluations, for evaluators without an interval; null: never."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When the loss or a gradient is not finite: stop, or skip those updates and count them."""
    spike_factor: float | None = None
    """A loss above so many times the median of the last 128 is a spike; null: none ever is."""
    spike: Literal["stop", "skip"] = "skip"
    """When the loss is a spike: stop, or skip those updates and count them."""
    max_skipped: int = 10
    """With `skip`, training stops after more than this in any 1000 updates."""

    def __post_init__(self) -> None:
        """Check every range, naming the field."""
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last", "health_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in (
            "num_threads",
            "keep_every_steps",
            "health_every_steps",
            "evaluate_every_steps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1 or null, got {value}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes: must be above 0 or null, got {self.max_minutes}")
        if self.spike_factor is not None and not self.spike_factor > 1:
            raise ValueError(f"spike_factor: must be above 1 or null, got {self.spike_factor}")
        if self.max_skipped < 0:
            raise ValueError(f"max_skipped: must not be negative, got {self.max_skipped}")
