"""One run folder, one writing process."""

from __future__ import annotations

import struct
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
                f"{folder}: another process is at work in this folder; "
                "wait for it, stop it, or give another --out"
            ) from None
        yield


_FLOCK = "hhqqi"
"""Linux's ``struct flock`` of 64-bit machines: type, whence, start, length, process."""


def holder_of(folder: Path) -> int | None:
    """Who holds a run folder, without touching the lock.

    Args:
        folder: A run folder.

    Returns:
        The process id, 0 if it runs on another machine; None if nobody holds it. Only Linux can
        tell; elsewhere always None.
    """
    file = folder / ".lock"
    if sys.platform != "linux" or not file.is_file():
        return None
    import fcntl

    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    with file.open("rb") as handle:
        answer = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, asked))
    return None if answer[0] == fcntl.F_UNLCK else max(0, answer[4])
