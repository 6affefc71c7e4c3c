"""A run folder read back: its numbers and curves; is it alive, how fast is it, and if not: why?"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vjepa.checkpoint.folder import CHECKPOINTS_FOLDER, CONFIG_FILE, read_json, step_folders
from vjepa.config import RESOLVED_CONFIG_FILE
from vjepa.errors import UserError
from vjepa.reporting.charts import MAX_LINES, Line, line_chart
from vjepa.reporting.html import Chart, Table
from vjepa.runtime.files import holder_of, job_of, read_json_lines
from vjepa.runtime.logging import MetricRecord, read_metrics
from vjepa.runtime.progress import format_seconds
from vjepa.strict_yaml import parse_yaml

_TRAINING_JOBS = ("pretrain", "probe train", "finetune", "detect train", "decode train")
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
_CURVES: Mapping[tuple[str, str, str], str] = {
    ("train", "loss", "loss"): (
        "The loss. In pretraining it says how far predictions are from the features of what was"
        " hidden, and may rise while all goes well, since the features get richer: judge by the"
        " other curves."
    ),
    ("evaluation", "validation/top1", "top-1 share"): (
        "Share of the validation videos that are named rightly, by their centre clips."
    ),
    ("train", "top1", "top-1 share"): (
        "Share of the training clips that are named rightly, as they are augmented and mixed."
    ),
    ("evaluation", "online_probe/top1", "top-1 share"): (
        "Share of labelled videos that a simple classifier on the features names rightly (online"
        " probe: ridge on mean features, on videos that it was not fitted on)."
    ),
    ("health", "explained_vs_position_mean", "share"): (
        "How much of what tells clips apart is predicted: 1 is all, 0 no better than guessing what"
        " is usual at each place."
    ),
    ("health", "effective_rank", "number"): (
        "In how many independent ways the features of clips differ (effective rank). Near 1 all"
        " clips look alike to the model, and nothing is learnt."
    ),
    ("health", "target_std_between_clips", "spread"): (
        "How much features differ from clip to clip. Falling towards 0 is a collapse."
    ),
    ("health", "pairwise_cosine", "cosine"): (
        "How alike the features of different clips are: near 1 all are the same, a collapse."
    ),
    ("train", "grad_norm/encoder", "norm"): "Size of the gradient of the encoder.",
    ("train", "learning_rate", "rate"): "Learning rate: how large the steps are.",
    ("train", "clips_per_second", "clips/s"): "Clips per second, of all processes.",
    ("train", "data_wait_share", "share"): "Share of the time spent waiting for videos to be read.",
    ("train", "resident_gigabytes", "GB"): "Memory of the training process that holds most.",
    ("train", "device_gigabytes", "GB"): "Largest memory on a GPU.",
}
"""Captions of the curves to look at, by kind of record, name and axis label; most telling first."""


@dataclass(frozen=True)
class RunState:
    """What a run folder tells about its run."""

    folder: Path
    config: Mapping[str, Any]
    """Resolved config as plain YAML types."""
    records: Sequence[MetricRecord]
    """Of `metrics.jsonl`, in order."""
    checkpoints: Sequence[int]
    """Steps of the complete ones, ascending."""
    bad_videos: Sequence[Mapping[str, Any]]
    """Of `bad_videos.jsonl`."""
    seconds_since_write: float | None
    """Age of the newest metric line; None without metrics."""
    planned: int | None = None
    """Steps in all, as the newest checkpoint says: where the config names passes over the data."""
    result: str | None = None
    """Text of `result.md`, which a job writes that measures what it has trained."""

    @property
    def steps_done(self) -> int:
        """Newest step that any record names."""
        return max((record.step for record in self.records), default=0)

    @property
    def steps_total(self) -> int | None:
        """Steps that the run is to make in all; None where nothing says it yet."""
        steps = self.config.get("optim", {}).get("steps")
        return int(steps) if steps is not None else self.planned

    @property
    def minutes_done(self) -> float:
        """Minutes of training so far, those before a resume included."""
        return (_number(self.newest("train").get("elapsed_seconds")) or 0.0) / 60

    @property
    def minutes_total(self) -> float | None:
        """Where the time will be over before the steps are done: minutes in all."""
        minutes, total = (
            _number(self.config.get("training", {}).get("max_minutes")),
            self.steps_total,
        )
        by_time = minutes and (
            total is None or self.minutes_done / minutes > self.steps_done / total
        )
        return minutes if by_time else None

    def of_kind(self, kind: str) -> list[MetricRecord]:
        """The records of one kind, in order."""
        return [record for record in self.records if record.kind == kind]

    def newest(self, kind: str) -> Mapping[str, Any]:
        """The values of the newest record of a kind; none without one."""
        return next((record.values for record in reversed(self.of_kind(kind))), {})

    def series(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, lines without a finite value left out."""
        found = [(r.step, _number(r.values.get(name))) for r in self.of_kind(kind)]
        pairs = [(float(step), value) for step, value in found if value is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


def read_run(folder: Path) -> RunState:
    """Read a run folder, of a running or a dead run; UserError: it is none, or damaged."""
    config, metrics, bad = (
        folder / name for name in (RESOLVED_CONFIG_FILE, "metrics.jsonl", "bad_videos.jsonl")
    )
    if not config.is_file():
        raise UserError(f"{folder}: no run folder, it has no config.yaml; name the --out of a run")
    if (job := job_of(folder)) not in (None, *_TRAINING_JOBS):
        inside = [
            place for place in (folder / "run", *sorted(folder.glob("runs/*"))) if job_of(place)
        ]
        example = f", for example {inside[0]}" if inside else ""
        raise UserError(f"{folder}: is of `vjepa {job}` and no run; name one{example}")
    entries = [entry for _, entry in read_json_lines(bad)] if bad.is_file() else []
    checkpoints, result = step_folders(folder / CHECKPOINTS_FOLDER), folder / "result.md"
    about = [path / CONFIG_FILE for path in checkpoints.values()][-1:]
    newest = read_json(about[0]) if about and about[0].is_file() else {}
    return RunState(
        folder=folder,
        config=parse_yaml(config.read_text(encoding="utf-8"), str(config)),
        records=read_metrics(metrics) if metrics.is_file() else [],
        checkpoints=list(checkpoints),
        bad_videos=[entry for entry in entries if entry and isinstance(entry.get("path"), str)],
        # The clock of a server of files may be ahead of ours.
        seconds_since_write=max(0.0, time.time() - metrics.stat().st_mtime)
        if metrics.is_file()
        else None,
        planned=newest.get("steps"),
        result=result.read_text(encoding="utf-8") if result.is_file() else None,
    )


def run_charts(states: Mapping[str, RunState]) -> list[Chart]:
    """The telling curves of one or several runs; a chart holds every run that has the metric.

    Of several runs the online probe against time comes first.
    """
    charts: list[Chart] = []
    found = {title: probe_by_time(state) for title, state in states.items()}
    if len(states) > 1 and (lines := _lines(found)):
        caption = (
            "The same online probe against time, which the runs had alike: a curve that still rises"
            " has not had enough of it. Schedules are laid out for this time, so a longer run is"
            " not this curve drawn on."
        )
        drawing = line_chart(lines, x_label="minutes", y_label="top-1 share")
        charts.append(Chart(drawing, caption))
    for (kind, name, label), caption in _CURVES.items():
        if lines := _lines({title: state.series(kind, name) for title, state in states.items()}):
            charts.append(Chart(line_chart(lines, x_label="update", y_label=label), caption))
    return charts


def _lines(found: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Line]:
    """A curve for each title that has more than one point, always in the same colour."""
    numbered = enumerate(found.items(), start=1)
    return [Line(title, x, y, colour) for colour, (title, (x, y)) in numbered if len(x) > 1]


def probe_by_time(state: RunState) -> tuple[list[float], list[float]]:
    """Minutes of training and top-1 of the online probe then, as far as the run has measured it."""
    minutes = {0: 0.0} | {
        record.step: record.values["elapsed_seconds"] / 60
        for record in state.of_kind("train")
        if "elapsed_seconds" in record.values
    }
    steps, shares = state.series("evaluation", "online_probe/top1")
    return [minutes[int(step)] for step in steps], shares


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    state: str
    """In words: running, done, or ended and why."""
    steps_per_second: float | None
    """Over the newest intervals; None before there is one."""
    seconds_left: float | None
    """Until the last step at that rate; None if unknown or not running."""
    skipped: int
    """Updates that never reached the weights."""
    starts: int
    """How often the run was started, as far as its log files tell."""
    ranks: Mapping[str, Sequence[float]]
    """The newest numbers of each process, by name; empty for one process."""
    stragglers: Sequence[str]
    """Processes that hold the others up, in words."""


def status_of(run: RunState) -> RunStatus:
    """Judge a run from its folder."""
    train = run.of_kind("train")
    ranks = _ranks(run.newest("ranks"))
    pid = holder_of(run.folder)
    steps = seconds = 0.0
    for record in train[-_RECENT:]:
        first, took = (_number(record.values.get(name)) for name in ("first_step", "seconds"))
        if first is not None and took is not None:
            steps += record.step - first + 1
            seconds += took
    rate = steps / seconds if seconds > 0 and steps > 0 else None
    has_all = run.steps_total is not None and run.steps_done >= run.steps_total
    training, newest = run.config.get("training", {}), run.newest("train")
    minutes = _number(training.get("max_minutes"))
    elapsed = 60 * run.minutes_done
    limit = _number(training.get("max_cpu_minutes"))
    cpu_elapsed = _number(newest.get("elapsed_cpu_seconds")) or 0.0
    spent = ("max_minutes", minutes, elapsed), ("max_cpu_minutes", limit, cpu_elapsed)
    limits = {
        f"training.{name} {most:g} are over": done >= 60 * most
        for name, most, done in spent
        if most is not None
    }
    over = [words for words, is_over in limits.items() if is_over]
    # Beside fewer updates than there are to be, a result is that of a shorter training.
    counted = bool(train) and run.steps_total is not None
    is_measured = run.result is not None and (has_all or bool(over) or not counted)
    is_done = has_all or bool(over) or is_measured
    left = None
    if rate and run.steps_total is not None and pid is not None and not is_done:
        left = (run.steps_total - run.steps_done) / rate
        left = left if minutes is None else min(left, 60 * minutes - elapsed)
        if limit is not None and cpu_elapsed > 0:
            left = min(left, (60 * limit - cpu_elapsed) * elapsed / cpu_elapsed)
    if pid is not None:
        state = _running(run, pid, train)
    else:
        measured = " and measured" if is_measured else ""
        why = "all updates are done" if has_all or not over else over[0]
        state = f"done: {why}{measured}" if is_done else _why(run.folder, list(limits))
    log = _log_lines(run.folder / "logs" / "rank_000.log")
    starts = sum(bool(_STARTED.search(line)) for line in log)
    skipped = round(sum(_number(record.values.get("skipped")) or 0 for record in train))
    stragglers = _stragglers(ranks)
    return RunStatus(state, rate, left, skipped, starts, ranks, stragglers)


def state_lines(run: RunState, status: RunStatus) -> list[str]:
    """The state of a run in plain lines: how it stands, its processes, its newest values."""
    newest = {name: _number(value) for name, value in run.newest("train").items()}
    lines = [f"run          {run.folder}", f"state        {status.state}"]
    if status.steps_per_second:
        rate = f"rate         {status.steps_per_second:.3g} steps/s"
        if (clips := newest.get("clips_per_second")) is not None:
            rate += f", {clips:.3g} clips/s"
        if (waiting := newest.get("data_wait_share")) is not None:
            rate += f", {waiting:.0%} waiting for data"
        lines.append(rate)
    if status.seconds_left is not None:
        lines.append(f"time left    {format_seconds(status.seconds_left)}")
    memory = [
        f"{value:.2f} GB{where}"
        for name, where in (("resident_gigabytes", ""), ("device_gigabytes", " on the GPU"))
        if (value := newest.get(name)) is not None
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
        rows = [table.header, *table.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(map(str.rjust, row, widths)) for row in rows]
    lines += [f"slow         {text}" for text in status.stragglers]
    total, minutes = run.steps_total, run.minutes_total
    share = f" of {total} ({100 * run.steps_done / total:.0f} %)" if total else ""
    if minutes:  # the number of steps is no more than a bound
        share = f", {run.minutes_done:.1f} of {minutes:.3g} minutes"
    lines.append(f"steps        {run.steps_done}{share}")
    lines.append(f"checkpoints  {', '.join(map(str, run.checkpoints)) or 'none'}")
    for kind in ("train", "health", "evaluation"):
        found = run.of_kind(kind)
        # The first measurement is what later ones are held against.
        for record in [*(found[:-1][:1] if kind == "evaluation" else []), *found[-1:]]:
            values = ", ".join(
                f"{name} {value:.4g}"
                for name, value in record.values.items()
                if isinstance(value, int | float)
            )
            lines.append(f"{kind:<12} step {record.step}: {values}")
    for record in run.records:
        if record.kind in {"warning", "all_clear"}:
            message = record.values.get("message", "")
            lines.append(f"{record.kind:<12} step {record.step}: {message}")
    return lines


def rank_table(status: RunStatus) -> Table:
    """The newest numbers of every process."""
    columns = {name: column for name, column in _RANK_COLUMNS.items() if name in status.ranks}
    number = min((len(status.ranks[name]) for name in columns), default=0)
    rows = [
        [str(rank), *(form.format(status.ranks[name][rank]) for name, (_, form) in columns.items())]
        for rank in range(number)
    ]
    return Table(["process", *(title for title, _ in columns.values())], rows)


def rank_charts(run: RunState) -> list[Chart]:
    """Data wait and memory of every process over the run; of many only the spread."""
    records = run.of_kind("ranks")
    steps = [float(record.step) for record in records]
    charts = []
    for name, caption in (
        ("data_wait_share", "Share of the time that each process waits for its data."),
        ("resident_gigabytes", "Memory of each process, without its loader workers, in GB."),
    ):
        values = [_ranks(record.values).get(name, []) for record in records]
        number = min((len(value) for value in values), default=0)
        if len(steps) < 2 or not number:
            continue
        curves = {"largest": max, "median": statistics.median, "smallest": min}
        if number <= MAX_LINES:
            curves = {f"process {rank}": lambda value, at=rank: value[at] for rank in range(number)}
        lines = _lines(
            {title: (steps, [pick(value) for value in values]) for title, pick in curves.items()}
        )
        label = _RANK_COLUMNS[name][0]
        charts.append(Chart(line_chart(lines, x_label="step", y_label=label), caption))
    return charts


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def _ranks(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """The lists of numbers of a `ranks` record; anything else in it is left out."""
    lists = {name: values for name, values in record.items() if isinstance(values, list)}
    return {name: [_number(value) or 0.0 for value in values] for name, values in lists.items()}


def _running(run: RunState, pid: int, train: Sequence[MetricRecord]) -> str:
    state = f"running (process {pid})" if pid else "running (on another machine)"
    quiet = run.seconds_since_write
    if quiet is None:
        return f"{state}, no step logged yet"
    usual = max((_number(r.values.get("seconds")) or 0.0 for r in train[-_RECENT:]), default=0.0)
    if quiet > max(_FROZEN_SECONDS, 10 * usual):
        return f"{state}, but silent for {format_seconds(quiet)}: frozen, or in a long evaluation"
    return f"{state}, last step logged {format_seconds(quiet)} ago"


def _why(folder: Path, limits: Sequence[str]) -> str:
    """Why a run that is not done does not run, by the log of each process since its last start.

    `limits` are those of its time, in words: a log that ends in order came to one, though what was
    logged last, before the report on the features, had not.
    """
    said: list[str] = []
    files = sorted((folder / "logs").glob("rank_*.log"))
    for file in files:
        lines = _log_lines(file)
        start = max((n for n, line in enumerate(lines) if _STARTED.search(line)), default=0)
        found = [match[2] for line in lines[start:] if (match := _SAID.match(line))]
        words = [text for text in found if text.startswith(("ends with", "stopped by"))]
        if words:
            said.append(f"process {int(file.stem[5:])}: {words[-1]}")
        elif lines and not lines[-1].endswith("ends"):
            said.append(
                f"process {int(file.stem[5:])}: ended without a message (killed, or out of memory?)"
            )
    if files and limits and not said:
        return f"done: {' or '.join(limits)}"
    return "ended: " + ("; ".join(said[:4]) or "nothing tells why; start the same command again")


def _log_lines(file: Path) -> list[str]:
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
