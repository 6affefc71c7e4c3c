"""From video files to a trained, probed and explained model, in one command."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vjepa.config import diff, dump_yaml, load_config
from vjepa.data.frame_cache import open_frame_caches
from vjepa.data.manifest.manifest import Manifest
from vjepa.demo.config import DemoConfig
from vjepa.demo.probes import pixel_baselines, run_probes
from vjepa.demo.report import DemoFindings, write_demo_report
from vjepa.demo.synthetic_files import synthesise
from vjepa.demo.training import (
    OBJECTIVES,
    TrainingTask,
    measure_rates,
    run_folder,
    train_side_by_side,
)
from vjepa.errors import UserError
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.runtime.files import atomic_write, claimed_folder
from vjepa.runtime.process import usable_cpus

_LOGGER = logging.getLogger(__name__)


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Generator[None]:
    """Announce a stage and add the time that it takes."""
    _LOGGER.info("%s", name)
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def run(config: DemoConfig, out: Path) -> Path:
    """Make the data, pretrain, probe, and write the report; called again, it goes on.

    Returns:
        The report's path, in `out`.

    Raises:
        UserError: `out` holds a demo of other settings or something else; a run failed.
    """
    with claimed_folder(out, "demo") as has_begun:
        return _run(config, out, has_begun)


def _run(config: DemoConfig, out: Path, has_begun: bool) -> Path:
    stored = out / "demo.yaml"
    if has_begun:
        changed = diff(load_config(DemoConfig, [stored]), config)
        if changed:
            raise UserError(
                f"{out}: holds a demo with other settings ({'; '.join(changed)}); "
                "give another --out, or remove it"
            )
    atomic_write(stored, dump_yaml(config))
    seconds: dict[str, float] = {}
    with _stage("making labelled videos", seconds):
        manifest, summary = synthesise(config.data, out / "data")
        _LOGGER.info("%s", summary)
    settings = {
        "data.sources": f'[{{manifest: "{manifest.resolve()}", split: train}}]',
        "data.loader.frame_cache_folder": str((out / "cache" / "frames").resolve()),
        "online_probe.manifest": str(manifest.resolve()),
    }
    with _stage("decoding them once", seconds):
        # Every training video, so that the two runs find the frames ready.
        overrides = [f"{name}={value}" for name, value in settings.items()]
        loader = load_config(PretrainConfig, [config.recipe], overrides, "pretrain").data.loader
        open_frame_caches(
            [Manifest.open(manifest).select(split="train")],
            loader.frame_cache_folder,
            loader.frame_cache_gigabytes,
            loader.frame_cache_short_side,
            usable_cpus(),
            loader.sample_timeout_seconds,
        )
    with _stage("measuring the speed of this machine", seconds):
        rates = measure_rates(out, settings, config.recipe)
    by_objective = {
        name: settings | {"optim.steps": str(max(1, round(60 * config.minutes * rate)))}
        for name, rate in rates.items()
    }
    # Each has the schedule that suits it best.
    by_objective["pixel"] |= {
        "optim.peak_lr": str(config.pixel_peak_lr),
        "optim.schedule_stretch": str(config.pixel_schedule_stretch),
    }
    for seed in config.seeds:
        tasks = tuple(TrainingTask(name, seed, run_folder(out, name, seed)) for name in OBJECTIVES)
        with _stage("pretraining (features and pixels side by side)", seconds):
            train_side_by_side(tasks, by_objective, config.recipe, config.minutes)
    with _stage("probing frozen features", seconds):
        # First: it decodes the test videos, for which the probes could start no processes.
        baselines = pixel_baselines(config, out, manifest)
        results = run_probes(config, out, manifest)
    report = out / "report.html"
    with _stage("drawing the report", seconds):
        findings = DemoFindings(config, out, manifest, results, baselines, seconds)
        write_demo_report(findings, report)
    return report
