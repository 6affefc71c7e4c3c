"""The speed of one training update, on synthetic clips in memory."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vjepa.config import config_dataclass, from_dict, load_config, to_dict
from vjepa.jobs.bench_encode import (
    BenchModelConfig,
    BenchReport,
    machine_name,
    random_clips,
    time_calls,
)
from vjepa.jobs.pretrain import PretrainConfig, build_task
from vjepa.jobs.pretrain_room import tokens_seen
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import ModelConfig, PredictorConfig, normalise_clip
from vjepa.models.operations import (
    NO_PREDICTOR,
    MaskTokens,
    UpdateOperations,
    update_memory,
    update_operations,
)
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.progress import Progress
from vjepa.training import Learner, TrainingConfig, build_learner, train_step
from vjepa.training.schedules import Count

_LONG_SECONDS = 0.01


@config_dataclass
class BenchConfig(BenchModelConfig):
    """What is measured."""

    recipe: str | None = None
    """A recipe of `vjepa pretrain`, or a YAML file of one, in place of `model`, `image_size`,
    `num_frames` and `masking`: its model, masks, objective and optimiser."""
    batch_size: Count = 24
    """Clips in an update; one micro-batch."""
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(count="fixed"))
    """Mask kinds and count mode; the paper's two masks, with the authors' mean token counts."""
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(precision="bfloat16"))
    """Device, precision, threads, compilation, activation checkpointing; the intervals do not
    matter here."""
    steps: Count = 10
    """Timed updates; the median counts."""
    warmup_steps: Count = 3
    """Updates before the clock starts (compilation, caches)."""
    estimate: bool = False
    """Count operations and memory only; nothing is run."""

    def __post_init__(self) -> None:
        BenchModelConfig.__post_init__(self)
        says = ("model", "image_size", "num_frames", "masking")
        if self.recipe and any(
            getattr(self, name) != getattr(BenchConfig(), name) for name in says
        ):
            raise ValueError(f"recipe: says {', '.join(says)} itself; leave them out")

    @property
    def pretraining(self) -> PretrainConfig:
        """The run whose update it is: the recipe's, or the paper's with these sizes and masks."""
        changes: dict[str, Any] = {
            "seed": 0,
            "data.batch_size": self.batch_size,
            "optim.accumulation_steps": 1,
            "online_probe": None,
        }
        if self.recipe is not None:
            return load_config(PretrainConfig, [self.recipe], changes, "pretrain")
        tokens = len(self.masking.masks)
        changes |= {
            "model.encoder": to_dict(self.encoder),
            "model.predictor": to_dict(PredictorConfig(num_mask_tokens=tokens)),
            "masking": to_dict(self.masking),
            "data.clip.num_frames": self.num_frames,
            "data.transform.crop_size": self.image_size,
        }
        return load_config(PretrainConfig, overrides=changes)

    @property
    def sizes(self) -> ModelConfig:
        """The model's sizes."""
        run = self.pretraining
        has_predictor = run.objective.name != "levjepa"
        return run.model if has_predictor else replace(run.model, predictor=NO_PREDICTOR)


def synthetic_batch(
    config: BenchConfig, device: torch.device
) -> tuple[Tensor, tuple[TokenMasks, ...]]:
    """Clips uint8 [B, 3, T, H, W] and the masks of each kind; the same for equal configs."""
    run, encoder = config.pretraining, config.sizes.encoder
    sampler = MaskSampler(run.masking, encoder.grid, encoder.tubelet_size, run.seed)
    masks = sampler.sample(np.arange(config.batch_size), 0)
    clips = random_clips(config.batch_size, encoder)
    return clips.to(device), tuple(mask.to(device) for mask in masks)


def _operations(config: BenchConfig, seen: Sequence[MaskTokens]) -> UpdateOperations:
    counted = update_operations(config.sizes, seen, config.batch_size)
    has_targets = config.pretraining.objective.name != "levjepa"
    return counted if has_targets else replace(counted, target_encoder=0.0)


def build(config: BenchConfig) -> Learner:
    """The learner that `vjepa pretrain` would train with, with fresh weights."""
    torch.manual_seed(0)
    run = config.pretraining
    return build_learner(build_task(run), run.optim, run.ema, config.training)


def run(config: BenchConfig) -> BenchReport:
    """Measure, or with `estimate` only count.

    Raises:
        UserError: No such device, or masks that do not fit the grid.
    """
    config = from_dict(BenchConfig, config)
    if config.estimate:
        return _estimate(config)
    learner = build(config)
    setup = learner.setup
    clips, token_masks = synthetic_batch(config, setup.device)
    how, compares_samples = config.sizes.encoder.input, learner.task.compares_samples
    batch = SimpleNamespace(clips=clips, ordinals=np.arange(config.batch_size), step=0)

    def update(number: int) -> None:
        if compares_samples:  # views and directions are drawn anew
            inputs = learner.task.inputs(batch, 0, 1)
        else:
            inputs = (normalise_clip(clips, how=how), token_masks)
        train_step(learner, [inputs], number)
        progress.update(number)

    with Progress("updates", config.warmup_steps + config.steps) as progress:
        wall, _ = time_calls(update, setup.device, config.steps, config.warmup_steps)
    seconds = statistics.median(wall)
    is_gpu = setup.device.type == "cuda"
    masks = tokens_seen(config.pretraining, config.batch_size)
    operations = _operations(config, masks)
    counted = update_memory(
        config.sizes,
        masks,
        config.batch_size,
        activation_checkpointing=config.training.activation_checkpointing,
        precision=setup.precision,
        on_cpu=not is_gpu,
    )
    values = _facts(config, masks, operations) | {
        "machine": torch.cuda.get_device_name(setup.device) if is_gpu else machine_name(),
        "threads": torch.get_num_threads(),
        "ms": round(seconds * 1e3, 2),
        "clips_per_second": round(config.batch_size / seconds, 3),
        "tflops": _short(operations.total / seconds / 1e12),
        "peak_memory_gb": round(peak_memory(setup.device) / 1e9, 3),
        "counted_memory_gb": round(counted.total / 1e9, 3),
    }
    # Measured last: its matrices are none of the update's memory.
    peak = matmul_rate(setup)
    values["matmul_tflops"] = _short(peak / 1e12)
    values["share_of_matmul"] = _short(operations.total / seconds / peak)
    lines = (
        f"{_model_name(config)}, {config.batch_size} clips, "
        f"{setup.precision}, on {values['machine']}, {values['threads']} CPU threads",
        f"update        {values['ms']} ms, {values['clips_per_second']} clips/s",
        f"operations    {values['teraoperations']} TFLOP an update, {values['tflops']} TFLOP/s, "
        f"{values['share_of_matmul']:.0%} of this device's matrix products "
        f"({values['matmul_tflops']} TFLOP/s)",
        f"memory        {values['peak_memory_gb']} GB at the peak, {values['counted_memory_gb']} "
        "counted without clips and libraries",
    )
    return BenchReport(lines=lines, values=values)


def _short(value: float) -> float:
    """To four digits, also of what is slow or small."""
    return float(f"{value:.4g}")


def _model_name(config: BenchConfig) -> str:
    return f"{config.recipe or config.model}, {config.sizes.encoder.image_size} pixels"


def _facts(
    config: BenchConfig, masks: list[MaskTokens], operations: UpdateOperations
) -> dict[str, Any]:
    training = config.training
    return {
        "benchmark": "step",
        "model": config.recipe or config.model,
        "image_size": config.sizes.encoder.image_size,
        "num_frames": config.sizes.encoder.num_frames,
        "batch_size": config.batch_size,
        "precision": training.set_up_device().precision,
        "compile": training.compile,
        "activation_checkpointing": training.activation_checkpointing,
        "torch": torch.__version__,
        "context_tokens": [round(mask.context, 1) for mask in masks],
        "target_tokens": [round(mask.target, 1) for mask in masks],
        "teraoperations": _short(operations.total / 1e12),
    }


def _estimate(config: BenchConfig) -> BenchReport:
    masks, sizes = tokens_seen(config.pretraining, config.batch_size), config.sizes
    operations = _operations(config, masks)
    memory = update_memory(
        sizes,
        masks,
        config.batch_size,
        activation_checkpointing=config.training.activation_checkpointing,
    )
    values = _facts(config, masks, operations) | {
        "teraoperations_by_part": {
            name: _short(value / 1e12) for name, value in asdict(operations).items()
        },
        "states_gb": round(memory.states / 1e9, 3),
        "activations_gb": round(memory.activations / 1e9, 3),
        "memory_gb": round(memory.total / 1e9, 3),
    }
    lines = (
        f"{_model_name(config)}, {config.batch_size} clips (counted, not run)",
        f"operations    {values['teraoperations']} TFLOP an update",
        f"memory        {values['memory_gb']} GB in bfloat16: weights, moments and gradients "
        f"{values['states_gb']}, kept activations {values['activations_gb']}",
    )
    return BenchReport(lines=lines, values=values)


def matmul_rate(setup: DeviceSetup) -> float:
    """Operations a second of a large square matrix product in the setup's precision.

    Less large where one takes long: emulated bfloat16 of a processor without it needs seconds.
    """
    dtype = torch.bfloat16 if setup.precision == "bfloat16" else torch.float32
    side, largest = 256, 8192 if setup.device.type == "cuda" else 1024
    while True:
        a = torch.randn(side, side, device=setup.device).to(dtype)
        seconds, _ = time_calls(lambda _, a=a: a @ a, setup.device, calls=9, warmup=3)
        if side == largest or min(seconds) > _LONG_SECONDS:
            return 2 * side**3 / min(seconds)
        side *= 2


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
