"""One run folder, one writing process."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vjepa.errors import UserError


@contextmanager
def locked_folder(folder: Path) -> Generator[None]:
    """Hold a folder for this process, so that the same command started twice spoils nothing.

    The lock belongs to the process: the system gives it back however the process ends, and worker
    processes do not inherit it. On Windows nothing is locked.

    Args:
        folder: The run folder; must exist. The lock is the file `.lock` in it.

    Raises:
        UserError: Another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is training in this folder; "
                "wait for it, stop it, or give another --out"
            ) from None
        yield
