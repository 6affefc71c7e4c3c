"""The demo's training curves, above all: what the features are worth after how much training."""

from __future__ import annotations

from collections.abc import Mapping

from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import Chart
from vjepa.reporting.runs import RunState, run_charts

_TOP1 = "online_probe/top1"


def probe_by_time(state: RunState) -> tuple[list[float], list[float]]:
    """Minutes of training and top-1 of the online probe then, as far as the run has measured it."""
    minutes = {
        record.step: record.values["elapsed_seconds"] / 60
        for record in state.records
        if record.kind == "train" and "elapsed_seconds" in record.values
    }
    steps, shares = state.series("evaluation", _TOP1)
    known = [(minutes[int(step)], share) for step, share in zip(steps, shares, strict=True)]
    return [minute for minute, _ in known], [share for _, share in known]


def training_charts(states: Mapping[str, RunState]) -> list[Chart]:
    """All curves of the runs, the online probe against time first.

    Args:
        states: The runs by the title of their line.
    """
    lines = []
    for colour, (title, state) in enumerate(states.items(), start=1):
        minutes, shares = probe_by_time(state)
        if len(minutes) > 1:
            lines.append(Line(title, minutes, shares, colour))
    first = []
    if lines:
        caption = (
            "The same online probe against time, which both models had alike: a curve that still "
            "rises has not had enough of it. Schedules are laid out for this time, so a longer run "
            "is not this curve drawn on."
        )
        first = [Chart(line_chart(lines, x_label="minutes", y_label="top-1 share"), caption)]
    return first + run_charts(states)
