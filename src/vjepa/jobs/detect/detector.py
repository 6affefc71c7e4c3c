"""A trained detector on disk, and at work: vectors of boxes to classes, and the figure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vjepa.checkpoint.folder import read_weights
from vjepa.checkpoint.strict import load_strictly
from vjepa.config import from_dict, to_dict
from vjepa.data.ava import read_detections
from vjepa.data.boxes import BoxTable, LabelledBoxes
from vjepa.data.loader.evaluation import BadVideo, OnBadVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.errors import UserError
from vjepa.evaluation.box_features import (
    BoxFeatures,
    DetectionSettings,
    KeyFrames,
    ScoreKind,
    class_shares,
    detections,
)
from vjepa.evaluation.detection_metric import RULES, DetectionMetrics, detection_metrics
from vjepa.evaluation.frozen import EncoderIdentity
from vjepa.evaluation.saved_probe import check_encoder, read_description, write_head
from vjepa.jobs.detect.config import TestOn
from vjepa.jobs.probe.encoder import compile_encoder, reopen_encoder
from vjepa.paths import as_path
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.files import write_csv
from vjepa.runtime.process import set_num_threads
from vjepa.version import __version__

DETECTOR_FILE = "detector.json"
WEIGHTS_FILE = "detector.safetensors"
_FORMAT = "vjepa-detector-1"


@dataclass(frozen=True, kw_only=True)
class SavedDetector:
    """A detector without its encoder: `head` maps vectors of boxes to logits of `classes`."""

    classes: Mapping[int, str]
    evaluated: tuple[int, ...]
    encoder: EncoderIdentity
    settings: DetectionSettings
    head: nn.Linear
    rules: str
    scores: ScoreKind
    training: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write both files; the description, without which there is no detector, comes last."""
        described = {
            "format": _FORMAT,
            "version": __version__,
            "classes": [[label, name] for label, name in self.classes.items()],
            "evaluated": list(self.evaluated),
            "encoder": to_dict(self.encoder),
            "settings": to_dict(self.settings),
            "rules": self.rules,
            "scores": self.scores,
            "training": self.training,
        }
        write_head(self.head, folder / WEIGHTS_FILE, folder / DETECTOR_FILE, described)


def load_saved_detector(folder: Path) -> SavedDetector:
    """Read a detector; everything must fit. Its head is in evaluation mode on the CPU."""
    path = folder / DETECTOR_FILE
    with read_description(path, "detector", _FORMAT, "detect train") as described:
        classes = {int(label): str(name) for label, name in described["classes"]}
        settings = from_dict(DetectionSettings, described["settings"], str(path))
        encoder = from_dict(EncoderIdentity, described["encoder"], str(path))
        head = nn.Linear(settings.regions.width(encoder.config), len(classes))
        apart = f"{WEIGHTS_FILE} and {DETECTOR_FILE} do not belong together; copy both again"
        stored = read_weights(folder / WEIGHTS_FILE)
        load_strictly(head, stored, str(folder / WEIGHTS_FILE), "a head", remedy=apart)
        return SavedDetector(
            classes=classes,
            evaluated=tuple(described["evaluated"]),
            encoder=encoder,
            settings=settings,
            head=head.eval(),
            **{name: described[name] for name in ("rules", "scores", "training")},
        )


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """A figure and what belongs beside it: `boxes` are ``truth``, ``predicted`` or a ``file``."""

    metrics: DetectionMetrics
    table: str
    boxes: str
    num_boxes: int
    encoder: str
    bad_videos: tuple[BadVideo, ...] = ()
    unknown_videos: tuple[str, ...] = ()
    """Of a file of detections: those that the table does not have."""
    strangers: str = ""
    """Of a file of detections: what else of its rows can meet nothing, in words."""

    @property
    def boxes_sentence(self) -> str:
        """Which boxes were given classes."""
        return f"{self.num_boxes} {_BOXES[self.boxes]}"

    def lines(self) -> list[str]:
        """The classes, what was left out, and the figure with its rules."""
        rows = [
            f"{entry.name:<28} {100 * entry.average_precision:6.2f} %  of {entry.truth} boxes"
            for entry in self.metrics.per_class
            if entry.average_precision is not None
        ]
        rows += [f"not read: {bad.path}: {bad.reason}" for bad in self.bad_videos]
        if self.unknown_videos:
            rows.append(
                f"{len(self.unknown_videos)} videos of the file are not in the table (first: "
                f"{self.unknown_videos[0]}): the rules say what becomes of their detections"
            )
        if self.strangers:
            rows.append(self.strangers)
        return [*rows, f"boxes: {self.boxes_sentence}", self.metrics.sentence]


_BOXES = {
    "truth": "true boxes",
    "predicted": "boxes of people that a detector found",
    "file": "rows (boxes and classes) of the file",
}


@dataclass(frozen=True)
class Detector:
    """A trained detector with its encoder, ready for any boxes of any video."""

    saved: SavedDetector
    features: BoxFeatures

    def evaluate(
        self,
        data: KeyFrames,
        test_on: TestOn = "auto",
        rules: str | None = None,
        scores: ScoreKind | None = None,
        group: ProcessGroup | None = None,
    ) -> tuple[DetectionResult, LabelledBoxes]:
        """The figure on a table of boxes, and the detections that it is of.

        The processes of a `group` share the key frames, and all get the whole.
        """
        table, saved = data.table, self.saved
        if dict(table.classes) != dict(saved.classes):
            raise UserError(
                f"{table.source_file}: has {len(table.classes)} classes, the detector was trained "
                f"on {len(saved.classes)} (or others of the same number): make the table with the "
                "label map of the training"
            )
        kind, rows = test_rows(table, test_on)
        found = self.features.features(data, rows, table.source_file, group=group)
        shares = class_shares(saved.head, found.tokens, self.features.setup.device)
        answers = detections(table, found.rows, shares, scores or saved.scores)
        result = DetectionResult(
            metrics=_measured(table, answers, rules or saved.rules),
            table=table.source_file,
            boxes=kind,
            num_boxes=len(found.rows),
            encoder=self.features.frozen.identity.sentence,
            bad_videos=found.bad,
        )
        return result, answers


def _measured(table: BoxTable, found: LabelledBoxes, rules: str) -> DetectionMetrics:
    classes = {label: table.classes[label] for label in table.evaluated}
    return detection_metrics(table.truth(), found, classes, RULES[rules], table.excluded)


def test_rows(table: BoxTable, test_on: TestOn) -> tuple[str, NDArray[np.int64]]:
    """The rows of a table that are given classes in the test, and their kind."""
    kind = test_on if test_on != "auto" else "predicted"
    rows = table.rows_of(kind)
    if test_on == "auto" and not len(rows):
        kind, rows = "truth", table.rows_of("truth")
    if not len(rows):
        raise UserError(
            f"{table.source_file}: has no {_BOXES[kind]} to be given classes; see "
            "data.test_on and `vjepa data ava --persons`"
        )
    return kind, rows


def load_detector(
    folder: str | Path,
    *,
    encoder: str | Path | None = None,
    device: DeviceName = "auto",
    num_threads: int | None = None,
    reading: ReadingConfig | None = None,
    on_bad_video: OnBadVideo = "error",
    cache_dir: Path | None = None,
) -> Detector:
    """Load what training wrote, with the encoder that it reads; `encoder`: where it lies now.

    UserError: the detector or its encoder is missing, or the encoder is another.
    """
    folder = as_path(folder)
    encoder = None if encoder is None else as_path(encoder)
    set_num_threads(num_threads)
    saved = load_saved_detector(folder)
    frozen = reopen_encoder(saved.encoder, encoder)
    check_encoder(saved.encoder, frozen.encoder, frozen.identity.source, "detector")
    setup = set_up_device(device, saved.settings.features.precision)
    if saved.settings.features.compile:
        compile_encoder(frozen.encoder.to(setup.device))
    frozen = replace(frozen, identity=replace(frozen.identity, config=saved.encoder.config))
    features = BoxFeatures(
        frozen, saved.settings, setup, reading or ReadingConfig(), on_bad_video, cache_dir
    )
    return Detector(saved, features)


def evaluate(
    source: str | Path,
    table: str | Path,
    *,
    videos: Path | None = None,
    test_on: TestOn = "auto",
    rules: str | None = None,
    scores: ScoreKind | None = None,
    answers: str | Path | None = None,
    **how: Any,
) -> DetectionResult:
    """Measure a detector on a table of boxes, or a csv file of detections that anybody made.

    On the table of its training's test this gives the same figure again, digit for digit; and so
    does the csv file `answers`, to which the detections are written. The other named arguments are
    those of :func:`load_detector`.
    """
    source, table = as_path(source), as_path(table)
    answers = None if answers is None else as_path(answers)
    if source.suffix == ".csv":
        of_detectors: dict[str, object] = {
            "videos": videos,
            "scores": scores,
            "detections": answers,
            "boxes": None if test_on == "auto" else test_on,
            "encoder": how.get("encoder"),
            "cache_dir": how.get("cache_dir"),
            "device": None if (device := how.get("device")) == "auto" else device,
            "on_bad_video": None if (bad := how.get("on_bad_video")) == "error" else bad,
        }
        if given := [name for name, value in of_detectors.items() if value is not None]:
            raise UserError(
                f"--{given[0].replace('_', '-')}: is for a detector, and {source} holds what one "
                "has found; leave it out"
            )
        boxes = BoxTable.open(table)
        found = read_detections(source)
        named = {video for video, _ in found.images}
        gone = {video for video, _ in boxes.excluded}
        unknown = named - gone - {video for video, _ in boxes.keys}
        if named and unknown == named:
            raise UserError(
                f"{source}: not one of its {len(named)} videos is in {table} (first: "
                f"{min(unknown)!r}): the two files are of different sets"
            )
        return DetectionResult(
            metrics=_measured(boxes, found, rules or "alphaction"),
            table=str(table),
            boxes="file",
            num_boxes=len(found.label),
            encoder=str(source),
            unknown_videos=tuple(sorted(unknown)),
            strangers=_strangers(found, boxes, unknown | gone),
        )
    detector = load_detector(source, **how)
    result, found = detector.evaluate(KeyFrames.open(table, videos), test_on, rules, scores)
    if answers is not None:
        write_detections(answers, found)
    return result


def _strangers(found: LabelledBoxes, boxes: BoxTable, elsewhere: Collection[str]) -> str:
    """How many moments and classes of a file its table has not, in words; boxes without an area.

    Those of the videos `elsewhere` are told as videos.
    """
    keys = {*boxes.keys, *boxes.excluded}
    images = [image for image in found.images if image[0] not in elsewhere]
    moments = [f"{video} at {second:g}" for video, second in images if (video, second) not in keys]
    labels = sorted({*found.label.tolist()})
    classes = [str(label) for label in labels if label not in boxes.classes]
    said = [
        f"{len(some)} of {count} {what} of the file are not in the table (first: {some[0]})"
        for what, some, count in (
            ("moments", moments, len(images)),
            ("classes", classes, len(labels)),
        )
        if some
    ]
    if flat := int((found.box[:, 2:] <= found.box[:, :2]).any(axis=1).sum()):
        said.append(f"{flat} boxes of the file are inverted or empty: they overlap nothing")
    return "; ".join(said)


def write_detections(path: Path, found: LabelledBoxes) -> None:
    """Detections as a csv file of AVA's format, with all digits of boxes and scores."""
    columns = (found.image, found.box, found.label, found.score)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    write_csv(path, ((*found.images[image], *box, *answer) for image, box, *answer in rows))
