"""The demo's pretraining: both objectives side by side, each its own `vjepa pretrain` process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from vjepa.config import RESOLVED_CONFIG_FILE
from vjepa.errors import UserError
from vjepa.reporting.runs import read_run
from vjepa.runtime.files import atomic_write, read_json
from vjepa.runtime.process import start_command
from vjepa.runtime.progress import Progress

OBJECTIVES = ("vjepa", "pixel")
DECODER_FOLDER = "decoder"
_POLL_SECONDS = 2.0
_LOG_TAIL_LINES = 12
_TRIAL_STEPS = 100
_TRIAL = {
    "online_probe": "null",
    "training.log_every_steps": "20",
    "training.health_every_steps": "null",
}


def run_folder(out: Path, objective: str, seed: int) -> Path:
    """Where the run of an objective and seed lies."""
    return out / "runs" / f"{objective}_seed{seed}"


def measure_rates(out: Path, settings: Mapping[str, str], recipe: str) -> dict[str, float]:
    """Updates per second of CPU time of each objective on this machine, while both run.

    The demo gives both objectives the same CPU time, which other work on the machine does not
    change. Their schedules need a number of updates, and that depends on the machine, so a short
    trial of both comes first (its first half is warming up). The result is kept in ``plan.json``,
    so that a demo that is called again goes on with it.
    `settings` are overrides of the recipe that all runs share, by dotted name.
    """
    plan = out / "plan.json"
    found = read_json(plan, "delete it") if plan.is_file() else {}
    if "updates_per_cpu_second" in found:
        return found["updates_per_cpu_second"]
    trial = dict(settings) | _TRIAL | {"optim.steps": str(_TRIAL_STEPS), "optim.warmup_steps": "1"}
    folders = {objective: out / "trial" / objective for objective in OBJECTIVES}
    train_side_by_side(folders, 0, dict.fromkeys(folders, trial), recipe, 0.25)
    rates = {}
    for objective, folder in folders.items():
        steps, seconds = read_run(folder).series("train", "cpu_seconds")
        half = len(steps) // 2
        rates[objective] = (steps[-1] - steps[half - 1]) / sum(seconds[half:])
    atomic_write(plan, json.dumps({"updates_per_cpu_second": rates}))
    shutil.rmtree(out / "trial")
    return rates


def train_side_by_side(
    folders: Mapping[str, Path],
    seed: int,
    settings: Mapping[str, Mapping[str, str]],
    recipe: str,
    minutes: float,
) -> None:
    """Pretrain each objective into its folder, all at the same time, one CPU thread each.

    A run that a former call has begun is resumed; one that is complete ends at once. What its
    process writes lies beside its folder.

    `settings` holds each objective's overrides of the recipe; the display counts to `minutes` of
    CPU time.

    Raises:
        UserError: A run failed; the message ends with the last lines of its log.
        KeyboardInterrupt: After the runs have saved their checkpoints.
    """
    processes = {}
    logs = {name: folder.with_name(f"{folder.name}.log") for name, folder in folders.items()}
    for objective, folder in folders.items():
        command = ["pretrain", "--config", recipe]
        command += [f"--{name}={value}" for name, value in settings[objective].items()]
        command += [f"--seed={seed}", f"--objective.name={objective}", "--out", str(folder)]
        # One thread each: two with two on two cores would only wait for one another.
        processes[objective] = start_command(command, logs[objective], {"OMP_NUM_THREADS": "1"})
    title = f"pretraining, seed {seed}"
    with Progress(title, max(1, round(60 * minutes))) as progress:
        try:
            while any(process.poll() is None for process in processes.values()):
                time.sleep(_POLL_SECONDS)
                seconds, notes = [], []
                for objective, folder in folders.items():
                    elapsed, rate, loss = _newest(folder)
                    seconds.append(elapsed)
                    notes.append(f"{objective}: {rate:.0f} clips/s, loss {loss:.3f}")
                # The CPU time of the run that is furthest behind.
                progress.update(round(min(seconds)), ", ".join(notes))
        except BaseException:
            # They must not outlive us: let them save their checkpoints and end.
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait()
            raise
    for objective, process in processes.items():
        if process.returncode != 0:
            tail = logs[objective].read_text(encoding="utf-8", errors="replace").splitlines()
            raise UserError(
                f"pretraining {objective} seed {seed} ended with code {process.returncode}; end of "
                f"{logs[objective]}:\n" + "\n".join(tail[-_LOG_TAIL_LINES:])
            )


def _newest(folder: Path) -> list[float]:
    """A run's CPU time, clips a second and loss, 0 where there is none yet."""
    names = ("elapsed_cpu_seconds", "clips_per_second", "loss")
    if not (folder / RESOLVED_CONFIG_FILE).is_file():
        return [0.0] * len(names)
    run = read_run(folder)
    return [(run.series("train", name)[1] or [0.0])[-1] for name in names]
