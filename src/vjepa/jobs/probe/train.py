"""Training probe heads side by side on frozen features, and choosing one."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import BadVideo
from vjepa.errors import StoppedBySystem, UserError
from vjepa.evaluation.evaluate import (
    ProbeBatches,
    count_answers,
    join_clips,
    read_clips,
    read_passes,
)
from vjepa.evaluation.frozen import FeatureSet
from vjepa.evaluation.heads import (
    HeadConfig,
    NearestMean,
    NearestNeighbours,
    ProbeHead,
    ProbeHeads,
    RidgeHead,
    TrainedHead,
    build_head,
    pool_tokens,
)
from vjepa.evaluation.labels import Labels, check_every_class_has_a_sample
from vjepa.evaluation.results import HeadResult
from vjepa.jobs.probe.config import HeadSetting, ProbeConfig, ProbeOptimConfig
from vjepa.jobs.probe.inputs import ProbeInputs
from vjepa.models import EncoderConfig
from vjepa.runtime.device import seed_torch
from vjepa.runtime.logging import MetricLog
from vjepa.tasks import Classification
from vjepa.training.schedules import OptimConfig
from vjepa.training.trainer import Trainer, TrainingConfig


@dataclass(frozen=True)
class Fitted:
    """What came out of training: the chosen head, in evaluation mode on the CPU, and its form.

    `selection` says how every head did in the choice; empty where there was only one. `bad` are
    the training videos that could not be read, `steps` the updates of the head.
    """

    head: ProbeHead
    form: HeadConfig
    selection: tuple[HeadResult, ...]
    bad: tuple[BadVideo, ...]
    steps: int = 0


def steps_of(optim: ProbeOptimConfig, batches: ProbeBatches) -> int:
    """Updates of a training."""
    if optim.epochs is None:
        assert optim.steps is not None
        return optim.steps
    return max(optim.min_steps, batches.steps_for(optim.epochs))


def fit_probe(inputs: ProbeInputs, passes: Sequence[FeatureSet], log: Path) -> Fitted:
    """Train the grid, choose, and train the chosen head anew with the rows of the choice.

    `passes` are features of the training rows, one set for each pass; none where clips are encoded
    anew. The training's metrics go to the file `log`.
    """
    config, labels = inputs.config, inputs.labels
    encoder = inputs.extractor.frozen.identity.config
    used = set(inputs.used.tolist())
    unread = {video.row: video for part in passes for video in part.bad if video.row in used}
    bad = tuple(unread[row] for row in sorted(unread))
    fit, choose, whole = (
        np.setdiff1d(rows, list(unread)) for rows in (inputs.fit, inputs.choose, inputs.used)
    )
    source = f"manifest {inputs.train.manifest.source}"
    check_every_class_has_a_sample(labels.take(fit), source)
    view = inputs.training_extractor.settings.view
    if not config.probe.is_trained:
        head = fit_lookup(passes[0].parts(whole), labels, view, config, encoder)
        return Fitted(head, config.probe, (), bad)
    grid = config.grid
    classes, longest = len(labels.classes), config.optim.max_steps
    with _open_batches(inputs, passes, fit) as batches:
        steps = steps_of(config.optim, batches)
        heads = train_heads(batches, grid, config, encoder, classes, steps, [MetricLog(log)])
        bad = bad or batches.bad
        if not config.has_choice:
            return Fitted(heads[0], config.form(grid[0].kind), (), bad, steps)
        selection = _choose(inputs, passes, choose, heads, steps)
        chosen = next(index for index, entry in enumerate(selection) if entry.chosen)
        best = selection[chosen]
        while longest is not None and 2 * steps <= longest:
            more = train_heads(batches, grid, config, encoder, classes, 2 * steps)
            found = _choose(inputs, passes, choose, more, 2 * steps)
            index = next(index for index, entry in enumerate(found) if entry.chosen)
            if found[index].rank >= best.rank:
                selection += tuple(replace(entry, chosen=False) for entry in found)
                break
            heads, best, chosen, steps = more, found[index], index, 2 * steps
            selection = tuple(replace(entry, chosen=False) for entry in selection) + found
    form = config.form(grid[chosen].kind)
    if inputs.validation is not None or not config.optim.refit:
        return Fitted(heads[chosen], form, selection, bad, steps)
    with _open_batches(inputs, passes, whole) as batches:
        # With a number of passes instead of updates more rows make more updates.
        steps = max(steps, steps_of(config.optim, batches))
        again = train_heads(batches, [grid[chosen]], config, encoder, classes, steps)
    return Fitted(again[0], form, selection, bad if passes else batches.bad, steps)


@contextmanager
def _open_batches(
    inputs: ProbeInputs, passes: Sequence[FeatureSet], rows: NDArray[np.int64]
) -> Generator[ProbeBatches]:
    """Batches of some training rows, out of the passes or encoded on the way for all heads."""
    config, extractor = inputs.config, inputs.training_extractor
    with extractor.open_clips(inputs.train, rows) as clips:  # starts nothing by itself
        size = min(config.optim.batch_size, len(rows))
        yield ProbeBatches(
            partial(read_passes, passes) if passes else partial(read_clips, extractor, clips, size),
            rows,
            inputs.labels.take(rows).targets,
            config.optim.batch_size,
            config.seed,
            extractor.settings.view,
        )


def train_heads(
    batches: ProbeBatches,
    grid: Sequence[HeadSetting],
    config: ProbeConfig,
    encoder: EncoderConfig,
    num_classes: int,
    steps: int | None = None,
    sinks: Sequence[MetricLog] = (),
) -> ProbeHeads:
    """Train one head for each setting, all on the same batches, by the one training loop.

    Every head of a form starts from the same weights, has its own learning rate, weight decay and
    gradient clipping, and comes out as if it had been trained alone: in the order of the grid,
    where those of one form stand next to each other, in evaluation mode on the CPU.
    """
    fresh: list[TrainedHead] = []
    for setting in grid:
        with torch.random.fork_rng(devices=[]):  # torch's own generator is left as it was
            seed_torch(config.seed, "probe head")
            form = config.form(setting.kind)
            head = build_head(form, encoder.width, encoder.heads, num_classes)
        assert isinstance(head, TrainedHead)
        fresh.append(head)
    heads = ProbeHeads(fresh)
    trainer = Trainer(
        task=Classification(heads, heads.trainable()),
        batches=batches.batches,
        optim=schedules(config.optim, grid, steps or steps_of(config.optim, batches)),
        training=TrainingConfig(
            device=config.device,
            num_threads=config.num_threads,
            health_every_steps=None,
            evaluate_every_steps=None,
        ),
        seed=config.seed,
        sinks=sinks,
        description="probe",
    )
    scale_groups(trainer, list(heads.trainable()), grid)
    ended = trainer.fit()
    if ended.interrupted:
        raise StoppedBySystem if ended.requeue else KeyboardInterrupt
    return heads.eval().to("cpu")


def fit_lookup(
    parts: Iterable[FeatureSet],
    labels: Labels,
    view: ViewConfig,
    config: ProbeConfig,
    encoder: EncoderConfig,
) -> ProbeHead:
    """A head without training: made of the pooled tokens of the training videos in one step.

    `labels` are those of all rows of the manifest. Where segments are joined by ``average`` every
    clip counts by itself.
    """
    pooled, truth, groups = [], [], 1
    for part in parts:
        tokens = join_clips(part.tokens, view.num_segments, view.join).float()
        groups = number_of_groups(config, encoder, tokens.shape[2])
        pooled.append(pool_tokens(tokens, groups).flatten(0, 1))
        numbers = torch.from_numpy(labels.indices[part.rows])
        truth.append(numbers.repeat_interleave(tokens.shape[1]))
    vectors = torch.cat(pooled)
    stored = groups if config.probe.kind == "ridge" else len(vectors)
    head = build_head(config.probe, encoder.width, encoder.heads, len(labels.classes), stored)
    assert isinstance(head, NearestNeighbours | NearestMean | RidgeHead)
    head.fit(vectors, torch.cat(truth))
    return head.eval()


def number_of_groups(config: ProbeConfig, encoder: EncoderConfig, num_tokens: int) -> int:
    """How many means a head without training sees of the `num_tokens` of its input."""
    if config.probe.pool != "steps":
        return 1 if config.probe.pool == "mean" else num_tokens
    clip, view = config.data.clip, config.data.view
    assert clip is not None
    assert view is not None
    joined = view.num_segments if view.join == "tokens" else 1
    return clip.num_frames // encoder.tubelet_size * joined


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


def _choose(
    inputs: ProbeInputs,
    passes: Sequence[FeatureSet],
    rows: NDArray[np.int64],
    heads: ProbeHeads,
    steps: int,
) -> tuple[HeadResult, ...]:
    """The choice among heads of so many updates, on the views that are tested."""
    extractor, training = inputs.extractor, inputs.training_extractor
    labels, counted = inputs.labels, None
    as_tested = not training.is_random and training.settings == extractor.settings
    if inputs.validation is not None:
        parts, valid = extractor.shards(inputs.validation), inputs.validation.labels
        assert valid is not None
        labels = valid
    elif passes and as_tested:
        parts = passes[0].parts(rows)
    else:
        parts, counted = extractor.shards(inputs.train, inputs.choose), inputs.choose
    device = extractor.setup.device
    view, grid = extractor.settings.view, inputs.config.grid
    return choose_head(heads, grid, parts, labels, view, device, counted, steps)


def choose_head(
    heads: ProbeHeads,
    grid: Sequence[HeadSetting],
    parts: Iterable[FeatureSet],
    labels: Labels,
    view: ViewConfig,
    device: torch.device,
    rows: NDArray[np.int64] | None = None,
    steps: int = 0,
) -> tuple[HeadResult, ...]:
    """Measure every head on rows that none was trained on, and choose: one result a head.

    The one with the most right answers is chosen (with several classes a video: the highest mean
    average precision), among equals the one with the lowest loss, then the first. `parts` are
    never features of test rows; `rows` int64 those that the choice is made on, None: all; `steps`
    the heads' updates.
    """
    answers, _ = count_answers(heads.to(device), len(grid), parts, labels, view, device, rows)
    heads.to("cpu")
    if answers[0].count == 0:
        raise UserError("not one video for the choice among heads can be read")
    results = [
        HeadResult(
            kind=setting.kind,
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            steps=steps,
            **own.summary(),
        )
        for own, setting in zip(answers, grid, strict=True)
    ]
    best = min(range(len(grid)), key=lambda index: results[index].rank)
    results[best] = replace(results[best], chosen=True)
    return tuple(results)
