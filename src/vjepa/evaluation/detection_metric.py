"""Frame mean average precision at an overlap of 0.5: how action detection is measured (AVA).

A detection is a box with one class and a score in one image (key frame). Public programs that
compute "the" AVA figure differ, by up to a fifth of it on the same files; each set of rules is
here by name, and a figure is worth nothing without that name beside it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vjepa.data.boxes import ImageKey, LabelledBoxes, overlaps
from vjepa.errors import UserError
from vjepa.evaluation.metrics import ConfidenceInterval, jackknife_interval

LEAST_OVERLAP = 0.5
_FEW_VIDEOS = 10

RulesName = Literal["alphaction", "activitynet", "slowfast", "mmaction"]


@dataclass(frozen=True)
class MetricRules:
    """In what the public evaluators differ; the defaults are AlphAction's."""

    name: RulesName = "alphaction"
    order: Literal["score", "row"] = "score"
    """Which detection of an image and class may take a true box first: the one of the highest
    score, or the one that stands first in the file."""
    max_rows_per_image: int | None = None
    """Only so many rows (box and class) of an image count, those of the highest scores."""
    unknown_images: Literal["false", "ignored"] = "false"
    """Detections in images that the truth does not know: false ones, or none at all."""
    known_images: Literal["named", "with_truth"] = "named"
    """Images that the truth knows: all that its file names, or those with a box of a class that
    counts."""
    undetected_classes: Literal["zero", "left_out"] = "zero"
    """Classes with true boxes and without any detection."""
    excluded_truth: Literal["gone", "counted"] = "gone"
    """True boxes of excluded images: taken out, or missed ones."""
    inverted: Literal["dropped", "refused"] = "dropped"
    """Detections whose box is empty or inverted."""

    @property
    def sentence(self) -> str:
        """The rules in words, to stand beside a figure."""
        parts = [
            f"{self.order} order in an image",
            "all rows count"
            if self.max_rows_per_image is None
            else f"at most {self.max_rows_per_image} rows an image",
            f"detections in unknown images are {self.unknown_images}",
            f"classes without a detection are {self.undetected_classes.replace('_', ' ')}",
        ]
        if self.excluded_truth == "counted":
            parts.append("truth of excluded images is counted as missed")
        return f"rules {self.name}: {', '.join(parts)}; tied scores enter together"


RULES: Mapping[str, MetricRules] = {
    "alphaction": MetricRules(),
    "activitynet": MetricRules("activitynet", max_rows_per_image=50, unknown_images="ignored"),
    "slowfast": MetricRules("slowfast", order="row"),
    "mmaction": MetricRules(
        "mmaction",
        unknown_images="ignored",
        known_images="with_truth",
        undetected_classes="left_out",
        excluded_truth="counted",
        inverted="refused",
    ),
}
"""The rules of AlphAction (and VideoMAE), of the official evaluator, of SlowFast and MMAction2."""


@dataclass(frozen=True, kw_only=True)
class ClassPrecision:
    """One class: `average_precision` in [0, 1] is None where it has no true box."""

    label: int
    name: str
    truth: int
    detections: int
    true_positives: int
    average_precision: float | None


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """The figure, its classes, and what it was computed of and by."""

    mean_average_precision: float | None
    """Over the classes that have true boxes, in [0, 1]; None: none has."""
    per_class: tuple[ClassPrecision, ...]
    images: int
    """Images of the truth that are counted."""
    videos: int
    """Videos that they and the detections are of."""
    interval: ConfidenceInterval | None
    """95 % interval of the mean over videos (:func:`jackknife_interval`); a class whose boxes are
    all in videos that are left out is then left out, too. None: of a single video."""
    rare: int
    """Classes with true boxes in fewer than 10 videos, on which the interval leans."""
    rules: str

    @property
    def sentence(self) -> str:
        """The figure in words, with what belongs beside it."""
        counted = [entry for entry in self.per_class if entry.average_precision is not None]
        figure = self.mean_average_precision
        shown = "none (no true box)" if figure is None else f"{100 * figure:.2f} %"
        boxes = sum(entry.truth for entry in self.per_class)
        if self.interval is not None:
            low, high = 100 * self.interval.low, 100 * self.interval.high
            rough = f", rough: {self.rare} classes have boxes in fewer than {_FEW_VIDEOS}"
            shown += f" (95 % interval {low:.1f} to {high:.1f}, over {self.videos} videos"
            shown += f"{rough if self.rare else ''})"
        return (
            f"mAP at IoU {LEAST_OVERLAP}: {shown} over {len(counted)} classes, {boxes} labels of "
            f"boxes in {self.images} key frames ({self.rules})"
        )


def detection_metrics(
    truth: LabelledBoxes,
    found: LabelledBoxes,
    classes: Mapping[int, str],
    rules: MetricRules = RULES["alphaction"],
    excluded: Collection[ImageKey] = (),
) -> DetectionMetrics:
    """Measure detections against the truth.

    `classes` are those that count, names by id; rows of others are dropped, their images stay
    known. `excluded` images are dropped on both sides. UserError: a score is not finite, or a box
    is inverted where the rules refuse that.
    """
    if not np.isfinite(found.score).all():
        row = int(np.flatnonzero(~np.isfinite(found.score))[0])
        raise UserError(f"detections: the score of row {row + 1} is not a finite number; mend it")
    number = {key: place for place, key in enumerate(truth.images)}
    known = len(number)
    for key in found.images:
        number.setdefault(key, len(number))
    is_excluded = np.zeros(len(number), dtype=bool)
    is_excluded[[number[key] for key in excluded if key in number]] = True
    wanted = np.array(sorted(classes), dtype=np.int64)
    truth = truth.take(np.isin(truth.label, wanted))
    there = np.array([number[key] for key in found.images], dtype=np.int64)[found.image]
    keep = np.isin(found.label, wanted) & ~is_excluded[there]
    if rules.unknown_images == "ignored":
        is_known = np.arange(len(number)) < known
        if rules.known_images == "with_truth":
            is_known = np.isin(np.arange(len(number)), truth.image)
        keep &= is_known[there]
    found, there = found.take(keep), there[keep]
    found, there = _most_certain(found, there, rules.max_rows_per_image)
    boxes = np.flatnonzero((found.box[:, :2] < found.box[:, 2:]).all(axis=1))
    if rules.inverted == "refused" and len(boxes) < len(there):
        raise UserError(f"detections: a box is empty or inverted, which rules {rules.name} refuse")
    found, there = found.take(boxes), there[boxes]
    seen = ~is_excluded[truth.image]
    right = _match(truth.take(seen), found, there, rules)
    names, video = np.unique([name for name, _ in number], return_inverse=True)
    seen |= rules.excluded_truth == "counted"
    entries, ranked, totals = [], [], []
    for label in wanted.tolist():
        mine = found.label == label
        per_video = np.bincount(video[truth.image[(truth.label == label) & seen]], None, len(names))
        curve = _Ranked.of(found.score[mine], right[mine], video[there[mine]])
        total, precision = int(per_video.sum()), None
        if total and (mine.any() or rules.undetected_classes == "zero"):
            precision = curve.precision(total)
            ranked.append(curve)
            totals.append(per_video)
        entries.append(
            ClassPrecision(
                label=label,
                name=classes[label],
                truth=total,
                detections=int(mine.sum()),
                true_positives=int(right[mine].sum()),
                average_precision=precision,
            )
        )
    values = [e.average_precision for e in entries if e.average_precision is not None]
    videos, mean = np.unique(video[~is_excluded]), float(np.mean(values)) if values else None
    return DetectionMetrics(
        mean_average_precision=mean,
        per_class=tuple(entries),
        images=known - int(is_excluded[:known].sum()),
        videos=len(videos),
        interval=_interval(mean, ranked, totals, videos, len(names)),
        rare=sum(int(np.count_nonzero(own)) < _FEW_VIDEOS for own in totals),
        rules=rules.sentence,
    )


@dataclass(frozen=True)
class _Ranked:
    """A class's detections by falling score: right or not, video, the last of its score or not."""

    right: NDArray[np.bool_]
    video: NDArray[np.int64]
    last: NDArray[np.bool_]

    @classmethod
    def of(
        cls, score: NDArray[np.float64], right: NDArray[np.bool_], video: NDArray[np.int64]
    ) -> _Ranked:
        order = np.argsort(-score, kind="stable")
        last = np.append(np.diff(score[order]) != 0, True)[: len(order)]
        return cls(right[order], video[order], last)

    def precision(self, total: int, kept: NDArray[np.bool_] | None = None) -> float:
        """Area under precision over recall, all points, precision made to fall; 0 of no detection.

        Tied detections enter together, as one step of the curve: an order among them, which the
        reference leaves to the processor's sorting, never pays. `kept`: which videos count.
        """
        weight = np.ones(len(self.right), bool) if kept is None else kept[self.video]
        hits = np.cumsum(self.right * weight)[self.last]
        precision = hits / np.maximum(np.cumsum(weight)[self.last], 1)
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(hits / total, prepend=0.0) * falling))


def _interval(
    mean: float | None,
    ranked: Sequence[_Ranked],
    totals: Sequence[NDArray[np.int64]],
    videos: NDArray[np.int64],
    count: int,
) -> ConfidenceInterval | None:
    """The interval of the mean over classes; `totals` are their true boxes in each video."""
    if len(videos) < 2 or mean is None:
        return None

    def measured_on(chosen: NDArray[np.bool_]) -> float | None:
        kept = np.zeros(count, dtype=bool)
        kept[videos[chosen]] = True
        pairs = [(curve, int(own @ kept)) for curve, own in zip(ranked, totals, strict=True)]
        values = [curve.precision(total, kept) for curve, total in pairs if total]
        return float(np.mean(values)) if values else None

    return jackknife_interval(mean, len(videos), measured_on)


def _most_certain(
    found: LabelledBoxes, there: NDArray[np.int64], most: int | None
) -> tuple[LabelledBoxes, NDArray[np.int64]]:
    """The rows of the highest scores of each image, in the file's order."""
    if most is None:
        return found, there
    # Which of tied rows stay, as the official evaluator has it: a later row takes the place of the
    # least one only where its score is higher, and among tied ones the least class goes first.
    kept: dict[int, list[tuple[float, int, int]]] = {}
    rows = zip(there.tolist(), found.score.tolist(), found.label.tolist(), strict=True)
    for row, (image, score, label) in enumerate(rows):
        heap = kept.setdefault(image, [])
        if len(heap) < most:
            heapq.heappush(heap, (score, label, row))
        elif score > heap[0][0]:
            heapq.heapreplace(heap, (score, label, row))
    chosen = np.array(sorted(row for heap in kept.values() for *_, row in heap), dtype=np.int64)
    return found.take(chosen), there[chosen]


def _match(
    truth: LabelledBoxes, found: LabelledBoxes, there: NDArray[np.int64], rules: MetricRules
) -> NDArray[np.bool_]:
    """Which detections are right: bool [n].

    Each looks only at the true box, of its image and class, that it overlaps most. If they overlap
    enough and it is free, the detection takes it; else it is false, even if another box is free.
    """
    right = np.zeros(len(there), dtype=bool)
    keys = (found.label, there, -found.score if rules.order == "score" else np.zeros(len(there)))
    order = np.lexsort(keys[::-1])
    groups: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(truth.label.tolist(), truth.image.tolist(), strict=True)):
        groups.setdefault(key, []).append(row)
    labels, images = found.label[order], there[order]
    starts = np.flatnonzero(np.append(True, (np.diff(labels) != 0) | (np.diff(images) != 0)))
    for start, stop in zip(starts, np.append(starts[1:], len(order)), strict=True):
        if start == stop:
            continue
        rows = groups.get((int(labels[start]), int(images[start])))
        if rows is None:
            continue
        mine = order[start:stop]
        shared = overlaps(found.box[mine], truth.box[rows])
        best = shared.argmax(axis=1)
        taken: set[int] = set()
        for row, box, share in zip(mine, best, shared.max(axis=1), strict=True):
            if share >= LEAST_OVERLAP and box not in taken:
                taken.add(box)
                right[row] = True
    return right
