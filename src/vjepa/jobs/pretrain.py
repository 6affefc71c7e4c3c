"""Pretraining: the paper's section 3, from manifests to a run folder of checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vjepa.config import diff, dump_yaml, load_config, to_dict
from vjepa.data.loader import ClipLoader
from vjepa.data.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.clips import ViewConfig
from vjepa.evaluation.online import OnlineProbe
from vjepa.interop import find_checkpoint, read_model, released_training_state
from vjepa.jobs.pretrain_batches import BatchPreparer
from vjepa.jobs.pretrain_config import ContinueConfig, PretrainConfig, SourceConfig
from vjepa.models import VJEPA, Encoder
from vjepa.objectives import FeaturePrediction, PixelPrediction, collapse_alarm
from vjepa.runtime.device import set_up_device
from vjepa.runtime.distributed import Team, open_team
from vjepa.runtime.logging import log_file
from vjepa.runtime.metric_sinks import run_folder_sinks
from vjepa.runtime.seeds import seed_torch
from vjepa.training.checkpoint import CheckpointStore
from vjepa.training.loop import Trainer
from vjepa.training.optim import load_optimizer_state, parameter_names
from vjepa.training.run_folder import RunFolder, TrainingResult
from vjepa.training.sharding import load_whole

_LOGGER = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
LOG_FOLDER = "logs"
_MAY_CHANGE = (
    "distributed.",
    "optim.accumulation_steps",
    "data.loader.num_workers",
    "data.loader.prefetch_batches",
    "data.loader.frame_cache_gigabytes",
    "data.loader.frame_cache_folder",
    "training.device",
    "training.num_threads",
    "training.log_every_steps",
    "training.checkpoint_every_steps",
    "training.async_checkpoint",
    "training.keep_",
)
"""Fields that change nothing of what is learnt but rounding, so a resumed run may have others."""


@dataclass(frozen=True)
class PretrainParts:
    """An objective with the modules that its checkpoints hold."""

    objective: FeaturePrediction | PixelPrediction
    modules: Mapping[str, nn.Module]

    @property
    def evaluated(self) -> Encoder:
        """The encoder that frozen evaluation uses."""
        return self.objective.encoder_for_evaluation


def build_objective(config: PretrainConfig) -> PretrainParts:
    """Model and objective with fresh weights, drawn from the run's seed.

    Args:
        config: The run's config.

    Returns:
        The objective, and its modules under their names in a checkpoint: ``encoder``,
        ``predictor`` and, for features, ``target_encoder``.
    """
    seed_torch(config.seed, "weights")
    if config.objective.name == "pixel":
        pixel = PixelPrediction(config.model)
        return PretrainParts(pixel, {"encoder": pixel.encoder, "predictor": pixel.predictor})
    model = VJEPA(config.model)
    features = FeaturePrediction(
        model,
        loss_exponent=config.objective.loss_exponent,
        variance_coefficient=config.objective.variance_coefficient,
    )
    modules = {
        "encoder": model.encoder,
        "target_encoder": model.target_encoder,
        "predictor": model.predictor,
    }
    return PretrainParts(features, modules)


def open_sources(sources: tuple[SourceConfig, ...]) -> list[Manifest]:
    """The usable rows of every data set.

    Raises:
        UserError: No source, a manifest that is missing or unreadable, or one without usable video.
    """
    if not sources:
        raise UserError(
            "data.sources is empty: name a manifest, for example "
            "--data.sources.0.manifest videos.parquet (made by `vjepa data index`)"
        )
    return [Manifest.open(source.manifest).select(split=source.split) for source in sources]


def build_loader(config: PretrainConfig, out: Path, team: Team) -> ClipLoader:
    """The run's batches of clips, of which each process gets its part.

    Raises:
        UserError: The batch cannot be divided over the processes, or the data cannot be used.
    """
    data, parts = config.data, team.size * config.optim.accumulation_steps
    if data.batch_size % parts:
        near = max(1, round(data.batch_size / parts)) * parts
        raise UserError(
            f"data.batch_size: {data.batch_size} clips cannot be divided over {team.size} "
            f"processes with optim.accumulation_steps {config.optim.accumulation_steps}: use a "
            f"multiple of {parts}, for example {near}, or another number of processes"
        )
    return ClipLoader(
        open_sources(data.sources),
        [source.weight for source in data.sources],
        data.clip,
        data.transform,
        data.loader,
        batch_size=data.batch_size,
        seed=config.seed,
        rank=team.rank,
        world_size=team.size,
        bad_videos_log=out / "bad_videos.jsonl",
    )


def check_run_folder(config: PretrainConfig, out: Path) -> None:
    """Make sure that `out` is new, empty, or holds this very run. Nothing is written.

    Raises:
        UserError: The folder holds something else, or the run of another config.
    """
    stored = out / CONFIG_FILE
    if stored.is_file():
        before = load_config(PretrainConfig, [stored])
        changed = [
            line for line in diff(before, config) if not line.lstrip().startswith(_MAY_CHANGE)
        ]
        if changed:
            raise UserError(
                f"{out}: holds a run with another config ({'; '.join(changed)}); "
                "give another --out, or the config of that run to resume it"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is no run folder; give a new or empty --out")


def write_run_config(config: PretrainConfig, out: Path) -> None:
    """Make the run folder with its `config.yaml`, written aside and renamed."""
    out.mkdir(parents=True, exist_ok=True)
    stored = out / CONFIG_FILE
    partial = stored.with_suffix(".partial")
    partial.write_text(dump_yaml(config), encoding="utf-8")
    partial.replace(stored)


def run(config: PretrainConfig, out: Path) -> TrainingResult:
    """Train, or resume the run in `out`, to the config's last step.

    Under torchrun, or another launcher that sets the same variables, all processes call this and
    share each batch.

    Args:
        config: The whole config; it is stored in the run folder and in every checkpoint.
        out: The run folder.

    Returns:
        How the run ended.

    Raises:
        UserError: Bad input of any kind, before work starts where it can be known.
        TrainingStopped: The loss or a gradient became non-finite.
        LostProcessError: Another process of the job ended or hung.
    """
    device = set_up_device(config.training.device, config.training.precision).device
    with open_team(device.type, config.distributed.timeout_minutes) as team:
        return _run(config, out, team)


def _run(config: PretrainConfig, out: Path, team: Team) -> TrainingResult:
    team.on_main(lambda: check_run_folder(config, out))
    parts = build_objective(config)
    store = CheckpointStore(
        out / "checkpoints", config.training.keep_last, config.training.keep_every_steps
    )
    loader = build_loader(config, out, team)
    _LOGGER.info("batches waiting in memory: at most %.1f MB", loader.queue_bytes / 1e6)
    preparer = BatchPreparer(config, team)
    try:
        trainer = Trainer(
            objective=parts.objective,
            data=loader,
            prepare=preparer,
            look=preparer.look,
            optim=config.optim,
            training=config.training,
            seed=config.seed,
            ema=config.ema if config.objective.name == "vjepa" else None,
            modules=parts.modules,
            folder=RunFolder(out, store, checkpoint_config(config)),
            sinks=run_folder_sinks(out) if team.is_main else [],
            evaluators=list(_evaluators(config, parts, team)),
            alarm=collapse_alarm,
            description="pretraining",
            team=team,
            distributed=config.distributed,
            has_unused=config.model.predictor.num_mask_tokens > len(config.masking.masks),
        )
        if config.continue_from is not None and team.on_main(store.latest) is None:
            trainer.start_from(continue_from(config.continue_from, parts, trainer))
        # Only now: a run that could not even begin must not claim the folder for its config.
        team.on_main(lambda: write_run_config(config, out))
        with log_file(out / LOG_FOLDER / f"rank_{team.rank:03d}.log"):
            return trainer.train()
    finally:
        loader.close()


def checkpoint_config(config: PretrainConfig) -> dict[str, Any]:
    """What every checkpoint's `config.json` says of its model and its run."""
    return {
        "objective": config.objective.name,
        "model": to_dict(config.model),
        "run": to_dict(config),
    }


def _evaluators(config: PretrainConfig, parts: PretrainParts, team: Team) -> Iterator[OnlineProbe]:
    probe = config.online_probe
    if probe is None:
        return
    transform = config.data.transform
    view = ViewConfig(crop_size=transform.crop_size, resize=transform.resize)
    setup = set_up_device(config.training.device, config.training.precision)
    yield OnlineProbe(parts.evaluated, probe, config.data.clip, view, setup, config.seed, team=team)


def continue_from(config: ContinueConfig, parts: PretrainParts, trainer: Trainer) -> int:
    """Load another checkpoint's weights and, if wanted, its optimiser; the step to go on from.

    Args:
        config: What to load.
        parts: Receives the weights.
        trainer: Its optimiser receives the moments.

    Returns:
        Updates that the weights have behind them; 0 without the optimiser.

    Raises:
        UserError: The checkpoint is missing, damaged, of another shape or objective.
    """
    optimizer, trained = trainer.learner.optimizer, trainer.learner.modules
    if config.path.is_dir():
        folder = find_checkpoint(config.path)
        store = CheckpointStore(folder.parent)
        moments = optimizer if config.keep_optimizer else None
        loaded = store.load(folder, parts.modules, moments, trainer.team)
        step = loaded.step
        _LOGGER.info("continuing from %s (step %d)", folder, step)
    else:
        _load_released(config.path, parts)
        state = released_training_state(config.path) if config.keep_optimizer else None
        step = state.step if state else 0
        if state is not None:
            names = parameter_names(trained)
            by_name = {names[place]: entry for place, entry in state.optimizer["state"].items()}
            load_optimizer_state(optimizer, trained, by_name, str(config.path))
    if not config.keep_optimizer:
        return 0
    return step if config.step is None else config.step


def _load_released(path: Path, parts: PretrainParts) -> None:
    """Put the weights of an authors' file into the model, which must have its sizes."""
    if "target_encoder" not in parts.modules:
        raise UserError(f"{path}: holds feature prediction; set objective.name to vjepa")
    encoder = parts.evaluated.config
    loaded = read_model(path, num_heads=encoder.heads)
    different = diff(loaded.model.config, parts.objective.config)
    if different:
        raise UserError(
            f"{path}: is of another model than the config's `model` ({'; '.join(different)})"
        )
    _LOGGER.info("%s", loaded.report)
    for name, module in parts.modules.items():
        load_whole(module, loaded.model.get_submodule(name).state_dict())
