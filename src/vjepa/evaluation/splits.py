"""Which labelled rows are used: low-shot subsets and the part held out for choosing.

Both are stratified (per class), pure functions of (labels, seed), and written down as JSON beside
the result, so that a number can be traced to the very videos that it was trained on. Paper
section 5 (Table 7) takes 5, 10 and 50 % of the training set, three random splits each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vjepa.counter_random import permute
from vjepa.errors import UserError
from vjepa.evaluation.labels import Labels


@dataclass(frozen=True)
class HoldOut:
    """Two disjoint sets of rows that together are all rows given.

    Attributes:
        fit: int64, ascending: rows that heads are trained on.
        choose: int64, ascending: rows that the choice among heads is made on.
    """

    fit: NDArray[np.int64]
    choose: NDArray[np.int64]


def stratified_subset(
    labels: Labels, *, per_class: int | None = None, fraction: float | None = None, seed: int
) -> NDArray[np.int64]:
    """A random subset of rows with the same share (or number) of every class.

    Subsets of one seed are nested: the rows of a smaller subset are all in a larger one.

    Args:
        labels: The labels to choose from.
        per_class: Rows per class; exclusive with `fraction`.
        fraction: Share of each class's rows, in (0, 1]; rounded, at least one row a class.
        seed: Another seed, another subset.

    Returns:
        int64 [k], ascending row numbers; all rows when both are None.

    Raises:
        UserError: Both are given, a value is out of range, or a class has fewer rows than asked.
    """
    if per_class is not None and fraction is not None:
        raise UserError("give labels_per_class or label_fraction, not both")
    if per_class is not None and per_class < 1:
        raise UserError(f"labels_per_class: {per_class} is below 1")
    if fraction is not None and not 0.0 < fraction <= 1.0:
        raise UserError(f"label_fraction: {fraction} is not in (0, 1]")
    if per_class is not None and labels.multi_label:
        raise UserError(
            "labels_per_class: videos have several classes each; give label_fraction instead"
        )
    if per_class is None and fraction is None:
        return np.arange(len(labels), dtype=np.int64)
    chosen: list[NDArray[np.int64]] = []
    for class_index, name in enumerate(labels.classes):
        rows = _shuffled_rows(labels, class_index, seed, "subset")
        if rows.size == 0 and labels.multi_label:  # the rarest class of no video
            continue
        if per_class is not None:
            wanted = per_class
        else:
            assert fraction is not None
            wanted = max(1, round(fraction * rows.size))
        if rows.size < wanted:
            raise UserError(
                f"class {name!r} of label {labels.name!r} has {rows.size} training rows, "
                f"fewer than the {wanted} asked for; lower labels_per_class or add videos"
            )
        chosen.append(rows[:wanted])
    return np.sort(np.concatenate(chosen))


def hold_out(labels: Labels, rows: NDArray[np.int64], fraction: float, seed: int) -> HoldOut:
    """Set a stratified part of training rows aside for choosing among probe heads.

    A class of one row stays wholly in the part to fit on; any other class gives at least one row
    and keeps at least one.

    Args:
        labels: Labels of all rows.
        rows: int64, the rows to divide (for example a low-shot subset).
        fraction: Share of each class to hold out, in (0, 1).
        seed: Another seed, another division.

    Returns:
        The two parts, as row numbers of `labels`.

    Raises:
        UserError: The fraction is out of range, or no class has two rows.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"held_out_fraction: {fraction} is not in (0, 1)")
    inside = labels.take(rows)
    choose: list[NDArray[np.int64]] = []
    for class_index in range(len(labels.classes)):
        own = _shuffled_rows(inside, class_index, seed, "hold_out")
        wanted = min(max(1, round(fraction * own.size)), own.size - 1)
        choose.append(own[: max(wanted, 0)])
    positions = np.sort(np.concatenate(choose))
    if positions.size == 0:
        raise UserError(
            f"no class of label {labels.name!r} has two training rows, so nothing can be held out "
            "for choosing among heads; give one head only, a validation split, or more labels"
        )
    kept = np.setdiff1d(np.arange(len(inside)), positions)
    return HoldOut(fit=rows[kept], choose=rows[positions])


def _shuffled_rows(labels: Labels, class_index: int, seed: int, stream: str) -> NDArray[np.int64]:
    """The rows of a class in a random order that depends on (seed, stream, class) only."""
    rows = np.flatnonzero(labels.indices == class_index).astype(np.int64)
    if rows.size == 0:
        return rows
    places = np.arange(rows.size, dtype=np.int64)
    return rows[permute(places, rows.size, seed, f"{stream}/{class_index}")]


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """What a probe was trained, chosen and tested on; saved with its result.

    Attributes:
        label: Name of the label.
        manifest_hash: Content hash of the training manifest that the rows count in.
        seed: Seed of the subset and of the held-out part.
        labels_per_class, label_fraction: How the subset was asked for; both None = all rows.
        fit, choose: Row numbers (after the split's selection) that heads were trained on and
            chosen on; `choose` is empty when there was nothing to choose.
        fit_paths, choose_paths: The same as paths, for a manifest that was sorted anew.
    """

    label: str
    manifest_hash: str
    seed: int
    labels_per_class: int | None
    label_fraction: float | None
    fit: tuple[int, ...]
    choose: tuple[int, ...]
    fit_paths: tuple[str, ...]
    choose_paths: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def load_split(path: Path) -> SplitRecord:
    """Read a record that :meth:`SplitRecord.save` wrote.

    Raises:
        UserError: The file is missing or not such a record.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(fields.pop(name)) for name in _LIST_FIELDS}
        return SplitRecord(**fields, **lists)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a split file ({error})") from error


_LIST_FIELDS: Sequence[str] = ("fit", "choose", "fit_paths", "choose_paths")
