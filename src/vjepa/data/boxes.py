"""Boxes of people (or things) in key frames of videos, with what they do: the set of a detector.

A table of boxes is one Parquet file, made by `vjepa data ava`; it names the manifest of its videos.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vjepa.errors import UserError
from vjepa.runtime.files import atomic_path, written

ImageKey = tuple[str, float]
"""A key frame: a video's id and a second of it."""

BoxSource = Literal["truth", "predicted", "nobody", "excluded"]
"""Where a row is from: a person annotated; one that a detector of people found; a key frame in
which nobody acts; a key frame that does not count. The last two have no box."""
SOURCES: tuple[BoxSource, ...] = get_args(BoxSource)

_FORMAT = "vjepa-boxes-1"
_METADATA = b"vjepa.boxes"
_SIDES = ("x1", "y1", "x2", "y2")
_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("second", pa.float64()),
        ("time", pa.float64()),
        *((side, pa.float64()) for side in _SIDES),
        ("labels", pa.list_(pa.int64())),
        ("score", pa.float64()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True)
class LabelledBoxes:
    """n rows of (image, box, class): a truth, or detections with scores, in the file's order.

    `images` are those that the file names, each once, also ones without a row; `image` int64 [n]
    are places in it. `box` float64 [n, 4] is x1, y1, x2, y2 as shares of the frame, `label` int64
    [n] the class's id, `score` float64 [n] is 1 for a truth.
    """

    images: tuple[ImageKey, ...]
    image: NDArray[np.int64]
    box: NDArray[np.float64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> LabelledBoxes:
        """Some rows, by a mask or by numbers; the images stay known."""
        return LabelledBoxes(
            self.images, self.image[rows], self.box[rows], self.label[rows], self.score[rows]
        )


def overlaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] with boxes [m, 4]: float64 [n, m]; 0 of nothing."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.clip(high - low, 0.0, None).prod(axis=2)
    areas = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (one, other)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


@dataclass(frozen=True, kw_only=True)
class BoxTable:
    """n rows of boxes, as they stand in the file, and the key frames that they are in.

    `classes` are the outputs of a detector, names by id; `evaluated` are the ids that its figure
    counts. `second` is the csv file's number, `time` when in the video's file the key frame is
    shown, in seconds. `labels` of a row are ids of classes; none: it does nothing of them (a
    negative); None: what it does is not known.
    """

    source_file: str
    videos: Path
    classes: Mapping[int, str]
    evaluated: tuple[int, ...]
    video: tuple[str, ...]
    second: NDArray[np.float64]
    time: NDArray[np.float64]
    box: NDArray[np.float64]
    labels: tuple[tuple[int, ...] | None, ...]
    score: NDArray[np.float64]
    source: tuple[BoxSource, ...]

    def __len__(self) -> int:
        return len(self.video)

    @cached_property
    def keys(self) -> tuple[ImageKey, ...]:
        """The key frames that count, each once, by video and second."""
        found = set(zip(self.video, self.second.tolist(), strict=True))
        return tuple(sorted(found.difference(self.excluded)))

    @property
    def excluded(self) -> tuple[ImageKey, ...]:
        """The key frames that do not count."""
        rows = zip(self.video, self.second.tolist(), self.source, strict=True)
        return tuple((video, second) for video, second, source in rows if source == "excluded")

    @cached_property
    def key_of_row(self) -> NDArray[np.int64]:
        """The place of each row's key frame among `keys`, int64 [n]; -1: it does not count."""
        place = {key: number for number, key in enumerate(self.keys)}
        rows = zip(self.video, self.second.tolist(), strict=True)
        return np.array([place.get(key, -1) for key in rows], dtype=np.int64)

    def rows_of(self, *sources: BoxSource) -> NDArray[np.int64]:
        """Rows of these sources in key frames that count, int64, ascending."""
        wanted = np.array([source in sources for source in self.source], dtype=bool)
        return np.flatnonzero(wanted & (self.key_of_row >= 0))

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What a detector learns of some rows: float32 [rows, classes] of 0 and 1."""
        place = {label: number for number, label in enumerate(self.classes)}
        found = np.zeros((len(rows), len(place)), dtype=np.float32)
        for number, row in enumerate(rows.tolist()):
            found[number, [place[label] for label in self.labels[row] or ()]] = 1.0
        return found

    def truth(self) -> LabelledBoxes:
        """The annotated boxes, one row for each class of a box; all key frames are known."""
        rows = [
            (self.keys[self.key_of_row[row]], self.box[row].tolist(), label, 1.0)
            for row in self.rows_of("truth").tolist()
            for label in self.labels[row] or ()
        ]
        return labelled_boxes(rows, self.keys)

    def write(self, path: Path) -> None:
        """Write the file, whole; the manifest is named relative to it."""
        target = path.absolute()
        about = {
            "format": _FORMAT,
            "videos": os.path.relpath(self.videos.absolute(), target.parent),
            "classes": [[label, name] for label, name in self.classes.items()],
            "evaluated": list(self.evaluated),
        }
        about_box = (self.labels, self.score, self.source)
        columns = [self.video, self.second, self.time, *self.box.T, *about_box]
        arrays = [
            pa.array(column, type=field.type, from_pandas=True)
            for column, field in zip(columns, _SCHEMA, strict=True)
        ]
        schema = _SCHEMA.with_metadata({_METADATA: json.dumps(about)})
        table = pa.Table.from_arrays(arrays, schema=schema)
        with written(target), atomic_path(target) as aside:
            pq.write_table(table, aside, compression="zstd")

    @classmethod
    def open(cls, path: Path) -> BoxTable:
        """Read a table; UserError: missing, of another kind, or a value that cannot be."""
        remedy = "make one with `vjepa data ava`"
        if not path.is_file():
            raise UserError(f"table of boxes {path}: no such file; {remedy}")
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
            if about.get("format") != _FORMAT or table.schema.names != _SCHEMA.names:
                raise UserError(f"{path}: is no table of boxes; {remedy}")
            table = table.cast(_SCHEMA)
            numbers = {
                name: table.column(name).to_numpy().astype(np.float64)
                for name in ("second", "time", *_SIDES, "score")
            }
            labels = table.column("labels").to_pylist()
            found = cls(
                source_file=str(path),
                videos=path.absolute().parent / about["videos"],
                classes={int(label): str(name) for label, name in about["classes"]},
                evaluated=tuple(map(int, about["evaluated"])),
                video=tuple(table.column("video").to_pylist()),
                second=numbers["second"],
                time=numbers["time"],
                box=np.stack([numbers[side] for side in _SIDES], axis=1),
                labels=tuple(None if row is None else tuple(row) for row in labels),
                score=numbers["score"],
                source=tuple(table.column("source").to_pylist()),
            )
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: is no table of boxes ({reason}); {remedy}") from error
        if (problem := found._problem()) is not None:
            raise UserError(f"{path}: {problem}; make it anew with `vjepa data ava`")
        return found

    def _problem(self) -> str | None:
        """The first value that cannot be, in words."""
        known = set(self.classes)
        has_box = np.isin(self.source, ("truth", "predicted"))
        numbers = [
            ("second", np.isfinite(self.second)),
            ("time", np.isfinite(self.time)),
            ("box", ~has_box | (self.box[:, :2] < self.box[:, 2:]).all(axis=1)),
            ("score", ~has_box | np.isfinite(self.score)),
            ("source", np.isin(self.source, SOURCES)),
            ("labels", np.array([known.issuperset(row or ()) for row in self.labels], dtype=bool)),
        ]
        for name, good in numbers:
            if not good.all():
                return f"row {int(np.argmin(good))}: its {name} cannot be"
        if not known.issuperset(self.evaluated):
            return "a class that is evaluated is unknown"
        return None


def labelled_boxes(
    rows: Sequence[tuple[ImageKey, Sequence[float], int, float]], also: Collection[ImageKey] = ()
) -> LabelledBoxes:
    """Rows of (image, box, class, score) as arrays; `also` are images without a row."""
    images: dict[ImageKey, int] = {}
    for key, *_ in rows:
        images.setdefault(key, len(images))
    place = np.array([images[key] for key, *_ in rows], dtype=np.int64)
    for key in also:
        images.setdefault(key, len(images))
    return LabelledBoxes(
        tuple(images),
        place,
        np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
        np.array([row[2] for row in rows], dtype=np.int64),
        np.array([row[3] for row in rows], dtype=np.float64),
    )
