"""Writing checkpoints beside the training, and telling the trainer when that fails."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

from vjepa.errors import UserError
from vjepa.runtime.distributed import Team
from vjepa.training.checkpoint import CheckpointStore, Snapshot

_LOGGER = logging.getLogger(__name__)


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
