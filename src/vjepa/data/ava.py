"""The files of AVA (v2.2, AVA-Kinetics, MultiSports): read, checked, put into one table of boxes.

The csv files have no header. Truth: ``video, second, x1, y1, x2, y2, class, person``, one row for
each class of a box, the sides as shares of the frame; a row of two columns says that a key frame
was annotated and nobody acts in it. People found by a detector: ``video, second, x1, y1, x2, y2,
class or nothing, score``.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.data.boxes import BoxSource, BoxTable, ImageKey, LabelledBoxes, labelled_boxes, overlaps
from vjepa.data.clips.source import VideoSource
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError

_OUTSIDE = 0.5
"""By how much of the frame a box may reach beyond it before it is taken for one in pixels."""
_NEGATIVE_OVERLAP = 0.5
_KINETICS_NAME = re.compile(r"^(.+)_(\d{6})_(\d{6})$")
_ITEM = re.compile(r"\b(\w+)\s*\{([^{}]*)\}")
_NAME = re.compile(r"""\bname\s*:\s*(?:"([^"]*)"|'([^']*)')""")
_NUMBER = re.compile(r"\b(?:label_)?id\s*:\s*(\d+)")


@config_dataclass
class AvaConfig:
    """How AVA's csv files are to be read."""

    label_map: Path | None = None
    """The classes (`.pbtxt`): the outputs of a detector; null: the numbers that occur."""
    evaluated_map: Path | None = None
    """The classes that the figure counts (AVA: 60 of its 80); null: all of `label_map`."""
    excluded: tuple[Path, ...] = ()
    """Lists of `video, second` that were not annotated well: neither trained on nor counted."""
    persons: tuple[Path, ...] = ()
    """Boxes that a detector of people found: what a detector of actions is tested on."""
    min_person_score: Annotated[float, Field(ge=0, le=1)] = 0.9
    """People found with a lower score are left out (SlowFast's studies: 0.8 or 0.9)."""
    match_persons: Annotated[float, Field(gt=0, le=1)] | None = None
    """Give people found the classes of the true box that they overlap by so much (0.9: as
    SlowFast's file has it), and none of the classes where they overlap no true box by half; null:
    what they do is not known, unless their file says."""
    starts_at: float | Literal["name"] = 0.0
    """The csv file's second at which the video files begin: 0 for whole films, 900 for films cut
    as AVA's users do; `name`: files are called ID_START_END, as clips of Kinetics are."""
    unit: Literal["seconds", "frames"] = "seconds"
    """What the second column counts; MultiSports has numbers of frames."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be used (no such video, outside of it, an impossible box, an unknown
    class) stops the command, or is left out and counted."""


@dataclass
class _Found:
    """Rows on their way into a table, and what was left out, by reason."""

    rows: list[tuple[ImageKey, float, tuple[float, ...], tuple[int, ...] | None, float, BoxSource]]
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


def read_detections(path: Path, *, is_truth: bool = False) -> LabelledBoxes:
    """Labelled boxes of a csv file: detections with scores in column 8, or a truth.

    UserError: missing, no text, a row of another number of columns, or something that is no number.
    """
    rows, also = [], []
    for where, cells in _read_rows(path, (2, 7, 8) if is_truth else (2, 8)):
        key = _key(where, cells)
        if len(cells) == 2:
            also.append(key)
            continue
        score = 1.0 if is_truth else _number(where, "score (column 8)", cells[7])
        box = _box(where, cells)
        if not is_truth and (problem := _outside(box)) is not None:
            raise UserError(f"{where}: {problem}; mend it")
        rows.append((key, box, _class(where, cells[6]), score))
    return labelled_boxes(rows, also)


def read_keys(path: Path) -> list[ImageKey]:
    """The key frames of a list of ``video, second``."""
    return [_key(where, cells) for where, cells in _read_rows(path, (2,))]


def read_persons(path: Path) -> list[tuple[ImageKey, tuple[float, ...], int | None, float]]:
    """Boxes of people: key frame, box, class if the file has one, score in 0 .. 1.

    A box with several classes has a row for each.
    """
    rows = []
    for where, cells in _read_rows(path, (8,)):
        score = _number(where, "score (column 8)", cells[7])
        if not 0 <= score <= 1:  # the number of a person, in a truth
            raise UserError(f"{where}: the score {score:g} is not in 0 .. 1; mend it")
        label = _class(where, cells[6]) if cells[6].strip() else None
        rows.append((_key(where, cells), _box(where, cells), label, score))
    return rows


def read_label_map(path: Path) -> dict[int, str]:
    """Class names by id, in the order of the ids, of a ``.pbtxt`` file."""
    found: dict[int, str] = {}
    for _, text in _ITEM.findall(_text_of(path)):
        name, number = _NAME.search(text), _NUMBER.search(text)
        if name is None or number is None:
            raise UserError(
                f"{path}: an entry without name or id: {{{' '.join(text.split())}}}; mend it"
            )
        label = int(number[1])
        if label in found:
            raise UserError(f"{path}: the id {label} stands twice; mend it")
        called = name[1] or name[2] or ""
        if called in found.values():  # no answer could tell them apart
            raise UserError(f"{path}: the name {called!r} stands twice; call one otherwise")
        found[label] = called
    if not found:
        raise UserError(
            f'{path}: holds no class; a label map has blocks {{ name: "..." id: ... }} (.pbtxt)'
        )
    return dict(sorted(found.items()))


def build_table(truth: Sequence[Path], videos: Path, config: AvaConfig) -> tuple[BoxTable, str]:
    """One table of AVA's files, checked against the manifest of the videos; and a summary.

    UserError: the first row that cannot be used, unless those are dropped; none is left.
    """
    manifest = Manifest.open(videos)
    clocks = {name: _Clock(manifest, rows, config) for name, rows in rows_by_id(manifest).items()}
    classes = None if config.label_map is None else read_label_map(config.label_map)
    found = _Found([])
    for path in truth:
        _add_truth(found, path, clocks, classes, config)
    if classes is None:
        numbers = sorted({label for row in found.rows for label in row[3] or ()})
        classes = {label: f"class_{label}" for label in numbers}
    if not any(row[5] == "truth" for row in found.rows) and not config.persons:
        raise UserError(f"{truth[0]}: no annotated box is left{_left_out(found)}")
    for path in config.persons:
        _add_persons(found, path, clocks, classes, config)
    keys = dict.fromkeys(row[0] for row in found.rows)
    for path in config.excluded:
        for key in read_keys(path):
            if key in keys:  # of a video that is not here it says nothing
                nothing = (math.nan,) * 4
                time = clocks[key[0]].time(key[1])
                found.rows.append((key, time, nothing, None, math.nan, "excluded"))
    evaluated = classes if config.evaluated_map is None else read_label_map(config.evaluated_map)
    if unknown := sorted(set(evaluated) - set(classes)):
        raise UserError(
            f"{config.evaluated_map}: class {unknown[0]} is not in label_map; take it out"
        )
    table = BoxTable(
        source_file="",
        videos=videos,
        classes=classes,
        evaluated=tuple(sorted(evaluated)),
        video=tuple(row[0][0] for row in found.rows),
        second=np.array([row[0][1] for row in found.rows]),
        time=np.array([row[1] for row in found.rows]),
        box=np.array([row[2] for row in found.rows]).reshape(-1, 4),
        labels=tuple(row[3] for row in found.rows),
        score=np.array([row[4] for row in found.rows]),
        source=tuple(row[5] for row in found.rows),
    )
    if config.match_persons is not None:
        table = _matched(table, config.match_persons)
    return table, _summary(table) + _left_out(found)


def rows_by_id(manifest: Manifest) -> dict[str, list[int]]:
    """The row of each video by its id, the file's name without its ending; rows if several are.

    Clips that are called ID_START_END, as those of Kinetics, are found by ID as well, unless
    several are.
    """
    found: dict[str, dict[str, int]] = {}
    short: dict[str, dict[str, int]] = {}
    for row, path in enumerate(itertools.chain.from_iterable(manifest.paths())):
        name = Path(path).stem
        found.setdefault(name, {}).setdefault(path, row)
        if match := _KINETICS_NAME.match(name):
            short.setdefault(match[1], {}).setdefault(path, row)
    both = {name: rows for name, rows in short.items() if len(rows) == 1} | found
    return {name: list(rows.values()) for name, rows in both.items()}


def same_name(manifest: Manifest, rows: Sequence[int]) -> str:
    """What is wrong with an id that several rows have."""
    return f"{manifest.path(rows[0])} and {manifest.path(rows[1])} have one name: rename one"


class _Clock:
    """When in its file a video shows what a csv file names by a second, or by a frame."""

    def __init__(self, manifest: Manifest, rows: Sequence[int], config: AvaConfig) -> None:
        self.row = row = rows[0]
        self._manifest = manifest
        self.fps = float(manifest.fps[row])
        self.seconds = float(manifest.numeric("duration_seconds")[row])
        self.reason = None if bool(manifest.ok[row]) else f"{manifest.path(row)} cannot be read"
        if len(rows) > 1:
            self.reason = same_name(manifest, rows)
        self._unit = config.unit
        self._starts_at = 0.0
        if config.starts_at != "name":
            self._starts_at = float(config.starts_at)
        elif match := _KINETICS_NAME.match(Path(manifest.path(row)).stem):
            self._starts_at = float(match[2])
        elif self.reason is None:
            self.reason = f"{manifest.path(row)} is not called ID_START_END (starts_at: name)"

    def time(self, second: float) -> float:
        """Seconds from the start of the file."""
        after = second - self._starts_at
        if self._unit == "seconds" or self.reason or not self.fps > 0:
            return after
        times = self._times
        if times is None or not 0 <= after < len(times):
            return after / self.fps
        return float(np.interp(after, np.arange(len(times)), times))

    @cached_property
    def _times(self) -> NDArray[np.float64] | None:
        return VideoSource(self._manifest.row(self.row)).times


def _add_truth(
    found: _Found,
    path: Path,
    clocks: dict[str, _Clock],
    classes: dict[int, str] | None,
    config: AvaConfig,
) -> None:
    """The annotated boxes of a file, each once with all its classes."""
    grouped: dict[tuple[ImageKey, tuple[float, ...]], tuple[float, dict[int, None]]] = {}
    for where, cells in _read_rows(path, (2, 7, 8)):
        key, box, label = _key(where, cells), None, 0
        if len(cells) > 2:
            box, label = _box(where, cells), _class(where, cells[6])
        problem = _problem(key, box, None if box is None else label, clocks, classes)
        if problem is not None:
            _refuse(found, where, problem, config)
        elif box is None:
            nothing = (math.nan,) * 4
            time = clocks[key[0]].time(key[1])
            found.rows.append((key, time, nothing, None, math.nan, "nobody"))
        else:
            time = clocks[key[0]].time(key[1])
            grouped.setdefault((key, box), (time, {}))[1][label] = None
    for (key, box), (time, labels) in grouped.items():
        found.rows.append((key, time, box, tuple(sorted(labels)), 1.0, "truth"))


def _add_persons(
    found: _Found, path: Path, clocks: dict[str, _Clock], classes: dict[int, str], config: AvaConfig
) -> None:
    """The people that a detector found, each once; a file with classes says what each does."""
    rows = read_persons(path)
    has_classes = any(label is not None for _, _, label, _ in rows)
    grouped: dict[tuple[ImageKey, tuple[float, ...]], tuple[float, dict[int, None]]] = {}
    for number, (key, box, label, score) in enumerate(rows, start=1):
        if score < config.min_person_score:
            continue
        problem = _problem(key, box, label, clocks, classes)
        if problem is not None:
            _refuse(found, f"{path}, person {number}", problem, config)
            continue
        labels = grouped.setdefault((key, box), (score, {}))[1]
        if label is not None:
            labels[label] = None
    for (key, box), (score, labels) in grouped.items():
        named = tuple(sorted(labels)) if has_classes else None
        time = clocks[key[0]].time(key[1])
        found.rows.append((key, time, box, named, score, "predicted"))


def _matched(table: BoxTable, least: float) -> BoxTable:
    """People found with the classes of the true boxes that they overlap most."""
    labels = list(table.labels)
    truth: dict[int, list[int]] = {}
    for row in table.rows_of("truth").tolist():
        truth.setdefault(int(table.key_of_row[row]), []).append(row)
    for row in table.rows_of("predicted").tolist():
        beside = truth.get(int(table.key_of_row[row]), [])
        shared = overlaps(table.box[row : row + 1], table.box[beside])[0]
        best = shared.max(initial=0.0)
        if beside and best >= least:
            labels[row] = table.labels[beside[int(shared.argmax())]]
        else:
            labels[row] = () if best < _NEGATIVE_OVERLAP else None
    return replace(table, labels=tuple(labels))


def _problem(
    key: ImageKey,
    box: tuple[float, ...] | None,
    label: int | None,
    clocks: dict[str, _Clock],
    classes: dict[int, str] | None,
) -> str | None:
    """Why a row cannot be used, in words; the part before the colon is its kind."""
    clock = clocks.get(key[0])
    if clock is None:
        ending = ", whose ending is left out" if Path(key[0]).stem in clocks else ""
        return f"no such video: {key[0]!r} is not in the manifest (a file of that name{ending})"
    if clock.reason is not None:
        return f"a video that cannot be used: {clock.reason}"
    time = clock.time(key[1])
    if not 0 <= time <= clock.seconds:
        return (
            f"outside of its video: {key[1]:g} is {time:g} s into {key[0]!r}, which lasts "
            f"{clock.seconds:g} s (see starts_at and unit)"
        )
    if box is not None and (problem := box_problem(box)) is not None:
        return problem
    if label is not None and classes is not None and label not in classes:
        return f"an unknown class: {label} is not in label_map"
    return None


def box_problem(box: tuple[float, ...]) -> str | None:
    """Why no box is there, in words: it is in pixels, inverted, or empty."""
    if (problem := _outside(box)) is not None:
        return problem
    if not (box[0] < box[2] and box[1] < box[3]):
        return f"an inverted or empty box: {_shown(box)}; it must be x1 < x2 and y1 < y2"
    return None


def _outside(box: tuple[float, ...]) -> str | None:
    if min(box) >= -_OUTSIDE and max(box) <= 1 + _OUTSIDE:
        return None
    return f"a box far outside of the frame: {_shown(box)}; sides are shares of the frame, 0..1"


def _refuse(found: _Found, where: str, problem: str, config: AvaConfig) -> None:
    if config.on_bad_row == "error":
        raise UserError(f"{where}: {problem}; mend it, or leave such rows out (--on_bad_row drop)")
    kind = problem.partition(":")[0]
    found.dropped[kind] += 1
    found.examples.setdefault(kind, f"{where}: {problem}")


def _summary(table: BoxTable) -> str:
    truth, predicted = table.rows_of("truth"), table.rows_of("predicted")
    labels = sum(len(table.labels[row] or ()) for row in truth.tolist())
    parts = [
        f"{len({video for video, _ in table.keys})} videos, {len(table.keys)} key frames",
        f"{len(truth)} true boxes with {labels} labels of {len(table.classes)} classes "
        f"({len(table.evaluated)} evaluated)",
    ]
    if len(predicted):
        negatives = sum(table.labels[row] == () for row in predicted.tolist())
        known = sum(bool(table.labels[row]) for row in predicted.tolist())
        parts.append(f"{len(predicted)} people found ({known} with classes, {negatives} negatives)")
    if nobody := len(table.rows_of("nobody")):
        parts.append(f"{nobody} key frames where nobody acts")
    if table.excluded:
        parts.append(f"{len(table.excluded)} key frames excluded")
    return ", ".join(parts)


def _left_out(found: _Found) -> str:
    parts = [
        f"{count} rows left out, {kind} (first: {found.examples[kind]})"
        for kind, count in found.dropped.items()
    ]
    return "".join(f"; {part}" for part in parts)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Excel marks the order of bytes
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file; give another") from error


def _read_rows(path: Path, widths: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Rows with where they stand; those of another number of columns are refused."""
    reader = csv.reader(_text_of(path).splitlines())
    for number in itertools.count(1):
        where = f"{path}, row {number}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where}: cannot be read as CSV ({error}); mend the file") from error
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) not in widths:
            wanted = " or ".join(map(str, widths))
            hint = ""
            if len(cells) == 2:
                hint = ": a row of two columns says that nobody acts, which only a truth can say"
            elif any(";" in cell for cell in cells):  # as some Excels save them
                hint = ": they are set apart by commas, not by semicolons; numbers have a point"
            raise UserError(f"{where}: {len(cells)} columns, wanted {wanted}{hint}")
        if number == 1 and not any(sign.isdigit() for sign in cells[1]):
            raise UserError(
                f"{where}: is a header ({cells[1]!r}), AVA's files have none; take it out"
            )
        yield where, cells


def _key(where: str, cells: Sequence[str]) -> ImageKey:
    return cells[0].strip(), _number(where, "second (column 2)", cells[1])


def _box(where: str, cells: Sequence[str]) -> tuple[float, float, float, float]:
    sides = [_number(where, "side of the box", cell) for cell in cells[2:6]]
    return sides[0], sides[1], sides[2], sides[3]


def _class(where: str, cell: str) -> int:
    number = _number(where, "class (column 7)", cell)
    if number != int(number):
        raise UserError(f"{where}: class (column 7) is {cell!r}; write a whole number")
    return int(number)


def _number(where: str, what: str, cell: str) -> float:
    try:
        found = float(cell)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{where}: {what} is {cell!r}, not a number; mend the file")
    return found


def _shown(box: Sequence[float]) -> str:
    return " ".join(f"{side:g}" for side in box)
