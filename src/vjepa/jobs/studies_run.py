"""Running a study's jobs: each its own process, several at a time, resumed where it stopped."""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vjepa.config import diff, from_dict, to_dict
from vjepa.errors import UserError, suggested
from vjepa.jobs.studies import Grid, Job, ScaleName, config_class, load_study, with_folder
from vjepa.paths import as_path
from vjepa.runtime.files import atomic_write, claimed_folder, read_json
from vjepa.runtime.process import handled, start_command
from vjepa.runtime.progress import Progress, format_seconds
from vjepa.strict_yaml import write_yaml
from vjepa.version import __version__

JOB = "studies"
STATE_FILE = "studies.json"
"""In a study's folder: for each study the files and settings that the user has given."""
_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Done:
    """A job that has ended well."""

    seconds: float
    """By the clock."""
    cpu_seconds: float


@dataclass
class Outcome:
    """What a call of :func:`run` came to: jobs that are done, of earlier calls, too; and others.

    Why those failed, and which were not run, since one before them failed or all was stopped.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    stopped: signal.Signals | None = None


def open_grid(
    name: str,
    scale: ScaleName,
    out: str | Path,
    files: Mapping[str, Path | None] | None = None,
    changes: Sequence[str] = (),
) -> Grid:
    """The grid of a study; files and settings of earlier calls in `out` where none are given.

    A file that is None is forgotten. `changes` are settings as ``STEP.SETTING=VALUE``; an empty
    one alone forgets them.

    Raises:
        UserError: No such study or scale, or a file that is not there.
    """
    out = as_path(out)
    study = load_study(name)
    if scale not in study.scales:
        known = ", ".join(study.scales)
        raise UserError(f"--scale {scale}: {name} is declared for {known} only")
    stored = _state(out).get(f"{Path(name).stem}-{scale}", {})
    given = {key: path and str(path.expanduser().absolute()) for key, path in (files or {}).items()}
    for key, path in given.items():
        if path and not Path(path).exists():
            raise UserError(f"--files {key}={path}: no such file")
    named = {key: path for key, path in (stored.get("files", {}) | given).items() if path}
    made = Grid(study, scale, named, tuple(filter(None, changes or stored.get("changes", ()))))
    if unknown := sorted(given.keys() - made.known_files):
        known = ", ".join(sorted(made.known_files))
        near = suggested(unknown[0], made.known_files)
        raise UserError(f"--files {unknown[0]}: no study asks for it, only for {known}{near}")
    return made


def _state(out: Path) -> dict[str, Any]:
    file = out / STATE_FILE
    return read_json(file, "delete it, and name files and settings again") if file.is_file() else {}


def done(job: Job, out: Path) -> Done | None:
    """What an earlier call has noted about a job that ended well; None: it has not.

    Raises:
        UserError: It was of another config: a recipe or a default has changed since.
    """
    record = _place(job, out).with_suffix(".json")
    if not record.is_file() or not _place(job, out).is_dir():
        return None
    found = read_json(record, "delete it to run the job anew")
    before = from_dict(config_class(job.command), found["config"], str(record))
    if changed := diff(before, job.config):
        raise UserError(
            f"{record}: was run with another config ({'; '.join(changed[:3])}); remove the folder "
            f"{_place(job, out)}, and those of jobs that need it, to run it anew, or give another "
            "--out"
        )
    return Done(found["seconds"], found["cpu_seconds"])


def _place(job: Job, out: Path) -> Path:
    return out / "jobs" / job.id


def _expected_seconds(grid: Grid, out: Path) -> dict[str, float]:
    """What each job takes: as measured on jobs like it, else as declared."""
    measured: dict[tuple[str, float], list[float]] = {}
    for job in grid.jobs.values():
        if found := done(job, out):
            measured.setdefault((job.command, job.minutes), []).append(found.seconds)
    return {
        job.id: statistics.fmean(measured.get((job.command, job.minutes), [60 * job.minutes]))
        for job in grid.jobs.values()
    }


def cost_lines(grid: Grid, out: Path, at_once: int) -> list[str]:
    """What is to be run, what it will take, and what is left out."""
    expected = _expected_seconds(grid, out)
    to_do = [job for job in grid.jobs.values() if done(job, out) is None]
    seconds = sum(expected[job.id] for job in to_do)
    longest = max((expected[job.id] for job in to_do), default=0.0)
    lines = [
        f"{grid.study.title} ({', '.join(grid.study.shows) or 'not in the paper'}), "
        f"scale {grid.scale}: {grid.plan.about}",
        f"{len(grid.jobs)} jobs, {len(grid.jobs) - len(to_do)} done; the others take about "
        f"{format_seconds(max(seconds / at_once, longest))}, {at_once} at once "
        f"({format_seconds(seconds)} of {'a core' if grid.scale == 'cpu' else 'a GPU'})",
    ]
    lines += [f"changed: {change}" for change in grid.changes]
    return lines + [f"left out: {what}: {why}" for what, why in grid.missing.items()]


def command_of(job: Job, out: Path) -> list[str]:
    """What is run, as words after ``vjepa``; the config is written beside the job's folder."""
    place = _place(job, out.absolute())
    config = place.with_suffix(".yaml")
    atomic_write(config, write_yaml(with_folder(to_dict(job.config), out.absolute())))
    return [*job.command.split(), "--config", str(config), "--out", str(place)]


@contextmanager
def claimed(name: str, grid: Grid, out: Path) -> Generator[None]:
    """Hold a study's folder, and note in it what the user has given."""
    with claimed_folder(out, JOB):
        given = {"files": dict(grid.files), "changes": list(grid.changes)}
        state = _state(out) | {f"{Path(name).stem}-{grid.scale}": given}
        atomic_write(out / STATE_FILE, json.dumps(state, indent=1) + "\n")
        yield


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    started: float


class _Runner:
    """The jobs that run, and those that wait."""

    def __init__(self, grid: Grid, out: Path, slots: Sequence[Mapping[str, str]]) -> None:
        self.grid, self.out, self.slots = grid, out, slots
        self.outcome = Outcome()
        self.running: list[_Running] = []
        self.outcome.done = [job.id for job in grid.jobs.values() if done(job, out)]
        self.waiting = [id for id in grid.jobs if id not in self.outcome.done]
        self.expected = _expected_seconds(grid, out)

    def start_ready(self) -> None:
        """Start what can be started, in the order of the grid."""
        failed = self.outcome.failed
        for name in list(self.waiting):
            job = self.grid.jobs[name]
            lost = [need for need in job.needs if need in failed or need in self.outcome.waiting]
            if lost:
                self.waiting.remove(name)
                self.outcome.waiting.append(name)
                continue
            free = set(range(len(self.slots))) - {one.slot for one in self.running}
            if not free or not set(job.needs) <= set(self.outcome.done):
                continue
            self.waiting.remove(name)
            place, slot = _place(job, self.out), min(free)
            command = command_of(job, self.out)
            _LOGGER.info("starting %s: %s", job.id, job.what)
            process = start_command(command, place.with_suffix(".log"), self.slots[slot])
            self.running.append(_Running(job, process, slot, time.monotonic()))

    def collect(self) -> None:
        """Note what has ended."""
        for one in list(self.running):
            pid, status, usage = os.wait4(one.process.pid, os.WNOHANG)
            if not pid:
                continue
            self.running.remove(one)
            code = one.process.returncode = os.waitstatus_to_exitcode(status)
            if code == 0:
                record = {
                    "job": one.job.command,
                    "what": one.job.what,
                    "seconds": round(time.monotonic() - one.started, 1),
                    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                    "vjepa": __version__,
                    "config": to_dict(one.job.config),
                }
                path = _place(one.job, self.out).with_suffix(".json")
                atomic_write(path, json.dumps(record, indent=1) + "\n")
                self.outcome.done.append(one.job.id)
                self.expected = _expected_seconds(self.grid, self.out)
            elif self.outcome.stopped is None:
                log = _place(one.job, self.out).with_suffix(".log")
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                why = f"ended with code {code}: {said[-1] if said else 'no output'} (see {log})"
                self.outcome.failed[one.job.id] = why
                _LOGGER.warning("failed: %s: %s", one.job.what, why)

    def seconds_done(self) -> float:
        """Of what all jobs together are expected to take."""
        ended = [*self.outcome.done, *self.outcome.failed, *self.outcome.waiting]
        now = time.monotonic()
        half_done = (min(now - one.started, self.expected[one.job.id]) for one in self.running)
        return sum(self.expected[name] for name in ended) + sum(half_done)

    def stop(self, how: signal.Signals) -> None:
        """Ask every process to save its state and end."""
        for one in self.running:
            os.kill(one.process.pid, how)  # not through Popen, which would take its end from us

    @property
    def note(self) -> str:
        """What is going on, in a few words."""
        outcome, total = self.outcome, len(self.grid.jobs)
        failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
        now = "; ".join(one.job.what for one in self.running)
        return f"{len(outcome.done)} of {total} jobs done{failed}; now {now or 'nothing'}"


def run(grid: Grid, out: str | Path, slots: Sequence[Mapping[str, str]]) -> Outcome:
    """Run what is not done yet, as many jobs at once as there are `slots`.

    A slot is what the environment of its process holds besides this one's: a number of threads, a
    GPU. A job that fails takes those with it that need it; the others go on. At SIGINT, SIGTERM
    or SIGHUP all processes are asked to save their state, and at a second one they are killed.
    """
    out = as_path(out)
    runner = _Runner(grid, out, slots)
    received: list[signal.Signals] = []
    total = max(1, round(sum(runner.expected.values())))
    asked = handled(
        (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        lambda number, _: received.append(signal.Signals(number)),
    )
    with asked, Progress("study", total, round(runner.seconds_done())) as progress:
        try:
            while runner.running or (runner.waiting and not received):
                if received and runner.outcome.stopped is None:
                    runner.outcome.stopped = received[0]
                    runner.stop(signal.SIGTERM)
                if len(received) > 1:
                    runner.stop(signal.SIGKILL)
                if not received:
                    runner.start_ready()
                runner.collect()
                total = max(1, round(sum(runner.expected.values())))
                progress.update(round(runner.seconds_done()), runner.note, total)
                if runner.running:
                    time.sleep(_POLL_SECONDS)
        finally:
            runner.stop(signal.SIGTERM)  # after an error of ours nobody else would
    runner.outcome.waiting += runner.waiting
    if received:
        runner.outcome.stopped = received[0]
    return runner.outcome
