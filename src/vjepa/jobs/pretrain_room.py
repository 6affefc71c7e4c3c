"""Before a pretraining run: does it fit, its input, how a longer one goes on, newer tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vjepa.checkpoint import read_sizes, start_training
from vjepa.checkpoint.folder import CHECKPOINTS_FOLDER, CONFIG_FILE, read_json, step_folders
from vjepa.config import RESOLVED_CONFIG_FILE, Config, diff, load_config
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.reading import READY_BATCHES
from vjepa.errors import UserError
from vjepa.evaluation.online import OnlineProbe
from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA, Encoder, EncoderConfig, InputConfig, ModelConfig, input_content
from vjepa.models.operations import MaskTokens, UpdateMemory, count_parameters, update_memory
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import DensePrediction, LeVJEPA, Task
from vjepa.tasks.masked_prediction import BatchMasks
from vjepa.training.parallel import num_shards
from vjepa.training.preflight import LIBRARIES_BYTES, check_disk, check_memory, memory_of_machine
from vjepa.training.schedules import ema_momentum, learning_rate, weight_decay

if TYPE_CHECKING:
    from vjepa.data.manifest.manifest import Manifest
    from vjepa.jobs.pretrain import ContinueConfig, PretrainConfig
    from vjepa.training import Trainer

_LOGGER = logging.getLogger(__name__)

_LEAST_DEVIATION = 0.01  # of the input, on the scale 0..1: videos of one colour are not blown up
_OF_CONTEXT = ("context_weight", "context_from_step", "context_full_step", "context_by_distance")
_DRAWN_CLIPS = 32  # whose masks tell how many tokens a clip has
_WORKER, _WORKERS_SHARED = 0.15e9, 0.1e9
"""Bytes of one worker that decodes (0.1 of small videos), and of what all have in common."""
MAY_CHANGE = (
    "distributed.",
    "optim.accumulation_steps",
    "data.normalisation",  # the checkpoint has the numbers
    "data.loader.num_workers",
    "data.loader.prefetch_batches",
    "data.loader.max_",
    "data.loader.min_bad_videos",
    "data.loader.sample_timeout_seconds",
    "data.loader.frame_cache_gigabytes",
    "data.loader.frame_cache_folder",
    "training.device",
    "training.num_threads",
    "training.activation_checkpointing",
    "training.longest_hours",
    "training.max_",
    "training.log_every_steps",
    "training.checkpoint_every_steps",
    "training.async_checkpoint",
    "training.keep_",
)
"""Fields that change nothing of what is learnt but rounding, and by which videos that cannot be
read are given up or end a run: a resumed one may have others."""


def mask_tokens(masks: Iterable[TokenMasks]) -> list[MaskTokens]:
    """Mean tokens a clip of each mask kind."""
    return [MaskTokens(mask.num_context_mean, mask.num_target_mean) for mask in masks]


def tokens_seen(config: PretrainConfig, clips: int) -> list[MaskTokens]:
    """Mean tokens a clip of each mask kind, over so many clips, or of each view of LeVJEPA."""
    encoder = config.model.encoder
    if config.objective.name == "levjepa":
        return config.objective.levjepa.seen_tokens(encoder)
    sampler = MaskSampler(config.masking, encoder.grid, encoder.tubelet_size, config.seed)
    return mask_tokens(sampler.sample(np.arange(clips), 0))


def memory_needed(
    config: PretrainConfig, device: torch.device, size: int, parts: int, checkpointing: bool
) -> dict[str, float]:
    """Bytes that an update takes in each of `size` processes, in `parts` micro-batches.

    Without what the loader takes, which is never on a GPU.
    """
    clips, sharing = config.data.batch_size // size, config.distributed
    encoder, at_once = config.model.encoder, -(-clips // parts)
    drawn = min(clips, _DRAWN_CLIPS)

    def memory_of(model: ModelConfig, tokens: list[MaskTokens], count: int) -> UpdateMemory:
        return update_memory(
            model,
            tokens,
            count,
            activation_checkpointing=checkpointing,
            precision=config.training.set_up_device().precision,
            on_cpu=device.type == "cpu",
        )

    # The predictor of LeVJEPA is counted, though there is none.
    memory = memory_of(config.model, tokens_seen(config, drawn), at_once)
    activations, images = memory.activations, config.data.images
    if images.sources:  # which are kept beside those of the clips
        one = replace(config.model, encoder=replace(encoder, num_frames=encoder.tubelet_size))
        masking = replace(config.masking, masks=images.masks)
        own = MaskSampler(masking, one.encoder.grid, 1, config.seed)
        tokens = mask_tokens(own.sample(np.arange(drawn), 0))
        activations += memory_of(one, tokens, -(-images.batch_size // (size * parts))).activations
    pixels = encoder.num_tokens * encoder.patch_values
    shards = num_shards(sharing, size, device, memory.states)
    gradients = 4.0 * sum(count_parameters(config.model)) / shards
    return {
        "weights and moments": memory.states / shards - gradients,
        # Gradients come while activations go.
        "activations": max(activations, gradients),
        "clips": pixels * (clips + 8.0 * at_once),  # uint8; float32 and its patches
        "libraries": LIBRARIES_BYTES,
    }


def check_room(
    config: PretrainConfig, out: Path, device: torch.device, group: ProcessGroup
) -> None:
    """Refuse what has no effect or cannot fit, and say what is needed; nothing is allocated yet."""
    objective = config.objective
    has_context = config.model.predictor.predicts_context and objective.name == "vjepa"
    users = {} if has_context else dict.fromkeys(_OF_CONTEXT, "model.predictor.predicts_context")
    users |= {} if objective.name == "levjepa" else {"levjepa": "objective.name levjepa"}
    is_begun = newest_step(out) is not None
    for name, user in () if is_begun else users.items():
        if getattr(objective, name) != getattr(type(objective)(), name):
            raise UserError(f"objective.{name}: has no effect without {user}; leave it out")
    save, keep = config.training.checkpoint_every_steps, config.training.keep_every_steps
    if keep is not None and keep % save and save % keep and not is_begun and group.is_main:
        _LOGGER.warning(
            "training.keep_every_steps: %d is no multiple of checkpoint_every_steps %d: only those "
            "at multiples of %d stay",
            *(keep, save, math.lcm(keep, save)),
        )
    clips = config.data.batch_size // group.size
    free, words = memory_of_machine(group)  # 0: unknown
    loader, shape, reading = config.data.loader, config.model.encoder, {}
    if loader.num_workers:  # what the loader takes at most
        batch = 3.0 * clips * shape.num_frames * shape.image_size**2
        limit = loader.max_queue_gigabytes
        room = free / 4 if limit is None else limit * 1e9
        waiting = min((loader.prefetch_batches + READY_BATCHES) * batch, max(room, batch))
        workers = _WORKERS_SHARED + loader.num_workers * _WORKER
        reading = {"workers": workers, "clips that wait": waiting}
    on_cpu = reading if device.type == "cpu" else {}

    def needs(parts: int, checkpointing: bool) -> dict[str, float]:
        return memory_needed(config, device, group.size, parts, checkpointing) | on_cpu

    is_whole = objective.name == "levjepa" or objective.sigreg_coefficient > 0
    images = config.data.images.batch_size // group.size if config.data.images.sources else 0
    # A batch that is compared as a whole is not to be accumulated; images are cut as clips are.
    parts = 1 if is_whole else math.gcd(clips, images)
    check_memory(needs, device, config.optim, config.training, parts, group)
    if reading and not on_cpu:
        said = f"{sum(reading.values()) / 1e9:.1f} GB of the machine's memory for reading clips"
        short = []
        if free and sum(reading.values()) > free:
            short.append(
                f"training needs about {said}, but {words.format(free / 1e9)}; use fewer "
                "--data.loader.num_workers or less --data.loader.max_queue_gigabytes"
            )
        group.agree(short)
        _LOGGER.info("and about %s", said)
    trained, averaged = sum(count_parameters(config.model)), count_parameters(config.model)[0]
    group.on_main(lambda: check_disk(out, 4.0 * (3 * trained + averaged)))


def measured(how: InputConfig, clips: Tensor, group: ProcessGroup) -> InputConfig:
    """An input with the mean and deviation of its content over the clips of all processes.

    `clips` are this process's, uint8 [B, 3, T, H, W]. To four places, which do not depend on how
    the clips are shared out. The log says them, and whether little moves.
    """
    sums = torch.zeros(3, how.channels, dtype=torch.float64)
    for clip in clips:
        content = input_content(clip, how).double().flatten(1)
        sums += torch.stack([content**power for power in range(3)]).sum(-1)
    sums = torch.stack(group.gather(sums)).sum(0) / 255.0 ** torch.arange(3)[:, None]
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    deviation = (square - mean.square()).clamp(min=0).sqrt().clamp(min=_LEAST_DEVIATION)
    mean, deviation = (tuple(round(x, 4) for x in part.tolist()) for part in (mean, deviation))
    numbers = (" ".join(f"{x:.4f}" for x in part) for part in (mean, deviation))
    said = "input: mean %s, deviation %s (per channel, of 1; measured on %d clips)"
    _LOGGER.info(said, *numbers, group.size * len(clips))
    moves = float(sum(clip.float().var(1, correction=0).mean() for clip in clips))
    differs = float(sum(clip.float().flatten(1).var(1).mean() for clip in clips))
    if how.content == "rgb" and 0 < moves < _STILL * differs:
        _LOGGER.info(
            "little moves: %.1f %% of what differs in a clip is change over time, as before a "
            "still camera; the rest is what is learnt first. If motion is what matters, give "
            "model.encoder.input.content=change (docs/learn.md)",
            100 * moves / differs,
        )
    return replace(how, mean=mean, deviation=deviation)


_STILL = 0.1
"""Share of variance over time: films of still cameras have .03 to .08, others .15 to .7."""


def newest_step(run: Path) -> Path | None:
    """The newest checkpoint in a run's folder, if it has one."""
    return next(reversed(step_folders(run / CHECKPOINTS_FOLDER).values()), None)


def check_same_run(
    config: Config, out: Path, allowed: tuple[str, ...] = (*MAY_CHANGE, "optim.steps")
) -> Config:
    """Make sure that the run in `out` is this very run, perhaps made longer; its config.

    A run that never came to a checkpoint begins anew, with any config.
    """
    return same_config(config, out, allowed) if newest_step(out) else config


def same_config(config: Config, out: Path, allowed: tuple[str, ...] = ()) -> Config:
    """The config that the job in `out` began with; UserError: it is another one than this.

    Fields whose name begins with one of those `allowed` may have changed.
    """
    file = out / RESOLVED_CONFIG_FILE
    if not file.is_file():  # demo and data synth had another file for it
        raise UserError(f"{out}: was begun by an older version; give another --out, or delete it")
    stored = load_config(type(config), [file])
    lines = diff(stored, config)
    changed = [line for line in lines if not line.lstrip().startswith(allowed)]
    if changed:
        raise UserError(
            f"{out}: holds a run with another config ({'; '.join(changed)}); "
            "give another --out, or the config of that run to resume it"
        )
    if lines:
        _LOGGER.info("going on with other settings: %s", "; ".join(lines))
    return stored


def made_by(task: Callable[[PretrainConfig], Task], config: PretrainConfig) -> Task:
    """What is trained; UserError: `task` makes no task."""
    made = task if isinstance(task, nn.Module) else task(config)
    if made is task or not isinstance(made, Task):
        raise UserError(
            "task: must be a subclass of vjepa.tasks.Task, or a function that makes such a task of "
            f"the config; an object of {type(made).__name__} is neither"
        )
    return made


def same_objective(config: PretrainConfig, own: str | None, out: Path) -> str:
    """What checkpoints call the objective: a task of one's `own` goes by the name of its class.

    UserError: the run in `out` was trained by another.
    """
    # By another name than vjepa a checkpoint has one encoder, no target.
    is_frozen = config.objective.target == "frozen"
    name = own or ("frozen-teacher" if is_frozen else config.objective.name)
    newest = newest_step(out)
    before = name if newest is None else read_json(newest / CONFIG_FILE).get("objective", name)
    if before != name:
        raise UserError(
            f"{out}: was trained by {before}, not by {name}; go on with that (a task of your own "
            "is given to vjepa.pretrain: commands have the objectives of configs only), or give "
            "another --out"
        )
    return name


def check_same_weights(out: Path, source: object, found: str) -> None:
    """Make sure that a run that was begun on a frozen model goes on with one of the same hash."""
    newest = next(reversed(step_folders(out / CHECKPOINTS_FOLDER).values()), None)
    if newest and read_json(newest / CONFIG_FILE).get("weights_hash", found) != found:
        raise UserError(
            f"{out}: was begun with other weights than {source} holds now; bring them back, or "
            "give another --out"
        )


def order_hashes(**manifests: Sequence[Manifest]) -> dict[str, list[str]]:
    """What tells in a checkpoint which `videos` and `images` it was trained on."""
    return {f"{kind}_hashes": [one.order_hash for one in of] for kind, of in manifests.items()}


def check_same_videos(
    manifests: Sequence[Manifest], kind: str, out: Path, group: ProcessGroup
) -> None:
    """Refuse other videos than another process has, or than the run in `out` was begun with.

    Checkpoints of before cannot tell.
    """

    def stored() -> list[str] | None:
        newest = newest_step(out)
        return None if newest is None else read_json(newest / CONFIG_FILE).get(name)

    ((name, own),) = order_hashes(**{kind: manifests}).items()
    before = group.on_main(stored)
    for number, manifest in enumerate(manifests):
        group.check_same(own[number], manifest.source, "videos, or other weights of them,")
        if before is not None and before[number] != own[number]:
            raise UserError(
                f"{out}: was begun with other videos, or other weights of them, than "
                f"{manifest.source} holds now; bring that manifest back, or give another --out "
                "(where pretraining can go on: continue_from)"
            )


def say_new_schedules(old: PretrainConfig, new: PretrainConfig, step: int) -> None:
    """What another number of updates changes from the next update on."""
    if step > new.optim.steps:
        raise UserError(
            f"optim.steps: {new.optim.steps}, but the run has done {step} updates; give more"
        )
    curves = {
        "learning rate": lambda config, update: learning_rate(update, config.optim),
        "weight decay": lambda config, update: weight_decay(update, config.optim),
        "EMA momentum": lambda config, update: ema_momentum(update, config.ema, config.optim),
    }
    said = (
        f"{name} {curve(old, step):.3g} -> {curve(new, step + 1):.3g}, "
        f"{curve(new, new.optim.steps):.3g} at the end"
        for name, curve in curves.items()
    )
    _LOGGER.info(
        "the schedules are those of %d updates instead of %d; at update %d: %s",
        *(new.optim.steps, old.optim.steps, step + 1, "; ".join(said)),
    )


def sized_as_source(config: PretrainConfig, out: str | Path) -> PretrainConfig:
    """The config with the sizes of what it continues from; those of the run in `out`, if begun.

    Raises:
        UserError: The source cannot be read, or its sizes do not go with the rest of the config.
    """
    start, stored = config.continue_from, Path(out) / RESOLVED_CONFIG_FILE
    if start is None:
        return config
    own = config.model
    begun = load_config(type(config), [stored]) if stored.is_file() else None
    if begun is not None and begun.continue_from == start:
        model = begun.model
    elif start.num_heads is not None:
        model = read_sizes(start.path, start.num_heads)
    else:
        # An authors' file does not say its heads: a config that describes the model does.
        try:
            model = read_sizes(start.path, own.encoder.heads)
            found = model.encoder
            described = (found.width, found.depth) == (own.encoder.width, own.encoder.depth)
        except UserError:
            described = False
        model = model if described else read_sizes(start.path)
    try:
        encoder = model.encoder
        if start.input_size == "config":
            size, frames = own.encoder.image_size, own.encoder.num_frames
            encoder = replace(encoder, image_size=size, num_frames=frames)
        data = replace(
            config.data,
            clip=replace(config.data.clip, num_frames=encoder.num_frames),
            transform=replace(config.data.transform, crop_size=encoder.image_size),
        )
        made = replace(config, model=replace(model, encoder=encoder), data=data)
    except ValueError as error:
        raise UserError(f"continue_from.path: {start.path} does not fit: {error}") from error
    changed = diff(config, made)
    if changed:
        _LOGGER.info("sizes from %s: %s", start.path, "; ".join(changed))
    return made


def online_probes(config: PretrainConfig, task: Task, group: ProcessGroup) -> list[OnlineProbe]:
    """The probe that is fitted while training, if the config has one."""
    probe, encoder = config.online_probe, task.encoder_for_evaluation
    if probe is None:
        return []
    if encoder is None or not isinstance(getattr(encoder, "config", None), EncoderConfig):
        raise UserError(
            f"online_probe: {type(task).__name__} has no `encoder` whose `config` says its sizes "
            "(vjepa.models.EncoderConfig); leave the probe out"
        )
    clip, transform, seed = config.data.clip, config.data.transform, config.seed
    view = ViewConfig(crop_size=transform.crop_size, resize=transform.resize)
    precision = config.training.set_up_device().precision
    return [OnlineProbe(encoder, probe, clip, view, precision, seed, group=group)]


def continue_from(config: ContinueConfig, trainer: Trainer) -> int:
    """Load another checkpoint's weights and, if wanted, its moments; the step to go on from."""
    modules, optimizer = trainer.task.saved_modules(), trainer.learner.optimizer
    keep = config.keep_optimizer
    step, read = start_training(config.path, modules, optimizer, keep, trainer.group)
    if step is None:
        if config.step:
            raise UserError(f"continue_from.step: {read} is weights alone, which start at update 0")
        _LOGGER.info("starting at update 1 with the weights of %s", read)
        return 0
    step = step if config.step is None else config.step
    if step >= trainer.optim.steps:
        raise UserError(
            f"continue_from.path: {config.path} stands after {step} updates, and optim.steps is "
            f"{trainer.optim.steps}: raise that, or start a new schedule from its weights with "
            "--continue_from.keep_optimizer false"
        )
    _LOGGER.info("going on after update %d of %s", step, read)
    return step


def levjepa_task(config: PretrainConfig) -> LeVJEPA:
    """The task of LeVJEPA; UserError where the config cannot be."""
    views, size = config.objective.levjepa, config.data.batch_size
    try:
        return LeVJEPA(config.model.encoder, views, config.seed, size)
    except ValueError as error:
        raise UserError(str(error)) from error


def dense_task(
    config: PretrainConfig, sampler: MaskSampler, teacher: Encoder | None
) -> DensePrediction | None:
    """The task of V-JEPA 2.1, if the model's predictor is of that kind."""
    objective, images = config.objective, config.data.images
    encoder, predictor, own = config.model.encoder, config.model.predictor, None
    if not predictor.predicts_context:
        if predictor.levels > 1:
            raise UserError("model.predictor.predicts_context: must be true with several levels")
        return None
    unlike = {
        "objective.target": teacher is not None,
        "objective.loss_exponent": objective.loss_exponent != 1,
        "objective.variance_coefficient": objective.variance_coefficient != 0,
        "objective.sigreg_coefficient": objective.sigreg_coefficient != 0,
        "masking.count": config.masking.count == "packed",
    }
    for name, is_so in unlike.items():
        if is_so:
            raise UserError(
                f"{name}: not together with model.predictor.predicts_context, the loss of V-JEPA "
                "2.1; leave it out"
            )
    if predictor.out_width not in (None, encoder.width * predictor.levels):
        raise UserError(
            f"model.predictor.out_width: {predictor.out_width}: this model was trained towards "
            "features of another encoder (V-JEPA 2.1 B and L: of G), which its file lacks, so it "
            "cannot go on; continue from V-JEPA 2.1 g or G, or from V-JEPA 2"
        )
    if images.sources:
        masking = replace(config.masking, masks=images.masks)
        drawn = MaskSampler(masking, (1, *encoder.grid[1:]), 1, config.seed)
        own = BatchMasks(drawn, images.batch_size)
    return DensePrediction(
        VJEPA(config.model),
        sampler,
        config.data.batch_size,
        context_weight=objective.context_weight,
        context_from_step=objective.context_from_step,
        context_full_step=objective.context_full_step,
        by_distance=objective.context_by_distance,
        images=own,
        image_share=images.share,
    )
