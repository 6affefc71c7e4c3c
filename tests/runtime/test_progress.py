"""Progress displays on and off a terminal."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from vjepa.runtime import progress as progress_module
from vjepa.runtime.progress import Progress, format_gigabytes, format_seconds


def test_plain_lines_come_at_intervals() -> None:
    stream, ticks = io.StringIO(), itertools.count(step=10.0)
    with Progress("pretrain", 100, 20, stream, lambda: next(ticks)) as progress:
        for step in range(21, 29):
            progress.update(step, "loss 0.5" if step == 25 else None)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "pretrain: 22/100 (22 %), 13 min left",  # at once: minutes are to come
        "pretrain: 25/100 (25 %), 12 min left, loss 0.5",
        "pretrain: 28/100 (28 %), 12 min left, loss 0.5",
    ]


def test_what_takes_less_than_a_minute_is_told_after_half_of_it() -> None:
    stream, ticks = io.StringIO(), itertools.count(step=4.0)
    with Progress("index", 12, stream=stream, clock=lambda: next(ticks)) as progress:
        for step in range(1, 13):
            progress.update(step)
    lines = stream.getvalue().splitlines()
    assert lines == ["index: 8/12 (67 %), 16 s left", "index: 12/12 (100 %)"]


@pytest.mark.parametrize(
    ("total", "done", "shown"),
    [
        (3, [3], "index: 3/3 (100 %), done\n"),
        (3, [2, 4], "index: 3/3 (100 %), done\n"),
        (0, [], "index: 0/0 (0 %)\n"),
        (None, [], ""),
    ],
    ids=["finished", "more than planned", "nothing to do", "never began"],
)
def test_the_last_line_has_no_time_left(total: int | None, done: list[int], shown: str) -> None:
    stream = io.StringIO()
    with Progress("index", total, stream=stream) as progress:
        for step in done:
            progress.update(step, "done")
    assert stream.getvalue() == shown


def test_the_start_of_processes_is_not_the_pace() -> None:
    """After a first file with 45 s of starting, 36 others were to take 27 minutes."""
    stream, ticks = io.StringIO(), iter([0.0, 0.0, 45.0, 76.0, 107.0, 107.0])
    with Progress("index", 37, stream=stream, clock=lambda: next(ticks)) as progress:
        for done in (1, 32, 37):
            progress.update(done)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["index: 1/37 (3 %)", "index: 32/37 (86 %), 5 s left"]


def test_total_may_be_known_later() -> None:
    stream, ticks = io.StringIO(), itertools.count(step=40.0)
    with Progress("index", None, stream=stream, clock=lambda: next(ticks)) as progress:
        progress.update(3)
        progress.update(4, total=8)
        progress.update(8)
    assert stream.getvalue().splitlines() == [
        "index: 3",
        "index: 4/8 (50 %), 3 min left",
        "index: 8/8 (100 %)",
    ]


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=160)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress_module, "shared_console", lambda: console)
    with Progress("pretrain [red]", 10, completed=4) as progress:
        progress.update(7, "loss [0.5] [x]")
        progress.update(8)
    for text in ("pretrain [red]", "8/10", "loss [0.5] [x]"):
        assert text in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (720, "12 min"), (12_000, "3 h 20 min"), (190_800, "2 d 5 h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_sizes_from_small_to_large() -> None:
    assert format_gigabytes(0.000412) == "0.000412 GB"
    assert format_gigabytes(12.345) == "12.3 GB"
    assert format_gigabytes(12345.6) == "12,346 GB"
