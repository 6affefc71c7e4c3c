"""Labels of a manifest as class numbers, with the class names beside them.

The class names travel with everything made from them (features, probe files, results), because
a probe whose class order is unknown is useless to whoever gets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.data import Manifest


@dataclass(frozen=True)
class Labels:
    """One label of n videos.

    Attributes:
        name: The label's name in the manifest, for example ``motion``.
        classes: Class names; class number i is ``classes[i]``.
        indices: int64 [n], the class number of each row; where a row may have several, that of its
            rarest class, by which subsets are stratified.
        members: bool [n, classes], which classes each row has; None where each has exactly one.
    """

    name: str
    classes: tuple[str, ...]
    indices: NDArray[np.int64]
    members: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return int(self.indices.shape[0])

    def counts(self) -> NDArray[np.int64]:
        """How many rows each class has: int64 [number of classes]."""
        if self.members is not None:
            return self.members.sum(axis=0).astype(np.int64)
        return np.bincount(self.indices, minlength=len(self.classes)).astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """The same label of the given rows only, with the same classes."""
        members = None if self.members is None else self.members[rows]
        return Labels(self.name, self.classes, self.indices[rows], members)

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several classes."""
        return self.members is not None

    @property
    def targets(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """What a probe learns: int64 [n] class numbers, or float32 [n, classes] of 0 and 1."""
        return self.indices if self.members is None else self.members.astype(np.float32)


SEPARATOR = "|"
"""Between the classes of one row, where it may have several: ``run|jump``."""


def labels_of(
    manifest: Manifest,
    name: str,
    *,
    classes: Sequence[str] | None = None,
    part: str = "",
    multi_label: bool = False,
) -> Labels:
    """Class numbers of all rows of a manifest.

    Args:
        manifest: The selected rows.
        name: The label's name.
        classes: The classes to number by (those of the training data or of a probe file);
            None takes the values that occur, whole numbers by value, others by alphabet.
        part: Which part of the manifest it is, for messages, for example ``split test``.
        multi_label: Whether a row may name several classes, as ``run|jump``.

    Returns:
        The labels, one a row.

    Raises:
        UserError: There is no row, no such label, a row without it, or a value that is not among
            `classes`.
    """
    source = f"manifest {manifest.source}" + (f", {part}" if part else "")
    if len(manifest) == 0:
        raise UserError(f"{source}: no video in it; check the name of the split")
    found = manifest.label_codes(name)
    missing = np.flatnonzero(found.codes < 0)
    if missing.size:
        raise UserError(
            f"{source}: label {name!r} is missing in {missing.size} of {len(manifest)} rows "
            f"(first: {manifest.path(int(missing[0]))}); label them or leave them out"
        )
    named = [_classes_in(value, multi_label) for value in found.classes]
    every = list(dict.fromkeys(value for values in named for value in values))
    own = sorted(every) if multi_label else found.classes
    known = tuple(own if classes is None else classes)
    number = {value: index for index, value in enumerate(known)}
    foreign = [value for value in every if value not in number]
    if foreign:
        raise UserError(
            f"{source}: class {foreign[0]!r} of label {name!r} has no training sample "
            f"({len(foreign)} such); add training videos of it or leave those rows out"
        )
    if not multi_label:
        places = np.array([number[value] for value in found.classes], dtype=np.int64)
        return Labels(name=name, classes=known, indices=places[found.codes])
    members = np.zeros((len(named), len(known)), dtype=bool)
    for row, values in enumerate(named):
        members[row, [number[value] for value in values]] = True
    members = members[found.codes]
    rarity = np.where(members, members.sum(axis=0), len(members) + 1)
    return Labels(name, known, rarity.argmin(axis=1).astype(np.int64), members)


def _classes_in(value: str, multi_label: bool) -> list[str]:
    """The classes that one entry of the label column names."""
    if not multi_label:
        return [value]
    return [part.strip() for part in value.split(SEPARATOR) if part.strip()]


def check_every_class_has_a_sample(labels: Labels, source: str) -> None:
    """Refuse training labels in which some class never occurs.

    Args:
        labels: The training labels.
        source: Which manifest or split, for the message.

    Raises:
        UserError: A class has no row, or there is only one class; the message names it.
    """
    empty = np.flatnonzero(labels.counts() == 0)
    if empty.size:
        raise UserError(
            f"{source}: class {labels.classes[int(empty[0])]!r} of label {labels.name!r} has no "
            f"training sample ({empty.size} such); add videos of it"
        )
    if len(labels.classes) < 2:
        raise UserError(
            f"{source}: label {labels.name!r} has only the class {labels.classes[0]!r}; "
            "a probe needs at least two"
        )
