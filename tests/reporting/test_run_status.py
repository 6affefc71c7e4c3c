"""A run's state from its folder: alive, dead and why, how fast, who is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vjepa.reporting.run_status import rank_charts, rank_table, status_lines, status_of
from vjepa.reporting.runs import read_run
from vjepa.runtime.files import holder_of, locked_folder
from vjepa.runtime.logging import log_file

_HOLD = """
import sys
from pathlib import Path
from vjepa.runtime.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
_needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells who holds a lock")


def _write_run(folder: Path, *, steps: int = 40, total: int = 100) -> Path:
    (folder / "config.yaml").write_text(f"optim: {{steps: {total}}}\n")
    lines = []
    for last in range(10, steps + 1, 10):
        shared = {"step": last, "clips_per_second": 80.0, "data_wait_share": 0.1}
        lines.append(
            {"kind": "train", "first_step": last - 9, "seconds": 5.0, "loss": 1.0, "skipped": 1}
            | {"resident_gigabytes": 1.5, **shared}
        )
        lines.append(
            {
                "kind": "ranks",
                "step": last,
                "clips_per_second": [40.0, 40.0, 40.0],
                "data_wait_share": [0.02, 0.6, 0.04],
                "cpu_share": [0.5, 0.4, 0.5],
                "resident_gigabytes": [1.0, 1.5, 1.2],
                "bad_videos": [0, 2, None],
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "bad_videos.jsonl").write_text(
        '{"path": "a", "kind": "hang"}\n{"path": "b"}\nnot json\n{"path": "c", "ki'
    )
    return folder


def test_numbers_table_and_straggler(tmp_path: Path) -> None:
    run = read_run(_write_run(tmp_path))
    status = status_of(run)
    assert status.steps_per_second == pytest.approx(2.0)
    assert status.skipped == 4
    assert not status.is_running
    assert status.seconds_left is None, "nobody works on it"
    assert status.stragglers == ["process 1 waits for data 60% of the time, the others 3%"]
    table = rank_table(status)
    assert table.header[:3] == ["process", "clips/s", "data wait"]
    assert table.rows[1] == ["1", "40", "60%", "40%", "1.50", "2"]
    text = "\n".join(status_lines(run, status))
    assert "bad videos   2 (1 hang, 1 decode)" in text
    assert "2 steps/s, 80 clips/s, 10% waiting for data" in text
    assert "slow         process 1" in text
    assert len(rank_charts(run)) == 2


@_needs_linux
def test_a_live_run_is_known_by_its_lock_and_a_silent_one_is_named(tmp_path: Path) -> None:
    _write_run(tmp_path)
    path = str(Path(__file__).parents[2] / "src")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert holder_of(tmp_path) == process.pid
        status = status_of(read_run(tmp_path))
        assert status.is_running
        assert status.seconds_left == pytest.approx(30.0)
        assert f"running (process {process.pid}), last step logged" in status.state
        old = time.time() - 3600
        os.utime(tmp_path / "metrics.jsonl", (old, old))
        assert "silent for 60 min: frozen" in status_of(read_run(tmp_path)).state
        process.communicate("")
    assert holder_of(tmp_path) is None
    with locked_folder(tmp_path):
        pass


def test_a_finished_run(tmp_path: Path) -> None:
    assert status_of(read_run(_write_run(tmp_path, steps=100))).state == "done"


def test_why_a_run_ended_is_told_by_the_log_of_its_last_start(tmp_path: Path) -> None:
    _write_run(tmp_path)
    assert "nothing tells why" in status_of(read_run(tmp_path)).state
    log = tmp_path / "logs" / "rank_000.log"
    with pytest.raises(ValueError, match="first"), log_file(log):
        raise ValueError("the first failure")
    with pytest.raises(OSError, match="disk"), log_file(log):
        raise OSError("the disk is gone")
    status = status_of(read_run(tmp_path))
    assert status.state == "ended: process 0: ends with OSError: the disk is gone"
    assert status.starts == 2
    with log_file(log):
        pass
    with log.open("a") as file:
        file.write("2026-01-01 10:00:00,000 INFO process 7 on here\n")
    assert (
        "process 0: no last words (kill -9, out of memory?)" in status_of(read_run(tmp_path)).state
    )


def test_a_log_file_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with log_file(tmp_path / "logs" / "rank_000.log"):
        pass


def test_lines_of_metrics_that_are_nonsense_do_no_harm(tmp_path: Path) -> None:
    _write_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 50, "loss": "x", "skipped": [1], "seconds": null}\n')
        file.write('{"kind": "ranks", "step": 50, "data_wait_share": ["x", null]}\n')
    run = read_run(tmp_path)
    assert status_lines(run, status_of(run))
