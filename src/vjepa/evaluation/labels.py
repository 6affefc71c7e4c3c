"""Which labelled rows are used: low-shot subsets and the part held out for choosing.

Both are stratified (per class), pure functions of (labels, seed), and written down as JSON beside
the result, so that a number can be traced to the very videos that it was trained on. Paper
section 5 (Table 7) takes 5, 10 and 50 % of the training set, three random splits each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from vjepa.counter_random import permute
from vjepa.errors import UserError
from vjepa.runtime.files import atomic_write

if TYPE_CHECKING:
    from vjepa.data import Manifest

_LOGGER = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Split:
    """One part of the data: selected rows of a manifest, also those that cannot be read.

    Attributes:
        manifest: The rows.
        name: What to call them in messages, for example ``data.test``.
        split: Name of the split in the manifest, or None for all rows.
        labels: Of each row, numbered by the training classes; of no row where none are needed.
        cached_rows: int64, ascending: the rows that a feature cache holds; None: all.
        trained_on: How many of its videos the probe was trained or chosen on.
    """

    manifest: Manifest
    name: str
    split: str | None = None
    labels: Labels = Labels("", (), np.empty(0, np.int64))
    cached_rows: NDArray[np.int64] | None = None
    trained_on: int = 0

    @property
    def kind(self) -> str:
        """What the readable rows are: ``video`` or ``image``; all are of one kind."""
        rows = np.flatnonzero(self.manifest.ok)
        if len(rows) == 0:
            return "video"
        kinds = self.manifest.categories("kind")
        return file_kind(kinds.classes[int(kinds.codes[rows[0]])])

    @property
    def part(self) -> str:
        """The split in words, for messages; empty for all rows."""
        return f"split {self.split}" if self.split else ""


def file_kind(kind: str) -> str:
    """``video`` or ``image``: a folder of frames is a video."""
    return "image" if kind == "image" else "video"


Files = Mapping[str, int]
"""Paths of videos and their sizes in bytes, 0 where unknown."""


def paths_and_sizes(manifest: Manifest, rows: NDArray[np.int64] | None = None) -> Files:
    """The files of some rows int64 [n]; None: of all."""
    sizes = manifest.numeric("bytes") if rows is None else manifest.numeric("bytes")[rows]
    paths = itertools.chain.from_iterable(manifest.paths(rows))
    return dict(zip(paths, sizes.tolist(), strict=True))


def refuse_known(split: Split, known: Files, what: str, remedy: str | None) -> Split:
    """A split to be measured on, none of whose videos was trained on; otherwise UserError.

    Every way to a figure goes through this. A copy of a known file under another name, found by
    size and content, is warned of and counted in `trained_on`, and so is, where `remedy` is None, a
    known video itself. `what` says what the known ones are.
    """
    found, count = paths_and_sizes(split.manifest), len(split.manifest)
    paths = itertools.chain.from_iterable(split.manifest.paths())
    same = [path for path in paths if path in known]
    if same and remedy is not None:
        shown = f"{len(same)} of its {count} videos are {what} (first: {same[0]})"
        raise UserError(f"{split.name}: {shown}; {remedy}")
    copies = copies_of({path: size for path, size in found.items() if path not in known}, known)
    if copies:
        path, other = next(iter(copies.items()))
        _LOGGER.warning(
            "%s: %d of its %d videos, under another name, are %s (first: %s is %s): its figure is "
            "too good",
            *(split.name, len(copies), count, what, path, other),
        )
    return replace(split, trained_on=split.trained_on + len(same) + len(copies))


def copies_of(found: Files, known: Files) -> dict[str, str]:
    """Which files have the size and the content (both ends of it) of a known one, and of which."""
    sizes = (set(found.values()) & set(known.values())) - {0}
    alike, others = (
        [(path, size) for path, size in files.items() if size in sizes] for files in (found, known)
    )
    if len(alike) + len(others) > _MOST_COMPARED:
        _LOGGER.info("copies are not looked for: %d files have equal sizes", len(alike + others))
        return {}
    contents = {(size, ends): path for path, size in others if (ends := _ends(path))}
    return {
        path: contents[size, ends]
        for path, size in alike
        if (ends := _ends(path)) and (size, ends) in contents
    }


_MOST_COMPARED = 20_000
"""Files that are opened to look for copies; of a million images it would take too long."""
_END_BYTES = 1 << 14


def _ends(path: str) -> bytes:
    """Digest of a file's first and last 16 KiB; empty for what is no file that can be read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_END_BYTES)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            return hashlib.sha256(head + file.read()).digest()
    except OSError:
        return b""


SEPARATOR = "|"
"""Between the classes of one row, where it may have several: ``run|jump``; alone: it has none."""


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
        manifest, name: The selected rows, and the label's name.
        classes: The classes to number by (those of the training data or of a probe file);
            None takes the values that occur, numbers by value, others by alphabet.
        part: Which part of the manifest it is, for messages, for example ``split test``.
        multi_label: Whether a row may name several classes, as ``run|jump``.
    """
    from vjepa.data.manifest.manifest import sorted_classes

    source = f"manifest {manifest.source}" + (f", {part}" if part else "")
    if len(manifest) == 0:
        raise UserError(f"{source}: no video in it; check the name of the split")
    found = manifest.label_codes(name)
    missing = np.flatnonzero(found.codes < 0)
    if missing.size:
        none = f" (a video of no class has the label {SEPARATOR})" if multi_label else ""
        raise UserError(
            f"{source}: label {name!r} is missing in {missing.size} of {len(manifest)} rows "
            f"(first: {manifest.path(int(missing[0]))}); label them{none} or leave them out"
        )
    named = [
        [entry.strip() for entry in value.split(SEPARATOR) if entry.strip()]
        if multi_label
        else [value]
        for value in found.classes
    ]
    every = list(dict.fromkeys(value for values in named for value in values))
    known = tuple(sorted_classes(every) if classes is None else classes)
    number = {value: index for index, value in enumerate(known)}
    foreign = [value for value in every if value not in number]
    if foreign:
        some = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        raise UserError(
            f"{source}: class {foreign[0]!r} of label {name!r} has no training sample "
            f"({len(foreign)} such; those with one: {some}); add training videos of it or leave "
            "those rows out"
        )
    if not multi_label:
        joined = next((value for value in known if SEPARATOR in value), None)
        if classes is None and joined is not None:
            _LOGGER.warning(
                "%s: %r counts as one class of label %r; where a video has several classes, "
                "`vjepa probe train --data.multi_label true` takes them one by one",
                *(source, joined, name),
            )
        return Labels(name=name, classes=known, indices=found.numbered_by(known))
    members = np.zeros((len(named), len(known)), dtype=bool)
    for row, values in enumerate(named):
        members[row, [number[value] for value in values]] = True
    members = members[found.codes]
    rarity = np.where(members, members.sum(axis=0), len(members) + 1)
    return Labels(name, known, rarity.argmin(axis=1).astype(np.int64), members)


def labelled_split(
    manifest: Manifest,
    split: str | None,
    name: str,
    label: str,
    *,
    classes: tuple[str, ...] | None = None,
    multi_label: bool = False,
    ok_only: bool = False,
    images: Literal["error", "drop"] = "error",
) -> Split:
    """One part of a manifest with its labels; `name` is what messages call it.

    `images` among videos are refused, or left out with a warning: a still clip's label would be
    told from its stillness. Files that more than one row names are warned of. The other arguments
    are those of :func:`labels_of` and :meth:`Manifest.select`.
    """
    part = Split(manifest.select(split=split, ok_only=ok_only), name, split)
    rows, kinds = np.flatnonzero(part.manifest.ok), part.manifest.categories("kind")
    image = kinds.classes.index("image") if "image" in kinds.classes else -1
    still = rows[kinds.codes[rows] == image]
    if 0 < len(still) < len(rows):
        where = f", {part.part}" if part.part else ""
        found = (
            f"manifest {manifest.source}{where}: {len(still)} of its {len(rows)} files are images "
            f"among videos (first image: {part.manifest.path(int(still[0]))})"
        )
        if images == "error":
            raise UserError(
                f"{found}; move them to a folder of their own, index a list of the videos, or "
                "leave them out (on_bad_video: list)"
            )
        _LOGGER.warning("%s: left out", found)
        others = np.setdiff1d(np.arange(len(part.manifest)), still)
        part = replace(part, manifest=part.manifest.take(others))
    repeated = len(part.manifest) - len(paths_and_sizes(part.manifest))
    if repeated:
        _LOGGER.warning(
            "%s: %d of its %d rows name a file that another row names: it counts more than once",
            *(name, repeated, len(part.manifest)),
        )
    labels = labels_of(
        part.manifest, label, classes=classes, part=part.part, multi_label=multi_label
    )
    return replace(part, labels=labels)


def check_every_class_has_a_sample(labels: Labels, source: str) -> None:
    """Refuse training labels with a single class or an empty one; `source` is for the message."""
    empty = np.flatnonzero(labels.counts() == 0)
    if empty.size:
        raise UserError(
            f"{source}: class {labels.classes[int(empty[0])]!r} of label {labels.name!r} has no "
            f"training sample ({empty.size} such); add videos of it"
        )
    if len(labels.classes) < 2:
        only = f"only the class {labels.classes[0]!r}" if labels.classes else "no class"
        raise UserError(f"{source}: label {labels.name!r} has {only}; a probe needs at least two")


def stratified_subset(
    labels: Labels, *, per_class: int | None = None, fraction: float | None = None, seed: int
) -> NDArray[np.int64]:
    """A random subset of rows with the same share (or number) of every class: int64 [k], ascending.

    Subsets of one seed are nested: the rows of a smaller subset are all in a larger one. All rows
    when neither `per_class` nor `fraction` is given.

    `per_class` is at least 1, or the `fraction` of each class's rows in (0, 1], rounded, at least
    one where there is one.
    """
    if per_class is not None and labels.multi_label:
        raise UserError(
            "labels_per_class: videos have several classes each; give label_fraction instead"
        )
    if per_class is None and fraction is None:
        return np.arange(len(labels), dtype=np.int64)
    chosen: list[NDArray[np.int64]] = []
    for class_index, name in enumerate(labels.classes):
        rows = _shuffled_rows(labels, class_index, seed, "subset")
        if rows.size == 0 and (labels.multi_label or per_class is None):  # in no video of this part
            continue
        wanted = per_class or max(1, round((fraction or 1.0) * rows.size))
        if rows.size < wanted:
            raise UserError(
                f"class {name!r} of label {labels.name!r} has {rows.size} training rows, "
                f"fewer than the {wanted} asked for; lower labels_per_class or add videos"
            )
        chosen.append(rows[:wanted])
    return np.sort(np.concatenate(chosen))


def hold_out(
    labels: Labels, rows: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide rows, stratified: those to train heads on and those to choose on, ascending.

    A class of one row stays wholly in the part to fit on; any other class gives at least one row
    and keeps at least one. `fraction` is the share of each class to hold out, in (0, 1).
    """
    inside = labels.take(rows)
    choose: list[int] = []
    for class_index in range(len(labels.classes)):
        own = _shuffled_rows(inside, class_index, seed, "hold_out")
        wanted = min(max(1, round(fraction * own.size)), own.size - 1)
        choose += own[: max(wanted, 0)].tolist()
    positions = np.sort(np.array(choose, dtype=np.int64))
    if positions.size == 0:
        raise UserError(
            f"no class of label {labels.name!r} has two training rows, so nothing can be held out "
            "for choosing among heads; give one head only, a validation split, or more labels"
        )
    kept = np.setdiff1d(np.arange(len(inside)), positions)
    return rows[kept], rows[positions]


def _shuffled_rows(labels: Labels, class_index: int, seed: int, stream: str) -> NDArray[np.int64]:
    """The rows of a class in a random order that depends on (seed, stream, class) only."""
    rows = np.flatnonzero(labels.indices == class_index).astype(np.int64)
    if rows.size == 0:
        return rows
    return rows[permute(np.arange(rows.size), rows.size, seed, f"{stream}/{class_index}")]


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """What a probe was trained, chosen and tested on; saved with its result.

    `fit` and `choose` are row numbers after the split's selection (`choose` is empty when there
    was nothing to choose), the paths the same for a manifest that was sorted anew,
    `validation_paths` the videos of `data.validation`, and `sizes` the bytes of all these files in
    this order. The content hash is that of the training manifest.
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
    validation_paths: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def files(self) -> Files:
        """All videos whose labels were used; sizes are unknown in records of earlier versions."""
        paths = self.fit_paths + self.choose_paths + self.validation_paths
        return dict(zip(paths, self.sizes or itertools.repeat(0), strict=False))

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        atomic_write(path, json.dumps(asdict(self), indent=1) + "\n")


SPLIT_FILE = "split.json"
_RECORD = TypeAdapter(SplitRecord)


def load_split(path: Path) -> SplitRecord:
    """Read a record that :meth:`SplitRecord.save` wrote."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a split file ({error}); train the probe again") from error
