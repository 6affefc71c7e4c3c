"""Figures of frozen evaluation: shares of right answers, mean average precision, intervals.

Answers are kept one by one in one of two metrics with the same methods: :class:`Accuracy` where a
video has one class, :class:`AveragePrecision` where it may have several. Both give the same
figures, to the last bit, in whatever order answers come and however processes share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AliasChoices, Field
from torch import Tensor

from vjepa.counter_random import derive_seed
from vjepa.errors import UserError

NORMAL_975 = 1.959963984540054  # 97.5 % point of the standard normal distribution
# The same of Student's t for 1 to 10 degrees of freedom.
_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_MOST_GROUPS = 200


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % interval of a figure, in the figure's own unit."""

    low: float
    high: float

    def overlaps(self, other: ConfidenceInterval) -> bool:
        """Whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def wilson_interval(correct: int, count: int) -> ConfidenceInterval:
    """Wilson's 95 % interval (E. B. Wilson 1927) of `correct` / `count`; (0, 1) of nothing."""
    if not 0 <= correct <= count:
        raise ValueError(f"correct = {correct} is not in 0..{count}")
    if count == 0:
        return ConfidenceInterval(0.0, 1.0)
    share = correct / count
    z2 = NORMAL_975**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = NORMAL_975 * spread / (1 + z2 / count)
    # At a share of 0 or 1 the exact end is 0 or 1; floating point may miss it by an ulp.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == count else min(1.0, centre + half)
    return ConfidenceInterval(low, high)


def student_975(freedom: int) -> float:
    """The 97.5 % point of Student's t for so many degrees of freedom, 1 at least."""
    if freedom <= len(_STUDENT_975):
        return _STUDENT_975[freedom - 1]
    # The normal's, corrected by Fisher's series, right to 0.003 here.
    z, n = NORMAL_975, 4 * freedom
    return z + (z**3 + z) / n + (5 * z**5 + 16 * z**3 + 3 * z) / (6 * n**2)


def jackknife_interval(
    figure: float, count: int, measured_on: Callable[[NDArray[np.bool_]], float | None]
) -> ConfidenceInterval:
    """The 95 % interval of a mean average precision of `count` videos: a jackknife by groups.

    `measured_on` gives the figure of the videos that are True in bool [count], None if they have
    none. Each of at most 200 groups of them is left out in turn. Videos drawn with replacement
    would not do: one that is drawn twice ranks as two, so that such figures are too high.
    """
    groups = min(count, _MOST_GROUPS)
    random = np.random.Generator(np.random.PCG64(derive_seed(0, "jackknife")))
    group = random.permutation(count) % max(1, groups)  # rows may be sorted by class
    found = [value for n in range(groups) if (value := measured_on(group != n)) is not None]
    if len(found) < max(2, groups):
        return ConfidenceInterval(0.0, 1.0)
    half = student_975(groups - 1) * math.sqrt((groups - 1) * float(np.var(found)))
    return ConfidenceInterval(max(0.0, figure - half), min(1.0, figure + half))


CALIBRATION_ANSWERS = 100
"""From so many answers on the calibration is shown; with fewer a bin holds a handful."""
CALIBRATION_BINS = 15
"""Equal-width bins of the confidence in [0, 1] for the expected calibration error."""


@dataclass(frozen=True)
class ClassMetrics:
    """Results of one class.

    `correct`, the right top answers among its videos, is None where a video may have several
    classes; there `average_precision`, the area under precision over recall, says how good it is,
    or None for a class without a video.
    """

    name: str
    count: int
    correct: int | None = None
    average_precision: float | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of right answers in [0, 1]; None for a class without a video."""
        return self.correct / self.count if self.count and self.correct is not None else None

    @property
    def figure(self) -> str | None:
        """The accuracy in percent or the average precision, as text; None without a video."""
        if self.average_precision is not None:
            return f"{self.average_precision:.3f}"
        return None if self.accuracy is None else f"{100 * self.accuracy:.1f}"


@dataclass(frozen=True)
class CalibrationBin:
    """The answers whose confidence is in (low, high]; `confidence` is their mean one."""

    low: float
    high: float
    count: int
    correct: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics:
    """All figures of one evaluation. Shares are fractions in [0, 1], not percent.

    Attributes:
        count: Videos counted; equals the data set (less the listed bad videos).
        top1: correct / count.
        top5: Share with the right class among the five most probable; None up to five classes.
        mean_class_accuracy: Mean over the classes that occur of their own accuracy.
        loss: Mean cross-entropy in nats.
        calibration_error: Expected calibration error, 15 bins (Guo et al. 2017).
        wilson: 95 % interval of `top1`.
        confusion: ``confusion[i][j]`` = videos of class i that were taken for class j.
        calibration: Bins that hold any answer; empty in results of versions that did not keep them.
    """

    count: int
    correct: int
    top1: float
    top5: float | None
    mean_class_accuracy: float
    loss: float
    calibration_error: float
    wilson: ConfidenceInterval
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...] = ()

    @property
    def score(self) -> float:
        """The figure that probes are compared by."""
        return self.top1

    def cells(self) -> dict[str, str]:
        """The figures as text, by the headings of a table."""
        is_calibrated = self.count >= CALIBRATION_ANSWERS
        return {
            "top-1 %": f"{100 * self.top1:.1f}",
            "95 % interval": f"{100 * self.wilson.low:.1f} to {100 * self.wilson.high:.1f}",
            "videos": str(self.count),
            **({} if self.top5 is None else {"top-5 %": f"{100 * self.top5:.1f}"}),
            **({"ECE": f"{self.calibration_error:.3f}"} if is_calibrated else {}),
            "loss": f"{self.loss:.3f}",
        }

    class_figure = "accuracy %"

    def sentence(self, where: str) -> str:
        """The result in one line; `where` says of which videos."""
        low, high = 100 * self.wilson.low, 100 * self.wilson.high
        top5 = "" if self.top5 is None else f", top-5: {100 * self.top5:.2f} %"
        return (
            f"top-1: {100 * self.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}),"
            f" {self.correct} of {self.count} {where}{top5}"
        )


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics:
    """All figures of one evaluation with several classes per video; methods as those above.

    Attributes:
        count: Videos counted; equals the data set (less the listed bad videos).
        mean_average_precision: Mean over the classes that occur, in [0, 1].
        loss: Mean binary cross-entropy in nats, over videos and classes.
        interval: 95 % interval of the mean average precision (:func:`jackknife_interval`).
    """

    count: int
    mean_average_precision: float
    loss: float
    # Results of before 2026-12 have a bootstrap's.
    interval: Annotated[
        ConfidenceInterval, Field(validation_alias=AliasChoices("interval", "bootstrap"))
    ]
    per_class: tuple[ClassMetrics, ...]

    @property
    def score(self) -> float:
        """The figure that probes are compared by."""
        return self.mean_average_precision

    def cells(self) -> dict[str, str]:
        """The figures as text, by the headings of a table."""
        return {
            "mAP": f"{self.mean_average_precision:.3f}",
            "95 % interval": f"{self.interval.low:.3f} to {self.interval.high:.3f}",
            "videos": str(self.count),
            "loss": f"{self.loss:.3f}",
        }

    class_figure = "average precision"

    def sentence(self, where: str) -> str:
        """The result in one line; `where` says of which videos."""
        return (
            f"mean average precision: {self.mean_average_precision:.4f} (95 % interval "
            f"{self.interval.low:.3f} to {self.interval.high:.3f}), {self.count} {where}"
        )


Metrics = ClassificationMetrics | MultiLabelMetrics


AnswerTable = tuple[NDArray[np.int64], list[str], list[list[str]]]
"""Every answer: rows int64 [n], ascending; names of columns; and of each row a line of texts."""


class _Answers:
    """Answers in batches of columns; the first is the videos' rows, int64 [B]."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._batches: list[tuple[NDArray[Any], ...]] = []

    def merge(self, other: Self) -> None:
        """Add the answers of another process or of another part of the data."""
        if other.classes != self.classes:
            raise ValueError("classes: answers over different classes cannot be put together")
        self._batches += other._batches

    @property
    def count(self) -> int:
        """Videos counted so far."""
        return sum(len(batch[0]) for batch in self._batches)

    def _table(self, names: list[str], columns: list[list[str]]) -> AnswerTable:
        rows = np.sort(np.concatenate([batch[0] for batch in self._batches]))
        return rows, names, [list(line) for line in zip(*columns, strict=True)]

    def _columns(self) -> list[NDArray[Any]]:
        """All answers, in the order of rows, without these."""
        if self.count == 0:
            raise ValueError("metrics: no video was counted")
        rows, *columns = (np.concatenate(column) for column in zip(*self._batches, strict=True))
        order = np.argsort(rows, kind="stable")
        return [column[order] for column in columns]


class Accuracy(_Answers):
    """Answers of videos with one class each.

    Ties between classes go to the lowest class number, for top-1 as for top-5, so that an answer
    does not depend on the sorting algorithm of a device.
    """

    def add(self, rows: NDArray[np.int64], probabilities: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            rows: int64 [B], the videos' rows of the manifest.
            probabilities: float [B, classes], each row sums to 1 (softmax, averaged over views).
            targets: int64 [B], class numbers.
        """
        size = len(self.classes)
        shares = _checked(probabilities, (len(rows), size))
        if targets.shape != (len(rows),):
            raise ValueError(f"labels: shape {tuple(targets.shape)} for {len(rows)} videos")
        if len(rows) == 0:
            return
        if int(targets.min()) < 0 or int(targets.max()) >= size:
            raise ValueError(f"labels: a value is outside 0..{size - 1}")
        truth = targets.to("cpu", torch.int64)
        own = shares.gather(1, truth[:, None])
        # Rank of the true class = classes strictly more probable + equally probable before it.
        before = torch.arange(size)[None, :] < truth[:, None]
        rank = ((shares > own) | ((shares == own) & before)).sum(dim=1)
        # argmax does not promise which of several equal entries it returns; the lowest is taken.
        numbers = torch.arange(size).expand_as(shares)
        confidence = shares.amax(dim=1)
        answers = torch.where(shares == confidence[:, None], numbers, size).amin(dim=1)
        # One by one: a vectorised logarithm may differ in the last bit at the end of a batch.
        least = torch.finfo(torch.float64).tiny
        losses = [-math.log(max(share, least)) for share in own.flatten().tolist()]
        columns = (truth, answers, rank, confidence)
        self._batches.append((rows, *(column.numpy() for column in columns), np.array(losses)))

    def table(self) -> AnswerTable:
        """Class, answer, share of the class and confidence of each video."""
        truth, answers, _, confidence, losses = self._columns()
        columns = [
            [self.classes[number] for number in truth],
            [self.classes[number] for number in answers],
            [repr(math.exp(-loss)) for loss in losses.tolist()],
            [repr(share) for share in confidence.tolist()],
        ]
        return self._table(["class", "answer", "share", "confidence"], columns)

    def summary(self) -> dict[str, Any]:
        """What the choice among heads needs: `count`, `correct`, `top1`, `loss`."""
        _, _, rank, _, losses = self._columns()
        count, correct = len(rank), int((rank == 0).sum())
        # math.fsum is exact: the order of the answers does not matter.
        loss = math.fsum(losses) / count
        return {"count": count, "correct": correct, "top1": correct / count, "loss": loss}

    def metrics(self) -> ClassificationMetrics:
        """All figures."""
        truth, answers, rank, confidence, _ = self._columns()
        found = self.summary()
        confusion = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(confusion, (truth, answers), 1)
        per_class = tuple(
            ClassMetrics(name, int(confusion[index].sum()), int(confusion[index, index]))
            for index, name in enumerate(self.classes)
        )
        present = [entry.accuracy for entry in per_class if entry.accuracy is not None]
        # A bin holds (low, high], the first also 0.
        places = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64).clip(1) - 1
        bins = tuple(
            CalibrationBin(
                low=place / CALIBRATION_BINS,
                high=(place + 1) / CALIBRATION_BINS,
                count=int((places == place).sum()),
                correct=int((rank[places == place] == 0).sum()),
                confidence=math.fsum(confidence[places == place]) / int((places == place).sum()),
            )
            for place in np.unique(places).tolist()
        )
        gap = math.fsum(abs(entry.correct - entry.count * entry.confidence) for entry in bins)
        return ClassificationMetrics(
            **found,
            top5=int((rank < 5).sum()) / len(rank) if len(self.classes) > 5 else None,
            mean_class_accuracy=float(np.mean(present)),
            calibration_error=gap / len(rank),
            wilson=wilson_interval(found["correct"], len(rank)),
            per_class=per_class,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            calibration=bins,
        )


def _checked(probabilities: Tensor, shape: tuple[int, int]) -> Tensor:
    """Probabilities of a batch as float64 on the CPU."""
    if probabilities.shape != shape:
        raise ValueError(f"probabilities: shape {tuple(probabilities.shape)}, expected {shape}")
    shares = probabilities.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(shares).all()):
        raise ValueError("probabilities: a value is not finite")
    return shares


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Sum of precision times the growth of recall, down the ranking; ties are one step.

    Of scores float64 [n] and bool [n], at least one of which is True.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(positive[order])
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    found = hits[last_of_tie]
    precision = found / (np.flatnonzero(last_of_tie) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


class AveragePrecision(_Answers):
    """Answers of videos that may have several classes each."""

    def add(self, rows: NDArray[np.int64], probabilities: Tensor, targets: Tensor) -> None:
        """Keep a batch, as of :class:`Accuracy`; but targets are float or bool [B, classes]."""
        shape = (len(rows), len(self.classes))
        shares = _checked(probabilities, shape)
        if targets.shape != shape:
            raise ValueError(f"targets: shape {tuple(targets.shape)}, expected {shape}")
        self._batches.append((rows, shares.numpy(), (targets > 0.5).cpu().numpy()))

    def table(self) -> AnswerTable:
        """Classes and every class's share of each video."""
        scores, truth = self._columns()
        named = ["|".join(np.array(self.classes)[own]) for own in truth]
        shares = [[repr(share) for share in column] for column in scores.T.tolist()]
        names = ["classes", *(f"share {name}" for name in self.classes)]
        return self._table(names, [named, *shares])

    def summary(self) -> dict[str, Any]:
        """`count`, `mean_average_precision` and `loss`, without the interval that takes long."""
        scores, truth = self._columns()
        own = np.where(truth, scores, 1.0 - scores)
        loss = float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())
        precision = _mean_precision(scores, truth)
        return {"count": len(scores), "mean_average_precision": precision, "loss": loss}

    def metrics(self) -> MultiLabelMetrics:
        """All figures."""
        scores, truth = self._columns()
        found, per_class = self.summary(), []
        for name, own, right in zip(self.classes, scores.T, truth.T, strict=True):
            precision = average_precision(own, right) if right.any() else None
            per_class.append(ClassMetrics(name, int(right.sum()), average_precision=precision))

        def measured_on(kept: NDArray[np.bool_]) -> float | None:
            return _mean_precision(scores[kept], truth[kept]) if truth[kept].any() else None

        figure = found["mean_average_precision"]
        interval = jackknife_interval(figure, len(scores), measured_on)
        return MultiLabelMetrics(**found, interval=interval, per_class=tuple(per_class))


def _mean_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    present = np.flatnonzero(truth.any(axis=0))
    if present.size == 0:
        raise UserError("not one of the videos that are measured has any class; name others")
    return float(np.mean([average_precision(scores[:, c], truth[:, c]) for c in present]))
