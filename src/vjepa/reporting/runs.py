"""A run folder read back: its metrics, its state in a few lines, its curves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vjepa.checkpoint.folder import CHECKPOINTS_FOLDER, step_folders
from vjepa.errors import UserError
from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import Chart
from vjepa.runtime.metric_log import MetricRecord, read_metrics

_CURVES: tuple[tuple[str, str, str, str], ...] = (
    (
        "train",
        "loss",
        "loss",
        "Training loss. With an EMA target a rising loss can be healthy: the "
        "targets get richer. Judge by the probe and by the health curves.",
    ),
    (
        "evaluation",
        "online_probe/top1",
        "top-1 share",
        "Online probe: ridge classifier on mean-pooled "
        "target features, on videos that it was not fitted on.",
    ),
    (
        "health",
        "target_std_between_clips",
        "std",
        "Spread of the target features over clips; falling towards 0 is collapse.",
    ),
    (
        "health",
        "effective_rank",
        "rank",
        "Effective rank of the pooled target features over a batch.",
    ),
    (
        "health",
        "explained_vs_position_mean",
        "share",
        "How much better the predictor is than the best "
        "constant for each position; 0 is no better.",
    ),
    (
        "health",
        "pairwise_cosine",
        "cosine",
        "Mean cosine between the pooled features of different clips.",
    ),
    ("train", "grad_norm/encoder", "norm", "Gradient norm of the context encoder."),
    ("train", "learning_rate", "rate", "Learning rate."),
    ("train", "clips_per_second", "clips/s", "Clips per second, of all processes."),
    ("train", "data_wait_share", "share", "Share of the time spent waiting for data."),
    ("train", "resident_gigabytes", "GB", "Memory of the training process that holds most."),
    ("train", "device_gigabytes", "GB", "Largest memory on a GPU."),
)
"""(kind of record, name, axis label, caption) of the curves to look at, most telling first."""


@dataclass(frozen=True)
class RunState:
    """What a run folder tells about its run.

    Attributes:
        folder: The run folder.
        config: Resolved config as plain YAML types.
        records: Every line of `metrics.jsonl`, in order.
        checkpoints: Steps of the complete checkpoints, ascending.
        bad_videos: Lines of `bad_videos.jsonl`.
        seconds_since_write: Age of the newest metric line; None without metrics.
    """

    folder: Path
    config: Mapping[str, Any]
    records: Sequence[MetricRecord]
    checkpoints: Sequence[int]
    bad_videos: Sequence[Mapping[str, Any]]
    seconds_since_write: float | None

    @property
    def steps_done(self) -> int:
        """Newest step that any record names."""
        return max((record.step for record in self.records), default=0)

    @property
    def steps_total(self) -> int | None:
        """Steps that the config asks for; None where it does not say."""
        steps = self.config.get("optim", {}).get("steps")
        return int(steps) if steps is not None else None

    def series(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, lines without a finite value left out."""
        found = ((r.step, r.values.get(name)) for r in self.records if r.kind == kind)
        pairs = [
            (float(step), float(value))
            for step, value in found
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        return [step for step, _ in pairs], [value for _, value in pairs]


def _bad_videos(path: Path) -> list[Mapping[str, Any]]:
    """Entries of `bad_videos.jsonl`; lines that are none (cut short by a crash) are left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            found.append(entry)
    return found


def read_run(folder: Path) -> RunState:
    """Read a run folder, of a running or a dead run.

    Raises:
        UserError: It is no run folder, or a file in it is damaged.
    """
    config_path = folder / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{folder}: no run folder, it has no config.yaml; name the --out of a run")
    metrics = folder / "metrics.jsonl"
    return RunState(
        folder=folder,
        config=yaml.safe_load(config_path.read_text(encoding="utf-8")) or {},
        records=read_metrics(metrics) if metrics.is_file() else [],
        checkpoints=list(step_folders(folder / CHECKPOINTS_FOLDER)),
        bad_videos=_bad_videos(folder / "bad_videos.jsonl"),
        seconds_since_write=time.time() - metrics.stat().st_mtime if metrics.is_file() else None,
    )


def state_lines(state: RunState) -> list[str]:
    """The state of a run in plain lines, newest values last."""
    total = state.steps_total
    share = f" of {total} ({100 * state.steps_done / total:.0f} %)" if total else ""
    lines = [f"run          {state.folder}", f"steps        {state.steps_done}{share}"]
    kept = ", ".join(str(step) for step in state.checkpoints) or "none"
    lines.append(f"checkpoints  {kept}")
    for kind in ("train", "health", "evaluation"):
        newest = next((r for r in reversed(state.records) if r.kind == kind), None)
        if newest:
            values = [
                f"{name} {value:.4g}"
                for name, value in newest.values.items()
                if isinstance(value, int | float)
            ]
            lines.append(f"{kind:<12} step {newest.step}: " + ", ".join(values))
    for record in state.records:
        if record.kind == "warning":
            lines.append(f"warning      step {record.step}: {record.values.get('message', '')}")
    return lines


def run_charts(states: Mapping[str, RunState]) -> list[Chart]:
    """The telling curves of one or several runs; a chart holds every run that has the metric."""
    charts: list[Chart] = []
    for kind, name, label, caption in _CURVES:
        lines = []
        for colour, (title, state) in enumerate(states.items(), start=1):
            steps, values = state.series(kind, name)
            if len(steps) > 1:
                lines.append(Line(title, steps, values, colour))
        if lines:
            charts.append(Chart(line_chart(lines, x_label="step", y_label=label), caption))
    return charts
