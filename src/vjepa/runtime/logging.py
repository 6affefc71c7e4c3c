"""Where log lines go: coloured by rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, TextIO

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
    """Send the package's log lines to stderr; calling it again replaces the earlier set-up.

    Args:
        verbose: Show debug lines too.
        stream: Where plain lines go; None is stderr. A terminal gets rich's colours.
    """
    logger = logging.getLogger("vjepa")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_make_handler(stream or sys.stderr))
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Otherwise a root handler of the embedding program would print each line a second time.
    logger.propagate = False


def _make_handler(stream: TextIO) -> logging.Handler:
    if stream is sys.stderr and stream.isatty():
        from rich.logging import RichHandler

        return RichHandler(
            console=shared_console(), show_path=False, rich_tracebacks=False, markup=False
        )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(_PLAIN_FORMAT, datefmt="%H:%M:%S"))
    return handler
