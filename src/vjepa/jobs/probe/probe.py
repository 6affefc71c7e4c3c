"""Frozen evaluation: train a probe and measure it, or measure a saved one.

The number of a training run is measured on the saved probe by the same function that
:func:`evaluate` calls, so that evaluating the probe again gives the same number, digit for digit.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.config import dump_yaml, to_dict
from vjepa.data.clips.dataset import OnBadVideo, ReadingConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import BadVideo
from vjepa.evaluation.heads import HeadConfig, ProbeHead
from vjepa.evaluation.labels import check_every_class_has_a_sample, labels_of
from vjepa.evaluation.results import Evaluation, HeadResult, ProbeResult
from vjepa.evaluation.saved_probe import CONFIG_FILE, ProbeFile, load_probe_file
from vjepa.jobs.probe.config import ProbeConfig, VideosConfig
from vjepa.jobs.probe.encoder import compile_encoder, reopen_encoder
from vjepa.jobs.probe.features import (
    FeatureMaker,
    LabelledClipRows,
    LabelledFeatures,
    TrainingPart,
    choose_rows,
    open_videos,
)
from vjepa.jobs.probe.inputs import LabelledVideos, ProbeInputs, open_inputs
from vjepa.jobs.probe.measure import choose_head, draw, measure
from vjepa.jobs.probe.train import HeadRecipe, fit_lookup, train_heads
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.distributed import open_team
from vjepa.runtime.metric_log import MetricLog
from vjepa.runtime.process import set_num_threads
from vjepa.training.trainer import TrainingConfig
from vjepa.version import __version__

SPLIT_FILE = "split.json"
RESOLVED_CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CONFUSION_FILE = "confusion.png"
CALIBRATION_FILE = "calibration.png"
_TEAM_MINUTES = 60.0  # one process may have much longer videos than another


def train(
    config: ProbeConfig, out: Path, *, cached_rows: NDArray[np.int64] | None = None
) -> ProbeResult:
    """Train probe heads on frozen features, choose one, measure it once on the test videos.

    Args:
        config: The job.
        out: A new folder: receives the probe, ``result.json``, ``result.md``, ``split.json``,
            ``config.yaml``, ``metrics.jsonl``, ``confusion.png`` and ``calibration.png``.
        cached_rows: int64, ascending: the training rows that a feature cache holds; None: all.

    Returns:
        The result; ``result.test`` is None when no test videos are named. For several draws of the
        labels see :func:`vjepa.jobs.probe.splits.train_splits`.

    Raises:
        UserError: Bad input: missing labels, a class without a training sample, an unknown label or
            split, a video that cannot be read, no encoder, or `out` holds a probe already.
    """
    if (out / CONFIG_FILE).exists():
        raise UserError(f"{out}: holds a probe already; give another --out or remove it")
    clock = _Clock()
    set_num_threads(config.num_threads)
    inputs = open_inputs(config, cached_rows)
    config = inputs.config
    out.mkdir(parents=True, exist_ok=True)
    (out / RESOLVED_CONFIG_FILE).write_text(dump_yaml(config), encoding="utf-8")
    inputs.rows.record(config).save(out / SPLIT_FILE)
    clock.done("set-up")
    parts = _training_parts(inputs)
    clock.done("features")
    fitted = _fit(inputs, parts, out)
    clock.done("training")
    _probe_file(inputs, fitted).save(out)
    measured = None
    if inputs.test is not None:
        # The probe as it lies on the disk, as `evaluate` does it.
        measured = measure(load_probe_file(out), inputs.maker, inputs.test)
        clock.done("test")
    result = _result(inputs, fitted, measured, clock.seconds, out)
    result.save(out)
    if result.test is not None:
        draw(result.test, out / CONFUSION_FILE, out / CALIBRATION_FILE)
    return result


def _result(
    inputs: ProbeInputs,
    fitted: _Fitted,
    measured: Evaluation | None,
    seconds: dict[str, float],
    out: Path,
) -> ProbeResult:
    return ProbeResult(
        label=inputs.rows.labels.name,
        encoder=inputs.frozen.source,
        which=inputs.config.encoder.which,
        weights_hash=inputs.frozen.identity.weights_hash,
        num_train=fitted.num_train(inputs),
        num_classes=len(inputs.rows.labels.classes),
        test=measured,
        selection=fitted.selection,
        train_manifest_hash=inputs.rows.videos.manifest.content_hash,
        train_bad_videos=fitted.bad,
        config=to_dict(inputs.config),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        folder=str(out),
    )


def evaluate(
    probe_folder: Path,
    videos: VideosConfig,
    *,
    encoder: Path | None = None,
    on_bad_video: OnBadVideo = "error",
    reading: ReadingConfig | None = None,
    cache_dir: Path | None = None,
    device: DeviceName = "auto",
    num_threads: int | None = None,
) -> Evaluation:
    """Measure a saved probe; on the test videos of its training this gives the same number again.

    Where a process group is open, the processes share the videos and all get the whole figures.

    Args:
        probe_folder: What :func:`train` wrote.
        videos: Manifest and split.
        encoder: Where the probe's encoder lies now, if not where it lay then.
        on_bad_video: ``error`` stops at a video that cannot be read, ``list`` names it in the
            result.
        reading: Worker processes; None takes the defaults.
        cache_dir: Feature cache.
        device: Where to compute.
        num_threads: CPU threads of torch.

    Returns:
        The metrics.

    Raises:
        UserError: As :func:`train`, or the encoder is another than the probe's.
    """
    set_num_threads(num_threads)
    probe = load_probe_file(probe_folder)
    opened = open_videos(videos, "videos")
    labels = labels_of(
        opened.manifest,
        probe.label,
        classes=probe.classes,
        part=opened.part,
        multi_label=probe.multi_label,
    )
    maker = feature_maker(
        probe,
        encoder=encoder,
        device=device,
        on_bad_video=on_bad_video,
        reading=reading,
        cache_dir=cache_dir,
    )
    return measure(probe, maker, LabelledVideos(opened, labels))


def evaluate_together(
    probe_folder: Path,
    videos: VideosConfig,
    *,
    encoder: Path | None = None,
    on_bad_video: OnBadVideo = "error",
    cache_dir: Path | None = None,
    device: DeviceName = "auto",
) -> Evaluation:
    """:func:`evaluate` by all processes that a launcher such as torchrun has started.

    Args:
        probe_folder, videos, encoder, on_bad_video, cache_dir, device: As there.

    Returns:
        The figures of all videos, on every process.

    Raises:
        UserError: As :func:`evaluate`.
        LostProcessError: Another process ended or hung.
    """
    chosen = set_up_device(device).device
    with open_team(chosen.type, _TEAM_MINUTES):
        return evaluate(
            probe_folder,
            videos,
            encoder=encoder,
            on_bad_video=on_bad_video,
            cache_dir=cache_dir,
            device=device,
        )


def feature_maker(
    probe: ProbeFile,
    *,
    encoder: Path | None,
    device: DeviceName,
    on_bad_video: OnBadVideo,
    reading: ReadingConfig | None,
    cache_dir: Path | None,
) -> FeatureMaker:
    """What makes the features that a saved probe reads; arguments as in :func:`evaluate`.

    Raises:
        UserError: The encoder is gone, or is another than the probe's.
    """
    frozen = reopen_encoder(probe.encoder, encoder)
    probe.check_encoder(frozen.encoder, frozen.source)
    setup = set_up_device(device, probe.features.precision)
    if probe.features.compile:
        compile_encoder(frozen.encoder.to(setup.device))
    return FeatureMaker(
        frozen=frozen,
        clip=probe.clip,
        view=probe.view,
        settings=probe.features,
        setup=setup,
        reading=reading or ReadingConfig(),
        on_bad_video=on_bad_video,
        cache_dir=cache_dir,
    )


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    # Asked of the installed packages, so that none need be imported.
    others = {name: metadata.version(name) for name in ("av", "numpy", "torchvision")}
    own = {"vjepa": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return own | others


@dataclass(frozen=True)
class _Parts:
    """The training rows by what they are for.

    Attributes:
        fit: Rows that all heads are trained on.
        whole: These and the rows held out for the choice.
        choose: Rows of the choice where they were encoded with the others; None where there is no
            choice, or its views are other ones than those that are trained on.
    """

    fit: TrainingPart
    whole: TrainingPart
    choose: LabelledFeatures | None


@dataclass(frozen=True)
class _Fitted:
    """The chosen head and its form, how every head did in the choice, and unreadable videos."""

    head: ProbeHead
    form: HeadConfig
    selection: tuple[HeadResult, ...]
    bad: tuple[BadVideo, ...]

    def num_train(self, inputs: ProbeInputs) -> int:
        """Labelled videos that were used in all."""
        return len(inputs.rows.used) - len(self.bad)


def _training_parts(inputs: ProbeInputs) -> _Parts:
    rows, maker, config = inputs.rows, inputs.training_maker, inputs.config
    source = f"manifest {rows.videos.manifest.source}"
    if config.features.online:
        check_every_class_has_a_sample(rows.labels.take(rows.fit), source)
        fit, whole = (
            LabelledClipRows(maker, rows.videos, part, rows.labels.take(part))
            for part in (rows.fit, rows.used)
        )
        return _Parts(fit, whole, None)
    passes = [
        maker.features(rows.videos, rows.used, number) for number in range(config.features.passes)
    ]
    made = choose_rows(passes, rows.labels, rows.fit)
    check_every_class_has_a_sample(made.labels, source)
    as_tested = not maker.is_random and maker.view == inputs.maker.view
    choose = choose_rows(passes, rows.labels, rows.choose) if as_tested else None
    return _Parts(made, choose_rows(passes, rows.labels, rows.used), choose)


def _fit(inputs: ProbeInputs, parts: _Parts, out: Path) -> _Fitted:
    """Train the grid, choose, and train the chosen head anew with the rows of the choice."""
    config, device = inputs.config, inputs.maker.setup.device
    recipe = HeadRecipe(
        config=config,
        encoder=inputs.frozen.identity.config,
        view=inputs.training_maker.view,
        training=TrainingConfig(
            device="cuda" if device.type == "cuda" else "cpu",
            num_threads=config.num_threads,
            health_every_steps=None,
            evaluate_every_steps=None,
        ),
    )
    known_bad = parts.whole.bad if isinstance(parts.whole, LabelledFeatures) else ()
    if not config.probe.is_trained:
        assert isinstance(parts.whole, LabelledFeatures)
        return _Fitted(fit_lookup(parts.whole, recipe), config.probe, (), known_bad)
    grid = config.grid
    trained = train_heads(parts.fit, grid, recipe, sinks=[MetricLog(out / METRICS_FILE)])
    if len(grid) == 1:
        form = config.form(grid[0].kind)
        return _Fitted(trained.heads[0], form, (), known_bad or trained.bad)
    selection = _choose(inputs, parts, trained.heads)
    best = next(index for index, entry in enumerate(selection) if entry.chosen)
    form = config.form(grid[best].kind)
    if inputs.validation is not None or not config.optim.refit:
        return _Fitted(trained.heads[best], form, selection, known_bad or trained.bad)
    again = train_heads(parts.whole, [grid[best]], recipe)
    return _Fitted(again.heads[0], form, selection, known_bad or again.bad)


def _choose(inputs: ProbeInputs, parts: _Parts, heads: torch.nn.Module) -> tuple[HeadResult, ...]:
    """The choice among heads, on the views that are tested."""
    maker, rows, chosen_rows = inputs.maker, inputs.rows, None
    labels = rows.labels
    if inputs.validation is not None:
        labels, parts_of = inputs.validation.labels, maker.shards(inputs.validation.videos)
    elif parts.choose is not None:
        parts_of = parts.choose.parts()
    else:
        parts_of, chosen_rows = maker.shards(rows.videos, rows.choose), rows.choose
    return choose_head(
        heads,
        inputs.config.grid,
        parts_of,
        labels,
        maker.view,
        maker.setup.device,
        chosen_rows,
    )


def _probe_file(inputs: ProbeInputs, fitted: _Fitted) -> ProbeFile:
    rows = inputs.rows
    return ProbeFile(
        label=rows.labels.name,
        classes=rows.labels.classes,
        encoder=inputs.frozen.identity,
        clip=inputs.maker.clip,
        view=inputs.maker.view,
        features=inputs.maker.settings,
        form=fitted.form,
        head=fitted.head,
        multi_label=rows.labels.multi_label,
        training={
            "num_train": fitted.num_train(inputs),
            "train_manifest_hash": rows.videos.manifest.content_hash,
            "selection": [asdict(entry) for entry in fitted.selection],
            "optim": to_dict(inputs.config.optim),
            "seed": inputs.config.seed,
            "versions": versions(),
        },
    )


class _Clock:
    """Wall-clock seconds of the stages of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def done(self, stage: str) -> None:
        """The stage that began with the last call ends now."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
