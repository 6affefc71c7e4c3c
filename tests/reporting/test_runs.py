"""A run folder read back: whole, damaged, alive, dead and why, how fast, who is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vjepa.errors import UserError
from vjepa.reporting.runs import (
    RunState,
    probe_by_time,
    rank_charts,
    rank_table,
    read_run,
    run_charts,
    state_lines,
    status_of,
)
from vjepa.runtime.files import claimed_folder, holder_of
from vjepa.runtime.logging import MetricRecord, log_file

_HOLD = """
import sys
from pathlib import Path
from vjepa.runtime.files import claimed_folder

with claimed_folder(Path(sys.argv[1]), "pretrain"):
    print("held", flush=True)
    sys.stdin.read()
"""
_needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells who holds a lock")


def _write_run(folder: Path, *, steps: int = 40, total: int = 100) -> Path:
    (folder / "config.yaml").write_text(f"# vjepa pretrain\noptim: {{steps: {total}}}\n")
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
    assert "running" not in status.state
    assert status.seconds_left is None, "nobody works on it"
    assert status.stragglers == ["process 1 waits for data 60% of the time, the others 3%"]
    table = rank_table(status)
    assert table.header[:3] == ["process", "clips/s", "data wait"]
    assert table.rows[1] == ["1", "40", "60%", "40%", "1.50", "2"]
    text = "\n".join(state_lines(run, status))
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
        assert status.seconds_left == pytest.approx(30.0)
        assert f"running (process {process.pid}), last step logged" in status.state
        old = time.time() - 3600
        os.utime(tmp_path / "metrics.jsonl", (old, old))
        assert "silent for 60 min: frozen" in status_of(read_run(tmp_path)).state
        ahead = time.time() + 3600  # by the clock of a server of files
        os.utime(tmp_path / "metrics.jsonl", (ahead, ahead))
        assert "last step logged 0 s ago" in status_of(read_run(tmp_path)).state
        process.communicate("")
    assert holder_of(tmp_path) is None
    with claimed_folder(tmp_path, "pretrain"):
        pass


def test_a_finished_run(tmp_path: Path) -> None:
    assert status_of(read_run(_write_run(tmp_path, steps=100))).state == (
        "done: all updates are done"
    )


def test_the_result_of_a_shorter_training_does_not_end_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "result.md").write_text("found")
    for total, state in ((40, "done: all updates are done and measured"), (100, "ended: nothing")):
        assert status_of(read_run(_write_run(tmp_path, total=total))).state.startswith(state)


def test_a_run_whose_time_went_out_in_its_last_report_is_done(tmp_path: Path) -> None:
    _write_run(tmp_path)
    config, log = tmp_path / "config.yaml", tmp_path / "logs" / "rank_000.log"
    config.write_text(config.read_text() + "training:\n  max_minutes: 1000\n")
    with log_file(log):
        pass
    assert status_of(read_run(tmp_path)).state == "done: training.max_minutes 1000 are over"
    with pytest.raises(OSError, match="disk"), log_file(log):
        raise OSError("the disk is gone")
    assert "ends with OSError" in status_of(read_run(tmp_path)).state


def test_a_run_that_ends_by_time_counts_minutes(tmp_path: Path) -> None:
    counted = {10**6: "steps        41, 15.0 of 30 minutes", 50: "steps        41 of 50 (82 %)"}
    for total, said in counted.items():
        _write_run(tmp_path, total=total)
        with (tmp_path / "config.yaml").open("a") as config:
            config.write("training: {max_minutes: 30}\n")
        with (tmp_path / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"kind": "train", "step": 41, "elapsed_seconds": 900.0}\n')
        run = read_run(tmp_path)
        assert said in state_lines(run, status_of(run))


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
        "process 0: ended without a message (killed, or out of memory?)"
        in status_of(read_run(tmp_path)).state
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
    assert state_lines(run, status_of(run))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("optim: {steps: 100}\n")
    records = [
        {"kind": "train", "step": 10, "loss": 2.0, "learning_rate": 0.1},
        {"kind": "train", "step": 20, "loss": None, "learning_rate": 0.1},
        {"kind": "train", "step": 30, "loss": 1.0, "learning_rate": 0.1},
        {"kind": "health", "step": 30, "effective_rank": 7.5},
        {"kind": "warning", "step": 30, "message": "something is odd"},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "train", "st')
    (folder / "bad_videos.jsonl").write_text('{"path": "a.mp4"}\n{"pa')
    checkpoint = folder / "checkpoints" / "step_00000030"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "step_00000040.partial").mkdir()
    return folder


def test_state(run: Path) -> None:
    state = read_run(run)
    assert (state.steps_done, state.steps_total) == (30, 100)
    assert state.checkpoints == [30]
    assert len(state.bad_videos) == 1
    assert state.series("train", "loss") == ([10.0, 30.0], [2.0, 1.0])
    assert state.series("train", "nosuch") == ([], [])
    text = "\n".join(state_lines(state, status_of(state)))
    assert "30 of 100 (30 %)" in text
    assert "effective_rank 7.5" in text
    assert "something is odd" in text


def test_charts_are_drawn_for_what_is_there(run: Path) -> None:
    charts = run_charts({"a": read_run(run)})
    assert len(charts) == 2, "loss and learning rate; one health value is no curve"


def test_a_run_before_its_first_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    state = read_run(tmp_path)
    assert (state.steps_done, state.steps_total, state.seconds_since_write) == (0, None, None)
    assert state_lines(state, status_of(state))


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        read_run(tmp_path)


def _run(*points: tuple[int, float, float]) -> RunState:
    """A run that measured, at a step, after so many seconds, this top-1."""
    records = []
    for step, seconds, top1 in points:
        records.append(MetricRecord("train", step, {"loss": 1.0, "elapsed_seconds": seconds}))
        records.append(MetricRecord("evaluation", step, {"online_probe/top1": top1}))
    return RunState(Path("run"), {}, records, [], [], None)


def test_top1_stands_at_the_minutes_of_its_step() -> None:
    assert probe_by_time(_run((10, 30.0, 0.2), (20, 90.0, 0.4))) == ([0.5, 1.5], [0.2, 0.4])


def test_the_chart_over_time_comes_first_and_needs_two_points() -> None:
    long, short = _run((10, 30.0, 0.2), (20, 90.0, 0.4)), _run((10, 30.0, 0.2))
    charts = run_charts({"V-JEPA": long, "another": long, "pixels": short})
    assert "minutes" in charts[0].svg
    assert "V-JEPA" in charts[0].svg
    assert "pixels" not in charts[0].svg
    assert not any("minutes" in chart.svg for chart in run_charts({"pixels": short}))


def test_the_folder_of_another_job_is_no_run_and_the_run_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# vjepa learn\nminutes: 10\n")
    with pytest.raises(UserError, match=r"is of `vjepa learn` and no run; name one$"):
        read_run(tmp_path)
    (tmp_path / "run").mkdir()
    assert read_run(_write_run(tmp_path / "run")).steps_done == 40
    with pytest.raises(UserError, match=rf"name one, for example {tmp_path / 'run'}$"):
        read_run(tmp_path)
