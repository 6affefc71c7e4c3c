"""A run's numbers: `metrics.jsonl` (complete, one record a line) and TensorBoard events.

After a resume the file is cut back to the resumed step, so that it reads as if the run had never
stopped: no step is missing and none stands there twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from vjepa.errors import UserError
from vjepa.runtime.files import JsonLines, atomic_path, read_json_lines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricRecord:
    """Values that belong to one step."""

    kind: str
    """``train`` (means over an interval), ``health``, ``evaluation`` or ``warning``."""
    step: int
    """The update that the values belong to; for an interval its last one."""
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

            purge = completed_steps + 1 if completed_steps else None
            self._writer = SummaryWriter(str(self._path.parent), purge_step=purge)

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
