"""Writing checkpoints beside the training, and telling the trainer when that fails."""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from vjepa.checkpoint.folder import (
    CONFIG_FILE,
    STATE_FOLDER,
    TRAINER_FILE,
    WEIGHTS_FILE,
    opened_weights,
    read_json,
    step_folder,
    step_folders,
    verify_checkpoint,
    write_json,
    write_manifest,
    write_weights,
)
from vjepa.checkpoint.state import (
    Moments,
    cpu_copies,
    load_optimizer_state,
    named_parameters,
    optimizer_state,
    part_like,
    read_state,
    whole,
    write_state,
)
from vjepa.checkpoint.strict import compare, shapes
from vjepa.errors import UserError
from vjepa.runtime.distributed import Team
from vjepa.runtime.files import PARTIAL_SUFFIX, atomic_folder

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
    weights: dict[str, Tensor]
    """Whole weights by full name, in the main process; empty in the others."""
    state: Moments
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
        """Take it, all processes together; sharded weights are gathered, one tensor at a time.

        Args:
            step: Optimiser updates done.
            modules: All weights by name; the trained ones under the optimiser's names.
            optimizer: From :func:`vjepa.training.build_optimizer`.
            config, extra: As in the snapshot.
            team: All processes.
            copy: Training goes on while this is written: it must not share memory, and is on the
                CPU.
        """
        weights: dict[str, Tensor] = {}
        for name, tensor in _tensors_of(modules).items():
            full = whole(tensor)
            if team.is_main:
                weights[name] = full.to("cpu", copy=copy or full is not tensor)
        state = optimizer_state(optimizer, modules)
        if copy:
            state = {name: cpu_copies(moments) for name, moments in state.items()}
        return cls(step, weights, state, config, extra)


def _tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All tensors of modules; ``x`` of module ``encoder`` is called ``encoder.x``."""
    return {
        f"{module_name}.{name}": tensor
        for module_name, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


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
        return step_folder(self.folder, step)

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return list(step_folders(self.folder))

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return next(reversed(step_folders(self.folder).values()), None)

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
        # Holds, in the main process, the folder that is renamed when all have written their part.
        with _explained_failure(target), ExitStack() as open_folder:
            partial = team.on_main(lambda: self._begin(target, snapshot, open_folder))
            write_state(partial / STATE_FOLDER, snapshot.state, team)
            team.on_main(lambda: self._finish(partial, target, open_folder))
        return target

    def _begin(self, target: Path, snapshot: Snapshot, open_folder: ExitStack) -> Path:
        """Write everything but the optimiser's state; the folder that takes it."""
        if target.exists():
            raise UserError(f"{target}: exists already and is never overwritten; remove it first")
        with _explained_failure(target):
            self.clean()
            partial = open_folder.enter_context(atomic_folder(target))
            (partial / STATE_FOLDER).mkdir()
            step = snapshot.step
            write_weights(partial, snapshot.weights, step, snapshot.config)
            write_json(partial / TRAINER_FILE, {"step": step, "extra": dict(snapshot.extra)})
        return partial

    def _finish(self, partial: Path, target: Path, open_folder: ExitStack) -> None:
        with _explained_failure(target):
            write_manifest(partial)
            open_folder.close()
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

        Raises:
            UserError: Truncated, altered, foreign, or of another shape; the message names the file
                and, where an older checkpoint is there, how to go back to it.
        """
        team.on_main(lambda: self._verify(folder))
        trainer = read_json(folder / TRAINER_FILE)
        _read_into(modules, folder / WEIGHTS_FILE)
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
            remedy = "restore it from a copy; there is no older checkpoint to go back to"
            for step, path in step_folders(self.folder).items():
                if path.name < folder.name:
                    remedy = (
                        f"restore it from a copy, or remove {folder} to resume from step {step} "
                        f"({path.name})"
                    )
            raise UserError(f"{error}; {remedy}") from error

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
        for step, path in list(step_folders(self.folder).items())[: -self._keep_last]:
            if every is None or step % every:
                # Under the name of an incomplete one first: a removal that is cut short must not
                # leave something that looks like a checkpoint.
                removed = path.with_name(path.name + PARTIAL_SUFFIX)
                try:
                    path.rename(removed)
                except OSError as error:  # what should be saved is saved
                    _LOGGER.warning("%s could not be removed: %s", path, error)
                    continue
                shutil.rmtree(removed, ignore_errors=True)


def _read_into(modules: Mapping[str, nn.Module], path: Path) -> None:
    """Read weights into modules, sharded or not; every name and shape must fit."""
    targets = _tensors_of(modules)
    with opened_weights(path) as file, torch.no_grad():
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        report = compare(str(path), "weights", found, shapes(targets))
        report.require_complete("use the model config stored beside it in config.json")
        for name, target in targets.items():
            target.copy_(part_like(file.get_tensor(name), target))


@contextmanager
def _explained_failure(folder: Path) -> Generator[None]:
    """Turn what goes wrong while a checkpoint is written into one line for people."""
    try:
        yield
    # DCP's exception derives from BaseException and hides the OSError behind it.
    except (OSError, SafetensorError, CheckpointException) as error:
        full = (
            getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            # The libraries below wrap or lose the error number; text and free space are left.
            or "No space left" in str(error)
            or (folder.parent.is_dir() and shutil.disk_usage(folder.parent).free < 2**20)
        )
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: the checkpoint could not be written: {'the disk is full' if full else said}"
            "; earlier checkpoints are untouched: free some space (or mend the disk) and resume"
        ) from error


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
