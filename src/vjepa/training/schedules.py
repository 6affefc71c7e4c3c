"""How a training job runs; every job's root config holds one."""

from __future__ import annotations

import math
from typing import Literal

from vjepa.config import config_dataclass
from vjepa.runtime.device import DeviceName, Precision


@config_dataclass
class OptimConfig:
    """AdamW and its schedules. The defaults are the paper's recipe (Table 8, batch 3072)."""

    steps: int = 90_000
    """Optimiser updates to train."""
    warmup_steps: int = 12_000
    """Updates over which the learning rate rises linearly from `start_lr` to `peak_lr`."""
    start_lr: float = 2e-4
    """Learning rate at the (virtual) update 0."""
    peak_lr: float = 6.25e-4
    """Learning rate at the end of the warm-up."""
    final_lr: float = 1e-6
    """Learning rate at the end of the stretched schedule."""
    schedule_stretch: float = 1.25
    """All schedules are computed for this many times `steps`; 1 reaches the final values."""
    start_weight_decay: float = 0.04
    """Weight decay at the (virtual) update 0."""
    final_weight_decay: float = 0.4
    """Weight decay at the end of the stretched schedule."""
    weight_decay_schedule: Literal["cosine", "linear"] = "cosine"
    """`cosine`: half a cosine, as the authors' released code; `linear`: as the paper's text."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip_norm: float | None = 10.0
    """Largest gradient norm, for each trained module (encoder, predictor) on its own; null: off."""
    clip_from_step: int = 0
    """First update that is clipped (0 and 1: all; the authors' released run: 12301)."""
    accumulation_steps: int = 1
    """Micro-batches that each batch is cut into; the gradient is that of the whole batch."""

    def __post_init__(self) -> None:
        """Check every range, naming the field."""
        _require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must not be negative")
        for name in ("start_lr", "peak_lr", "final_lr"):
            rate = getattr(self, name)
            _require(
                math.isfinite(rate) and rate >= 0, name, rate, "must be finite and not negative"
            )
        _require(
            math.isfinite(self.schedule_stretch) and self.schedule_stretch >= 1,
            "schedule_stretch",
            self.schedule_stretch,
            "must be at least 1",
        )
        for name in ("start_weight_decay", "final_weight_decay"):
            decay = getattr(self, name)
            _require(
                math.isfinite(decay) and decay >= 0, name, decay, "must be finite and not negative"
            )
        _require(
            all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "must lie in [0, 1)"
        )
        _require(self.eps > 0, "eps", self.eps, "must be positive")
        if self.clip_norm is not None:
            _require(self.clip_norm > 0, "clip_norm", self.clip_norm, "must be positive or null")
        _require(
            self.clip_from_step >= 0, "clip_from_step", self.clip_from_step, "must not be negative"
        )
        _require(
            self.accumulation_steps >= 1,
            "accumulation_steps",
            self.accumulation_steps,
            "must be at least 1",
        )

    @property
    def schedule_steps(self) -> int:
        """Length of the stretched schedules in updates: K = floor(stretch * steps)."""
        # The tiny increment keeps a product such as 1.1 * 10 from falling below its integer.
        return int(self.schedule_stretch * self.steps + 1e-9)


@config_dataclass
class EmaConfig:
    """Momentum of the target encoder, an exponential moving average of the encoder."""

    start_momentum: float = 0.998
    """Share of the old target that the first update keeps."""
    final_momentum: float = 1.0
    """Momentum at the end of the stretched schedule; equal to the start: constant."""

    def __post_init__(self) -> None:
        """Check that both are shares."""
        for name in ("start_momentum", "final_momentum"):
            momentum = getattr(self, name)
            _require(0 <= momentum <= 1, name, momentum, "must lie in [0, 1]")


def learning_rate(update: int, config: OptimConfig) -> float:
    """Learning rate of one update: linear warm-up, then half a cosine to `final_lr`.

    Args:
        update: Number of the update, from 1.
        config: The schedule.

    Returns:
        ``start + (k / w) (peak - start)`` for k < w, else the cosine from `peak_lr` at k = w to
        `final_lr` at the end of the stretched schedule (paper Table 8). Past the end, which
        training never reaches, the cosine goes on and the rate rises again.
    """
    warmup, peak, final = config.warmup_steps, config.peak_lr, config.final_lr
    if update < warmup:
        return config.start_lr + (update / warmup) * (peak - config.start_lr)
    progress = (update - warmup) / max(1, config.schedule_steps - warmup)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))


def weight_decay(update: int, config: OptimConfig) -> float:
    """Weight decay of one update (for the decayed parameter groups).

    Args:
        update: Number of the update, from 1.
        config: The schedule; `weight_decay_schedule` chooses half a cosine (the authors' released
            code) or a line (the paper's text). They differ by up to 0.038 in the paper's recipe.

    Returns:
        The weight decay.
    """
    start, final = config.start_weight_decay, config.final_weight_decay
    progress = update / config.schedule_steps
    if config.weight_decay_schedule == "linear":
        return start + (final - start) * progress
    return final + 0.5 * (start - final) * (1.0 + math.cos(math.pi * progress))


def ema_momentum(update: int, ema: EmaConfig, optim: OptimConfig) -> float:
    """Share of the target encoder that one update keeps: a line over the stretched schedule.

    Args:
        update: Number of the update, from 1; the first one uses exactly `start_momentum`.
        ema: Both ends of the line.
        optim: Gives the length of the schedules.

    Returns:
        ``m0 + (k - 1) (m1 - m0) / K``, never beyond `final_momentum`.
    """
    progress = min((update - 1) / optim.schedule_steps, 1.0)
    return ema.start_momentum + progress * (ema.final_momentum - ema.start_momentum)


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raise the ValueError of a config field: the message starts with the field's name."""
    if not condition:
        raise ValueError(f"{field}: {rule}, got {value}")


@config_dataclass
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
