"""Frozen evaluation: train a probe and measure it, or measure a saved one.

The number of a training run is measured on the saved probe by the same function that
:func:`evaluate` calls, so that evaluating the probe again gives the same number, digit for digit.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from vjepa.config import dump_yaml, to_dict
from vjepa.errors import UserError
from vjepa.evaluation.clip_reading import ReadingConfig
from vjepa.evaluation.clips import OnBadVideo
from vjepa.evaluation.features import BadVideo
from vjepa.evaluation.labels import check_every_class_has_a_sample, labels_of
from vjepa.evaluation.metrics import ClassificationSums
from vjepa.evaluation.probe_file import CONFIG_FILE, ProbeFile, load_probe_file
from vjepa.evaluation.probe_heads import ProbeHead
from vjepa.evaluation.results import EvaluatedSplit, HeadResult, ProbeResult
from vjepa.jobs.probe_config import HeadSetting, ProbeConfig, VideosConfig
from vjepa.jobs.probe_encoder import reopen_encoder
from vjepa.jobs.probe_features import FeatureMaker, LabelledFeatures, choose_rows, open_videos
from vjepa.jobs.probe_inputs import LabelledVideos, ProbeInputs, open_inputs
from vjepa.jobs.probe_training import (
    CLASSIFY_BATCH,
    HeadRecipe,
    choose_head,
    head_probabilities,
    train_heads,
)
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.metric_sinks import JsonlSink
from vjepa.runtime.threads import set_num_threads
from vjepa.training.loop import TrainingConfig
from vjepa.version import __version__

SPLIT_FILE = "split.json"
RESOLVED_CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"


def train(config: ProbeConfig, out: Path) -> ProbeResult:
    """Train probe heads on frozen features, choose one, measure it once on the test videos.

    Args:
        config: The job.
        out: A new folder: receives the probe, ``result.json``, ``result.md``, ``split.json``,
            ``config.yaml`` and ``metrics.jsonl``.

    Returns:
        The result; ``result.test`` is None when no test videos are named.

    Raises:
        UserError: Bad input: missing labels, a class without a training sample, an unknown label or
            split, a video that cannot be read, no encoder, or `out` holds a probe already.
    """
    if (out / CONFIG_FILE).exists():
        raise UserError(f"{out}: holds a probe already; give another --out or remove it")
    clock = _Clock()
    set_num_threads(config.num_threads)
    inputs = open_inputs(config)
    config = inputs.config
    out.mkdir(parents=True, exist_ok=True)
    (out / RESOLVED_CONFIG_FILE).write_text(dump_yaml(config), encoding="utf-8")
    inputs.rows.record(config).save(out / SPLIT_FILE)
    clock.done("set-up")
    parts = _make_features(inputs)
    clock.done("features")
    fitted = _fit(inputs, parts, out)
    clock.done("training")
    _probe_file(inputs, fitted, len(parts.whole.places)).save(out)
    measured = None
    if inputs.test is not None:
        # The probe as it lies on the disk, as `evaluate` does it.
        measured = _measure(load_probe_file(out), inputs.maker, inputs.test)
        clock.done("test")
    result = ProbeResult(
        label=inputs.rows.labels.name,
        encoder=inputs.frozen.source,
        which=config.encoder.which,
        weights_hash=inputs.frozen.identity.weights_hash,
        num_train=len(parts.whole.places),
        num_classes=len(inputs.rows.labels.classes),
        test=measured,
        selection=fitted.selection,
        train_manifest_hash=inputs.rows.videos.manifest.content_hash,
        train_bad_videos=parts.bad,
        config=to_dict(config),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=clock.seconds,
        folder=str(out),
    )
    result.save(out)
    return result


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
) -> EvaluatedSplit:
    """Measure a saved probe; on the test videos of its training this gives the same number again.

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
    labels = labels_of(opened.manifest, probe.label, classes=probe.classes, part=opened.part)
    maker = feature_maker(
        probe,
        encoder=encoder,
        device=device,
        on_bad_video=on_bad_video,
        reading=reading,
        cache_dir=cache_dir,
    )
    return _measure(probe, maker, LabelledVideos(opened, labels))


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
    return FeatureMaker(
        frozen=frozen,
        clip=probe.clip,
        view=probe.view,
        settings=probe.features,
        setup=set_up_device(device, probe.features.precision),
        reading=reading or ReadingConfig(),
        on_bad_video=on_bad_video,
        cache_dir=cache_dir,
    )


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    return {"vjepa": __version__, "torch": torch.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class _Parts:
    """Features of the training rows by what they are for; `choose` is None without a choice."""

    fit: LabelledFeatures
    choose: LabelledFeatures | None
    whole: LabelledFeatures

    @property
    def bad(self) -> tuple[BadVideo, ...]:
        return self.whole.bad


@dataclass(frozen=True)
class _Fitted:
    """The chosen head, and how every head did in the choice."""

    head: ProbeHead
    selection: tuple[HeadResult, ...]


def _make_features(inputs: ProbeInputs) -> _Parts:
    rows, maker = inputs.rows, inputs.maker
    features = maker.features(rows.videos, rows.used)
    fit = choose_rows(features, rows.labels, rows.fit)
    check_every_class_has_a_sample(fit.labels, f"manifest {rows.videos.manifest.source}")
    choose = choose_rows(features, rows.labels, rows.choose) if len(rows.choose) else None
    if inputs.validation is not None and len(inputs.config.optim.grid) > 1:
        choose = _all_rows(maker, inputs.validation)
    if choose is not None and len(choose.places) == 0:
        raise UserError("not one video for the choice among heads can be read")
    return _Parts(fit, choose, choose_rows(features, rows.labels, rows.used))


def _all_rows(maker: FeatureMaker, labelled: LabelledVideos) -> LabelledFeatures:
    every = np.arange(len(labelled.labels), dtype=np.int64)
    return choose_rows(maker.features(labelled.videos), labelled.labels, every)


def _fit(inputs: ProbeInputs, parts: _Parts, out: Path) -> _Fitted:
    """Train the grid, choose, and train the chosen head anew with the rows of the choice."""
    config, device = inputs.config, inputs.maker.setup.device
    recipe = HeadRecipe(
        form=config.probe,
        encoder=inputs.frozen.identity.config,
        optim=config.optim,
        training=TrainingConfig(
            device="cuda" if device.type == "cuda" else "cpu",
            num_threads=config.num_threads,
            health_every_steps=None,
            evaluate_every_steps=None,
        ),
        seed=config.seed,
    )
    grid = config.optim.grid
    sinks = [JsonlSink(out / METRICS_FILE)]
    heads = train_heads(parts.fit, grid, recipe, sinks=sinks)
    if parts.choose is None:
        return _Fitted(heads[0], ())
    selection = choose_head(heads, grid, parts.choose, device)
    best = next(index for index, entry in enumerate(selection) if entry.chosen)
    if inputs.validation is not None or not config.optim.refit:
        return _Fitted(heads[best], selection)
    setting = HeadSetting(selection[best].learning_rate, selection[best].weight_decay)
    return _Fitted(train_heads(parts.whole, [setting], recipe)[0], selection)


def _probe_file(inputs: ProbeInputs, fitted: _Fitted, num_train: int) -> ProbeFile:
    rows = inputs.rows
    return ProbeFile(
        label=rows.labels.name,
        classes=rows.labels.classes,
        encoder=inputs.frozen.identity,
        clip=inputs.maker.clip,
        view=inputs.maker.view,
        features=inputs.maker.settings,
        form=inputs.config.probe,
        head=fitted.head,
        training={
            "num_train": num_train,
            "train_manifest_hash": rows.videos.manifest.content_hash,
            "selection": [asdict(entry) for entry in fitted.selection],
            "optim": to_dict(inputs.config.optim),
            "seed": inputs.config.seed,
            "versions": versions(),
        },
    )


def _measure(probe: ProbeFile, maker: FeatureMaker, labelled: LabelledVideos) -> EvaluatedSplit:
    """Metrics of a probe on labelled videos; the bootstrap has the seed of the training."""
    data = _all_rows(maker, labelled)
    device = maker.setup.device
    head = probe.head.to(device)
    sums = ClassificationSums(probe.classes)
    for start in range(0, len(data.places), CLASSIFY_BATCH):
        truth = torch.from_numpy(data.labels.indices[start : start + CLASSIFY_BATCH])
        sums.add(head_probabilities(head, data, start, device), truth)
    videos = labelled.videos
    return EvaluatedSplit(
        manifest=videos.manifest.source,
        manifest_hash=videos.manifest.content_hash,
        split=videos.split,
        metrics=sums.metrics(seed=int(probe.training["seed"])),
        bad_videos=data.bad,
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
