"""Is a run alive, how fast is it, when will it be done, and if it ended: why?"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import Chart, Table
from vjepa.reporting.runs import RunState
from vjepa.runtime.files import holder_of
from vjepa.runtime.metric_log import MetricRecord

_RECENT = 20
"""Newest intervals over which the rate is taken."""
_FROZEN_SECONDS = 120.0
"""A live run that logs nothing for so long, and for ten intervals, is called frozen."""
_OUTLIER = 0.15
"""A process that waits or works this share of the time more than the others is named."""
_STARTED = re.compile(r"INFO process \d+ on ")
_SAID = re.compile(r"^[-0-9]+ [0-9:,]+ (WARNING|ERROR) (.*)$")
_RANK_COLUMNS: Mapping[str, tuple[str, str]] = {
    "clips_per_second": ("clips/s", "{:.3g}"),
    "data_wait_share": ("data wait", "{:.0%}"),
    "cpu_share": ("CPU", "{:.0%}"),
    "resident_gigabytes": ("memory GB", "{:.2f}"),
    "device_gigabytes": ("GPU GB", "{:.2f}"),
    "bad_videos": ("bad videos", "{:.0f}"),
}
_MAX_LINES = 5  # as many colours as charts have


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes:
        state: In words: running, done, or ended and why.
        is_running: Whether a process of this machine holds the folder.
        steps_per_second: Over the newest intervals; None before there is one.
        seconds_left: Until the last step at that rate; None if unknown or not running.
        skipped: Updates that never reached the weights.
        starts: How often the run was started, as far as its log files tell.
        ranks: The newest numbers of each process, by name; empty for one process.
        stragglers: Processes that hold the others up, in words.
    """

    state: str
    is_running: bool
    steps_per_second: float | None
    seconds_left: float | None
    skipped: int
    starts: int
    ranks: Mapping[str, Sequence[float]]
    stragglers: Sequence[str]


def status_of(run: RunState) -> RunStatus:
    """Judge a run from its folder."""
    train = [record for record in run.records if record.kind == "train"]
    ranks = next((_ranks(r) for r in reversed(run.records) if r.kind == "ranks"), {})
    pid = holder_of(run.folder)
    rate = _rate(train[-_RECENT:])
    is_done = run.steps_total is not None and run.steps_done >= run.steps_total
    left = None
    if rate and run.steps_total is not None and pid is not None and not is_done:
        left = (run.steps_total - run.steps_done) / rate
    log = _read(run.folder / "logs" / "rank_000.log")
    if pid is not None:
        state = _running(run, pid, train)
    else:
        state = "done" if is_done else _why(run.folder)
    return RunStatus(
        state=state,
        is_running=pid is not None,
        steps_per_second=rate,
        seconds_left=left,
        skipped=round(sum(_number(record.values.get("skipped")) or 0 for record in train)),
        starts=sum(bool(_STARTED.search(line)) for line in log),
        ranks=ranks,
        stragglers=_stragglers(ranks),
    )


def status_lines(run: RunState, status: RunStatus) -> list[str]:
    """The status in plain lines, the table of processes last."""
    newest = next((r.values for r in reversed(run.records) if r.kind == "train"), {})
    lines = [f"state        {status.state}"]
    if status.steps_per_second:
        rate = f"{status.steps_per_second:.3g} steps/s"
        for name, form in (("clips_per_second", "{:.3g} clips/s"), ("data_wait_share", "")):
            if (value := _number(newest.get(name))) is not None:
                rate += ", " + (form.format(value) if form else f"{value:.0%} waiting for data")
        lines.append(f"rate         {rate}")
    if status.seconds_left is not None:
        lines.append(f"time left    {_duration(status.seconds_left)}")
    memory = [
        f"{value:.2f} GB{where}"
        for name, where in (("resident_gigabytes", ""), ("device_gigabytes", " on the GPU"))
        if (value := _number(newest.get(name))) is not None
    ]
    if memory:
        lines.append(f"memory       {', '.join(memory)}")
    kinds = Counter(str(entry.get("kind", "decode")) for entry in run.bad_videos)
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines.append(f"bad videos   {len(run.bad_videos)}" + (f" ({said})" if said else ""))
    lines.append(f"skipped      {status.skipped} updates")
    if status.starts:
        lines.append(f"started      {status.starts} times" if status.starts > 1 else "started once")
    if status.ranks:
        table = rank_table(status)
        widths = [
            max(len(row[i]) for row in (table.header, *table.rows))
            for i in range(len(table.header))
        ]
        for row in (table.header, *table.rows):
            lines.append(
                "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            )
    lines += [f"slow         {text}" for text in status.stragglers]
    return lines


def rank_table(status: RunStatus) -> Table:
    """The newest numbers of every process."""
    names = [name for name in _RANK_COLUMNS if name in status.ranks]
    rows = [
        [
            str(rank),
            *(_RANK_COLUMNS[name][1].format(status.ranks[name][rank]) for name in names),
        ]
        for rank in range(min((len(status.ranks[name]) for name in names), default=0))
    ]
    return Table(["process", *(_RANK_COLUMNS[name][0] for name in names)], rows)


def rank_charts(run: RunState) -> list[Chart]:
    """Data wait and memory of every process over the run."""
    records = [record for record in run.records if record.kind == "ranks"]
    charts = []
    for name, caption in (
        ("data_wait_share", "Share of the time that each process waits for its data."),
        ("resident_gigabytes", "Memory of each process, without its loader workers, in GB."),
    ):
        steps = [float(record.step) for record in records]
        values = [_ranks(record).get(name, []) for record in records]
        number = min((len(value) for value in values), default=0)
        if len(steps) < 2 or not number:
            continue
        if number <= _MAX_LINES:
            lines = [
                Line(f"process {rank}", steps, [value[rank] for value in values], rank + 1)
                for rank in range(number)
            ]
        else:
            lines = [
                Line(title, steps, [pick(value) for value in values], colour)
                for colour, (title, pick) in enumerate(
                    (("largest", max), ("median", statistics.median), ("smallest", min)), start=1
                )
            ]
        charts.append(
            Chart(line_chart(lines, x_label="step", y_label=_RANK_COLUMNS[name][0]), caption)
        )
    return charts


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def _ranks(record: MetricRecord) -> dict[str, list[float]]:
    """The lists of numbers of a `ranks` record; anything else in it is left out."""
    return {
        name: [_number(value) or 0.0 for value in values]
        for name, values in record.values.items()
        if isinstance(values, list)
    }


def _rate(train: Sequence[MetricRecord]) -> float | None:
    """Steps per second over some intervals."""
    steps = seconds = 0.0
    for record in train:
        first, took = (_number(record.values.get(name)) for name in ("first_step", "seconds"))
        if first is not None and took is not None:
            steps += record.step - first + 1
            seconds += took
    return steps / seconds if seconds > 0 and steps > 0 else None


def _running(run: RunState, pid: int, train: Sequence[MetricRecord]) -> str:
    state = f"running (process {pid})" if pid else "running (on another machine)"
    quiet = run.seconds_since_write
    if quiet is None:
        return f"{state}, no step logged yet"
    usual = max((_number(r.values.get("seconds")) or 0.0 for r in train[-_RECENT:]), default=0.0)
    if quiet > max(_FROZEN_SECONDS, 10 * usual):
        return f"{state}, but silent for {_duration(quiet)}: frozen, or in a long evaluation"
    return f"{state}, last step logged {_duration(quiet)} ago"


def _why(folder: Path) -> str:
    """Why a run that is not done does not run: the first process's last words of its last start."""
    said: list[str] = []
    for file in sorted((folder / "logs").glob("rank_*.log")):
        lines = _read(file)
        start = max((n for n, line in enumerate(lines) if _STARTED.search(line)), default=0)
        found = [match[2] for line in lines[start:] if (match := _SAID.match(line))]
        last = lines[-1] if lines else ""
        words = [text for text in found if text.startswith(("ends with", "stopped by"))]
        if words:
            said.append(f"process {int(file.stem[5:])}: {words[-1]}")
        elif lines and not last.endswith("ends"):
            said.append(f"process {int(file.stem[5:])}: no last words (kill -9, out of memory?)")
    return "ended: " + ("; ".join(said[:4]) or "nothing tells why; start the same command again")


def _read(file: Path) -> list[str]:
    if not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _stragglers(ranks: Mapping[str, Sequence[float]]) -> list[str]:
    """Who waits for data, or works, much more than the others do."""
    found = []
    for name, verb in (("data_wait_share", "waits for data"), ("cpu_share", "computes")):
        values = ranks.get(name, ())
        for rank, value in enumerate(values):
            others = [*values[:rank], *values[rank + 1 :]]
            if others and value > (usual := statistics.median(others)) + _OUTLIER:
                found.append(
                    f"process {rank} {verb} {value:.0%} of the time, the others {usual:.0%}"
                )
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.1f} d"
