"""The demo's pretraining: both objectives side by side, each its own `vjepa pretrain` process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vjepa.config import RESOLVED_CONFIG_FILE
from vjepa.errors import UserError
from vjepa.reporting.runs import RunState, read_run
from vjepa.runtime.files import atomic_write
from vjepa.runtime.progress import Progress

OBJECTIVES = ("vjepa", "pixel")
_POLL_SECONDS = 2.0
_LOG_TAIL_LINES = 12
_PLAN_FILE = "plan.json"
_TRIAL_STEPS = 160
_TRIAL = {
    "online_probe": "null",
    "training.log_every_steps": "20",
    "training.health_every_steps": "null",
}


@dataclass(frozen=True)
class TrainingTask:
    """One pretraining run of the demo."""

    objective: str
    seed: int
    folder: Path


def run_folder(out: Path, objective: str, seed: int) -> Path:
    """Where the run of an objective and seed lies."""
    return out / "runs" / f"{objective}_seed{seed}"


def measure_rates(out: Path, settings: Mapping[str, str], recipe: str) -> dict[str, float]:
    """Updates per second of each objective on this machine, while both run.

    The demo gives both objectives the same time. Their schedules need a number of updates, and
    that depends on the machine, so a short trial of both comes first (its first half is warming
    up). The result is kept in ``plan.json``, so that a demo that is called again goes on with it.
    `settings` are overrides of the recipe that all runs share, by dotted name.
    """
    plan = out / _PLAN_FILE
    if plan.is_file():
        return json.loads(plan.read_text(encoding="utf-8"))["updates_per_second"]
    trial = dict(settings) | _TRIAL | {"optim.steps": str(_TRIAL_STEPS), "optim.warmup_steps": "1"}
    tasks = tuple(TrainingTask(objective, 0, out / "trial" / objective) for objective in OBJECTIVES)
    train_side_by_side(tasks, {task.objective: trial for task in tasks}, recipe, 0.25)
    rates = {}
    for task in tasks:
        steps, seconds = read_run(task.folder).series("train", "seconds")
        half = len(steps) // 2
        rates[task.objective] = (steps[-1] - steps[half - 1]) / sum(seconds[half:])
    atomic_write(plan, json.dumps({"updates_per_second": rates}))
    return rates


def train_side_by_side(
    tasks: tuple[TrainingTask, ...],
    settings: Mapping[str, Mapping[str, str]],
    recipe: str,
    minutes: float,
) -> None:
    """Run all tasks at the same time, one CPU thread each, and wait for them.

    A task that a former call has begun is resumed; one that is complete ends at once.

    Args:
        tasks: The runs.
        settings: Overrides of the recipe for each objective, by dotted name.
        recipe: Name of the pretraining recipe, or a YAML file.
        minutes: What the progress display counts to.

    Raises:
        UserError: A run failed; the message ends with the last lines of its log.
        KeyboardInterrupt: After the runs have saved their checkpoints.
    """
    processes = {task: _start(task, settings[task.objective], recipe) for task in tasks}
    title = f"pretraining, seed {tasks[0].seed}"
    with Progress(title, max(1, round(60 * minutes))) as progress:
        try:
            while any(process.poll() is None for process in processes.values()):
                time.sleep(_POLL_SECONDS)
                states = {task.objective: _state(task) for task in tasks}
                # Of the run that is furthest behind.
                seconds = min(_newest(state, "elapsed_seconds") for state in states.values())
                notes = (
                    f"{name}: {_newest(state, 'clips_per_second'):.0f} clips/s, "
                    f"loss {_newest(state, 'loss'):.3f}"
                    for name, state in states.items()
                )
                progress.update(round(seconds), ", ".join(notes))
        except BaseException:
            # They must not outlive us: let them save their checkpoints and end.
            for process in processes.values():
                process.terminate()
                process.wait()
            raise
    for task, process in processes.items():
        if process.returncode != 0:
            log = _log_file(task)
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise UserError(
                f"pretraining {task.objective} seed {task.seed} ended with code "
                f"{process.returncode}; end of {log}:\n" + "\n".join(tail[-_LOG_TAIL_LINES:])
            )


def _log_file(task: TrainingTask) -> Path:
    return task.folder.parent / f"{task.folder.name}.log"


def _start(task: TrainingTask, settings: Mapping[str, str], recipe: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vjepa", "pretrain", "--config", recipe]
    command += [f"--{name}={value}" for name, value in settings.items()]
    command += [f"--seed={task.seed}", f"--objective.name={task.objective}"]
    command += ["--out", str(task.folder)]
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    # One thread each: two runs with two threads each on two cores would only wait for one another.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with _log_file(task).open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            # A Ctrl-C at the terminal must reach them once, through us: a second signal would make
            # them stop without a checkpoint.
            start_new_session=True,
        )


def _state(task: TrainingTask) -> RunState | None:
    return read_run(task.folder) if (task.folder / RESOLVED_CONFIG_FILE).is_file() else None


def _newest(state: RunState | None, name: str) -> float:
    if state is None:
        return 0.0
    _, values = state.series("train", name)
    return values[-1] if values else 0.0
