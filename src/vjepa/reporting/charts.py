"""Charts as inline SVG that follow the page's light or dark colours.

Drawn by matplotlib with stand-in colours which are then replaced by the page's CSS variables, so
one drawing serves both themes and no script is needed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
_CSS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}


@dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` of equal length; `colour` is a series number from 1 to 5."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1


@dataclass(frozen=True)
class Estimate:
    """One measured share with its interval, all in [0, 1]; `colour` as in :class:`Line`."""

    group: str
    label: str
    value: float
    low: float
    high: float
    colour: int = 1


def _svg(figure: Figure) -> str:
    """The figure as an SVG element with CSS colours and no XML prologue."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vjepa"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1
    )
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    return re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1inherit", text)


def _words(text: str) -> str:
    """Text as it is: a "$" in the name of a run or a class begins no formula."""
    return text.replace("$", r"\$")


def _style(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(colors=_MUTED, labelsize=8, length=0)
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    reference: float | None = None,
    reference_label: str = "",
    width: float = 4.6,
    height: float = 2.7,
) -> str:
    """Curves over a common axis as an SVG string.

    Args:
        lines: At least one curve; several get a legend.
        x_label, y_label: Axis names with units.
        reference: A horizontal line, for example chance level.
        reference_label: Its name.
        width, height: Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    for line in lines:
        marker = "o" if len(line.x) <= 24 else None
        axes.plot(
            line.x,
            line.y,
            color=_SERIES[line.colour - 1],
            linewidth=1.6,
            label=_words(line.label),
            marker=marker,
            markersize=3,
        )
    if reference is not None:
        axes.axhline(reference, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            _words(reference_label),
            (0.995, reference),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=_MUTED,
        )
    axes.set_xlabel(_words(x_label), color=_MUTED, fontsize=8.5)
    axes.set_ylabel(_words(y_label), color=_MUTED, fontsize=8.5)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return _svg(figure)


def estimate_chart(
    estimates: Sequence[Estimate], *, x_label: str, chance: dict[str, float] | None = None
) -> str:
    """Measured shares as dots with interval bars, one row each, grouped: an SVG string.

    Args:
        estimates: In drawing order; rows of one group must be neighbours.
        x_label: What is measured.
        chance: Chance level of a group, drawn as a short dashed line.
    """
    rows: list[Estimate | str] = []
    for estimate in estimates:
        if not rows or (isinstance(rows[-1], Estimate) and rows[-1].group != estimate.group):
            rows.append(estimate.group)
        rows.append(estimate)
    figure = Figure(figsize=(8.2, 0.25 * len(rows) + 0.7), layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    axes.grid(visible=True, axis="x", color=_GRID, linewidth=0.6)
    axes.grid(visible=False, axis="y")
    names: list[str] = []
    for position, row in enumerate(rows):
        if isinstance(row, str):
            names.append(row)
            continue
        names.append("    " + row.label)
        colour = _SERIES[row.colour - 1]
        axes.plot([100 * row.low, 100 * row.high], [position] * 2, color=colour, linewidth=2)
        axes.plot(100 * row.value, position, "o", color=colour, markersize=6)
        axes.annotate(
            f"{100 * row.value:.1f}",
            (100 * row.high, position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
        )
        if chance and row.group in chance:
            level = 100 * chance[row.group]
            axes.plot([level] * 2, [position - 0.5, position + 0.5], ":", color=_MUTED, linewidth=1)
    axes.set_yticks(range(len(rows)), [_words(name) for name in names], ha="left", fontsize=8.5)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(_INK)
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    axes.tick_params(axis="y", pad=250)
    axes.invert_yaxis()
    axes.set_xlabel(_words(x_label), color=_MUTED, fontsize=8.5)
    axes.margins(x=0.12)
    return _svg(figure)
