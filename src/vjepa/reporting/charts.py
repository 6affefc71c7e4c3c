"""Charts: as inline SVG that follows the page's light or dark colours, and as files.

Files have no ground, and words and lines that are seen on a light page and on a dark one.
Those for a page are drawn by matplotlib with stand-in colours which are then replaced by the page's
CSS variables, so one drawing serves both themes and no script is needed.
"""

from __future__ import annotations

import html
import io
import logging
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vjepa.reporting.pictures import MIDDLE_GREY
from vjepa.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED = 40  # beyond that names and numbers would not be readable
_MOST_COUNTED = 20
_LONGEST_LINE = 42  # letters that the width of a chart holds beside a mark
_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05")
_CSS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}
_FAINT = "#88888866"
_LOGGER = logging.getLogger(__name__)
_GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning
_ON_ANY_GROUND = ("#2f8fd0", "#e0702f", "#35a168", "#a06fd0", "#b58a1f")
MAX_LINES = len(_SERIES)
"""As many lines in one chart as there are colours."""


def _figure(width: float, height: float, **how: Any) -> Figure:
    from matplotlib.figure import Figure  # half a second that commands without a chart save

    return Figure(figsize=(width, height), **how)


def draw_calibration(ranges: Sequence[Any], path: Path, title: str = "") -> None:
    """Draw accuracy over confidence, and below it how many answers each range holds.

    A point below the diagonal is an answer that was surer than it should have been. `ranges` of
    confidence hold answers and ascend: ``low``, ``high``, ``count`` of answers, how many are
    ``correct``, and their mean ``confidence``. `path` ends with .png or .svg.
    """
    figure = _figure(4.2, 4.8, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _style(upper, "both", MIDDLE_GREY, _FAINT)
    _style(lower, "y", MIDDLE_GREY, _FAINT)
    upper.plot((0, 1), (0, 1), color=MIDDLE_GREY, linewidth=1, linestyle="--")
    confidence = [entry.confidence for entry in ranges]
    accuracy = [entry.correct / entry.count for entry in ranges]
    upper.plot(confidence, accuracy, color=_ON_ANY_GROUND[0], marker="o", markersize=5, linewidth=1)
    upper.set_xlim(0, 1)
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel("share of right answers", color=MIDDLE_GREY)
    upper.set_title(title, fontsize=10, color=MIDDLE_GREY)
    lows, widths = [one.low for one in ranges], [one.high - one.low for one in ranges]
    counts = [entry.count for entry in ranges]
    lower.bar(lows, counts, widths, align="edge", color=_ON_ANY_GROUND[0], alpha=0.7)
    lower.set_xlabel("confidence of the answer", color=MIDDLE_GREY)
    lower.set_ylabel("answers", color=MIDDLE_GREY)
    _save(figure, path)


def draw_confusion(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draw which classes are taken for which: `confusion[i][j]` videos of class i for class j.

    Colour is the share of the true class's videos; up to 20 classes the counts stand in the cells.
    `path` ends with .png or .svg.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    of_class = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(of_class, 1)
    size, classes = len(classes), [_words(name) for name in classes]
    side = min(14.0, max(3.2, 1.6 + 0.42 * min(size, _MOST_NAMED)))
    figure = _figure(side + 1.2, side, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xlabel("answer", color=MIDDLE_GREY)
    axes.set_ylabel("truth", color=MIDDLE_GREY)
    axes.set_title(title, fontsize=10, color=MIDDLE_GREY)
    if size <= _MOST_NAMED:
        turned: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        upright: Any = {"rotation": 90, "ha": "center", "rotation_mode": "default"}
        axes.set_xticks(range(size), classes, fontsize=8, **(upright if size > 6 else turned))
        rows = zip(classes, of_class[:, 0], strict=True)
        axes.set_yticks(range(size), [f"{name} ({count})" for name, count in rows], fontsize=8)
    if size <= _MOST_COUNTED:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.6 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the class", color=MIDDLE_GREY)
    for one in (axes, bar.ax):
        one.tick_params(colors=MIDDLE_GREY)
        one.spines[:].set_color(MIDDLE_GREY)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    form, undated = path.suffix[1:], {"Date": None} if path.suffix == ".svg" else None
    with atomic_path(path, durable=False) as aside, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        figure.savefig(aside, format=form, dpi=130, transparent=True, metadata=undated)
    signs = ""
    for one in said:
        if found := _GLYPH.match(str(one.message)):
            signs += chr(int(found[1])) * (chr(int(found[1])) not in signs)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if signs:
        _LOGGER.warning("%s: no font for %s: boxes stand for them", path, signs)


@dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` of equal length; `colour` is a series number from 1 to 5.

    At its `level`, if it has one, stands a dotted line; `intervals` are drawn as upright bars.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    level: float | None = None
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Estimate:
    """One measured share with its interval, all in [0, 1]; `colour` as in :class:`Line`."""

    group: str
    label: str
    value: float
    low: float
    high: float
    colour: int = 1


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """One or more curves over a common axis as an SVG string; several get a legend above them."""
    names = ["\n".join(textwrap.wrap(line.label, _LONGEST_LINE)) for line in lines]
    named = "\n".join(names).count("\n") + 1 if len(lines) > 1 else 0
    # As wide as a phone: words as they are.
    figure = _figure(4.4, 2.7 + 0.2 * named, layout="constrained")
    axes = figure.add_subplot()
    _style(axes, "y")
    for line, name in zip(lines, names, strict=True):
        axes.plot(
            line.x,
            line.y,
            color=_SERIES[line.colour - 1],
            linewidth=1.6,
            label=_words(name),
            marker="o" if len(line.x) <= 24 else None,
            markersize=3,
        )
        if line.intervals:
            lows, highs = zip(*line.intervals, strict=True)
            axes.vlines(line.x, lows, highs, _SERIES[line.colour - 1], linewidth=1)
        if line.level is not None:
            axes.axhline(line.level, color=_SERIES[line.colour - 1], linewidth=1, linestyle=":")
    axes.ticklabel_format(axis="y", useOffset=False)  # no 1e-6+9.49e-1 above a level curve
    if all(float(x).is_integer() for line in lines for x in line.x):  # no update 12.5
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(_words(x_label), color=_MUTED, fontsize=9.5)
    axes.set_ylabel(_words(y_label), color=_MUTED, fontsize=9.5)
    if named:  # not within the axes, where curves would cross its words
        figure.legend(loc="outside upper left", frameon=False, fontsize=9.5, labelcolor=_INK)
    return _svg(figure, f"{y_label} by {x_label}: {'; '.join(line.label for line in lines)}")


def write_line_chart(
    lines: Sequence[Line], path: Path, at: float, *, x_label: str, y_label: str
) -> tuple[float, float]:
    """Curves as a picture without ground, for light pages and dark, with a mark at one x.

    Returned is what x the left and the right edge of the picture would have.
    """
    figure = _figure(6.0, 2.4)  # small, so that its words are large on a phone
    axes = figure.add_axes((0.11, 0.22, 0.87, 0.74 if len(lines) == 1 else 0.64))
    _style(axes, "y", MIDDLE_GREY, _FAINT)
    for line, colour in zip(lines, _ON_ANY_GROUND, strict=False):
        axes.plot(line.x, line.y, color=colour, linewidth=1.8, label=_words(line.label))
        if line.level is not None:
            axes.axhline(line.level, color=colour, linewidth=1.2, linestyle=":")
    axes.axvline(at, color=MIDDLE_GREY, linewidth=1.4, linestyle="--")
    axes.set_xlabel(_words(x_label), color=MIDDLE_GREY, fontsize=10)
    axes.set_ylabel(_words(y_label), color=MIDDLE_GREY, fontsize=10)
    if len(lines) > 1:
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderpad": 0}
        axes.legend(frameon=False, fontsize=9, labelcolor=MIDDLE_GREY, **above)
    low, high = map(float, axes.get_xlim())
    figure.savefig(path, dpi=165, transparent=True)
    each = (high - low) / 0.87
    return low - 0.11 * each, high + 0.02 * each


def estimate_charts(
    estimates: Sequence[Estimate], *, x_label: str, chance: dict[str, float] | None = None
) -> list[str]:
    """Measured shares as dots with interval bars, one SVG string for each group, one scale in all.

    Names stand above their rows, so that a phone shows all of it. A group's `chance` level is
    drawn as a dotted line.
    """
    groups: dict[str, list[Estimate]] = {}
    for estimate in estimates:
        groups.setdefault(estimate.group, []).append(estimate)
    right = 112 * max((one.high for one in estimates), default=1.0)  # and the number beside it
    style: Any = {"textcoords": "offset points", "va": "center", "color": _INK}
    edge: Any = ("axes fraction", "data")
    charts = []
    for group, rows in groups.items():
        figure = _figure(4.4, 0.4 * len(rows) + 0.9, layout="constrained")
        axes = figure.add_subplot()
        _style(axes, "x")
        for place, row in enumerate(rows):
            colour = _SERIES[row.colour - 1]
            axes.plot([100 * row.low, 100 * row.high], [place] * 2, color=colour, linewidth=2)
            axes.plot(100 * row.value, place, "o", color=colour, markersize=6)
            value = (100 * row.high, place)
            axes.annotate(f"{100 * row.value:.1f}", value, (6, 0), fontsize=9, **style)
            axes.annotate(_words(row.label), (0, place), (3, 11), edge, fontsize=9.5, **style)
            if chance is not None and group in chance:  # beside the row, not through its name
                level = [100 * chance[group]] * 2
                axes.plot(level, [place - 0.14, place + 0.36], ":", color=_MUTED, linewidth=1)
        axes.set_yticks([])
        axes.set_xlim(0, right or 1.0)
        axes.set_ylim(len(rows) - 0.5, -0.7)  # the first row on top
        axes.set_title(_words(group), loc="left", fontsize=9.5, fontweight="bold", color=_INK)
        axes.set_xlabel(_words(x_label), color=_MUTED, fontsize=8.5)
        told = "; ".join(f"{row.label} {100 * row.value:.1f}" for row in rows)
        charts.append(_svg(figure, f"{group}, {x_label}: {told}"))
    return charts


def _words(text: str) -> str:
    """Text as it is: a "$" in the name of a run or a class begins no formula."""
    return text.replace("$", r"\$")


def _style(axes: Axes, grid: Any, muted: str = _MUTED, grey: str = _GRID) -> None:
    """A quiet frame with the grid lines of one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(grey)
    axes.tick_params(colors=muted, labelsize=9, length=0)
    axes.grid(visible=True, axis=grid, color=grey, linewidth=0.6)
    axes.set_axisbelow(True)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element with CSS colours and no XML prologue.

    `name` says what is drawn to those who do not see it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vjepa"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The page keeps a chart near this width, so that its words are neither tiny nor huge.
    text = re.sub(
        r'<svg [^>]*?viewBox="(\S+ \S+ (\d+)[^"]*)"[^>]*>',
        r'<svg viewBox="\1" role="img" style="--width: \2px">',
        text,
        count=1,
    )
    text = text.replace(' role="img"', f' role="img" aria-label="{html.escape(name)}"', 1)
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    return re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1inherit", text)
