"""The demo's curves over time."""

from __future__ import annotations

from pathlib import Path

from vjepa.demo.report import probe_by_time, training_charts
from vjepa.reporting.runs import RunState
from vjepa.runtime.metric_log import MetricRecord


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
    charts = training_charts({"V-JEPA": long, "another": long, "pixels": short})
    assert "minutes" in charts[0].svg
    assert "V-JEPA" in charts[0].svg
    assert "pixels" not in charts[0].svg
    assert not any("minutes" in chart.svg for chart in training_charts({"pixels": short}))
