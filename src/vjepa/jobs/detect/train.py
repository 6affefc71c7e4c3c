"""Training a detector: a linear head on vectors of a frozen encoder, or the encoder with it."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vjepa.checkpoint.folder import CONFIG_FILE, WEIGHTS_FILE, read_json, read_weights
from vjepa.config import from_dict, to_dict
from vjepa.counter_random import permute
from vjepa.data.boxes import BoxTable
from vjepa.data.clips.key_frames import checked_patches
from vjepa.data.loader.evaluation import BadVideo
from vjepa.errors import UserError
from vjepa.evaluation.box_features import (
    BoxFeatures,
    DetectionBatches,
    DetectionSettings,
    KeyFrames,
)
from vjepa.evaluation.frozen import FeatureSet, FrozenEncoder
from vjepa.evaluation.preprocess import preprocess_of, with_assumed_spacing
from vjepa.evaluation.results import table_lines
from vjepa.evaluation.video_features import remedy_of, require_fitting, stretches
from vjepa.jobs.detect.config import DetectConfig
from vjepa.jobs.detect.detector import (
    DetectionResult,
    SavedDetector,
    load_detector,
    test_rows,
)
from vjepa.jobs.pretrain import LOG_FOLDER
from vjepa.jobs.pretrain_room import (
    MAY_CHANGE,
    check_same_run,
    check_same_weights,
    newest_step,
)
from vjepa.jobs.probe.encoder import (
    compile_encoder,
    gives_layers,
    open_encoder,
    reopen_encoder,
)
from vjepa.jobs.probe.probe import versions
from vjepa.models import Encoder, ModelConfig, PredictorConfig
from vjepa.paths import as_path
from vjepa.runtime.device import seed_torch, set_up_device
from vjepa.runtime.distributed import ProcessGroup, open_process_group
from vjepa.runtime.files import atomic_write, begin_folder, claimed_folder
from vjepa.runtime.logging import MetricLog, log_file
from vjepa.runtime.process import set_num_threads
from vjepa.tasks import Detection
from vjepa.training import Trainer, TrainingResult

JOB = "detect train"
RESULT_FILE = "result.json"
TABLE_FILE = "result.md"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class TrainedDetector:
    """What came of a training: updates, boxes trained on, and the figure if there is a test."""

    folder: Path
    encoder: str
    steps: int
    num_boxes: int
    num_key_frames: int
    test: DetectionResult | None
    bad_videos: tuple[BadVideo, ...]
    stopped: TrainingResult | None = None
    """How training ended, where it was stopped: nothing was measured then."""


def train(config: DetectConfig, out: str | Path) -> TrainedDetector:
    """Train a detector and measure it once on the test table.

    Into `out`, a new folder, or one in which the same job has begun: ``detector.json``,
    ``detector.safetensors``, ``result.json``, ``result.md``, ``metrics.jsonl``, ``config.yaml``,
    and checkpoints of head (and encoder, with `end_to_end`), from which training resumes exactly;
    one that has ended is only measured anew.

    Under torchrun, or another launcher that sets the same variables, all processes call this: they
    share the key frames to be encoded, and each batch.
    """
    config, out = from_dict(DetectConfig, config), as_path(out)
    device = set_up_device(config.training.device, config.features.precision).device
    with ExitStack() as stack:
        minutes = config.distributed.timeout_minutes
        group = stack.enter_context(open_process_group(device.type, minutes))

        def claim() -> None:
            stack.enter_context(claimed_folder(out, JOB, is_shared=True))
            if (out / RESULT_FILE).exists() and newest_step(out) is None:
                raise UserError(f"{out}: holds a detector already; give another --out or remove it")
            check_same_run(config, out, (*MAY_CHANGE, "data.on_bad_video"))

        group.on_main(claim)
        return _train(config, out, group, stack)


def _train(
    config: DetectConfig, out: Path, group: ProcessGroup, stack: ExitStack
) -> TrainedDetector:
    times = [time.perf_counter()]
    set_num_threads(config.training.num_threads)
    given, (config, frozen, data, test) = config, _open(config)
    rows = training_rows(config, data)
    _check_batch(config, data, rows, group)
    learnt = _learnt(data.table, rows)
    _check_same_boxes(config, data.table, learnt, test, group)
    group.on_main(lambda: _check_goes_on(out, data.table, learnt))
    group.on_main(lambda: begin_folder(out, JOB, given))
    stack.enter_context(log_file(out / LOG_FOLDER / f"rank_{group.rank:03d}.log"))
    settings = _settings(config)
    times.append(time.perf_counter())
    passes, identity = (), frozen.identity
    if config.end_to_end is None:  # else its checkpoints hold the encoder
        group.on_main(lambda: check_same_weights(out, identity.source, identity.weights_hash))
        passes = _encode(config, frozen, settings, data, rows, group)
        for one in passes:
            rows = np.intersect1d(rows, one.rows)
    bad = tuple(dict.fromkeys(video for one in passes for video in one.bad))
    times.append(time.perf_counter())
    batches = DetectionBatches(
        data=data,
        rows=rows,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        settings=settings,
        reading=config.data.reading,
        patch=frozen.identity.config.patch_size,
        passes=passes,
        rank=group.rank,
        world_size=group.size,
    )
    trainer = _trainer(config, frozen, batches, out, group, learnt)
    result = trainer.fit()
    key_frames = len(np.unique(data.table.key_of_row[rows]))
    sentence, steps = frozen.identity.sentence, result.step
    if result.interrupted:
        return TrainedDetector(out, sentence, steps, len(rows), key_frames, None, bad, result)
    if result.checkpoint is None:
        raise UserError("training.max_minutes: over before the first update; give more of them")
    if config.end_to_end is not None:
        # The encoder that was trained lies in the checkpoint; the detector is one of it.
        identity = replace(identity, path=str(out), which="context", file=None, seed=None)
        held = reopen_encoder(identity)
        identity = held.identity
        sentence = f"{identity.sentence}, trained from {frozen.identity.sentence}"
    times.append(time.perf_counter())
    # As it lies on the disk: under FSDP the head in memory is a part of it.
    head = _new_head(config, frozen, data)
    head.load_state_dict(read_weights(result.checkpoint / WEIGHTS_FILE, "head."))
    how = {
        "num_boxes": len(rows),
        "num_key_frames": key_frames,
        "steps": steps,
        "seed": config.seed,
        "end_to_end": config.end_to_end is not None,
        "versions": versions(),
    }
    saved = SavedDetector(
        classes=data.table.classes,
        evaluated=data.table.evaluated,
        encoder=identity,
        settings=settings,
        head=head.eval(),
        rules=config.rules,
        scores=config.scores,
        training=how,
    )
    group.on_main(lambda: saved.save(out))
    measured = None
    if test is not None:
        # The detector as it lies on the disk, as `evaluate` does it.
        detector = load_detector(
            out,
            device=config.training.device,
            num_threads=config.training.num_threads,
            reading=config.data.reading,
            on_bad_video=config.data.on_bad_video,
            cache_dir=config.features.cache_dir,
        )
        measured, _ = detector.evaluate(test, config.data.test_on, group=group)
    times.append(time.perf_counter())
    done = TrainedDetector(out, sentence, steps, len(rows), key_frames, measured, bad)
    stages = ("set-up", "features", "training", "test")
    seconds = dict(zip(stages, np.diff(times).round(3).tolist(), strict=True))
    group.on_main(lambda: _save_result(done, config, seconds))
    return done


def _open(config: DetectConfig) -> tuple[DetectConfig, FrozenEncoder, KeyFrames, KeyFrames | None]:
    """Everything opened and checked before anything is encoded; nulls of the config resolved."""
    if config.data.train is None:
        raise UserError("data.train: not set; make a table of boxes with `vjepa data ava`")
    if config.end_to_end is not None and config.data.on_bad_video == "list":
        raise UserError(
            "data.on_bad_video: list leaves nothing out with end_to_end, which reads its clips "
            "while it trains: set error and take what cannot be read out of data.train; for the "
            "test there is `vjepa detect eval --on-bad-video list`"
        )
    data = KeyFrames.open(config.data.train, config.data.videos)
    test = None
    if config.data.test is not None:
        test = KeyFrames.open(config.data.test, config.data.videos)
        if dict(test.table.classes) != dict(data.table.classes):
            raise UserError("data.test: its classes are not those of data.train; use one label map")
        shared = {video for video, _ in test.table.keys} & {video for video, _ in data.table.keys}
        if shared:
            raise UserError(
                f"data.test: {len(shared)} of its videos are trained on, too (first: "
                f"{min(shared)!r}); measure on others"
            )
        test_rows(test.table, config.data.test_on)
    frozen = open_encoder(config.encoder)
    if config.data.clip is None:
        frozen = with_assumed_spacing(frozen, config.encoder.path)
    sizes = frozen.identity.config
    usual = preprocess_of(config.encoder.path, sizes).clip
    # Exact steps, so that the key frame stands in the middle.
    clip = config.data.clip or replace(
        usual, sampling="exact" if usual.stride is not None else "reference", clips_per_video=1
    )
    try:
        layers = config.regions.layers_of(sizes)
    except ValueError as error:
        raise UserError(f"regions.{error}") from error
    source = frozen.identity.source
    if layers != (sizes.depth - 1,) and not gives_layers(frozen.encoder):
        raise UserError(
            f"regions.layers: {source} gives only its last layer's output: set regions.layers to "
            f"[{sizes.depth - 1}]"
        )
    if config.end_to_end is not None and not isinstance(frozen.encoder, Encoder):
        raise UserError(f"end_to_end: leave it out: {source} is no video encoder of ours to train")
    if config.end_to_end is not None and sizes.is_given:
        raise UserError(f"end_to_end: leave it out: {source}'s table of positions cannot be saved")
    if not stretches(frozen.encoder):
        raise UserError(
            f"{source}: its table of positions is for {sizes.image_size} x {sizes.image_size} "
            "pixels and is not stretched, but people are looked for in whole frames; take V-JEPA, "
            f"I-JEPA or DINOv2{remedy_of(frozen.encoder)}"
        )
    require_fitting(frozen.encoder, clip.num_frames, sizes.image_size, source)
    checked_patches(config.data.view, clip, sizes.patch_size, sizes.tubelet_size)
    return replace(config, data=replace(config.data, clip=clip)), frozen, data, test


def training_rows(config: DetectConfig, data: KeyFrames) -> NDArray[np.int64]:
    """The rows of the training table whose boxes are trained on, int64, ascending."""
    table, rows = data.table, data.table.rows_of("truth")
    if config.data.train_on == "known":
        found = table.rows_of("predicted").tolist()
        known = [row for row in found if table.labels[row] is not None]
        rows = np.sort(np.concatenate([rows, np.array(known, dtype=np.int64)]))
    if config.data.num_videos is not None:
        videos = sorted({video for video, _ in table.keys})
        if config.data.num_videos > len(videos):
            raise UserError(
                f"data.num_videos: {config.data.num_videos} of {len(videos)} videos; lower it"
            )
        chosen = permute(np.arange(config.data.num_videos), len(videos), config.seed, "few videos")
        kept = {videos[number] for number in chosen.tolist()}
        rows = rows[[table.video[row] in kept for row in rows.tolist()]]
    if not len(rows):
        raise UserError(f"{table.source_file}: has no box to train on")
    return rows


def _settings(config: DetectConfig) -> DetectionSettings:
    assert config.data.clip is not None
    return DetectionSettings(
        clip=config.data.clip,
        view=config.data.view,
        regions=config.regions,
        features=config.features.encoding,
    )


def _encode(
    config: DetectConfig,
    frozen: FrozenEncoder,
    settings: DetectionSettings,
    data: KeyFrames,
    rows: NDArray[np.int64],
    group: ProcessGroup,
) -> tuple[FeatureSet, ...]:
    """The vectors of the boxes trained on, once for each pass."""
    setup = set_up_device(config.training.device, config.features.precision)
    if config.features.compile:
        compile_encoder(frozen.encoder.to(setup.device))
    features = BoxFeatures(
        frozen,
        settings,
        setup,
        config.data.reading,
        config.data.on_bad_video,
        config.features.cache_dir,
    )
    numbers = range(config.features.passes)
    draws = [(config.seed, n) if config.data.view.augment else None for n in numbers]
    return tuple(features.features(data, rows, "data.train", draw, group) for draw in draws)


def _check_batch(
    config: DetectConfig, data: KeyFrames, rows: NDArray[np.int64], group: ProcessGroup
) -> None:
    optim, seen = config.optim, len(np.unique(data.table.key_of_row[rows]))
    if (size := min(optim.batch_size, seen)) < optim.accumulation_steps * group.size:
        raise UserError(
            f"optim.batch_size: {size} key frames cannot be divided into "
            f"{optim.accumulation_steps} accumulation steps in {group.size} processes; use fewer"
        )


def _learnt(table: BoxTable, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What tells in a checkpoint which classes and boxes it was trained on, as plain values."""
    labels = [(table.video[row], table.labels[row]) for row in rows.tolist()]
    numbers = [column[rows].tolist() for column in (table.second, table.time, table.box)]
    digest = hashlib.sha256(json.dumps([labels, *numbers]).encode()).hexdigest()
    return {"classes": [list(one) for one in table.classes.items()], "boxes_hash": digest}


def _check_same_boxes(
    config: DetectConfig,
    table: BoxTable,
    learnt: dict[str, Any],
    test: KeyFrames | None,
    group: ProcessGroup,
) -> None:
    """Refuse other tables than another process has."""
    group.check_same(learnt, table.source_file, "classes or boxes")
    if test is not None:
        _, rows = test_rows(test.table, config.data.test_on)
        group.check_same(_learnt(test.table, rows), test.table.source_file, "classes or boxes")


def _check_goes_on(out: Path, table: BoxTable, learnt: dict[str, Any]) -> None:
    """Refuse to resume with other classes or boxes; checkpoints of before cannot tell."""
    before = read_json(newest / CONFIG_FILE) if (newest := newest_step(out)) else {}
    if other := [name for name, value in learnt.items() if before.get(name, value) != value]:
        raise UserError(
            f"{out}: was begun with other {other[0].removesuffix('_hash')} than "
            f"{table.source_file} (data.train) holds now; bring that table back, or give another "
            "--out"
        )


def _new_head(config: DetectConfig, frozen: FrozenEncoder, data: KeyFrames) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        seed_torch(config.seed, "detection head")
        head = nn.Linear(config.regions.width(frozen.identity.config), len(data.table.classes))
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    return head


def _trainer(
    config: DetectConfig,
    frozen: FrozenEncoder,
    batches: DetectionBatches,
    out: Path,
    group: ProcessGroup,
    learnt: dict[str, Any],
) -> Trainer:
    optim, sizes = config.optim, frozen.identity.config
    steps = batches.steps_for(optim.epochs)
    warmup = min(batches.steps_for(optim.warmup_epochs), steps) if optim.warmup_epochs else 0
    about: dict[str, Any] = {"objective": "detection", "run": to_dict(config), "steps": steps}
    about |= {"weights_hash": frozen.identity.weights_hash, **learnt}
    encoder, how = None, config.end_to_end
    if how is not None:
        assert isinstance(frozen.encoder, Encoder)
        encoder = frozen.encoder.requires_grad_(True).train()
        # One head goes with any encoder; no predictor is saved.
        about["model"] = to_dict(ModelConfig(encoder=sizes, predictor=PredictorConfig(heads=1)))
    task = Detection(
        _new_head(config, frozen, batches.data),
        encoder,
        config.regions,
        seed=config.seed,
        drop_path=0.0 if how is None else how.drop_path,
        layer_decay=1.0 if how is None else how.layer_decay,
    )
    return Trainer(
        task=task,
        batches=batches.batches,
        optim=optim.over(steps, warmup),
        training=replace(config.training, evaluate_every_steps=None),
        seed=config.seed,
        folder=out,
        about=about,
        sinks=[MetricLog(out / METRICS_FILE)] if group.is_main else [],
        description="detector",
        group=group,
        distributed=config.distributed,
    )


def _save_result(done: TrainedDetector, config: DetectConfig, seconds: dict[str, float]) -> None:
    plain = {
        "encoder": done.encoder,
        "steps": done.steps,
        "num_boxes": done.num_boxes,
        "num_key_frames": done.num_key_frames,
        "test": None if done.test is None else asdict(done.test),
        "train_bad_videos": [f"{bad.path}: {bad.reason}" for bad in done.bad_videos],
        "config": to_dict(config),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
    }
    on = f"{done.num_boxes} boxes in {done.num_key_frames} key frames"
    lines = ["# Detector", "", f"Encoder: {done.encoder}", "", f"{done.steps} updates on {on}.", ""]
    if done.test is not None:
        lines += [done.test.metrics.sentence, "", f"Boxes: {done.test.boxes_sentence}.", ""]
        rows = [
            (entry.name, str(entry.truth), f"{100 * entry.average_precision:.2f} %")
            for entry in done.test.metrics.per_class
            if entry.average_precision is not None
        ]
        lines += table_lines(("class", "true boxes", "average precision"), rows)
    atomic_write(done.folder / TABLE_FILE, "\n".join(lines) + "\n")
    atomic_write(done.folder / RESULT_FILE, json.dumps(plain, indent=1) + "\n")
