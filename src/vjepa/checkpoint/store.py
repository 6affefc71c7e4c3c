"""Writing checkpoints beside the training, and telling the trainer when that fails."""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.optimizer_state import load_optimizer_state, named_parameters, optimizer_state
from vjepa.checkpoint.state import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PARTIAL_SUFFIX,
    STATE_FOLDER,
    TRAINER_FILE,
    explained_failure,
    partial_folder,
    publish,
    read_json,
    read_model,
    read_state,
    verify_checkpoint,
    write_json,
    write_model,
    write_state,
)
from vjepa.errors import UserError
from vjepa.runtime.distributed import Team
from vjepa.runtime.sharding import cpu_copies, whole
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


@dataclass(frozen=True)
class Snapshot:
    """What one checkpoint will hold."""

    step: int
    """Optimiser updates done."""
    weights: dict[str, dict[str, Tensor]]
    """Whole weights by module, in the main process; empty in the others."""
    state: dict[str, dict[str, Tensor]]
    """The optimiser's moments by parameter, sharded as the parameters are."""
    config: Mapping[str, Any]
    """``objective``, ``model`` and ``run`` for `config.json` (plain JSON types)."""
    extra: Mapping[str, Any]
    """What the trainer wants back at the resume (plain JSON types)."""

    @classmethod
    def take(
        cls,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        team: Team,
        copy: bool = False,
    ) -> Snapshot:
        """Take it; sharded weights are gathered, one tensor at a time.

        Args:
            step: Optimiser updates done.
            modules: All weights by name; the trained ones under the optimiser's names.
            optimizer: From :func:`vjepa.training.build_optimizer`.
            config, extra: As in the snapshot.
            team: All processes, which must take it together.
            copy: Training goes on while this is written, so that it must not share memory.

        Returns:
            The snapshot, on the CPU where it was copied.
        """
        weights: dict[str, dict[str, Tensor]] = {}
        for module_name, module in modules.items():
            for name, tensor in module.state_dict().items():
                full = whole(tensor)
                if team.is_main:
                    kept = full.to("cpu", copy=copy or full is not tensor)
                    weights.setdefault(module_name, {})[name] = kept
        state = optimizer_state(optimizer, modules)
        if copy:
            state = {name: cpu_copies(moments) for name, moments in state.items()}
        return cls(step, weights, state, config, extra)


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

    def save(self, snapshot: Snapshot, team: Team) -> Path:
        """Write a checkpoint, then remove the ones that need not stay.

        Every process writes its part of the optimiser's state, the main process all else.

        Args:
            snapshot: What to write.
            team: All processes; its host group must be free for this thread.

        Returns:
            The checkpoint's folder.

        Raises:
            UserError: The step has a checkpoint already (it is never overwritten), or the disk is
                full; earlier checkpoints stay as they are.
        """
        target = self.path(snapshot.step)
        try:
            team.on_main(lambda: self._begin(target, snapshot))
            with explained_failure(target):
                write_state(partial_folder(target) / STATE_FOLDER, snapshot.state, team)
            team.on_main(lambda: self._finish(target))
        except UserError:
            if team.is_main:
                shutil.rmtree(partial_folder(target), ignore_errors=True)
            raise
        return target

    def _begin(self, target: Path, snapshot: Snapshot) -> None:
        """Write everything but the optimiser's state."""
        if target.exists():
            raise UserError(f"{target}: exists already and is never overwritten; remove it first")
        partial = partial_folder(target)
        with explained_failure(target):
            self.clean()
            (partial / STATE_FOLDER).mkdir(parents=True)
            write_model(partial / MODEL_FILE, snapshot.weights)
            step = snapshot.step
            header = {"format": CONFIG_FORMAT, "version": __version__, "step": step}
            write_json(partial / CONFIG_FILE, header | dict(snapshot.config))
            write_json(partial / TRAINER_FILE, {"step": step, "extra": dict(snapshot.extra)})

    def _finish(self, target: Path) -> None:
        with explained_failure(target):
            publish(target)
        self._prune()

    def load(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | None,
        team: Team,
    ) -> LoadedCheckpoint:
        """Verify a checkpoint and load it: completely, or not at all.

        It may have been written by another number of processes, sharded or not.

        Args:
            folder: From :meth:`latest` or :meth:`path`.
            modules: As they were given to :meth:`Snapshot.take`; every name and shape must fit.
            optimizer: Takes the stored moments; None: weights only.
            team: All processes; the main one verifies.

        Returns:
            Step, config and extra.

        Raises:
            UserError: Truncated, altered, foreign, or of another shape; the message names the file
                and, where an older checkpoint is there, how to go back to it.
        """
        team.on_main(lambda: self._verify(folder))
        trainer = read_json(folder / TRAINER_FILE)
        read_model(folder / MODEL_FILE, modules)
        if optimizer is not None:
            source = folder / STATE_FOLDER
            state = read_state(source, named_parameters(modules), team)
            load_optimizer_state(optimizer, modules, state, str(source))
        config = read_json(folder / CONFIG_FILE)
        return LoadedCheckpoint(int(trainer["step"]), config, dict(trainer["extra"]))

    def _verify(self, folder: Path) -> None:
        try:
            verify_checkpoint(folder)
        except UserError as error:
            raise UserError(f"{error}; {self._remedy(folder)}") from error

    def clean(self) -> None:
        """Remove what an interrupted save or removal has left; only the writing run calls this."""
        if self.folder.is_dir():
            for leftover in self.folder.glob(f"step_*{PARTIAL_SUFFIX}"):
                _LOGGER.warning("removing the incomplete checkpoint %s", leftover)
                shutil.rmtree(leftover)

    def clean_latest(self) -> Path | None:
        """The newest complete checkpoint, after what was left incomplete has been removed."""
        self.clean()
        return self.latest()

    def _prune(self) -> None:
        every = self._keep_every_steps
        for step in self.steps()[: -self._keep_last]:
            if every is None or step % every:
                # Under the name of an incomplete one first: a removal that is cut short must not
                # leave something that looks like a checkpoint.
                doomed = partial_folder(self.path(step))
                try:
                    self.path(step).rename(doomed)
                except OSError as error:  # what should be saved is saved
                    _LOGGER.warning("%s could not be removed: %s", self.path(step), error)
                    continue
                shutil.rmtree(doomed, ignore_errors=True)

    def _remedy(self, folder: Path) -> str:
        older = [step for step in self.steps() if self.path(step).name < folder.name]
        if older:
            return (
                f"restore it from a copy, or remove {folder} to resume from step {older[-1]} "
                f"({self.path(older[-1]).name})"
            )
        return "restore it from a copy; there is no older checkpoint to go back to"


class CheckpointWriter:
    """Writes one snapshot at a time, in the training thread or in one of its own.

    In the background a checkpoint still appears by one rename after all of it is on the disk: until
    then the one before stays the newest.
    """

    def __init__(self, store: CheckpointStore, team: Team, *, background: bool) -> None:
        """Nothing is written yet.

        Args:
            store: Takes the checkpoints.
            team: All processes; each makes a writer.
            background: Training goes on while a checkpoint is written.
        """
        self.background = background
        self._store, self._team = store, team
        self._thread: threading.Thread | None = None
        self._is_saved = False
        self._failure: UserError | RuntimeError | OSError | None = None

    def write(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, after the one before is complete.

        Args:
            snapshot: Must be a copy if this writes in the background.

        Returns:
            Where it stands, or will stand.

        Raises:
            UserError: This one, or the one before, could not be written.
        """
        self.finish()
        if not self.background:
            return self._store.save(snapshot, self._team)
        self._is_saved, self._failure = False, None
        # A daemon: it must not keep a process alive whose partners have gone.
        self._thread = threading.Thread(
            target=self._save, args=(snapshot,), name="checkpoint", daemon=True
        )
        self._thread.start()
        return self._store.path(snapshot.step)

    def finish(self) -> None:
        """Wait until nothing is being written.

        Raises:
            UserError: The last checkpoint could not be written, in any process.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure = self._failure
        if failure is not None and not isinstance(failure, UserError):
            raise failure
        if failure is None and not self._is_saved:
            raise RuntimeError("the thread that writes checkpoints died; its traceback is above")
        self._team.agree([] if failure is None else [str(failure)])

    def _save(self, snapshot: Snapshot) -> None:
        try:
            # Messages of this thread must not meet those of the training thread.
            self._store.save(snapshot, replace(self._team, host_group=self._team.save_group))
            self._is_saved = True
        except (UserError, RuntimeError, OSError) as failure:  # raised again by `finish`
            _LOGGER.warning("%s", failure)
            self._failure = failure
