"""Where log lines go: coloured by rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import functools
import logging
import os
import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vjepa.runtime.distributed import world

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@functools.cache
def shared_console() -> Console:
    """The one console on stderr that log lines and progress bars share.

    Sharing it lets a log line appear above a running bar instead of through it.
    """
    from rich.console import Console

    return Console(stderr=True)


def configure_logging(verbose: bool = False, stream: TextIO | None = None) -> None:
    """Send the package's log lines to `stream`, or stderr; called again it replaces the set-up.

    stderr gets rich's colours if it is a terminal. `verbose` shows debug lines too.
    """
    logger = logging.getLogger("vjepa")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    stream = stream or sys.stderr
    if stream is sys.stderr and stream.isatty():
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=shared_console(), show_path=False, rich_tracebacks=False, markup=False
        )
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(_PLAIN_FORMAT, "%H:%M:%S"))
    if rank := world().rank:
        # Of several equal processes one tells what goes on; the others only what goes wrong.
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"[process {rank}] {_PLAIN_FORMAT}", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Otherwise a root handler of the embedding program would print each line a second time.
    logger.propagate = False


@contextmanager
def log_file(path: Path) -> Generator[None]:
    """Write the package's log lines to a file too; it begins with this process's host and number.

    A run started again goes on in the same file; its folder is made. A file that cannot be written,
    for example on a full disk, costs its lines and nothing else.
    """
    logger = logging.getLogger("vjepa")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _QuietFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        logger.warning("%s: no log file: %s", path, error.strerror)
        yield
        return
    handler.setFormatter(logging.Formatter(_PLAIN_FORMAT))
    logger.addHandler(handler)

    def say(level: int, text: str) -> None:
        """To the file alone, whatever level the logger has."""
        handler.handle(logging.LogRecord(logger.name, level, __file__, 0, text, (), None))

    say(logging.INFO, f"process {os.getpid()} on {platform.node()}")
    try:
        yield
        say(logging.INFO, "ends")
    except BaseException as error:
        say(logging.ERROR, f"ends with {type(error).__name__}: {error}")
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


class _QuietFile(logging.FileHandler):
    """A log file whose own failure is nobody else's."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Leave the line out: the same words stand on stderr."""
