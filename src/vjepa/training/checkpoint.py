"""The checkpoints of a run: saved atomically, pruned, found again, loaded strictly.

``checkpoints/step_00000100/`` holds

* ``model.safetensors``: weights ``encoder.*``, ``target_encoder.*``, ``predictor.*`` (loadable by
  anyone), ``config.json``: what model and run they belong to;
* ``state/``: the optimiser's moments (torch.distributed.checkpoint) and ``trainer.json``;
* ``manifest.json``: size and SHA-256 of each file.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vjepa.errors import UserError
from vjepa.training.checkpoint_files import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PARTIAL_SUFFIX,
    STATE_FOLDER,
    TRAINER_FILE,
    read_json,
    read_model,
    read_state,
    verify_checkpoint,
    write_json,
    write_model,
    write_state,
    written_aside,
)
from vjepa.training.optim import load_optimizer_state, optimizer_state
from vjepa.version import __version__

CONFIG_FORMAT = "vjepa"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a checkpoint says besides weights and optimiser state."""

    step: int
    """Optimiser updates done."""
    config: dict[str, Any]
    """Content of `config.json`."""
    extra: dict[str, Any]
    """What the trainer stored for itself."""


class CheckpointStore:
    """The `checkpoints/` folder of one run."""

    def __init__(
        self, folder: Path, keep_last: int = 2, keep_every_steps: int | None = None
    ) -> None:
        """Nothing is touched before the first save.

        Args:
            folder: For example ``runs/a/checkpoints``; made when needed.
            keep_last: How many of the newest checkpoints stay, at least 1.
            keep_every_steps: Checkpoints at multiples of this stay for ever; None: none.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last: must be at least 1, got {keep_last}")
        self.folder = folder
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` updates."""
        return self.folder / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending; incomplete folders are left out."""
        if not self.folder.is_dir():
            return []
        matches = ((path, _STEP_FOLDER.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(int(m[1]) for path, m in matches if m and (path / MANIFEST_FILE).is_file())

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None.

        Whether its content is intact is checked when it is loaded: a damaged newest checkpoint is
        an error there, never a silent step back to an older one.
        """
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, then remove the ones that need not stay.

        Args:
            step: Optimiser updates done.
            modules: All weights by name; the trained ones under the optimiser's names.
            optimizer: From :func:`vjepa.training.build_optimizer`.
            config: ``objective``, ``model`` and ``run`` for `config.json` (plain JSON types).
            extra: What the trainer wants back at the resume (plain JSON types).

        Returns:
            The checkpoint's folder.

        Raises:
            UserError: The step has a checkpoint already (it is never overwritten), or the disk is
                full; earlier checkpoints stay as they are.
        """
        target = self.path(step)
        if target.exists():
            raise UserError(f"{target}: exists already and is never overwritten; remove it first")
        self.clean()
        with written_aside(target) as partial:
            write_model(partial / MODEL_FILE, modules)
            header = {"format": CONFIG_FORMAT, "version": __version__, "step": step}
            write_json(partial / CONFIG_FILE, header | dict(config))
            write_state(partial / STATE_FOLDER, optimizer_state(optimizer, modules))
            write_json(partial / TRAINER_FILE, {"step": step, "extra": dict(extra)})
        self._prune()
        return target

    def load(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | None,
    ) -> LoadedCheckpoint:
        """Verify a checkpoint and load it: completely, or not at all.

        Args:
            folder: From :meth:`latest` or :meth:`path`.
            modules: As they were given to :meth:`save`; every name and shape must fit.
            optimizer: Takes the stored moments; None: weights only.

        Returns:
            Step, config and extra.

        Raises:
            UserError: Truncated, altered, foreign, or of another shape; the message names the file
                and, where an older checkpoint is there, how to go back to it.
        """
        try:
            verify_checkpoint(folder)
        except UserError as error:
            raise UserError(f"{error}; {self._remedy(folder)}") from error
        weights = read_model(folder / MODEL_FILE, modules)
        trainer = read_json(folder / TRAINER_FILE)
        if optimizer is not None:
            state = read_state(folder / STATE_FOLDER)
            load_optimizer_state(optimizer, modules, state, str(folder / STATE_FOLDER))
        for name, module in modules.items():
            module.load_state_dict(weights[name])
        config = read_json(folder / CONFIG_FILE)
        return LoadedCheckpoint(int(trainer["step"]), config, dict(trainer["extra"]))

    def clean(self) -> None:
        """Remove what an interrupted save or removal has left; only the writing run calls this."""
        if self.folder.is_dir():
            for leftover in self.folder.glob(f"step_*{PARTIAL_SUFFIX}"):
                _LOGGER.warning("removing the incomplete checkpoint %s", leftover)
                shutil.rmtree(leftover)

    def _prune(self) -> None:
        every = self._keep_every_steps
        for step in self.steps()[: -self._keep_last]:
            if every is None or step % every:
                # Under the name of an incomplete one first: a removal that is cut short must not
                # leave something that looks like a checkpoint.
                doomed = self.path(step).with_name(self.path(step).name + PARTIAL_SUFFIX)
                self.path(step).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _remedy(self, folder: Path) -> str:
        older = [step for step in self.steps() if self.path(step).name < folder.name]
        if older:
            return (
                f"restore it from a copy, or remove {folder} to resume from step {older[-1]} "
                f"({self.path(older[-1]).name})"
            )
        return "restore it from a copy; there is no older checkpoint to go back to"
