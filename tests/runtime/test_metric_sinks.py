"""metrics.jsonl and TensorBoard: complete, never twice, cut back at a resume."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from vjepa.errors import UserError
from vjepa.runtime.metric_log import (
    JsonlSink,
    MetricRecord,
    TensorBoardSink,
    read_metrics,
    run_folder_sinks,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def _write(path: Path, completed: int, steps: list[int]) -> None:
    sink = JsonlSink(path)
    sink.start(completed)
    for step in steps:
        sink.write(MetricRecord("train", step, {"loss": step / 4}))
        if step % 2 == 0:
            sink.write(MetricRecord("health", step, {"std": 1.0}))
    sink.close()


def _keys(path: Path) -> list[tuple[str, int]]:
    return [(record.kind, record.step) for record in read_metrics(path)]


def test_lines_beyond_the_resumed_step_are_replaced(tmp_path: Path) -> None:
    whole, cut = tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl"
    _write(whole, 0, [1, 2, 3, 4, 5])
    _write(cut, 0, [1, 2, 3, 4])
    _write(cut, 2, [3, 4, 5])
    assert cut.read_text() == whole.read_text()
    assert _keys(cut)[:3] == [("train", 1), ("train", 2), ("health", 2)]


def test_fresh_start_empties_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, 0, [1, 2])
    _write(path, 0, [1])
    assert _keys(path) == [("train", 1)]


def test_line_that_a_crash_has_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, 0, [1, 3])
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert _keys(path) == [("train", 1), ("train", 3)]
    _write(path, 3, [5])
    assert _keys(path) == [("train", 1), ("train", 3), ("train", 5)]


def test_every_line_is_json_also_with_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.start(0)
    sink.write(MetricRecord("train", 1, {"loss": math.nan, "grad": math.inf, "count": 3}))
    sink.write(MetricRecord("warning", 1, {"message": "collapse"}))
    sink.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"kind": "train", "step": 1, "loss": None, "grad": None, "count": 3}
    assert second["message"] == "collapse"
    assert math.isnan(read_metrics(path)[0].values["loss"])


def test_lines_are_there_before_the_sink_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        sink.write(MetricRecord("train", 1))
    sink.start(0)
    sink.write(MetricRecord("train", 1))
    assert _keys(path) == [("train", 1)]
    sink.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.start(0)
    sink.close()
    sink._file = open("/dev/full", "a")  # noqa: SIM115, PTH123 (the sink closes it)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No space left"):
        sink.write(MetricRecord("train", 1))
    sink.close()


def test_full_disk_of_event_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FullWriter:
        def add_scalar(self, *args: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    sink = TensorBoardSink(tmp_path)
    sink._writer = cast("SummaryWriter", FullWriter())
    with pytest.raises(UserError, match="cannot be written: No space left"):
        sink.write(MetricRecord("train", 1, {"loss": 1.0}))
    sink.close()
    assert "No space left" in caplog.text


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"step": 1}'])
def test_foreign_lines_are_refused_when_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"kind": "train", "step": 1}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1"):
        read_metrics(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_scalars_images_and_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    for completed, steps in ((0, [1, 2, 3, 4]), (2, [3, 4, 5])):
        sink = TensorBoardSink(tmp_path)
        sink.start(completed)
        for step in steps:
            values = {"loss": completed + step / 10, "list": [1]}
            sink.write(MetricRecord("train", step, values))
        sink.write(MetricRecord("warning", steps[-1], {"message": "collapse"}))
        sink.write_images("masks", np.zeros((3, 8, 8, 3), np.uint8), steps[-1])
        sink.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(s, pytest.approx(v)) for s, v in ((1, 0.1), (2, 0.2), *_after_resume())]
    assert "masks" in events.Tags()["images"]
    assert events.Tags()["scalars"] == ["train/loss"]


def _after_resume() -> list[tuple[int, float]]:
    return [(3, 2.3), (4, 2.4), (5, 2.5)]


def test_tensorboard_must_be_started(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        TensorBoardSink(tmp_path).write(MetricRecord("train", 1))


def test_without_tensorboard_the_log_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(run_folder_sinks(tmp_path)) == 2
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    (sink,) = run_folder_sinks(tmp_path)
    assert isinstance(sink, JsonlSink)
    assert "tensorboard is not installed" in caplog.text
    assert "pip install tensorboard" in caplog.text
