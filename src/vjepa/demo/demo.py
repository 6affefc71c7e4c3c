"""From video files to a trained, probed and explained model, in one command."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from vjepa.config import RESOLVED_CONFIG_FILE, from_dict, load_config
from vjepa.data.frame_cache import open_frame_caches
from vjepa.data.manifest.manifest import Manifest
from vjepa.demo.config import DemoConfig
from vjepa.demo.probes import pixel_baselines, run_probes, write_probed
from vjepa.demo.report import DemoFindings, write_demo_report
from vjepa.demo.synthetic_files import synthesise
from vjepa.demo.training import (
    DECODER_FOLDER,
    OBJECTIVES,
    measure_rates,
    run_folder,
    train_side_by_side,
)
from vjepa.errors import StoppedBySystem, UserError
from vjepa.evaluation.labels import labels_of
from vjepa.jobs import decode
from vjepa.jobs.decode import DecodeConfig
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.pretrain_room import same_config
from vjepa.paths import as_path
from vjepa.runtime.files import begin_folder, claimed_folder
from vjepa.runtime.process import usable_cpus

_LOGGER = logging.getLogger(__name__)
_OF_PIXELS = {"optim.peak_lr": "1e-2", "optim.schedule_stretch": "1.0"}
"""Each objective has the schedule that suits it best. For pixels the best rate of those tried, at
which V-JEPA comes near to a collapse; and it falls all the way, where V-JEPA's moving average
stands in for that."""


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Generator[None]:
    _LOGGER.info("%s", name)
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def run(config: DemoConfig, out: str | Path) -> Path:
    """Make the data, pretrain, probe, and write the report, whose path is returned.

    Called again, it goes on.

    Raises:
        UserError: `out` holds a demo of other settings or something else; a run failed.
    """
    config, out = from_dict(DemoConfig, config), as_path(out)
    with claimed_folder(out, "demo") as has_begun:
        if has_begun:
            same_config(config, out)
        begin_folder(out, "demo", config)
        seconds: dict[str, float] = {}
        settings = {"data.loader.frame_cache_folder": str((out / "cache" / "frames").resolve())}
        if config.data.manifest is None:
            with _stage("making labelled videos", seconds):
                manifest, summary = synthesise(config.data.synthetic, out / "data")
                _LOGGER.info("%s", summary)
        else:
            manifest = config.data.manifest
            config = settle_labels(config, Manifest.open(manifest))
            # The recipe's numbers are for the synthetic set.
            settings["data.normalisation"] = "measured"
        probed = write_probed(config, out, manifest)  # what has too few labels is said now
        settings["data.sources"] = f'[{{manifest: "{manifest.resolve()}", split: train}}]'
        if "validation" in Manifest.open(manifest).splits:
            settings["online_probe.manifest"] = str(manifest.resolve())
            settings["online_probe.label"] = config.labels[0]
        else:
            settings["online_probe"] = "null"
        with _stage("decoding them once", seconds):
            # Every training video, so that the two runs find the frames ready.
            overrides = [f"{name}={value}" for name, value in settings.items()]
            loader = load_config(PretrainConfig, [config.recipe], overrides, "pretrain").data.loader
            videos = [Manifest.open(manifest).select(split="train")]
            reading = replace(loader, num_workers=usable_cpus())
            open_frame_caches(videos, reading, loader.frame_cache_short_side)
        with _stage("measuring the speed of this machine", seconds):
            rates = measure_rates(out, settings, config.recipe)
        by_objective = {
            name: settings | {"optim.steps": str(max(1, round(60 * config.minutes * rate)))}
            for name, rate in rates.items()
        }
        by_objective["pixel"] |= _OF_PIXELS
        for seed in config.seeds:
            folders = {name: run_folder(out, name, seed) for name in OBJECTIVES}
            with _stage("pretraining (features and pixels side by side)", seconds):
                train_side_by_side(folders, seed, by_objective, config.recipe, config.minutes)
        with _stage("probing frozen features", seconds):
            # First: it decodes the test videos, for which the probes could start no processes.
            baselines = pixel_baselines(config, out, probed)
            results = run_probes(config, out, probed)
        if config.decoder_steps:
            with _stage("learning to draw what is predicted", seconds):
                train_decoder(config, out, manifest)
        report = out / "report.html"
        with _stage("drawing the report", seconds):
            findings = DemoFindings(config, out, manifest, results, baselines, seconds)
            write_demo_report(findings, report)
        return report


def settle_labels(config: DemoConfig, manifest: Manifest) -> DemoConfig:
    """The config for labelled videos of others: which labels, and as many of each as there are.

    Raises:
        UserError: There is no label, or no video of the split `train` or `test`.
    """
    source, names = manifest.source, config.data.labels or tuple(manifest.label_names[:2])
    if not names:
        raise UserError(
            f"data.manifest: {source} has no label; give `vjepa data index` a list with labels"
        )
    train, _ = (manifest.select(split=split) for split in ("train", "test"))
    few, many = config.few_labels_per_class, config.many_labels_per_class
    for name in names:
        known = labels_of(train, name)
        counts = np.bincount(known.indices, minlength=len(known.classes))
        if counts.min() < many:
            many = int(counts.min())
            _LOGGER.info(
                "label %s: class %s has %d training videos; the probes take so many of each",
                *(name, known.classes[int(counts.argmin())], many),
            )
    return replace(
        config,
        few_labels_per_class=min(few, many),
        many_labels_per_class=many,
        data=replace(config.data, labels=names),
    )


def train_decoder(config: DemoConfig, out: Path, manifest: Path) -> None:
    """Train the decoder of the first seed's V-JEPA, or go on with it."""
    run = run_folder(out, "vjepa", config.seeds[0])
    loader = load_config(PretrainConfig, [run / RESOLVED_CONFIG_FILE]).data.loader
    settings = {
        "model": str(run),
        "data.sources": [{"manifest": str(manifest.resolve()), "split": "train"}],
        "data.loader.frame_cache_folder": str(loader.frame_cache_folder),
        "data.loader.frame_cache_short_side": loader.frame_cache_short_side,
        "optim.steps": config.decoder_steps,
        "training.num_threads": usable_cpus(),
    }
    decoding = load_config(DecodeConfig, [config.decoder_recipe], settings, "decode")
    ended = decode.train(decoding, out / DECODER_FOLDER)
    if ended.interrupted:
        raise StoppedBySystem if ended.requeue else KeyboardInterrupt
