"""Frozen evaluation: probes trained and measured, on one draw of the labels or several.

The number of a training run is measured on the saved probe by the same function that
:func:`evaluate` calls, so that evaluating the probe again gives the same number, digit for digit.
"""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.config import from_dict, to_dict
from vjepa.data.loader.evaluation import OnBadVideo
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import evaluate as evaluate_head
from vjepa.evaluation.frozen import EncoderIdentity
from vjepa.evaluation.labels import SPLIT_FILE, refuse_known
from vjepa.evaluation.metrics import CALIBRATION_ANSWERS, ClassificationMetrics
from vjepa.evaluation.results import (
    RESULT_FILE,
    SPLITS_FILE,
    Evaluation,
    Floor,
    ProbeResult,
    SplitsResult,
    load_result,
    summarise,
)
from vjepa.evaluation.saved_probe import SavedProbe, load_saved_probe
from vjepa.jobs.probe.compare import ANSWERS_FILE
from vjepa.jobs.probe.config import ProbeConfig, VideosConfig
from vjepa.jobs.probe.floors import pixel_floors
from vjepa.jobs.probe.inputs import ProbeInputs, open_inputs, open_split, rows_of_all_splits
from vjepa.jobs.probe.predict import Probe, load_probe
from vjepa.jobs.probe.released import ReleasedProbeConfig, is_released
from vjepa.jobs.probe.train import fit_probe
from vjepa.paths import as_path
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.distributed import open_process_group
from vjepa.runtime.files import begin_folder, claimed_folder
from vjepa.runtime.process import available_bytes, set_num_threads
from vjepa.version import __version__

_LOGGER = logging.getLogger(__name__)

JOB = "probe train"
RANDOM_FOLDER = "random_weights"
"""In a probe's folder: the same probe on random weights."""
METRICS_FILE = "metrics.jsonl"
CONFUSION_FILE = "confusion.png"
CALIBRATION_FILE = "calibration.png"
TEAM_MINUTES = 60.0  # one process may have much longer videos than another


def train(
    config: ProbeConfig, out: str | Path, *, cached_rows: NDArray[np.int64] | None = None
) -> ProbeResult:
    """Train probe heads on frozen features, choose one, measure it once on the test videos.

    For several draws of the labels see :func:`train_splits`. `out` receives the probe,
    ``result.json``, ``result.md``, ``split.json``, ``config.yaml``, ``metrics.jsonl``,
    ``answers.csv``, ``confusion.png`` and ``calibration.png``; where it holds the result of the
    same config, videos and encoder, that is returned. `cached_rows` (int64, ascending) are the
    training rows that a feature cache holds; None: all.
    """
    config, out = from_dict(ProbeConfig, config), as_path(out)
    with claimed_folder(out, JOB):
        _refuse_other(out, SPLITS_FILE)
        if found := _finished(out, config):
            _LOGGER.info("done already, at %s", found.date)
            return found
        times = [time.perf_counter()]
        set_num_threads(config.num_threads)
        inputs = open_inputs(config, cached_rows)
        if config.floors and inputs.test is None:
            _LOGGER.warning("floors: not measured: there are no test videos (data.test)")
        config, identity = inputs.config, inputs.extractor.frozen.identity
        check_room(inputs)
        begin_folder(out, JOB, config)
        inputs.record().save(out / SPLIT_FILE)
        times.append(time.perf_counter())
        passes = [
            inputs.training_extractor.features(inputs.train, inputs.used, number)
            for number in range(0 if config.features.online else config.features.passes)
        ]
        times.append(time.perf_counter())
        fitted = fit_probe(inputs, passes, out / METRICS_FILE)
        times.append(time.perf_counter())
        num_train = len(inputs.used) - len(fitted.bad)
        train_manifest_hash = inputs.train.manifest.content_hash
        SavedProbe(
            label=inputs.labels.name,
            classes=inputs.labels.classes,
            encoder=identity,
            settings=inputs.extractor.settings,
            form=fitted.form,
            head=fitted.head,
            multi_label=inputs.labels.multi_label,
            training={
                "num_train": num_train,
                "kind": inputs.train.kind,
                "steps": fitted.steps,
                "train_manifest_hash": train_manifest_hash,
                "selection": [asdict(entry) for entry in fitted.selection],
                "optim": to_dict(config.optim),
                "seed": config.seed,
                "versions": versions(),
            },
        ).save(out)
        test = None
        if inputs.test is not None:
            # The probe as it lies on the disk, as `evaluate` does it.
            measured = inputs.extractor, inputs.test, load_saved_probe(out).head
            test = evaluate_head(*measured, answers=out / ANSWERS_FILE)
            times.append(time.perf_counter())
        floors: tuple[Floor, ...] = ()
        if config.floors and test is not None:
            floors = _random_floor(inputs, out / RANDOM_FOLDER, cached_rows) + pixel_floors(inputs)
            times.append(time.perf_counter())
        stages = ("set-up", "features", "training", "test", "floors")
        result = result_of(
            *(out, config, identity),
            label=inputs.labels.name,
            num_train=num_train,
            num_classes=len(inputs.labels.classes),
            test=test,
            selection=fitted.selection,
            train_manifest_hash=train_manifest_hash,
            train_bad_videos=fitted.bad,
            seconds=dict(zip(stages, np.diff(times).round(3).tolist(), strict=False)),
            steps=fitted.steps,
            floors=floors,
        )
        save_result(result, out)
        return result


def _refuse_other(out: Path, result: str) -> None:
    if (out / result).exists():
        raise UserError(f"{out}: holds a probe already; give another --out or remove it")


def result_of(out: Path, config: object, encoder: EncoderIdentity, **found: Any) -> ProbeResult:
    """What came of a training, `found`, with what tells how it was made."""
    return ProbeResult(
        encoder=encoder.sentence,
        which=encoder.which,
        weights_hash=encoder.weights_hash,
        config=to_dict(config),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=str(out),
        **found,
    )


def save_result(result: ProbeResult, out: Path) -> None:
    """Write a result, and draw its test."""
    result.save(out)
    if result.test is not None:
        draw(result.test, out / CONFUSION_FILE, out / CALIBRATION_FILE)


def _random_floor(
    inputs: ProbeInputs, out: Path, cached_rows: NDArray[np.int64] | None
) -> tuple[Floor, ...]:
    """The same probe on random weights with the same input; nothing for a probe on such weights."""
    config, encoder = inputs.config, inputs.config.encoder
    if encoder.is_random:
        return ()
    # An image model of timm takes a file of weights or random ones.
    encoder = replace(encoder, random=True, timm_weights=None)
    again = replace(config, encoder=encoder, floors=False)
    found = load_result(out) if (out / RESULT_FILE).exists() else None  # of a call stopped since
    if found is None or found.config != to_dict(again) or not _same_videos(found, inputs):
        (out / RESULT_FILE).unlink(missing_ok=True)
        found = train(again, out, cached_rows=cached_rows)
    test = found.test
    assert test is not None
    assert isinstance(test.metrics, ClassificationMetrics)
    name = "random weights, same input and probe"
    return (Floor(name=name, count=test.metrics.count, correct=test.metrics.correct),)


def _same_videos(found: ProbeResult, inputs: ProbeInputs) -> bool:
    """Whether a finished probe was trained and tested on these rows and labels."""
    tested = found.test and found.test.manifest_hash
    test = inputs.test and inputs.test.manifest.content_hash
    return (inputs.train.manifest.content_hash, test) == (found.train_manifest_hash, tested)


def check_room(inputs: ProbeInputs) -> None:
    """Say what the training features take, and refuse what has no room, before one is computed.

    In memory, or where they are cached on that disk; videos that are encoded on the way take
    neither.
    """
    config, extractor = inputs.config, inputs.training_extractor
    if config.features.online:
        return
    sizes, settings = extractor.frozen.identity.config, extractor.settings
    clip, view = settings.clip, settings.view
    tokens = clip.num_frames // sizes.tubelet_size * (view.crop_size // sizes.patch_size) ** 2
    bytes_each = 2 if settings.features.storage == "bfloat16" else 4
    clips = config.features.passes * len(inputs.used) * view.num_segments
    needed, cache = float(clips * tokens * sizes.width * bytes_each), extractor.cache_dir
    there: float | None = available_bytes()
    if cache is not None:
        place = next(path for path in (cache, *cache.absolute().parents) if path.is_dir())
        there = shutil.disk_usage(place).free
    where = "memory" if cache is None else f"disk ({cache})"
    free = "" if there is None else f"; {there / 1e9:.1f} GB are free"
    size = f"{needed / 1e9:.1f} GB" if needed > 1e8 else f"{needed / 1e6:.2g} MB"
    said = f"features of {clips} clips take about {size} of {where}{free}"
    if there is None or needed <= there:
        _LOGGER.info("%s", said)
        return
    if cache is None:
        raise UserError(
            f"{said}: keep them on the disk (--features.cache_dir FOLDER), in half the space "
            "(--features.storage bfloat16), or encode on the way (--features.online true)"
        )
    _LOGGER.warning("%s, what is cached there already not counted", said)


def evaluate(
    probe_folder: str | Path,
    videos: VideosConfig,
    *,
    device: DeviceName = "auto",
    on_bad_video: OnBadVideo = "error",
    allow_training_videos: bool = False,
    answers: Path | None = None,
    released: ReleasedProbeConfig | None = None,
    load: Callable[..., Probe] = load_probe,
    **how: Any,
) -> Evaluation:
    """Measure a saved or released probe; on the test videos of its training the same number again.

    Videos that it was trained or chosen on are refused, or with `allow_training_videos` counted.
    Every video's answer is written to the CSV file `answers`, if it is given.
    The processes that a launcher such as torchrun has started share the videos, and all get the
    whole figures. `load` opens what is measured, and the other named arguments are its own.
    """
    probe_folder = as_path(probe_folder)
    is_theirs = load is load_probe and is_released(probe_folder)
    if is_theirs and (released is None or released.label is None):
        raise UserError(
            f"{probe_folder}: a released probe does not say which label of the manifest it names "
            "(--label NAME)"
        )
    with open_process_group(set_up_device(device).device.type, TEAM_MINUTES) as group:
        if released is not None:
            how["released"] = released
        probe = load(probe_folder, device=device, on_bad_video=on_bad_video, **how)
        saved = probe.saved
        split = open_split(
            *(videos, "videos", saved.label),
            classes=saved.classes,
            multi_label=saved.multi_label,
            on_bad_video=on_bad_video,
        )
        if saved.kind not in (None, split.kind):
            raise UserError(
                f"manifest {split.manifest.source}: its files are {split.kind}s, the probe was "
                f"trained on {saved.kind}s"
            )
        remedy = "name the test videos (--split), or count them all (--allow-training-videos)"
        remedy = None if allow_training_videos else remedy
        what = "ones that this probe was trained or chosen on"
        split = refuse_known(split, probe.trained_on, what, remedy)
        return evaluate_head(probe.extractor, split, saved.head, group=group, answers=answers)


def draw(measured: Evaluation, confusion: Path | None, calibration: Path | None) -> None:
    """Draw the confusion matrix, and accuracy over confidence, as PNG or SVG; None: not.

    Where a video may have several classes there is neither, with few answers no calibration.
    """
    from vjepa.reporting.charts import draw_calibration, draw_confusion

    metrics = measured.metrics
    if not isinstance(metrics, ClassificationMetrics):
        return
    if confusion is not None:
        title = f"{metrics.correct} of {metrics.count} right ({100 * metrics.top1:.1f} %)"
        names = [entry.name for entry in metrics.per_class]
        draw_confusion(metrics.confusion, names, confusion, title)
    if calibration is not None and metrics.count >= CALIBRATION_ANSWERS:
        title = f"{metrics.count} answers, calibration error {metrics.calibration_error:.3f}"
        draw_calibration(metrics.calibration, calibration, title)


def versions() -> dict[str, str]:
    """Versions that a number may depend on."""
    # Asked of the installed packages, so that none need be imported.
    others = {name: metadata.version(name) for name in ("av", "numpy", "torchvision")}
    own = {"vjepa": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return own | others


_TEMPORARY_CACHE = "temporary_features"


def train_splits(config: ProbeConfig, out: str | Path) -> SplitsResult:
    """Train and test one probe on each draw of the labels; seeds ``seed``, ``seed + 1``, ...

    Every video is encoded once for all draws: in the job's own cache folder, or in a temporary one
    below `out`, which then holds only the rows that a draw uses. An interrupted job goes on where
    it stopped when it is started again with the same config, encoder and videos. Each draw has a
    folder ``split_<seed>`` in `out`, as `train` makes it.
    """
    config, out = from_dict(ProbeConfig, config), as_path(out)
    single = replace(config, data=replace(config.data, num_splits=1))
    seeds = range(config.seed, config.seed + config.data.num_splits)
    with claimed_folder(out, JOB):
        _refuse_other(out, RESULT_FILE)
        rows, own_cache = None, out / _TEMPORARY_CACHE
        if config.features.cache_dir is None and not config.features.online:
            rows = rows_of_all_splits(config)
            single = replace(single, features=replace(single.features, cache_dir=own_cache))
        draws = {out / f"split_{seed}": replace(single, seed=seed) for seed in seeds}
        done = {folder: _finished(folder, own) for folder, own in draws.items()}
        begin_folder(out, JOB, config)
        results = [
            done[folder] or train(own, folder, cached_rows=rows) for folder, own in draws.items()
        ]
        found = summarise(results, seeds)
        found.save(out)
        shutil.rmtree(own_cache, ignore_errors=True)
        return found


def _finished(folder: Path, config: ProbeConfig) -> ProbeResult | None:
    """The result of a probe that an earlier call has trained; UserError: it is another one."""
    if not (folder / RESULT_FILE).exists():
        return None
    result = load_result(folder)
    wanted = to_dict(config)
    wanted["features"]["cache_dir"] = result.config["features"]["cache_dir"]  # whatever its name
    # Clip and view may have been null and are resolved in the result.
    for name, value in wanted["data"].items():
        if value is None:
            wanted["data"][name] = result.config["data"].get(name)
    if result.config != wanted:
        raise UserError(f"{folder}: holds a probe of another config; give another --out")
    inputs = open_inputs(config)
    if not _same_videos(result, inputs):
        changed = "its videos or their labels have changed; restore the manifest"
    elif inputs.extractor.frozen.identity.weights_hash != result.weights_hash:
        changed = f"the weights of its encoder ({result.encoder}) have changed; restore them"
    else:
        return result
    raise UserError(f"{folder}: holds a finished probe, but {changed}, or give another --out")
