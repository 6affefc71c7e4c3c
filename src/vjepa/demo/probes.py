"""The demo's measurements: the same frozen probes on every encoder."""

from __future__ import annotations

import statistics
from contextlib import closing, redirect_stderr
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vjepa.config import load_config
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.demo.config import DemoConfig
from vjepa.demo.training import run_folder
from vjepa.errors import UserError
from vjepa.evaluation.heads import fit_ridge
from vjepa.evaluation.labels import (
    check_every_class_has_a_sample,
    labels_of,
    stratified_subset,
)
from vjepa.evaluation.metrics import ConfidenceInterval, wilson_interval
from vjepa.evaluation.results import RESULT_FILE, Evaluation, ProbeResult, load_result, over_seeds
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.probe import probe
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.floors import PIXEL_FLOORS, read_small_frames
from vjepa.runtime.logging import configure_logging
from vjepa.runtime.process import usable_cpus
from vjepa.runtime.progress import Progress
from vjepa.runtime.workers import WorkerPool

EncoderName = str
"""`vjepa`, `pixel`, `random`, or a floor without an encoder by its name."""
ProbeKind = Literal["attentive", "ridge mean", "ridge steps", "ridge all"]
ENCODERS: tuple[EncoderName, ...] = ("vjepa", "pixel", "random")
"""Those that every pretraining seed has one of."""
_PROBE_SECONDS = 86400.0
_EFFORT = {"attentive": 40, "ridge all": 5, "ridge steps": 1, "ridge mean": 1}
"""Roughly how long each kind takes beside the others: the time left is foretold by it."""
_NO_LIMIT = 1e6  # gigabytes: our own work, no stranger's file
_PROBED_FILE = "probed.parquet"


@dataclass(frozen=True)
class ProbeTask:
    """One probe of the demo."""

    encoder: EncoderName
    seed: int
    """Of the pretraining, or of the random weights."""
    label: str
    labels_per_class: int
    draw: int
    """Which random choice of the labelled videos; also the seed of the probe."""
    kind: ProbeKind

    def folder(self, out: Path) -> Path:
        """Where its result lies."""
        kind = self.kind.replace(" ", "_")
        name = f"{self.encoder}_seed{self.seed}_{kind}_{self.labels_per_class}_draw{self.draw}"
        return out / "probes" / self.label / name


@dataclass(frozen=True)
class Cell:
    """One row of the demo's table."""

    label: str
    kind: str
    labels_per_class: int
    encoder: EncoderName
    top1: float
    """Mean share of right answers over pretraining seeds and draws of the labels."""
    interval: ConfidenceInterval
    """95 %: over seeds (Student's t) with three seeds or more, otherwise over the test videos
    (Wilson)."""
    by_seed: tuple[float, ...] = ()
    """Mean over draws for each pretraining seed; none where nothing is pretrained."""


def probe_tasks(config: DemoConfig) -> list[ProbeTask]:
    """Every probe of the demo: few labels drawn several times, many labels once.

    Attentive probes take nearly all of the time, so there is one of each encoder and label, with
    few labels.
    """
    encoders = [(encoder, seed) for seed in config.seeds for encoder in ENCODERS]
    few, many = config.few_labels_per_class, config.many_labels_per_class
    with_few: tuple[ProbeKind, ...] = ("attentive", "ridge all")
    with_many: tuple[ProbeKind, ...] = ("ridge mean", "ridge steps", "ridge all")
    tasks = [
        ProbeTask(encoder, seed, label, count, draw, kind)
        for label in config.labels
        for encoder, seed in encoders
        for count, draws, kinds in ((few, config.label_draws, with_few), (many, 1, with_many))
        for draw in range(draws)
        for kind in kinds
        if kind != "attentive" or draw == 0
    ]
    return list(dict.fromkeys(tasks))  # few and many may be the same


def write_probed(config: DemoConfig, out: Path, manifest: Path) -> Path:
    """The labelled videos that probes are trained and tested on, as a manifest in `out`.

    As many of each class as the largest probe takes; so no features are made of all the others.

    Raises:
        UserError: The probes could not be trained or tested on them.
    """
    attentive = {"probe.kind": "attentive"}
    probed_by = load_config(ProbeConfig, [config.probe_recipe], attentive, "probe")
    if probed_by.has_choice and config.few_labels_per_class < 2:
        raise UserError(
            "few_labels_per_class: 1, but heads are chosen on clips that they are not trained on; "
            "take 2 or more, or label more videos of each class"
        )
    videos, per_class = Manifest.open(manifest).select(), config.many_labels_per_class
    splits = videos.categories("split")
    train, test = (
        np.flatnonzero(splits.codes == splits.classes.index(x)) for x in ("train", "test")
    )
    labels = [labels_of(videos.take(train), label) for label in config.labels]
    for known in labels:
        check_every_class_has_a_sample(known, f"manifest {manifest}, split train")
        labels_of(videos.take(test), known.name, classes=known.classes, part="split test")
        if (fewest := int(known.counts().min())) < per_class:
            name = known.classes[int(known.counts().argmin())]
            raise UserError(
                f"many_labels_per_class: {per_class}, but class {name} of label {known.name} has "
                f"{fewest} training clips; lower it, or make more clips (data.num_clips_train)"
            )
    chosen = [stratified_subset(each, per_class=per_class, seed=0) for each in labels]
    rows = train[np.unique(np.concatenate(chosen))]
    probed = out / _PROBED_FILE
    videos.take(np.concatenate([rows, test])).write(probed)
    return probed


def run_probes(config: DemoConfig, out: Path, manifest: Path) -> dict[ProbeTask, ProbeResult]:
    """Train and test every probe that an earlier call has not finished, one on each CPU core.

    Raises:
        UserError: A probe cannot be trained.
    """
    tasks = probe_tasks(config)
    # The first probe of an encoder computes its features; the others find them in the cache.
    first = list({(task.encoder, task.seed): task for task in reversed(tasks)}.values())
    rest = [task for task in tasks if task not in first]
    workers = usable_cpus()
    pool = WorkerPool(_train_probe, workers, _PROBE_SECONDS, memory_gigabytes=_NO_LIMIT)
    total = sum(_EFFORT[task.kind] for task in tasks)
    with Progress("probes", total) as progress, closing(pool):
        for stage in (first, rest):
            todo = [task for task in stage if not (task.folder(out) / RESULT_FILE).is_file()]
            jobs = (
                (_probe_config(task, config, out, manifest), task.folder(out), out) for task in todo
            )
            # No more jobs than workers: each takes long, so none may wait behind another.
            for (_, folder, _), outcome in pool.map(jobs, ahead=workers, in_order=False):
                if problem := outcome.value or outcome.reason:
                    raise UserError(f"{folder}: the probe cannot be trained: {problem}")
                done = [task for task in tasks if (task.folder(out) / RESULT_FILE).is_file()]
                note = f"{len(done)} of {len(tasks)} probes done"
                progress.update(sum(_EFFORT[task.kind] for task in done), note)
    return {task: load_result(task.folder(out)) for task in tasks}


def _train_probe(job: tuple[ProbeConfig, Path, Path]) -> str:
    """A worker's job; gives the user's mistake, if there is one."""
    config, folder, out = job
    # To a file: the messages of several probes at once would be no help on a terminal.
    with (out / "probes.log").open("a", encoding="utf-8", buffering=1) as log, redirect_stderr(log):
        configure_logging(stream=log)
        try:
            probe.train(config, folder)
        except UserError as error:
            return str(error)
    return ""


def _probe_config(task: ProbeTask, demo: DemoConfig, out: Path, manifest: Path) -> ProbeConfig:
    run = run_folder(out, "pixel" if task.encoder == "pixel" else "vjepa", task.seed)
    return load_config(
        ProbeConfig,
        [demo.probe_recipe],
        {
            "seed": task.draw,
            "encoder.path": str(run),
            "encoder.which": "random" if task.encoder == "random" else "target",
            "encoder.seed": task.seed,
            "data.label": task.label,
            "data.train.manifest": str(manifest),
            "data.train.split": "train",
            "data.test.manifest": str(manifest),
            "data.test.split": "test",
            "data.labels_per_class": task.labels_per_class,
            "data.reading.num_workers": 0,  # a worker of a pool can start no processes
            "data.reading.frame_cache_folder": str(out / "cache" / "frames"),
            "features.cache_dir": str(out / "cache" / "features"),
            "probe.kind": task.kind.partition(" ")[0],
            "probe.pool": task.kind.partition(" ")[2] or "mean",
            "floors": False,  # they stand in the demo's own table
        },
        recipes="probe",
    )


def summarise(results: dict[ProbeTask, ProbeResult]) -> list[Cell]:
    """The rows of the table, one for each label, number of labels, head and encoder."""
    groups: dict[tuple[str, str, int, EncoderName], dict[int, list[Evaluation]]] = {}
    for task, result in results.items():
        assert result.test is not None
        row = (task.label, task.kind, task.labels_per_class, task.encoder)
        groups.setdefault(row, {}).setdefault(task.seed, []).append(result.test)
    cells = []
    for row, by in groups.items():
        by_seed = tuple(
            statistics.fmean(one.metrics.score for one in by[seed]) for seed in sorted(by)
        )
        top1 = statistics.fmean(by_seed)
        count = next(iter(by.values()))[0].metrics.count  # of test videos, which all share
        interval = wilson_interval(round(top1 * count), count)
        if len(by_seed) >= 3:
            interval = over_seeds(by_seed).interval
        cells.append(Cell(*row, top1, interval, by_seed))
    return cells


def pixel_baselines(config: DemoConfig, out: Path, manifest: Path) -> list[Cell]:
    """Ridge classifiers on small pixels, for the same draws of labelled clips as the probes.

    One row for each baseline, label and number of labels. Intervals are Wilson's over test clips:
    there is no pretraining whose seed could matter.
    """
    train, test = (Manifest.open(manifest).select(split=split) for split in ("train", "test"))
    # The same number twice has the draws of the few.
    sizes = {config.many_labels_per_class: 1} | {config.few_labels_per_class: config.label_draws}
    known = {label: labels_of(train, label) for label in config.labels}
    clips, test_clips = _read_frames(config, out, train), _read_frames(config, out, test)
    cells = []
    for (label, fit_labels), (per_class, draws) in product(known.items(), sizes.items()):
        truth = labels_of(test, label, classes=fit_labels.classes)
        expected = torch.from_numpy(truth.indices)
        for name, features in PIXEL_FLOORS.items():
            inputs, held = features(clips), features(test_clips)
            shares = []
            for draw in range(draws):
                rows = stratified_subset(fit_labels, per_class=per_class, seed=draw)
                numbers = torch.from_numpy(fit_labels.indices[rows])
                fitted = fit_ridge(inputs[rows], numbers, len(fit_labels.classes))
                right = fitted.scores(held).argmax(dim=1) == expected
                shares.append(float(right.double().mean()))
            top1 = statistics.fmean(shares)
            interval = wilson_interval(round(top1 * len(expected)), len(expected))
            cells.append(Cell(label, "ridge", per_class, name, top1, interval))
    return cells


def _read_frames(config: DemoConfig, out: Path, manifest: Manifest) -> Tensor:
    """Clips of a manifest as the encoders see them, small: float32 [n, T, 3, 16, 16]."""
    clip, view, reading = evaluation_view(config, out)
    return read_small_frames(EvaluationClips(manifest, clip, view, reading))[1]


def evaluation_view(config: DemoConfig, out: Path) -> tuple[ClipConfig, ViewConfig, ReadingConfig]:
    """Which frames, and which part of them, probes show to the encoders, and how they are read."""
    pretrain = load_config(PretrainConfig, [config.recipe], ["online_probe=null"], "pretrain")
    frames = {"data.reading.frame_cache_folder": str(out / "cache" / "frames")}
    data = load_config(ProbeConfig, [config.probe_recipe], frames, "probe").data
    view = data.view or ViewConfig(crop_size=pretrain.model.encoder.image_size)
    return pretrain.data.clip, view, data.reading
