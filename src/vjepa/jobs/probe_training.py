"""Training probe heads side by side on cached features, and choosing among them honestly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa.evaluation.feature_batches import FeatureBatch, FeatureBatches
from vjepa.evaluation.metrics import ClassificationSums, probabilities_of
from vjepa.evaluation.probe_heads import HeadConfig, ProbeHead, ProbeHeads, build_head
from vjepa.evaluation.results import HeadResult
from vjepa.jobs.probe_config import HeadSetting, ProbeOptimConfig
from vjepa.jobs.probe_features import LabelledFeatures
from vjepa.models import EncoderConfig
from vjepa.objectives.classification import ClassificationObjective
from vjepa.runtime.metric_sinks import MetricSink
from vjepa.runtime.seeds import seed_torch
from vjepa.training.loop import Trainer, TrainingConfig
from vjepa.training.schedules import OptimConfig
from vjepa.training.step import MicroBatch

CLASSIFY_BATCH = 64
"""Clips per forward call of a head when it is measured. Fixed, because the size of a batch may
change the last bits of a logit and evaluation must give the training run's number again."""


@dataclass(frozen=True)
class HeadRecipe:
    """Everything about the training of heads but their data and grid.

    Attributes:
        form: The heads' form.
        encoder: Gives width and attention heads.
        optim: Epochs or steps, batch size, schedules.
        training: Device, precision, threads.
        seed: Of the weights and of the order of rows.
    """

    form: HeadConfig
    encoder: EncoderConfig
    optim: ProbeOptimConfig
    training: TrainingConfig
    seed: int


def train_heads(
    data: LabelledFeatures,
    grid: Sequence[HeadSetting],
    recipe: HeadRecipe,
    *,
    sinks: Sequence[MetricSink] = (),
    description: str = "probe",
) -> ProbeHeads:
    """Train one head for each setting, all on the same batches, by the one training loop.

    Every head starts from the same weights, has its own learning rate, weight decay and gradient
    clipping, and comes out as if it had been trained alone.

    Args:
        data: Training rows.
        grid: Settings, at least one.
        recipe: How.
        sinks: Where the loop's metrics go.
        description: For the progress display.

    Returns:
        The trained heads in the order of the grid, in evaluation mode on the CPU.

    Raises:
        KeyboardInterrupt: Training was stopped by a signal.
    """
    heads = ProbeHeads([_fresh_head(recipe, len(data.labels.classes)) for _ in grid])
    optim = recipe.optim
    batches = FeatureBatches(
        data.features, data.places, data.labels.indices, optim.batch_size, recipe.seed
    )
    steps = optim.steps if optim.epochs is None else batches.steps_for(optim.epochs)
    assert steps is not None
    trainer = Trainer(
        objective=ClassificationObjective(heads, heads.trainable()),
        data=batches,
        prepare=prepare_features,
        optim=schedules(optim, grid, steps),
        training=recipe.training,
        seed=recipe.seed,
        sinks=sinks,
        description=description,
    )
    scale_groups(trainer, list(heads.trainable()), grid)
    if trainer.train().interrupted:
        raise KeyboardInterrupt
    return heads.eval().to("cpu")


def _fresh_head(recipe: HeadRecipe, num_classes: int) -> ProbeHead:
    """A head with the weights of the seed; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(recipe.seed, "probe head")
        return build_head(recipe.form, recipe.encoder.width, recipe.encoder.heads, num_classes)


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


def prepare_features(
    batch: FeatureBatch, device: torch.device, micro: int, num_micro: int
) -> MicroBatch:
    """The objective's inputs of one part of a batch of features."""
    size = len(batch)
    part = slice(micro * size // num_micro, (micro + 1) * size // num_micro)
    tokens, labels = batch.tokens[part], batch.labels[part]
    inputs = (tokens.to(device, non_blocking=True), labels.to(device, non_blocking=True))
    return MicroBatch(inputs, len(labels) / size)


@torch.no_grad()
def head_probabilities(
    head: ProbeHead | ProbeHeads, data: LabelledFeatures, start: int, device: torch.device
) -> Tensor:
    """Class probabilities of one batch of chosen rows.

    Args:
        head: One head, or several together.
        data: The rows.
        start: First row of the batch, which is :data:`CLASSIFY_BATCH` long at most.
        device: Where the head is.

    Returns:
        float64 [b, classes], for several heads [H, b, classes], on the CPU.
    """
    places = data.places[start : start + CLASSIFY_BATCH]
    tokens = data.features.gather(places).to(device, torch.float32)
    return probabilities_of(head(tokens)).cpu()


def choose_head(
    heads: ProbeHeads,
    grid: Sequence[HeadSetting],
    data: LabelledFeatures,
    device: torch.device,
) -> tuple[HeadResult, ...]:
    """Measure every head on rows that none was trained on, and choose.

    Args:
        heads: Trained heads.
        grid: Their settings.
        data: Rows for the choice; never the test rows.
        device: Where to compute.

    Returns:
        One result a head, in the order of the grid; the one with the most right answers is chosen,
        among equals the one with the lowest loss, then the first.
    """
    heads.to(device)
    sums = [ClassificationSums(data.labels.classes) for _ in grid]
    for start in range(0, len(data.places), CLASSIFY_BATCH):
        labels = torch.from_numpy(data.labels.indices[start : start + CLASSIFY_BATCH])
        for own, shares in zip(sums, head_probabilities(heads, data, start, device), strict=True):
            own.add(shares, labels)
    heads.to("cpu")
    found = [own.metrics() for own in sums]
    best = min(range(len(found)), key=lambda head: (-found[head].correct, found[head].loss, head))
    return tuple(
        HeadResult(
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            count=metrics.count,
            correct=metrics.correct,
            top1=metrics.top1,
            loss=metrics.loss,
            chosen=head == best,
        )
        for head, (setting, metrics) in enumerate(zip(grid, found, strict=True))
    )
