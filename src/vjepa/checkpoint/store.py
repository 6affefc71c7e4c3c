"""The checkpoints of a training run: written beside the training, kept, verified, loaded."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.folder import (
    CONFIG_FILE,
    MANIFEST_FILE,
    STATE_FOLDER,
    TRAINER_FILE,
    WEIGHTS_FILE,
    explained_version,
    explained_writing,
    read_json,
    read_weights,
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
    load_whole,
    named_parameters,
    optimizer_state,
    read_state,
    whole,
    write_state,
)
from vjepa.errors import UserError
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.files import PARTIAL_SUFFIX, atomic_folder

_LOGGER = logging.getLogger(__name__)
_PARTNERS_SECONDS = 60.0
_UNTOUCHED = "earlier checkpoints are untouched: free some space (or mend the disk) and resume"


class CheckpointStore:
    """The `checkpoints/` folder of one run, written by all its processes together.

    A checkpoint appears by one rename after all of it is on the disk: until then the one before
    stays the newest.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 2,
        keep_every_steps: int | None = None,
        *,
        group: ProcessGroup | None = None,
        background: bool = False,
    ) -> None:
        """Nothing is touched before the first save.

        The newest `keep_last` stay, and for ever those at multiples of `keep_every_steps`. Every
        process of the `group` makes a store; None: this one is alone. In the `background` a copy is
        written while training goes on.
        """
        if keep_last < 1:
            raise ValueError(f"keep_last: must be at least 1, got {keep_last}")
        self.folder = folder
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._group, self._background = group or ProcessGroup(), background
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` updates."""
        return self.folder / f"step_{step:08d}"

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return next(reversed(step_folders(self.folder).values()), None)

    def clean(self) -> Path | None:
        """Remove what an interrupted save or removal has left; the newest complete checkpoint.

        Only the run that writes calls this. UserError: a newer one was removed in part, by others,
        and its step would be trained to before its name is found to be taken.
        """
        self._remove_leftovers()
        whole = step_folders(self.folder)
        newest = max(whole, default=-1)
        for path in self.folder.glob("step_*"):
            number = path.name.removeprefix("step_")
            if number.isdecimal() and int(number) > newest:
                on = f"from {whole[newest].name}" if whole else "from the start"
                raise UserError(
                    f"{path}: holds neither {WEIGHTS_FILE} nor {MANIFEST_FILE}; restore it from a "
                    f"copy, or remove it to go on {on}"
                )
        return whole.get(newest)

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.glob(f"step_*{PARTIAL_SUFFIX}"):
            _LOGGER.warning("removing the incomplete checkpoint %s", leftover)
            try:
                shutil.rmtree(leftover)
            except OSError as error:  # a file in use on a network drive: nothing depends on it
                _LOGGER.warning("%s could not be removed: %s", leftover, error)

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint after the one before is complete; remove those that need not stay.

        Sharded weights are gathered in the main process, one tensor at a time; every process writes
        its part of the optimiser's state, the main process all else. Returned is where it stands,
        or will stand.

        Args:
            modules: All weights by name; the trained ones under the optimiser's names.
            config: ``objective``, ``model`` and ``run`` for `config.json` (plain JSON types).
            extra: What the trainer wants back at the resume (plain JSON types).

        Raises:
            UserError: The step has a checkpoint already (it is never overwritten), or the disk is
                full, or the one before could not be written; earlier ones stay as they are.
        """
        self.finish()
        weights: dict[str, Tensor] = {}
        for name, tensor in nn.ModuleDict(modules).state_dict().items():
            full = whole(tensor)
            if self._group.is_main:
                weights[name] = full.to("cpu", copy=self._background or full is not tensor)
        moments = optimizer_state(optimizer, modules)
        if self._background:
            moments = {name: cpu_copies(values) for name, values in moments.items()}
        write = partial(self._write, step, weights, moments, config, extra)
        if self._background:
            self._failure = RuntimeError("writing a checkpoint failed; its traceback is above")
            # A daemon: it must not keep a process alive whose partners have gone.
            self._thread = threading.Thread(
                target=self._write_aside, args=(write,), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            write(self._group)
        return self.path(step)

    def finish(self, *, together: bool = True) -> None:
        """Wait until nothing is being written; a failure in any process is raised in all.

        Not `together`, where the others do not come to this: a failure has been said in the log.
        """
        if self._thread is None:
            return
        # Where others do not come to this, perhaps they are gone, and the thread waits for them.
        is_alone = self._group.size == 1
        self._thread.join(None if together or is_alone else _PARTNERS_SECONDS)
        self._thread, failure = None, self._failure
        if not together:
            return
        if failure is not None and not isinstance(failure, UserError):
            raise failure
        self._group.agree([] if failure is None else [str(failure)])

    def _write_aside(self, write: Callable[[ProcessGroup], None]) -> None:
        try:
            # Messages of this thread must not meet those of the training thread.
            write(replace(self._group, host_group=self._group.save_group))
            self._failure = None
        except (UserError, RuntimeError, OSError) as failure:  # raised again by `finish`
            _LOGGER.warning("%s", failure)
            self._failure = failure

    def _write(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        moments: Moments,
        config: Mapping[str, Any],
        extra: Mapping[str, Any],
        group: ProcessGroup,
    ) -> None:
        target = self.path(step)
        explained = partial(explained_writing, target, _UNTOUCHED, "the checkpoint ")

        def begin() -> Path:
            if target.exists():
                raise UserError(
                    f"{target}: exists already and is never overwritten; remove it first"
                )
            with explained():
                self._remove_leftovers()
                aside = open_folder.enter_context(atomic_folder(target))
                (aside / STATE_FOLDER).mkdir()
                write_weights(aside, weights, step, config)
                write_json(aside / TRAINER_FILE, {"step": step, "extra": dict(extra)})
            return aside

        def finish() -> None:
            with explained():
                write_manifest(aside)
                open_folder.close()
            self._prune()

        # Holds, in the main process, the folder that is renamed when all have written their part.
        with explained(), ExitStack() as open_folder:
            aside = group.on_main(begin)
            write_state(aside / STATE_FOLDER, moments, group)
            group.on_main(finish)

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


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None,
    group: ProcessGroup,
) -> tuple[int, dict[str, Any]]:
    """Verify a checkpoint of a training run and load it.

    It may have been written by another number of processes, sharded or not. `modules` are those of
    :meth:`CheckpointStore.save`; without an `optimizer` only weights are loaded, which a folder of
    weights alone (saved or converted) will do for. Returned are the updates done and what the
    trainer stored for itself.

    Raises:
        UserError: Truncated, altered, foreign, or of another shape; the message names the file and,
            where an older checkpoint is there, how to go back to it. Nothing was loaded then; only
            where it is the optimiser's state that does not fit, the weights were.
    """
    bare = not has_state(folder)
    if bare and optimizer is not None:
        raise UserError(
            f"{folder}: holds weights alone and no optimiser state; start from them with "
            "keep_optimizer false"
        )
    if not bare:
        group.on_main(lambda: _verify(folder))
    path = folder / WEIGHTS_FILE
    with explained_version(str(folder), read_json(folder / CONFIG_FILE).get("version")):
        remedy = "nothing was loaded, use the model config stored beside it in config.json"
        load_whole(modules, read_weights(path), str(path), remedy)
    trainer = {"step": 0, "extra": {}} if bare else read_json(folder / TRAINER_FILE)
    if optimizer is not None:
        source = folder / STATE_FOLDER
        state = read_state(source, named_parameters(modules), group)
        load_optimizer_state(optimizer, modules, state, str(source))
    return int(trainer["step"]), dict(trainer["extra"])


def has_state(folder: Path) -> bool:
    """Whether a folder is a training run's checkpoint (perhaps damaged), not weights alone."""
    return (folder / MANIFEST_FILE).exists() or (folder / STATE_FOLDER).exists()


def _verify(folder: Path) -> None:
    try:
        verify_checkpoint(folder)
    except UserError as error:
        remedy = "restore it from a copy; there is no older checkpoint to go back to"
        for step, path in step_folders(folder.parent).items():
            if path.name < folder.name:
                remedy = (
                    f"restore it from a copy, or remove {folder} to resume from step {step} "
                    f"({path.name})"
                )
        raise UserError(f"{error}; {remedy}") from error
