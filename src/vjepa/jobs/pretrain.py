"""Pretraining: the paper's section 3, from manifests to a run folder of checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vjepa.checkpoint import described, read_encoder, read_sizes
from vjepa.checkpoint.folder import read_config
from vjepa.config import config_dataclass, from_dict, to_dict
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.loader import ClipLoader, LoaderConfig, beside
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.online import OnlineProbeConfig
from vjepa.jobs.pretrain_room import (
    check_room,
    check_same_run,
    check_same_videos,
    continue_from,
    dense_task,
    levjepa_task,
    made_by,
    measured,
    newest_step,
    online_probes,
    order_hashes,
    same_objective,
    say_new_schedules,
    sized_as_source,
)
from vjepa.masking import MaskConfig, MaskingConfig, MaskSampler
from vjepa.models import VJEPA, Encoder, ModelConfig
from vjepa.runtime.device import seed_torch
from vjepa.runtime.distributed import ProcessGroup, open_process_group
from vjepa.runtime.files import begin_folder, claimed_folder
from vjepa.runtime.logging import MetricLog, log_file
from vjepa.tasks import FeaturePrediction, LeVJEPAConfig, MaskedPrediction, PixelPrediction, Task
from vjepa.training import (
    DistributedConfig,
    EmaConfig,
    OptimConfig,
    Trainer,
    TrainingConfig,
    TrainingResult,
)
from vjepa.training.schedules import Count, NotNegative, Positive


@config_dataclass
class ObjectiveConfig:
    """What is predicted at the masked tokens."""

    name: Literal["vjepa", "pixel", "levjepa"] = "vjepa"
    """`vjepa`: features of the EMA target encoder (section 3); `pixel`: normalised pixels
    (Table 1); `levjepa`: nothing is predicted, but embeddings of views agree (LeVJEPA, arXiv
    2608.27395), for which `masking` and `model.predictor` are not used."""
    loss_exponent: Positive = 1.0
    """Exponent p of `vjepa`'s loss mean(|error|^p) / p; the paper uses 1. `pixel` has squares."""
    variance_coefficient: NotNegative = 0.0
    """Weight of the penalty on predictions that vary too little over tokens; the paper has none."""
    sigreg_coefficient: NotNegative = 0.0
    """Weight of SIGReg on the visible tokens' features: how far they are, over the batch, from
    Gaussian ones (LeJEPA, arXiv 2511.08544); the paper has none."""
    levjepa: LeVJEPAConfig = field(default_factory=LeVJEPAConfig)
    """Views and weights of `levjepa`."""
    target: Literal["ema", "frozen"] = "ema"
    """Whose features `vjepa` predicts: `ema`, of the encoder's moving average; `frozen`, of an
    encoder that was trained before, for example by pixel prediction (SALT, arXiv 2509.24317)."""
    target_from: Path | None = None
    """For `frozen`: the run or checkpoint of that encoder, whose input (mean, deviation, content)
    is taken over. It may be another width; its weights become part of this run's checkpoints."""
    context_weight: NotNegative = 0.5
    """Weight of the loss on visible tokens, of a predictor that predicts them, too (V-JEPA 2.1)."""
    context_from_step: Annotated[int, Field(ge=0)] = 15_000
    """Update at which that weight begins to rise from 0."""
    context_full_step: Annotated[int, Field(ge=0)] = 30_000
    """Update at which it is reached; not beyond the former: at once."""
    context_by_distance: bool = True
    """Whether visible tokens count less the farther the nearest masked one is."""

    def __post_init__(self) -> None:
        if (self.target == "frozen") != (self.target_from is not None):
            raise ValueError("target_from: goes with target frozen, and only with it")
        usual = {"target": "ema", "variance_coefficient": 0, "sigreg_coefficient": 0}
        for name, value in usual.items():
            if self.name != "vjepa" and (given := getattr(self, name)) != value:
                raise ValueError(f"{name}: {given} is for name vjepa; {self.name} does not use it")


@config_dataclass
class SourceConfig:
    """One data set of the mixture."""

    manifest: Path
    """Parquet manifest made by `vjepa data index`."""
    weight: float | None = None
    """Relative share of the samples; null means by number of videos, as the paper mixes."""
    split: str | None = None
    """Only the rows of this split; null takes all."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight <= 0:
            raise ValueError(
                f"weight must be above 0, got {self.weight}: leave the source out instead"
            )


@config_dataclass
class ImagesConfig:
    """Images beside the clips, each one frame: for models with patches for images (V-JEPA 2.1).

    Crop and loader are those of the clips. Of a video in these sources one frame is taken.
    """

    sources: tuple[SourceConfig, ...] = ()
    """The data sets; none: no images."""
    batch_size: Count = 64
    """Images per optimiser step, likewise."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the loss; the rest is the clips'."""
    masks: tuple[MaskConfig, ...] = (MaskConfig(num_blocks=10),)
    """Mask kinds of images; how tokens are counted says `masking.count`."""


@config_dataclass
class DataConfig:
    """Where clips come from and how they are cut."""

    sources: tuple[SourceConfig, ...] = ()
    """The data sets; at least one."""
    batch_size: Count = 3072
    """Clips per optimiser step, over all processes and accumulation steps together."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Which frames a clip takes."""
    transform: TransformConfig = field(default_factory=TransformConfig)
    """Crop, resize and flip."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """Images that are trained on beside the clips (V-JEPA 2.1)."""
    normalisation: Literal["measured", "model"] = "measured"
    """Mean and deviation of the model's input. `measured`: those of the first 128 clips, taken
    once, before the first update; `model`: as `model.encoder.input` says (unless given, the
    paper's: ImageNet's). A run that is resumed or continued keeps its own."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Worker processes, prefetching, limits for bad videos."""


@config_dataclass
class ContinueConfig:
    """Start from another run's or the authors' weights, and their sizes, instead of random ones."""

    TEXT_MEANS = "path"

    path: Path
    """Run, checkpoint or converted folder, `.pth.tar` file, or the name of weights that come with
    vjepa (`demo`, `vizdoom`, `vizdoom_hour`, `garments`). `continue_from: PATH` is short for it."""
    keep_optimizer: bool | None = None
    """Take over optimiser state and step, as if training had never stopped; false: weights only,
    from update 0; null: the state where there is one."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Number of updates behind the weights, which is where the schedules go on; null: as the
    optimiser's own count in the file says. Only with the optimiser's state."""
    input_size: Literal["weights", "config"] = "weights"
    """Pixels and frames of the clips: as the weights were made for, or as the config says; then
    position codes are computed for that size."""
    num_heads: Count | None = None
    """Attention heads, for an authors' file of a size that is no preset."""

    def __post_init__(self) -> None:
        if self.step is not None and self.keep_optimizer is False:
            raise ValueError("step: needs keep_optimizer true; weights alone start at update 0")


@config_dataclass
class PretrainConfig:
    """Everything that `vjepa pretrain` needs to know."""

    seed: int = 0
    """Of weights, sample order, crops and masks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder and predictor."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """What is hidden."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is predicted."""
    data: DataConfig = field(default_factory=DataConfig)
    """The videos."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedules."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Momentum of the target encoder."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Device, precision, intervals."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes share the work, when a launcher such as torchrun starts them."""
    online_probe: OnlineProbeConfig | None = None
    """A probe that is fitted now and then while training, where labels are given."""
    continue_from: ContinueConfig | None = None
    """Another run or released weights to start from."""

    def __post_init__(self) -> None:
        encoder, clip = self.model.encoder, self.data.clip
        if encoder.is_given:
            raise ValueError("model.encoder.position: given: comes with weights of others")
        if encoder.num_frames != clip.num_frames:
            raise ValueError(
                f"data.clip.num_frames is {clip.num_frames} but model.encoder.num_frames is "
                f"{encoder.num_frames}: they must be equal"
            )
        if encoder.image_size != self.data.transform.crop_size:
            raise ValueError(
                f"data.transform.crop_size is {self.data.transform.crop_size} but "
                f"model.encoder.image_size is {encoder.image_size}: they must be equal"
            )
        tokens, kinds = self.model.predictor.num_mask_tokens, len(self.masking.masks)
        if self.model.predictor.shared_mask_token is None and tokens != 1 and tokens < kinds:
            raise ValueError(
                f"model.predictor.num_mask_tokens is {tokens} but masking.masks has {kinds} kinds: "
                "use 1 (shared) or one for each kind"
            )
        if self.data.batch_size % self.optim.accumulation_steps:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is not a multiple of "
                f"optim.accumulation_steps {self.optim.accumulation_steps}"
            )


_LOGGER = logging.getLogger(__name__)

JOB = "pretrain"
_MEASURED_CLIPS = 128
LOG_FOLDER = "logs"


def build_task(config: PretrainConfig) -> Task:
    """The task that the config names, with fresh weights."""
    encoder, predictor, size = config.model.encoder, config.model.predictor, config.data.batch_size
    objective = config.objective
    sampler = MaskSampler(config.masking, encoder.grid, encoder.tubelet_size, config.seed)
    task: MaskedPrediction
    is_dense = predictor.predicts_context and objective.name == "vjepa"
    if config.data.images.sources and not (encoder.modalities and is_dense):
        raise UserError(
            "data.images: is for V-JEPA 2.1 (model.encoder.modalities and "
            "model.predictor.predicts_context); other models see a still among the videos as a "
            "clip: name its manifest in data.sources"
        )
    if objective.name == "levjepa":
        return levjepa_task(config)
    if objective.name == "pixel":
        task = PixelPrediction(config.model, sampler, size)
    else:
        source = objective.target_from
        try:
            teacher = None if source is None else read_encoder(source)[0]
        except UserError as error:
            again = "a resume, which has its weights, reads its sizes there again"
            raise UserError(f"objective.target_from: {error} ({again})") from error
        if not isinstance(teacher, Encoder | None):
            raise UserError(f"objective.target_from: {source} is no encoder of clips; give another")
        try:
            task = dense_task(config, sampler, teacher) or FeaturePrediction(
                VJEPA(config.model),
                loss_exponent=objective.loss_exponent,
                variance_coefficient=objective.variance_coefficient,
                sampler=sampler,
                batch_size=size,
                teacher=teacher,
                sigreg_coefficient=objective.sigreg_coefficient,
                seed=config.seed,
            )
        except ValueError as error:
            if teacher is None:
                raise
            raise UserError(f"objective.target_from: {source}: {error}") from error
    # A mask token that no mask kind uses, patches of images, norms of levels that are not taken, a
    # projection of visible tokens that are not predicted, a [cls] token that no other one sees.
    used = 1 if predictor.shared_mask_token is not None else len(config.masking.masks)
    task.has_unused = (
        predictor.num_mask_tokens > used
        or (encoder.modalities and not config.data.images.sources)
        or len(encoder.levels) > predictor.levels
        or (predictor.predicts_context and not is_dense)
        or (encoder.cls and encoder.attention == "block_causal")
    )
    return task


def build_loader(
    config: PretrainConfig, out: Path | None, group: ProcessGroup, *, of_images: bool = False
) -> ClipLoader:
    """The run's batches of clips, of which each process gets its part; or those of images."""
    data, parts = config.data, group.size * config.optim.accumulation_steps
    what, name = (data.images, "data.images") if of_images else (data, "data")
    clip = ClipConfig(num_frames=1, stride=1) if of_images else data.clip
    if what.batch_size % parts:
        near = max(1, round(what.batch_size / parts)) * parts
        raise UserError(
            f"{name}.batch_size: {what.batch_size} clips cannot be divided over {group.size} "
            f"processes with optim.accumulation_steps {config.optim.accumulation_steps}: use a "
            f"multiple of {parts}, for example {near}, or another number of processes"
        )
    videos = [Manifest.open(source.manifest).select(split=source.split) for source in what.sources]
    if out is not None:  # before anything is decoded for the frame cache
        check_same_videos(videos, "images" if of_images else "videos", out, group)
    return ClipLoader(
        videos,
        [source.weight for source in what.sources],
        clip,
        data.transform,
        data.loader,
        batch_size=what.batch_size,
        seed=config.seed,
        rank=group.rank,
        world_size=group.size,
        bad_videos_log=None if out is None else out / "bad_videos.jsonl",
    )


def settle_input(
    config: PretrainConfig, out: Path, group: ProcessGroup, clips: int = _MEASURED_CLIPS
) -> PretrainConfig:
    """The config with the numbers by which the model's input is normalised.

    They are part of a model. A run that is resumed has them in its checkpoint, one that continues
    another takes that one's; else they are measured on so many clips, if the config says so: the
    same in any number of processes.
    """
    encoder = config.model.encoder
    newest = group.on_main(lambda: newest_step(out))
    if newest is not None:
        how = read_config(newest).model.encoder.input
    elif config.objective.target_from is not None:
        how = read_sizes(config.objective.target_from).encoder.input
    elif config.continue_from is not None or config.data.normalisation == "model":
        return config
    else:
        parts = group.size * config.optim.accumulation_steps
        clips = -(-clips // parts) * parts
        some = replace(config, data=replace(config.data, batch_size=clips))
        with closing(build_loader(some, None, group)) as loader:  # the folder is not claimed yet
            (batch,) = loader.batches(0, 1)
        how = measured(encoder.input, batch.clips, group)
    model = replace(config.model, encoder=replace(encoder, input=how))
    return replace(config, model=model)


def run_of(model: Path) -> PretrainConfig | None:
    """The pretraining config inside a checkpoint; None for a released file."""
    about = described(model)
    return from_dict(PretrainConfig, about.run, str(model)) if about and about.run else None


def run(
    config: PretrainConfig,
    out: str | Path,
    task: Callable[[PretrainConfig], Task] = build_task,
    is_enough: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train, or resume the run in `out`, to the config's last step.

    Under torchrun, or another launcher that sets the same variables, all processes call this and
    share each batch. `task` makes what is trained, in place of the config's objective: a subclass
    of :class:`vjepa.tasks.Task`; a resume must be given the same. Weights that it draws follow from
    the config's seed. `is_enough` is asked before each update whether to end there.

    Raises:
        UserError: Bad input of any kind, before work starts where it can be known.
        TrainingStopped: The loss or a gradient became non-finite.
        LostProcessError: Another process of the job ended or hung.
    """
    out = Path(out)
    config = sized_as_source(from_dict(PretrainConfig, config), out)
    device = config.training.set_up_device().device
    with ExitStack() as stack:
        patience = config.distributed.timeout_minutes
        group = stack.enter_context(open_process_group(device.type, patience))
        group.on_main(lambda: stack.enter_context(claimed_folder(out, JOB, is_shared=True)))
        before = group.on_main(lambda: check_same_run(config, out))
        if not config.data.sources:
            raise UserError(
                "data.sources is empty: name a manifest, for example "
                "--data.sources.0.manifest videos.parquet (made by `vjepa data index`)"
            )
        if task is build_task:
            check_room(config, out, device, group)
        settled = settle_input(config, out, group)
        seed_torch(config.seed, "weights")
        made = made_by(task, settled)
        own = None if task is build_task else type(made).__name__
        objective = group.on_main(lambda: same_objective(config, own, out))
        # Before the videos of the training are decoded: a wrong label must not wait for that.
        evaluators = online_probes(config, made, group)
        loader = build_loader(config, out, group)
        stack.callback(loader.close)
        batches, waiting = loader.batches, loader.queue_bytes
        hashes = order_hashes(videos=loader.manifests)
        if config.data.images.sources:
            stills = build_loader(config, out, group, of_images=True)
            stack.callback(stills.close)
            batches, waiting = beside(loader, stills), waiting + stills.queue_bytes
            hashes |= order_hashes(images=stills.manifests)
        clip = replace(config.data.clip, clips_per_video=1)
        view = ViewConfig(crop_size=config.model.encoder.image_size)
        if waiting:
            _LOGGER.info("batches waiting in memory: at most %.1f MB", waiting / 1e6)
        trainer = Trainer(
            task=made,
            batches=batches,
            optim=config.optim,
            training=config.training,
            seed=config.seed,
            ema=config.ema,
            folder=out,
            about={
                "objective": objective,
                "model": to_dict(settled.model),
                "run": to_dict(config),
                # How the trained encoder's input is made of a video afterwards.
                "preprocess": {"clip": to_dict(clip), "view": to_dict(view)},
                **hashes,
            },
            sinks=[MetricLog(out / "metrics.jsonl", events=True)] if group.is_main else [],
            evaluators=evaluators,
            description="pretraining",
            group=group,
            distributed=config.distributed,
            is_enough=is_enough,
        )
        assert trainer.store is not None
        newest = group.on_main(trainer.store.latest)
        if newest is None and (start := config.continue_from) is not None:
            trainer.start_from(continue_from(start, trainer))
        if newest is not None and before.optim.steps != config.optim.steps:
            done = int(newest.name.rpartition("_")[2])
            group.on_main(lambda: say_new_schedules(before, config, done))
        # Only now: a run that could not even begin must not claim the folder for its config.
        group.on_main(lambda: begin_folder(out, JOB, config))
        stack.enter_context(log_file(out / LOG_FOLDER / f"rank_{group.rank:03d}.log"))
        return trainer.fit()
