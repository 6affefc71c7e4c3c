"""Where metrics go: `metrics.jsonl` (complete, one record a line) and TensorBoard events.

After a resume the file is cut back to the resumed step, so that it reads as if the run had never
stopped: no step is missing and none stands there twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError

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


class MetricSink(Protocol):
    """A place for records."""

    def start(self, completed_steps: int) -> None:
        """Open for a run that has done so many steps; records beyond them are dropped."""
        ...

    def write(self, record: MetricRecord) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Write out everything."""
        ...


class JsonlSink:
    """`metrics.jsonl`: each line an object with ``kind``, ``step`` and the values.

    A value that is not finite is written as null, so that every line is valid JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def start(self, completed_steps: int) -> None:
        """Drop lines beyond `completed_steps` and a line that a crash has cut short."""
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            _truncate(self._path, completed_steps)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, record: MetricRecord) -> None:
        """Append one line and hand it to the operating system."""
        if self._file is None:
            raise RuntimeError("start() the sink before writing to it")
        line = {"kind": record.kind, "step": record.step}
        line |= {name: _plain(value) for name, value in record.values.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            # Closing tries to write the rest once more, which must not hide the first error.
            with suppress(OSError):
                self._file.close()
            self._file = None
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoardSink:
    """TensorBoard event files: numbers as scalars ``<kind>/<name>``, pictures as image grids."""

    def __init__(self, folder: Path) -> None:
        """Check that TensorBoard can be imported.

        Raises:
            UserError: It is not installed.
        """
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise UserError(
                "tensorboard is not installed, so no event files can be written; metrics.jsonl "
                "holds everything (pip install tensorboard, or leave it off)"
            ) from None
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def start(self, completed_steps: int) -> None:
        """Open a new event file that hides what older ones say beyond `completed_steps`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        purge = completed_steps + 1 if completed_steps else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def write(self, record: MetricRecord) -> None:
        """Add the numbers of a record; a warning becomes text."""
        writer = self._opened()
        try:
            for name, value in record.values.items():
                if isinstance(value, str):
                    writer.add_text(f"{record.kind}/{name}", value, record.step)
                elif isinstance(value, int | float):
                    writer.add_scalar(f"{record.kind}/{name}", value, record.step)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def write_images(self, tag: str, images: NDArray[np.uint8], step: int) -> None:
        """Add pictures as one grid.

        Args:
            tag: Name of the grid.
            images: uint8 [n, height, width, 3], RGB.
            step: The update that they belong to.
        """
        self._opened().add_images(tag, images, step, dataformats="NHWC")

    def close(self) -> None:
        """Write out the events."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                _LOGGER.warning("%s", _unwritable(self._folder, error))
            self._writer = None

    def _opened(self) -> SummaryWriter:
        if self._writer is None:
            raise RuntimeError("start() the sink before writing to it")
        return self._writer


def run_folder_sinks(folder: Path) -> list[MetricSink]:
    """A run folder's sinks: `metrics.jsonl`, and event files where TensorBoard is installed."""
    sinks: list[MetricSink] = [JsonlSink(folder / "metrics.jsonl")]
    try:
        sinks.append(TensorBoardSink(folder))
    except UserError as reason:
        _LOGGER.warning("%s", reason)
    return sinks


def read_metrics(path: Path) -> list[MetricRecord]:
    """Read a `metrics.jsonl`.

    Args:
        path: The file.

    Returns:
        Its records in order; a last line that a crash has cut short is left out. Null is NaN.

    Raises:
        UserError: The file is missing, or a line before the last is no record.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder that has been trained in")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise UserError(f"{path}: line {number} is not a metric record; mend or remove it")
    return records


def _parse(line: str) -> MetricRecord | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    if "kind" not in values:
        return None
    kind, step = str(values.pop("kind")), int(values.pop("step"))
    return MetricRecord(kind, step, {k: math.nan if v is None else v for k, v in values.items()})


def _truncate(path: Path, completed_steps: int) -> None:
    """Keep the lines up to `completed_steps`; the old file stays until the new one is complete."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _parse(line)
        if record is not None and record.step <= completed_steps:
            kept.append(line + "\n")
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written: {error.strerror}; free some space and resume")


def _plain(value: Any) -> Any:
    """The value for JSON: null for what is not finite."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
