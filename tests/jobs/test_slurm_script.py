"""The script for SLURM: after which exit codes of the training it asks to be queued again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "slurm" / "pretrain.sbatch"
_COMMANDS = {
    "srun": 'exit "$CODE"',
    "scontrol": 'if [ "$1" = requeue ]; then echo "queued $2"; else echo first-host; fi',
}


def _end(folder: Path, code: int, restarts: int | None) -> tuple[int, bool]:
    """The script's exit code and whether the job is queued again."""
    for name, text in _COMMANDS.items():
        command = folder / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "first-host", "CODE": str(code)}
    if restarts is not None:  # the first start has none
        told["SLURM_RESTART_COUNT"] = str(restarts)
    path = os.pathsep.join((str(folder), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", str(_SCRIPT), "--out", "run"],
        env={"PATH": path, **told},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, "queued 7" in done.stdout


@pytest.mark.parametrize("restarts", [None, 3, 500])
def test_a_run_that_has_saved_is_queued_again(tmp_path: Path, restarts: int | None) -> None:
    assert _end(tmp_path, 75, restarts) == (0, True)


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_a_run_that_ends_by_itself_is_not(tmp_path: Path, code: int) -> None:
    assert _end(tmp_path, code, None) == (code, False)


@pytest.mark.parametrize("code", [138, 143])
def test_a_start_that_a_signal_ended_is_tried_again_but_not_for_ever(
    tmp_path: Path, code: int
) -> None:
    assert _end(tmp_path, code, None) == (0, True)
    assert _end(tmp_path, code, 8) == (0, True)
    assert _end(tmp_path, code, 9) == (code, False)
