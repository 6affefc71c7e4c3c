"""Settings of a training job, and the schedules of the paper's section 3.1 and Table 8."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.runtime.device import DeviceName, DeviceSetup, PrecisionName, set_up_device

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
_Beta = Annotated[float, Field(ge=0, lt=1)]
_Share = Annotated[float, Field(ge=0, le=1)]


@config_dataclass
class OptimConfig:
    """AdamW and its schedules. The defaults are the paper's recipe (Table 8, batch 3072)."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: weights of linear layers are moved by Muon (K. Jordan, 2024), at the same learning
    rate, all else by AdamW. Not for sharded weights (FSDP)."""
    steps: Count = 90_000
    """Optimiser updates to train."""
    warmup_steps: Annotated[int, Field(ge=0)] = 12_000
    """Updates over which the learning rate rises linearly from `start_lr` to `peak_lr`."""
    start_lr: NotNegative = 2e-4
    """Learning rate at the (virtual) update 0."""
    peak_lr: NotNegative = 6.25e-4
    """Learning rate at the end of the warm-up."""
    final_lr: NotNegative = 1e-6
    """Learning rate at the end of the stretched schedule."""
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """From `peak_lr` to `final_lr`: half a cosine, a line (V-JEPA 2's cool-down); or it stays."""
    schedule_stretch: Annotated[float, Field(ge=1)] = 1.25
    """All schedules are computed for this many times `steps`; 1 reaches the final values."""
    start_weight_decay: NotNegative = 0.04
    """Weight decay at the (virtual) update 0."""
    final_weight_decay: NotNegative = 0.4
    """Weight decay at the end of the stretched schedule."""
    weight_decay_schedule: Literal["cosine", "linear"] = "cosine"
    """`cosine`: half a cosine, as the authors' released code; `linear`: as the paper's text."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    clip_norm: Positive | None = 10.0
    """Largest gradient norm, for each trained module (encoder, predictor) on its own; null: off."""
    clip_from_step: Annotated[int, Field(ge=0)] = 0
    """First update that is clipped (0 and 1: all; the authors' released run: 12301)."""
    accumulation_steps: Count = 1
    """Micro-batches that each batch is cut into; the gradient is that of the whole batch."""

    @property
    def schedule_steps(self) -> int:
        """Length of the stretched schedules in updates: K = floor(stretch * steps)."""
        # The tiny increment keeps a product such as 1.1 * 10 from falling below its integer.
        return int(self.schedule_stretch * self.steps + 1e-9)


@config_dataclass
class EmaConfig:
    """Momentum of the target encoder, an exponential moving average of the encoder."""

    start_momentum: _Share = 0.998
    """Share of the old target that the first update keeps."""
    final_momentum: _Share = 1.0
    """Momentum at the end of the stretched schedule; equal to the start: constant."""


def learning_rate(update: int, config: OptimConfig) -> float:
    """Learning rate of update k, from 1: linear warm-up, then the curve from `peak_lr`.

    ``start + (k / w) (peak - start)`` for k < w, else the curve from `peak_lr` at k = w to
    `final_lr` at the end of the stretched schedule (paper Table 8). Past the end, which training
    never reaches, a cosine goes on and the rate rises again.
    """
    warmup, peak, final = config.warmup_steps, config.peak_lr, config.final_lr
    if update < warmup:
        return config.start_lr + (update / warmup) * (peak - config.start_lr)
    progress = (update - warmup) / max(1, config.schedule_steps - warmup)
    if config.learning_rate_schedule == "constant":
        return peak
    if config.learning_rate_schedule == "linear":
        return peak + progress * (final - peak)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * progress))


def unreached(config: OptimConfig) -> list[str]:
    """What the schedules promise and so few updates never come to, in words."""
    steps, said = config.steps, []
    if config.warmup_steps > steps:
        said.append(
            f"optim.warmup_steps {config.warmup_steps}: the warm-up does not end in {steps} "
            f"updates: the learning rate ends at {learning_rate(steps, config):.3g} and never "
            f"reaches optim.peak_lr {config.peak_lr:g}"
        )
    if config.clip_norm is not None and config.clip_from_step > steps:
        said.append(
            f"optim.clip_from_step {config.clip_from_step}: no gradient is clipped in {steps} "
            "updates"
        )
    return said


def weight_decay(update: int, config: OptimConfig) -> float:
    """Weight decay of update k, from 1: half a cosine or a line.

    They differ by up to 0.038 in the paper's recipe.
    """
    start, final = config.start_weight_decay, config.final_weight_decay
    progress = update / config.schedule_steps
    if config.weight_decay_schedule == "linear":
        return start + (final - start) * progress
    return final + 0.5 * (start - final) * (1.0 + math.cos(math.pi * progress))


def ema_momentum(update: int, ema: EmaConfig, optim: OptimConfig) -> float:
    """Share of the target encoder that update k keeps: a line over the stretched schedule.

    ``m0 + (k - 1) (m1 - m0) / K``, never beyond `final_momentum`; the first update, k = 1, uses
    exactly `start_momentum`.
    """
    progress = min((update - 1) / optim.schedule_steps, 1.0)
    return ema.start_momentum + progress * (ema.final_momentum - ema.start_momentum)


@config_dataclass
class TrainingConfig:
    """How a job runs: device, precision, and what happens every so many updates."""

    device: DeviceName = "auto"
    """`auto` takes a GPU when there is one."""
    precision: PrecisionName = "float32"
    """Of matrix products; `bfloat16` is what the paper trains with; `auto`: that, where the device
    has instructions for it. Weights are float32 always."""
    compile: bool = False
    """Compile the transformer blocks: slow first steps, then faster ones."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: a fraction of
    the memory for about a third more work. The same numbers."""
    num_threads: Count | None = None
    """CPU threads of torch; null: torch's choice. Bit-exact resume needs the same number."""
    max_minutes: Positive | None = None
    """Stop, with a checkpoint, after so many minutes of training in all, resumes included; null: at
    the last update. The schedules do not know of it, so let them be flat where it is used."""
    max_cpu_minutes: Positive | None = None
    """As `max_minutes`, but in CPU time of the main process's threads in updates and the reading
    that it does itself; without health reports, evaluations and checkpoints. Equal on a machine
    that is busy otherwise, so it is the budget to compare runs by on a CPU. On a GPU it says
    little."""
    longest_hours: Positive | None = 1000.0
    """Stop at the first updates where by their time training would take longer; null: never."""
    max_gigabytes: Positive | None = None
    """Memory that an update may need by its estimate; null: what is free when training begins."""
    log_every_steps: Count = 50
    """Updates between two lines of metrics (means over them)."""
    checkpoint_every_steps: Count = 1000
    """Updates between two checkpoints; the last update always gets one."""
    async_checkpoint: bool = False
    """Write checkpoints beside the training, from a copy of all weights and moments in memory."""
    keep_last: Count = 2
    """How many of the newest checkpoints stay."""
    keep_every_steps: Count | None = None
    """Checkpoints at multiples of this stay for ever; null: none."""
    health_every_steps: Count | None = 500
    """Updates between two looks at the features' health; null: never."""
    health_clips: Count = 32
    """Such a look takes the first so many samples of the batch, at any number of processes."""
    evaluate_every_steps: Count | None = 5000
    """Updates between two evaluations, for evaluators without an interval; null: never."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When the loss or a gradient is not finite: stop, or skip those updates and count them."""
    spike_factor: Annotated[float, Field(gt=1)] | None = None
    """A loss above so many times the median of the last 128 is a spike; null: none ever is."""
    spike: Literal["stop", "skip"] = "skip"
    """When the loss is a spike: stop, or skip those updates and count them."""
    max_skipped: Annotated[int, Field(ge=0)] = 10
    """With `skip`, training stops after more than this in any 1000 updates."""

    def set_up_device(self) -> DeviceSetup:
        """Device and precision, `auto` decided on this machine."""
        return set_up_device(self.device, self.precision)
