"""The confusion matrix of a classifier as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_MOST_NAMED = 40  # beyond that names and numbers would not be readable
_MOST_COUNTED = 20


def draw_confusion(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str = ""
) -> None:
    """Draw which classes are taken for which.

    Colour is the share of the true class's videos; up to 20 classes the counts stand in the cells.

    Args:
        confusion: ``confusion[i][j]`` = videos of class i that were taken for class j.
        classes: Class names.
        path: PNG or SVG file to write, by its ending.
        title: A line above.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    of_class = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(of_class, 1)
    size = len(classes)
    side = min(14.0, max(3.2, 1.6 + 0.42 * min(size, _MOST_NAMED)))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if title:
        axes.set_title(title, fontsize=10)
    if size <= _MOST_NAMED:
        many = size > 6
        axes.set_xticks(
            range(size),
            classes,
            rotation=90 if many else 45,
            ha="center" if many else "right",
            rotation_mode="default" if many else "anchor",
            fontsize=8,
        )
        axes.set_yticks(
            range(size),
            [f"{name} ({count})" for name, count in zip(classes, of_class[:, 0], strict=True)],
            fontsize=8,
        )
    if size <= _MOST_COUNTED:
        for row, column in np.argwhere(counts > 0):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > 0.6 else "black",
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the class")
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
