"""metrics.jsonl and TensorBoard: complete, never twice, cut back at a resume."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from tests.runtime.full_disk import no_file_may_pass

from vjepa.errors import UserError
from vjepa.runtime.logging import MetricLog, MetricRecord, read_metrics


def _write(path: Path, completed: int, steps: list[int]) -> None:
    log = MetricLog(path)
    log.start(completed)
    for step in steps:
        log.write(MetricRecord("train", step, {"loss": step / 4}))
        if step % 2 == 0:
            log.write(MetricRecord("health", step, {"std": 1.0}))
    log.close()


def _keys(path: Path) -> list[tuple[str, int]]:
    return [(record.kind, record.step) for record in read_metrics(path)]


def test_lines_beyond_the_resumed_step_are_replaced(tmp_path: Path) -> None:
    whole, cut = tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl"
    _write(whole, 0, [1, 2, 3, 4, 5])
    _write(cut, 0, [1, 2, 3, 4])
    _write(cut, 2, [3, 4, 5])
    assert cut.read_text() == whole.read_text()
    assert _keys(cut)[:3] == [("train", 1), ("train", 2), ("health", 2)]
    _write(cut, 0, [1])  # a fresh start
    assert _keys(cut) == [("train", 1)]


def test_line_that_a_crash_has_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, 0, [1, 3])
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert _keys(path) == [("train", 1), ("train", 3)]
    _write(path, 3, [5])
    assert _keys(path) == [("train", 1), ("train", 3), ("train", 5)]


def test_every_line_is_json_also_with_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.start(0)
    log.write(MetricRecord("train", 1, {"loss": math.nan, "grad": math.inf, "count": 3}))
    log.write(MetricRecord("warning", 1, {"message": "collapse"}))
    log.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"kind": "train", "step": 1, "loss": None, "grad": None, "count": 3}
    assert second["message"] == "collapse"
    assert math.isnan(read_metrics(path)[0].values["loss"])


def test_lines_are_there_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        log.write(MetricRecord("train", 1))
    log.start(0)
    log.write(MetricRecord("train", 1))
    assert _keys(path) == [("train", 1)]
    log.close()


def test_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.start(0)
    with no_file_may_pass(100), pytest.raises(UserError, match=r"metrics\.jsonl: cannot be wr"):
        log.write(MetricRecord("train", 1, {"x" * 200: 1}))
    log.close()


def test_full_disk_of_event_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    class FullWriter:
        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def add_scalar(self, *args: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard, "SummaryWriter", FullWriter)
    log = MetricLog(tmp_path / "metrics.jsonl", events=True)
    log.start(0)
    with pytest.raises(UserError, match=r"cannot be written .No space left"):
        log.write(MetricRecord("train", 1, {"loss": 1.0}))
    log.close()
    assert "No space left" in caplog.text


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"step": 1}', None])
def test_a_missing_file_and_foreign_lines_are_refused(tmp_path: Path, line: str | None) -> None:
    path = tmp_path / "metrics.jsonl"
    if line is not None:
        path.write_text(f'{line}\n{{"kind": "train", "step": 1}}\n')
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: " + ("line 1" if line else "no such file")
    ):
        read_metrics(path)


def test_event_files_hold_scalars_and_go_on_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    # The first was killed before its first checkpoint: what begins anew has nothing of it.
    for completed, steps in ((0, [1, 7]), (0, [1, 2, 3, 4]), (2, [3, 4, 5])):
        if steps == [3, 4, 5]:
            events = accumulator.EventAccumulator(str(tmp_path)).Reload()
            assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
        log = MetricLog(tmp_path / "metrics.jsonl", events=True)
        log.start(completed)
        for step in steps:
            values = {"loss": completed + step / 10, "list": [1]}
            log.write(MetricRecord("train", step, values))
        log.write(MetricRecord("warning", steps[-1], {"message": "collapse"}))
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    wanted = [(1, 0.1), (2, 0.2), (3, 2.3), (4, 2.4), (5, 2.5)]
    assert found == [(step, pytest.approx(value)) for step, value in wanted]
    assert events.Tags()["scalars"] == ["train/loss"]
    assert _keys(tmp_path / "metrics.jsonl")[-2:] == [("train", 5), ("warning", 5)]


def test_without_tensorboard_the_log_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = MetricLog(tmp_path / "metrics.jsonl", events=True)
    assert "tensorboard is not installed" in caplog.text
    assert "pip install tensorboard" in caplog.text
    log.start(0)
    log.write(MetricRecord("train", 1))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
