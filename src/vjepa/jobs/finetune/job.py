"""Fine-tuning: trained by the one loop, the last weights written and measured once."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vjepa.checkpoint.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_json,
    read_weights,
    write_weights,
)
from vjepa.config import from_dict, to_dict
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.data.loader.loader import ClipLoader
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import evaluate as evaluate_head
from vjepa.evaluation.labels import SPLIT_FILE, load_split, refuse_known
from vjepa.evaluation.results import Evaluation, ProbeResult
from vjepa.jobs.finetune.config import FinetuneConfig, check_batch
from vjepa.jobs.finetune.inputs import FinetuneInputs, build_task, merged, open_inputs
from vjepa.jobs.finetune.saved import MODEL_FOLDER, load_finetuned
from vjepa.jobs.pretrain import LOG_FOLDER
from vjepa.jobs.pretrain_room import MAY_CHANGE, check_same_run, check_same_videos, newest_step
from vjepa.jobs.probe.probe import ANSWERS_FILE, result_of, save_result
from vjepa.models import EncoderConfig, ModelConfig
from vjepa.models.operations import NO_PREDICTOR, MaskTokens, update_memory
from vjepa.paths import as_path
from vjepa.runtime.device import seed_torch, to_device
from vjepa.runtime.distributed import ProcessGroup, open_process_group
from vjepa.runtime.files import atomic_folder, begin_folder, claimed_folder
from vjepa.runtime.logging import MetricLog, log_file
from vjepa.tasks import FineTuning
from vjepa.training import Trainer, TrainingResult
from vjepa.training.parallel import num_shards
from vjepa.training.preflight import LIBRARIES_BYTES, check_disk, check_memory

_LOGGER = logging.getLogger(__name__)

JOB = "finetune"
_MAY_CHANGE = (*MAY_CHANGE, "data.on_bad_video")
_VALIDATION_CLIPS = 32


@dataclass(frozen=True)
class FinetuneResult:
    """How a run ended, and what its last weights were measured at: None before the last update."""

    training: TrainingResult
    steps: int
    result: ProbeResult | None


def run(config: FinetuneConfig, out: str | Path) -> FinetuneResult:
    """Train, or resume the run in `out`, to the last update; then write and measure its weights.

    Under torchrun, or another launcher that sets the same variables, all processes call this and
    share each batch. The folder gets what pretraining's has, and ``model`` (the weights, classes
    and settings, for `vjepa finetune eval | predict` and `vjepa features`), ``result.json``,
    ``result.md``, ``split.json``, ``answers.csv``, ``confusion.png`` and ``calibration.png``.

    It raises what pretraining does.

    Raises:
        UserError: Bad input of any kind, before work starts where it can be known.
        TrainingStopped: The loss or a gradient became non-finite.
        LostProcessError: Another process of the job ended or hung.
    """
    config, out = from_dict(FinetuneConfig, config), as_path(out)
    training = config.training
    device = training.set_up_device().device
    with ExitStack() as stack:
        patience = config.distributed.timeout_minutes
        group = stack.enter_context(open_process_group(device.type, patience))
        if group.on_main(lambda: stack.enter_context(claimed_folder(out, JOB, is_shared=True))):
            group.on_main(lambda: check_same_run(config, out, _MAY_CHANGE))
        try:
            check_batch(config, group.size)
        except ValueError as error:
            raise UserError(str(error)) from error
        inputs = open_inputs(config)
        data = config.data
        optim = config.optim.schedules(len(inputs.videos), data.batch_size)
        about = _about(config, inputs, optim.steps)
        newest = group.on_main(lambda: newest_step(out))
        _check_same_inputs(inputs, out, group)
        if newest is None and config.mix.is_on and config.mix.group == 1:
            raise UserError("mix.group: 1 mixes nothing; give 2 or more, or mix.probability 0")
        if newest is not None:
            group.on_main(lambda: _check_goes_on(inputs, out, newest))
        task = build_task(config, inputs.encoder, len(inputs.classes))
        needs = partial(_memory_needed, config, task, device, group.size)
        # Parts that a batch can be cut into: of whole videos, and of whole groups that are mixed.
        together = math.lcm(data.repeats, config.mix.group if config.mix.is_on else 1)
        parts = data.batch_size * data.repeats // group.size // together
        check_memory(needs, device, optim, training, parts, group)
        weights = sum(p.numel() for p in task.parameters())
        trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
        group.on_main(lambda: check_disk(out, 4.0 * (weights + 2 * trained)))
        if group.is_main:
            passes = optim.steps * data.batch_size / len(inputs.videos)
            _LOGGER.info(
                "%d videos of %d classes; %d updates of %d videos x %d clips: %.3g passes; %.3g M "
                "of %.3g M weights are trained",
                *(len(inputs.videos), len(inputs.classes), optim.steps, data.batch_size),
                *(data.repeats, passes, trained / 1e6, weights / 1e6),
            )
        loader = build_loader(config, inputs, out, group)
        stack.callback(loader.close)
        seed_torch(config.seed, "weights")
        looks = []
        if inputs.validation is not None:
            looks.append(Validation(task, inputs, config, group))
        trainer = Trainer(
            task=task,
            batches=loader.batches,
            optim=optim,
            training=training,
            seed=config.seed,
            ema=config.ema,
            folder=out,
            about=about,
            sinks=[MetricLog(out / "metrics.jsonl", events=True)] if group.is_main else [],
            evaluators=looks,
            description="fine-tuning",
            group=group,
            distributed=config.distributed,
        )
        # Only now: a run that could not even begin must not claim the folder for its config.
        group.on_main(lambda: begin_folder(out, JOB, config))
        group.on_main(lambda: inputs.record.save(out / SPLIT_FILE))
        stack.enter_context(log_file(out / LOG_FOLDER / f"rank_{group.rank:03d}.log"))
        began = time.perf_counter()
        ended = trainer.fit()
        if ended.step < optim.steps and not ended.out_of_time:
            return FinetuneResult(ended, optim.steps, None)
        if ended.checkpoint is None:
            raise UserError("training.max_minutes: over before the first update; give more of them")
        seconds = {"training": round(time.perf_counter() - began, 3)}
        del trainer, task  # the measurement has a model of its own
        group.on_main(lambda: _write_model(config, out))
        result = _measure(config, inputs, out, group, seconds)
        return FinetuneResult(ended, optim.steps, result)


def _about(config: FinetuneConfig, inputs: FinetuneInputs, steps: int) -> dict[str, Any]:
    # Models of others have no predictor, and no one's is part of the checkpoint.
    model = ModelConfig(encoder=inputs.encoder.config, predictor=NO_PREDICTOR)
    return {
        "objective": "class",
        "model": to_dict(model),
        "run": to_dict(config),
        "preprocess": {"clip": to_dict(inputs.test_clip), "view": to_dict(inputs.view)},
        "label": inputs.record.label,
        "classes": list(inputs.classes),
        "kind": inputs.kind,
        "num_train": len(inputs.videos),
        "steps": steps,
        "started_from": inputs.identity.sentence,
    }


def _check_same_inputs(inputs: FinetuneInputs, out: Path, group: ProcessGroup) -> None:
    """Refuse other videos or labels than another process has, or videos than the run had."""
    others = (one.manifest for one in (inputs.validation, inputs.test) if one is not None)
    for one in (inputs.videos, *others):
        group.check_same(one.content_hash, one.source, "videos, splits or labels")
    check_same_videos([inputs.videos], "videos", out, group)


def _check_goes_on(inputs: FinetuneInputs, out: Path, newest: Path) -> None:
    """Refuse to resume with other classes or other videos."""
    before, now = list(read_json(newest / CONFIG_FILE).get("classes", [])), list(inputs.classes)
    if before != now:
        raise UserError(
            f"{out}: its checkpoint has {len(before)} classes ({_some(before)}), "
            f"data.label {inputs.record.label} now has {len(now)} ({_some(now)}); give another "
            "--out, or the videos that it began with"
        )
    if (out / SPLIT_FILE).is_file() and (record := load_split(out / SPLIT_FILE)) != inputs.record:
        new = np.setdiff1d(inputs.record.fit_paths, record.fit_paths)
        shown = f", for example {new[0]}" if len(new) else ""
        raise UserError(
            f"{out}: this run began with {len(record.fit)} labelled videos, now there are "
            f"{len(inputs.record.fit)}, others, in another order or with other labels{shown}; "
            "restore the manifest, or give another --out"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def build_loader(
    config: FinetuneConfig, inputs: FinetuneInputs, out: Path | None, group: ProcessGroup
) -> ClipLoader:
    """The run's batches of labelled clips, of which each process gets its part."""
    data = config.data
    return ClipLoader(
        [inputs.videos],
        None,
        inputs.clip,
        TransformConfig(
            crop_size=inputs.view.crop_size,
            crop_scale=data.crop_scale,
            crop_aspect=data.crop_aspect,
            horizontal_flip=data.horizontal_flip,
            resize=data.resize,
        ),
        data.loader,
        batch_size=data.batch_size * data.repeats,
        seed=config.seed,
        label=inputs.record.label,
        rank=group.rank,
        world_size=group.size,
        bad_videos_log=None if out is None else out / "bad_videos.jsonl",
        augment=data.augment,
    )


def _memory_needed(
    config: FinetuneConfig,
    task: FineTuning,
    device: torch.device,
    size: int,
    parts: int,
    checkpointing: bool,
) -> dict[str, float]:
    """Bytes that an update takes in each of `size` processes, in `parts` micro-batches."""
    encoder: EncoderConfig = task.encoder.config
    clips = config.data.batch_size * config.data.repeats // size
    at_once, sharing = -(-clips // parts), config.distributed
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    others = sum(p.numel() for p in task.parameters()) - trained
    shards = num_shards(sharing, size, device, 16.0 * trained + 4.0 * others)
    model = ModelConfig(encoder=encoder, predictor=NO_PREDICTOR)
    activations = update_memory(
        model,
        [MaskTokens(encoder.num_tokens, 0)],
        at_once,
        activation_checkpointing=checkpointing,
        precision=config.training.set_up_device().precision,
        on_cpu=device.type == "cpu",
    ).activations
    if config.trained.last_blocks is not None and config.trained.lora_rank is None:
        activations *= max(1, config.trained.last_blocks) / encoder.depth
    pixels = encoder.num_tokens * encoder.patch_values
    return {
        "weights and moments": (12.0 * trained + 4.0 * others) / shards,
        # Gradients come while activations go.
        "activations": max(activations, 4.0 * trained / shards),
        "clips": pixels * (clips + 8.0 * at_once),  # uint8; float32 and its patches
        "libraries": LIBRARIES_BYTES,
    }


class Validation:
    """How the weights do on the validation videos while they are trained: one centre clip each."""

    every_steps = None

    def __init__(
        self, task: FineTuning, inputs: FinetuneInputs, config: FinetuneConfig, group: ProcessGroup
    ) -> None:
        self._given = task, inputs, config, group

    @torch.no_grad()
    def run(self, step: int) -> dict[str, float]:  # noqa: ARG002 (part of the protocol)
        """``validation/top1`` (share in [0, 1]), ``/cross_entropy`` (nats) and ``/count``."""
        task, inputs, config, group = self._given
        split, clip, size = inputs.validation, inputs.test_clip, inputs.view.crop_size
        assert split is not None
        labels, setup = split.labels, config.training.set_up_device()
        filler = torch.zeros((1, 3, clip.num_frames, size, size), dtype=torch.uint8)
        view, modules = ViewConfig(crop_size=size, resize=config.data.resize), task.saved_modules()
        prefix = "target_" if "target_encoder" in modules else ""
        encoder, head = modules[f"{prefix}encoder"], modules[f"{prefix}head"]
        encoder.eval()
        head.eval()
        rows = np.arange(group.rank, len(labels), group.size, dtype=np.int64)
        calls = math.ceil(len(labels) / group.size / _VALIDATION_CLIPS)
        sums = np.zeros(3)
        with EvaluationClips(
            split.manifest, clip, view, config.data.loader, rows=rows, on_bad_video="list"
        ) as source:
            batches = source.batches(0, len(source), _VALIDATION_CLIPS)
            # Sharded weights are gathered for each call, so every process must make as many.
            for _ in range(calls):
                batch = next(batches, None)
                count = 0 if batch is None else len(batch.rows)
                clips = filler if batch is None or not count else batch.clips[:, 0]
                video = task.encoder.normalise(to_device(clips, setup.device))
                with setup.autocast():
                    tokens = encoder(video, final_norm=task.final_norm)
                    logits = head(tokens).float().cpu()
                if batch is None or not count:
                    continue
                truth = torch.from_numpy(labels.indices[batch.rows])
                loss = F.cross_entropy(logits, truth, reduction="sum")
                right = (logits.argmax(dim=1) == truth).sum()
                sums += (float(right), float(loss), count)
        right, loss, count = np.sum(group.gather(sums), axis=0).tolist()
        if count == 0:
            raise UserError(f"{split.name}: not one video can be read")
        return {
            "validation/top1": right / count,
            "validation/cross_entropy": loss / count,
            "validation/count": count,
        }


def _write_model(config: FinetuneConfig, out: Path) -> None:
    """The last checkpoint's weights as a folder of their own: what is measured and used."""
    newest, target = newest_step(out), out / MODEL_FOLDER
    assert newest is not None
    about: Mapping[str, Any] = read_json(newest / CONFIG_FILE)
    if target.is_dir():
        if read_json(target / CONFIG_FILE).get("step") == about["step"]:
            return
        shutil.rmtree(target)
    tensors = read_weights(newest / WEIGHTS_FILE)
    prefix = "" if config.ema is None else "target_"
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith((f"{prefix}encoder.", f"{prefix}head."))
    }
    with atomic_folder(target) as aside:
        plain = merged(tensors, config.trained.lora_scale)
        header = ("format", "version", "step")
        rest = {name: value for name, value in about.items() if name not in header}
        write_weights(aside, plain, int(about["step"]), rest)


def _measure(
    config: FinetuneConfig,
    inputs: FinetuneInputs,
    out: Path,
    group: ProcessGroup,
    seconds: dict[str, float],
) -> ProbeResult:
    """The weights as they lie on the disk, measured as `vjepa finetune eval` does it."""
    began = time.perf_counter()
    probe = load_finetuned(out, device=config.training.device, reading=config.data.loader)
    test: Evaluation | None = None
    if inputs.test is not None:
        extractor = replace(probe.extractor, on_bad_video=config.data.on_bad_video)
        split = refuse_known(inputs.test, probe.trained_on, "in data.train too", None)
        answers = out / ANSWERS_FILE
        test = evaluate_head(extractor, split, probe.saved.head, group=group, answers=answers)
        seconds["test"] = round(time.perf_counter() - began, 3)
    result = result_of(
        *(out, config, probe.saved.encoder),
        label=inputs.record.label,
        num_train=len(inputs.videos),
        num_classes=len(inputs.classes),
        test=test,
        selection=(),
        train_manifest_hash=inputs.record.manifest_hash,
        seconds=seconds,
        steps=probe.saved.training["steps"],
    )
    if group.is_main:
        save_result(result, out)
    return result
