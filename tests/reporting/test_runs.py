"""A run folder read back, whole or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vjepa.errors import UserError
from vjepa.reporting.runs import read_run, run_charts, state_lines


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
    text = "\n".join(state_lines(state))
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
    assert state_lines(state)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        read_run(tmp_path)
