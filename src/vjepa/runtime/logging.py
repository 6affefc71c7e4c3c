"""Log lines for people, and a run's numbers: `metrics.jsonl` and TensorBoard events.

After a resume the file is cut back to the resumed step, so that it reads as if the run had never
stopped: no step is missing and none stands there twice.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import platform
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeGuard

from vjepa.errors import UserError
from vjepa.runtime.distributed import world
from vjepa.runtime.files import JsonLines, atomic_path, read_json_lines

if TYPE_CHECKING:
    from rich.console import Console
    from torch.utils.tensorboard import SummaryWriter


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
    logger.handlers.clear()
    stream = stream or sys.stderr
    if stream is sys.stderr and stream.isatty():
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=shared_console(), show_path=False, rich_tracebacks=False, markup=False
        )
    else:
        handler = _Lines(None if stream is sys.stderr else stream)
        handler.setFormatter(logging.Formatter(_PLAIN_FORMAT, "%H:%M:%S"))
    if rank := world().rank:
        # Of several equal processes one tells what goes on; the others only what goes wrong.
        handler.setLevel(logging.WARNING)
        handler.setFormatter(logging.Formatter(f"[process {rank}] {_PLAIN_FORMAT}", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Otherwise a root handler of the embedding program would print each line a second time.
    logger.propagate = False


class _Lines(logging.StreamHandler):
    """To a stream as long as it is open, else to what stderr is when a line is written."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._given = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a program without stderr has none."""
        given = self._given
        self.stream = sys.stderr if given is None or given.closed else given
        if self.stream is not None and not self.stream.closed:
            super().emit(record)


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


_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricRecord:
    """Values that belong to one step."""

    kind: str  # ``train`` (means over an interval), ``health``, ``evaluation``, ``warning`` ...
    step: int  # the update that the values belong to; for an interval its last one
    values: Mapping[str, Any] = field(default_factory=dict)
    """Numbers by name; a warning holds its text as ``message``."""


class MetricLog:
    """`metrics.jsonl`: each line an object with ``kind``, ``step`` and the values.

    A value that is not finite is written as null, so that every line is valid JSON. With `events`
    numbers also go to TensorBoard as scalars ``<kind>/<name>``, into the file's folder; where
    TensorBoard is not installed, a warning says so.
    """

    def __init__(self, path: Path, *, events: bool = False) -> None:
        self._path = path
        if events:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError:
                events = False
                _LOGGER.warning(
                    "tensorboard is not installed, so no event files can be written; metrics.jsonl "
                    "holds everything (pip install tensorboard, or leave it off)"
                )
        self._events = events
        self._lines: JsonLines | None = None
        self._writer: SummaryWriter | None = None

    def start(self, completed_steps: int) -> None:
        """Open for a run that has done so many steps; records beyond them are dropped."""
        self.close()
        if self._path.exists():
            with atomic_path(self._path) as aside, JsonLines(aside) as kept:
                for _, line in read_json_lines(self._path):
                    if _is_record(line) and line["step"] <= completed_steps:
                        kept.append(line)
        self._lines = JsonLines(self._path)
        if self._events:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._path.parent), purge_step=completed_steps + 1)

    def write(self, record: MetricRecord) -> None:
        """Add a record; UserError if the disk is full or gone."""
        if self._lines is None:
            raise RuntimeError("start() the log before writing to it")
        line = {"kind": record.kind, "step": record.step}
        self._lines.append(line | {name: _plain(value) for name, value in record.values.items()})
        if self._writer is None:
            return
        try:
            for name, value in record.values.items():
                if isinstance(value, str):
                    self._writer.add_text(f"{record.kind}/{name}", value, record.step)
                elif isinstance(value, int | float):
                    self._writer.add_scalar(f"{record.kind}/{name}", value, record.step)
        except OSError as error:
            raise UserError(
                f"{self._path.parent}: cannot be written ({error.strerror or error}); free some "
                "space and run the same command again"
            ) from error

    def close(self) -> None:
        """Bring everything to the disk."""
        lines, writer = self._lines, self._writer
        self._lines = self._writer = None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                _LOGGER.warning("%s: no event files: %s", self._path.parent, error.strerror)
        if lines is not None:
            lines.close()


def read_metrics(path: Path) -> list[MetricRecord]:
    """The records of a `metrics.jsonl` in order; null is NaN."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder that has been trained in")
    records = []
    for number, line in read_json_lines(path):
        if not _is_record(line):
            raise UserError(f"{path}: line {number} is not a metric record; mend or remove it")
        kind, step = str(line.pop("kind")), line.pop("step")
        values = {name: math.nan if value is None else value for name, value in line.items()}
        records.append(MetricRecord(kind, step, values))
    return records


def _is_record(line: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    return line is not None and "kind" in line and isinstance(line.get("step"), int)


def _plain(value: Any) -> Any:
    """The value for JSON: null for what is not finite."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
