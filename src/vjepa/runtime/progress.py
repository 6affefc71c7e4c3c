"""Progress of anything longer than a few seconds: a bar on a terminal, else a line now and then.

Both show how far the work is, the time left and a note (loss, clips/s, data-wait share).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from vjepa.runtime.logging import shared_console

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """A display that is open from ``with`` to its end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def update(self, completed: int, note: str | None = None) -> None:
        """Show how much is done.

        Args:
            completed: Steps (files, clips, ...) done so far, of the total.
            note: A few words behind the bar; None keeps the last ones.
        """
        ...


def open_progress(
    description: str, total: int, completed: int = 0, stream: TextIO | None = None
) -> Progress:
    """Choose the display that suits the stream.

    Args:
        description: What is going on, for example ``"pretrain"``.
        total: Number of steps of the whole work.
        completed: Steps that an earlier run has done; they do not count for the time left.
        stream: Where to show it; None is stderr.

    Returns:
        A context manager with :meth:`Progress.update`.
    """
    target = stream or sys.stderr
    if target is sys.stderr and target.isatty():
        return RichProgress(description, total, completed)
    return PlainProgress(description, total, completed, target)


class PlainProgress:
    """One line every `interval` seconds, for logs and pipes."""

    def __init__(
        self,
        description: str,
        total: int,
        completed: int,
        stream: TextIO,
        interval: float = SECONDS_BETWEEN_LINES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._stream = description, total, stream
        self._interval, self._clock = interval, clock
        self._first, self._completed, self._note = completed, completed, ""
        self._started = self._last_line = clock()

    def __enter__(self) -> Self:
        """Start the clock."""
        self._started = self._last_line = self._clock()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the last line."""
        self._write(self._clock())

    def update(self, completed: int, note: str | None = None) -> None:
        """Remember the state; write a line when the last one is old enough."""
        self._completed = completed
        self._note = self._note if note is None else note
        now = self._clock()
        if now - self._last_line >= self._interval:
            self._write(now)

    def _write(self, now: float) -> None:
        self._last_line = now
        percent = 100 * self._completed / max(1, self._total)
        parts = [f"{self._description}: {self._completed}/{self._total} ({percent:.0f} %)"]
        done, elapsed = self._completed - self._first, now - self._started
        if done > 0 and self._completed < self._total:
            left = elapsed / done * (self._total - self._completed)
            parts.append(f"{format_seconds(left)} left")
        if self._note:
            parts.append(self._note)
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()


class RichProgress:
    """A bar with elapsed time and time left."""

    def __init__(self, description: str, total: int, completed: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=shared_console(),
            # Four times a second is enough for the eye and costs no measurable time.
            refresh_per_second=4,
        )
        self._task = self._bars.add_task(description, total=total, completed=completed, note="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bars.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._bars.stop()

    def update(self, completed: int, note: str | None = None) -> None:
        """Move the bar."""
        if note is None:
            self._bars.update(self._task, completed=completed)
        else:
            self._bars.update(self._task, completed=completed, note=note)


def format_seconds(seconds: float) -> str:
    """A duration for people: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 5 h``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
