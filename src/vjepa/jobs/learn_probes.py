"""The time of ``vjepa learn``, and its probes, as large as what is left of it allows."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vjepa.config import load_config
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.heads import build_head
from vjepa.evaluation.labels import labels_of, stratified_subset
from vjepa.evaluation.preprocess import load_encoder
from vjepa.evaluation.results import RESULT_FILE, ProbeResult, load_result
from vjepa.jobs.pretrain import PretrainConfig, build_task
from vjepa.jobs.probe import probe
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.train import schedules
from vjepa.tasks import Classification
from vjepa.training import TrainingConfig, build_learner, train_step
from vjepa.training.step import Learner

_LOGGER = logging.getLogger(__name__)

_TIMED_UPDATES, _TIMED_CLIPS = 2, 3
_FEWEST_UPDATES, _FEWEST_OF_CLASS = 50, 3
"""A probe of fewer updates, or fewer videos of a class, is not worth its time."""


def _timed_update(learner: Learner, size: int, **batch: object) -> float:
    """Seconds of an update on a batch of `size` clips with these fields, the fastest of some."""
    task, times, parts = learner.task, [], learner.optim.accumulation_steps
    for update in range(1, 2 + _TIMED_UPDATES):
        # As a run numbers them: the masks of a clip may follow from those of its batch.
        given = SimpleNamespace(**batch, ordinals=update * size + np.arange(size), step=update)
        begun = time.monotonic()
        values = train_step(learner, (task.inputs(given, n, parts) for n in range(parts)), update)
        float(values.finite)  # wait for the device
        times.append(time.monotonic() - begun)
    return min(times[1:])


def seconds_an_update(config: PretrainConfig) -> float:
    """Measured: an update of a pretraining, without reading videos."""
    encoder, size = config.model.encoder, config.data.batch_size
    shape = (size, 3, encoder.num_frames, encoder.image_size, encoder.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    learner = build_learner(build_task(config), config.optim, config.ema, config.training)
    return _timed_update(learner, size, clips=clips)


@torch.no_grad()
def seconds_a_clip(run: Path, videos: Path, device: torch.device) -> float:
    """Measured: reading the middle of a video, and encoding it."""
    encoder, manifest = load_encoder(run).to(device), Manifest.open(videos)
    times = []
    for row in np.linspace(0, len(manifest) - 1, _TIMED_CLIPS).astype(int).tolist():
        begun = time.monotonic()
        try:
            encoder(encoder.preprocess(manifest.path(row)).to(device)).sum().item()
        except UserError:  # lost meanwhile: the probe, or the report, names it
            continue
        times.append(time.monotonic() - begun)
    return float(np.median(times)) if times else 0.0


def stop_in_time(ends: float, kept: float, most: float) -> Callable[[], bool]:
    """Makes what is asked before each update: must learning end, so that all is ready at `ends`?

    What follows took `kept` seconds when the machine was at its fastest. It takes as many times
    longer as updates do by now, but gets no more than `most`.
    """
    asked, fastest = deque[float](maxlen=6), math.inf

    def is_time() -> bool:
        nonlocal fastest
        asked.append(time.monotonic())
        if len(asked) < 2:  # one update at least
            return False
        pace = float(np.median(np.diff(asked)))
        fastest = min(fastest, pace)
        return asked[-1] + min(kept * pace / max(fastest, 1e-9), most) >= ends

    return is_time


def plan_probe(
    seconds: float, videos: int, a_video: float, updates: int, an_update: float, fewest: int
) -> tuple[float, int] | None:
    """Share of the videos, and updates, of a probe that takes so many seconds; None: it cannot.

    Updates are left out first, then videos, of which `fewest` are needed.
    """
    fit = (seconds - videos * a_video) / max(an_update, 1e-9)
    updates = int(min(updates, max(_FEWEST_UPDATES, fit)))
    share = min(1.0, (seconds - updates * an_update) / max(videos * a_video, 1e-9))
    return None if share * videos < fewest else (share, updates)


def train_probes(
    run: Path,
    step: int,
    videos: Path,
    label: str,
    settings: Mapping[str, Any],
    seconds: float,
    a_clip: float,
    cut: list[str],
) -> dict[str, ProbeResult]:
    """A probe on a run's `target` encoder and one on `random` weights, in so many seconds each.

    They lie beside the run, by its `step`, once for all calls. `videos` is a manifest with the
    splits train and test, a clip of which takes `a_clip` seconds. What is left out for want of time
    is added to `cut`, in words.
    """
    manifest, folder, probes = Manifest.open(videos), run.parent / "probe", {}
    parts = [manifest.select(split=name) for name in ("train", "test")]
    labels = [labels_of(part, label) for part in parts]
    classes, sizes = len(labels[0].classes), load_encoder(run).config
    made = load_config(ProbeConfig, overrides=settings)
    optim, count = made.optim, sum(map(len, parts))
    size = min(optim.batch_size, len(parts[0]))
    wanted = max(optim.min_steps, math.ceil((optim.epochs or 1) * len(parts[0]) / size))
    learner = build_learner(
        Classification(build_head(made.probe, sizes.width, sizes.heads, classes)),
        schedules(optim, made.grid, wanted),
        None,
        TrainingConfig(device=made.device),
    )
    an_update = _timed_update(
        learner,
        size,
        tokens=torch.randn(size, sizes.num_tokens, sizes.width),
        labels=torch.zeros(size, dtype=torch.int64),
    )
    fewest = min(count, _FEWEST_OF_CLASS * classes)
    plan = plan_probe(seconds, count, a_clip, wanted, an_update, fewest)
    if plan is None:
        least = fewest * a_clip + min(wanted, _FEWEST_UPDATES) * an_update
        cut.append(f"no probe was trained: it takes {least:.0f} s, {max(0, seconds):.0f} were left")
        return {}
    share, updates = plan
    name = "" if plan == (1.0, wanted) else f"_{updates}_updates_of_{share:.0%}"
    if name:
        less = f" on {share:.0%} of the videos" if share < 1 else ""
        cut.append(f"each probe was trained with {updates} of {wanted} updates{less}")
    if share < 1:
        rows = [
            part.full_row(row)
            for part, known in zip(parts, labels, strict=True)
            for row in stratified_subset(known, fraction=share, seed=made.seed).tolist()
        ]
        videos = folder / f"videos{name}.parquet"
        folder.mkdir(exist_ok=True)
        Manifest.from_rows(rows, folder).write(videos)
    for which in ("target", "random"):
        out = folder / f"{which}_{step:08d}{name}"
        if (out / RESULT_FILE).is_file():  # of an earlier call
            probes[which] = load_result(out)
            continue
        shutil.rmtree(out, ignore_errors=True)  # of a call that was stopped there
        said = "the trained encoder" if which == "target" else "random weights"
        _LOGGER.info("probe on %s", said)
        overrides = {
            **settings,
            "encoder": {"path": str(run), "which": which, "seed": made.seed},
            "data": {
                "label": label,
                "train": {"manifest": str(videos), "split": "train"},
                "test": {"manifest": str(videos), "split": "test"},
                "on_bad_video": "list",
            },
            "optim": {"epochs": None, "steps": updates} if name else {},
        }
        probes[which] = probe.train(load_config(ProbeConfig, overrides=overrides), out)
    return probes
