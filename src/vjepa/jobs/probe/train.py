"""Training probe heads side by side on the features of the frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vjepa.data.clips.views import ViewConfig
from vjepa.evaluation.across_processes import join_clips
from vjepa.evaluation.batches import (
    ClipBatches,
    ClipEncoder,
    FeatureBatches,
)
from vjepa.evaluation.frozen import BadVideo
from vjepa.evaluation.heads import HeadGrid, LookupHead, TrainedHead, build_head, build_lookup
from vjepa.jobs.probe.config import HeadSetting, ProbeConfig, ProbeOptimConfig
from vjepa.jobs.probe.features import LabelledFeatures, TrainingPart
from vjepa.models import EncoderConfig
from vjepa.runtime.device import seed_torch
from vjepa.runtime.metric_log import MetricLog
from vjepa.tasks import Classification
from vjepa.training.schedules import OptimConfig
from vjepa.training.trainer import Trainer, TrainingConfig


@dataclass(frozen=True)
class HeadRecipe:
    """Everything about the training of heads but their data and grid.

    Attributes:
        config: Forms of heads, epochs or steps, batch size, schedules, seed.
        encoder: Gives width and attention heads.
        view: How segments become the probe's input.
        training: Device, precision, threads.
    """

    config: ProbeConfig
    encoder: EncoderConfig
    view: ViewConfig
    training: TrainingConfig


@dataclass(frozen=True)
class TrainedHeads:
    """Heads after training, and the videos that could not be read while they trained.

    Attributes:
        heads: In the order of the grid, in evaluation mode on the CPU.
        bad: Empty where features were computed before.
    """

    heads: HeadGrid
    bad: tuple[BadVideo, ...]


def train_heads(
    data: TrainingPart,
    grid: Sequence[HeadSetting],
    recipe: HeadRecipe,
    *,
    sinks: Sequence[MetricLog] = (),
    description: str = "probe",
) -> TrainedHeads:
    """Train one head for each setting, all on the same batches, by the one training loop.

    Every head of a form starts from the same weights, has its own learning rate, weight decay and
    gradient clipping, and comes out as if it had been trained alone.

    Args:
        data: Training rows: features, or clips that are encoded on the way, once for all heads.
        grid: Settings, at least one; those of one form next to each other.
        recipe: How.
        sinks: Where the loop's metrics go.
        description: For the progress display.

    Returns:
        The trained heads.

    Raises:
        KeyboardInterrupt: Training was stopped by a signal.
    """
    optim, seed = recipe.config.optim, recipe.config.seed
    classes = len(data.labels.classes)
    heads = HeadGrid([_fresh_head(recipe, setting, classes) for setting in grid])
    batches, encode = _batches(data, recipe)
    try:
        order = batches.order
        steps = optim.steps if optim.epochs is None else order.steps_for(optim.epochs)
        assert steps is not None
        trainer = Trainer(
            task=Classification(heads, heads.trainable(), encode),
            batches=batches.batches,
            optim=schedules(optim, grid, steps),
            training=recipe.training,
            seed=seed,
            sinks=sinks,
            description=description,
        )
        scale_groups(trainer, list(heads.trainable()), grid)
        if trainer.fit().interrupted:
            raise KeyboardInterrupt
    finally:
        batches.close()
    bad = batches.bad if isinstance(batches, ClipBatches) else ()
    return TrainedHeads(heads.eval().to("cpu"), bad)


def fit_lookup(data: LabelledFeatures, recipe: HeadRecipe) -> LookupHead:
    """A head without training: it remembers the mean tokens of the training videos.

    Args:
        data: Training rows; the first pass is taken.
        recipe: Form of the head, how segments are joined.

    Returns:
        The head, on the CPU. With `join: average` it remembers every clip.
    """
    view = recipe.view
    pooled = [
        join_clips(part.tokens, view.num_segments, view.join).float().mean(dim=2)
        for part in data.parts()
    ]
    stacked = torch.cat(pooled)
    labels = torch.from_numpy(data.labels.indices).repeat_interleave(stacked.shape[1])
    vectors = stacked.flatten(0, 1)
    form = recipe.config.probe
    head = build_lookup(form, recipe.encoder.width, len(data.labels.classes), len(vectors))
    head.fit(vectors, labels)
    return head.eval()


def _batches(
    data: TrainingPart, recipe: HeadRecipe
) -> tuple[FeatureBatches | ClipBatches, ClipEncoder | None]:
    """Where batches come from, and what encodes them if they are clips."""
    size, seed, view = recipe.config.optim.batch_size, recipe.config.seed, recipe.view
    if isinstance(data, LabelledFeatures):
        batches = FeatureBatches(
            data.passes,
            data.places,
            data.labels.targets,
            size,
            seed,
            num_segments=view.num_segments,
            join=view.join,
        )
        return batches, None
    maker = data.maker
    source = maker.open_clips(data.videos, data.rows)
    encode = ClipEncoder(
        maker.frozen.encoder.to(maker.setup.device),
        view,
        maker.settings.precision,
        maker.settings.storage,
        maker.settings.batch_size,
    )
    return ClipBatches(source, data.rows, data.labels.targets, size, seed), encode


def _fresh_head(recipe: HeadRecipe, setting: HeadSetting, num_classes: int) -> TrainedHead:
    """A head with the weights of the seed; torch's own generator is left as it was."""
    encoder, form = recipe.encoder, recipe.config.form(setting.kind)
    with torch.random.fork_rng(devices=[]):
        seed_torch(recipe.config.seed, "probe head")
        return build_head(form, encoder.width, encoder.heads, num_classes)


def schedules(optim: ProbeOptimConfig, grid: Sequence[HeadSetting], steps: int) -> OptimConfig:
    """The schedules that all heads share, at the largest values of the grid."""
    rate = max(setting.learning_rate for setting in grid)
    decay = max(setting.weight_decay for setting in grid)
    return OptimConfig(
        steps=steps,
        warmup_steps=0,
        start_lr=0.0,
        peak_lr=rate,
        final_lr=0.0,
        schedule_stretch=1.0,
        start_weight_decay=decay,
        final_weight_decay=decay * optim.weight_decay_end,
        clip_norm=optim.clip_norm,
    )


def scale_groups(trainer: Trainer, names: Sequence[str], grid: Sequence[HeadSetting]) -> None:
    """Give each head's parameter groups their share of the common schedules."""
    shared, setting_of = trainer.learner.optim, dict(zip(names, grid, strict=True))
    for group in trainer.learner.optimizer.param_groups:
        setting = setting_of[group["module"]]
        group["lr_scale"] = setting.learning_rate / shared.peak_lr
        if shared.start_weight_decay > 0:
            group["weight_decay_scale"] = setting.weight_decay / shared.start_weight_decay
