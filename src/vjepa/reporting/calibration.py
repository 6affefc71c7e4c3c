"""How far a classifier's confidence can be believed, as a picture (a reliability diagram)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True)
class ConfidenceRange:
    """Answers of one range of confidence.

    Attributes:
        low, high: The range, in [0, 1].
        count: How many answers; above 0.
        accuracy: Share of right ones, in [0, 1].
        confidence: Their mean confidence, in [0, 1].
    """

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


def draw_calibration(ranges: Sequence[ConfidenceRange], path: Path, title: str = "") -> None:
    """Draw accuracy over confidence, and below it how many answers each range holds.

    A point below the diagonal is an answer that was surer than it should have been.

    Args:
        ranges: Ranges that hold answers, ascending.
        path: PNG or SVG file to write, by its ending.
        title: A line above.
    """
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--")
    upper.plot(
        [entry.confidence for entry in ranges],
        [entry.accuracy for entry in ranges],
        color="#08519c",
        marker="o",
        markersize=5,
        linewidth=1,
    )
    upper.set_xlim(0, 1)
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel("share of right answers")
    if title:
        upper.set_title(title, fontsize=10)
    lower.bar(
        [entry.low for entry in ranges],
        [entry.count for entry in ranges],
        width=[entry.high - entry.low for entry in ranges],
        align="edge",
        color="#6baed6",
        edgecolor="white",
    )
    lower.set_xlabel("confidence of the answer")
    lower.set_ylabel("answers")
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
