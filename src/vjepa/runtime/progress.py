"""Progress of anything longer than a few seconds: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TextIO

from vjepa.runtime.logging import shared_console

SECONDS_BETWEEN_LINES = 30.0
_FIRST_LINE_SECONDS, _LONG_SECONDS = 5.0, 60.0
"""What will take longer than the second is told when the first are over, once."""


class Progress:
    """How far the work is, the time left and a note, from ``with`` to its end.

    A terminal that was closed meanwhile, or a full disk, costs what it would have shown, and not
    the work. `total` is the number of steps (files, clips, ...) of the whole work, unless
    :meth:`update` brings it; those that an earlier run has `completed` do not count for the time
    left. Without a `stream` it is shown on stderr, with a bar if that is a terminal.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        completed: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._completed = description, total, completed
        self._stream, self._clock = stream or sys.stderr, clock
        self._first, self._note = completed, ""
        self._said: tuple[int, str] | None = None  # in the newest line
        self._began: tuple[float, int] | None = None  # when the first steps were done, and how many
        self._last_line = clock()
        self._bars = None
        if self._stream is sys.stderr and self._stream.isatty():
            from rich import progress as rich

            self._bars = rich.Progress(
                rich.TextColumn("{task.description}", markup=False),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TimeElapsedColumn(),
                rich.TextColumn("left"),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[note]}", markup=False),
                console=shared_console(),
                # Four times a second is enough for the eye and costs no measurable time.
                refresh_per_second=4,
            )
            self._bars.add_task(description, total=total, completed=completed, note="")

    def __enter__(self) -> Self:
        """Start the clock and show the bar."""
        self._last_line = self._clock()
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write the last line, or leave the bar as it is and give the terminal back."""
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()
        elif self._total is not None and self._said != (self._completed, self._note):
            self._write_line(self._clock())  # without a total nothing has begun

    def update(
        self, completed: int | None, note: str | None = None, total: int | None = None
    ) -> None:
        """Show how many steps are done; None keeps that, the last note (a few words) or the total.

        More than the total, such as seconds beyond those that were planned, are all of it.
        """
        self._note = self._note if note is None else note
        self._total = self._total if total is None else total
        completed = self._completed if completed is None else completed
        completed = completed if self._total is None else min(completed, self._total)
        self._completed = completed
        if self._bars is not None:
            (bar,) = self._bars.task_ids
            self._bars.update(bar, completed=completed, total=self._total, note=self._note)
            return
        now = self._clock()
        if self._began is None and completed > self._first:
            self._began = now, completed
        is_long = self._said is None and (self._seconds_left(now) or 0) > _LONG_SECONDS
        if now - self._last_line >= (_FIRST_LINE_SECONDS if is_long else SECONDS_BETWEEN_LINES):
            self._write_line(now)

    def _seconds_left(self, now: float) -> float | None:
        # The first steps bring the start of processes, which the others do not.
        began, first = self._began or (now, self._completed)
        if self._total is None or not first < self._completed < self._total:
            return None
        return (now - began) / (self._completed - first) * (self._total - self._completed)

    def _write_line(self, now: float) -> None:
        self._last_line, self._said = now, (self._completed, self._note)
        if self._total is None:
            parts = [f"{self._description}: {self._completed}"]
        else:
            percent = 100 * self._completed / max(1, self._total)
            parts = [f"{self._description}: {self._completed}/{self._total} ({percent:.0f} %)"]
            if (left := self._seconds_left(now)) is not None:
                parts.append(f"{format_seconds(left)} left")
        if self._note:
            parts.append(self._note)
        with suppress(OSError):
            self._stream.write(", ".join(parts) + "\n")
            self._stream.flush()


def format_gigabytes(gigabytes: float) -> str:
    """A size in three digits, or in whole gigabytes."""
    return f"{gigabytes:.3g} GB" if gigabytes < 999.5 else f"{gigabytes:,.0f} GB"


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
