"""Labels of a manifest as class numbers, with the class names beside them.

The class names travel with everything made from them (features, probe files, results), because
a probe whose class order is unknown is useless to whoever gets it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError


@dataclass(frozen=True)
class Labels:
    """One label of n videos.

    Attributes:
        name: The label's name in the manifest, for example ``motion``.
        classes: Class names; class number i is ``classes[i]``.
        indices: int64 [n], the class number of each row.
    """

    name: str
    classes: tuple[str, ...]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of rows."""
        return int(self.indices.shape[0])

    def counts(self) -> NDArray[np.int64]:
        """How many rows each class has: int64 [number of classes]."""
        return np.bincount(self.indices, minlength=len(self.classes)).astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """The same label of the given rows only, with the same classes."""
        return Labels(self.name, self.classes, self.indices[rows])


def check_label_name(name: str, available: Sequence[str], source: str) -> None:
    """Refuse a label that a manifest does not have.

    Args:
        name: The label asked for.
        available: The labels that there are.
        source: The manifest, for the message.

    Raises:
        UserError: `name` is not among `available`; the message names the nearest one.
    """
    if name in available:
        return
    if not available:
        raise UserError(
            f"{source}: it has no labels, so there is no label {name!r}; index it again with a "
            "label column (vjepa data index)"
        )
    near = difflib.get_close_matches(name, available, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{source}: no label {name!r}; it has {', '.join(available)}{hint}")


def class_names(values: Sequence[str | None]) -> tuple[str, ...]:
    """The distinct labels in a fixed order: as numbers when all are whole numbers, else as text.

    Lists in the authors' format carry class numbers, where ``"10"`` must come after ``"9"``.
    """
    distinct = {value for value in values if value is not None}
    if distinct and all(value.isdecimal() and value.isascii() for value in distinct):
        return tuple(sorted(distinct, key=lambda value: (int(value), value)))
    return tuple(sorted(distinct))


def encode_labels(
    values: Sequence[str | None],
    name: str,
    *,
    classes: Sequence[str] | None = None,
    source: str,
    paths: Sequence[str] | None = None,
) -> Labels:
    """Class numbers of label texts.

    Args:
        values: One label a row; None where the manifest has none.
        name: The label's name.
        classes: The classes to number by (those of the training data or of a probe file);
            None takes the distinct values themselves.
        source: Which manifest or split, for messages.
        paths: One path a row, to name the offending video in messages.

    Returns:
        The encoded labels.

    Raises:
        UserError: There is no row, a row has no label, or a value is not among `classes`.
    """
    if len(values) == 0:
        raise UserError(f"{source}: no video in it; check the split name and that videos are ok")
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        example = f" (first: {paths[missing[0]]})" if paths is not None else ""
        raise UserError(
            f"{source}: label {name!r} is missing in {len(missing)} of {len(values)} rows{example}; "
            "label them or leave them out of the manifest"
        )
    known = class_names(values) if classes is None else tuple(classes)
    number = {value: index for index, value in enumerate(known)}
    foreign = sorted({value for value in values if value is not None and value not in number})
    if foreign:
        raise UserError(
            f"{source}: class {foreign[0]!r} of label {name!r} has no training sample "
            f"({len(foreign)} such); add training videos of it or leave those rows out"
        )
    indices = np.array([number[value] for value in values if value is not None], dtype=np.int64)
    return Labels(name=name, classes=known, indices=indices)


def check_every_class_has_a_sample(labels: Labels, source: str) -> None:
    """Refuse training labels in which some class never occurs.

    Args:
        labels: The training labels.
        source: Which manifest or split, for the message.

    Raises:
        UserError: A class has no row; the message names it.
    """
    empty = np.flatnonzero(labels.counts() == 0)
    if empty.size:
        raise UserError(
            f"{source}: class {labels.classes[int(empty[0])]!r} of label {labels.name!r} has no "
            f"training sample ({empty.size} such); add videos of it"
        )
