"""Metrics where a video may have several classes at once: mean average precision.

Average precision needs the order of all scores, so here scores are collected instead of counts, and
those of several processes are put together row by row before anything is computed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vjepa.counter_random import derive_seed

_NORMAL_975 = 1.959963984540054  # 97.5 % point of the standard normal distribution
_BOOTSTRAP_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a share; both ends as fractions in [0, 1]."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def wilson_interval(correct: int, count: int) -> Interval:
    """Wilson's 95 % score interval (E. B. Wilson 1927) of the share `correct` / `count`.

    Args:
        correct: How many answers were right.
        count: How many there were.

    Returns:
        The interval; (0, 1) when nothing was counted.

    Raises:
        ValueError: `correct` is not in 0..count.
    """
    _check_counts(correct, count)
    if count == 0:
        return Interval(0.0, 1.0)
    share = correct / count
    z2 = _NORMAL_975**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = _NORMAL_975 * spread / (1 + z2 / count)
    # At a share of 0 or 1 the exact end is 0 or 1; floating point may miss it by an ulp.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == count else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap_interval(correct: int, count: int, seed: int = 0) -> Interval:
    """Percentile bootstrap 95 % interval of a share, resampling videos, 10 000 resamples.

    Args:
        correct: How many videos were answered rightly.
        count: How many videos there were.
        seed: The interval is a pure function of (correct, count, seed).

    Returns:
        The interval; (0, 1) when nothing was counted.

    Raises:
        ValueError: `correct` is not in 0..count.
    """
    _check_counts(correct, count)
    if count == 0:
        return Interval(0.0, 1.0)
    generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "bootstrap")))
    shares = generator.binomial(count, correct / count, size=_BOOTSTRAP_RESAMPLES) / count
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(low), float(high))


def _check_counts(correct: int, count: int) -> None:
    if not 0 <= correct <= count:
        raise ValueError(f"correct = {correct} is not in 0..{count}")


CALIBRATION_BINS = 15
"""Equal-width bins of the confidence in [0, 1] for the expected calibration error."""

_ONE = 1 << 50
"""1.0 in fixed point. Every answer's loss and confidence is rounded once to 2 ** -50 (9e-16), then
summed as a whole number of any length, which is exact: a figure is the same in whatever order the
answers come and however they are dealt out to batches and processes, and nothing overflows."""


@dataclass(frozen=True)
class ClassMetrics:
    """Results of one class.

    Attributes:
        name: Class name.
        count: Videos of the class.
        correct: Those among them whose top answer was right.
    """

    name: str
    count: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """Share of right answers in [0, 1]; None for a class without a video."""
        return self.correct / self.count if self.count else None


@dataclass(frozen=True)
class CalibrationBin:
    """The answers of one range of confidence; empty ranges are left out.

    Attributes:
        low, high: The range, (low, high].
        count: Answers in it.
        correct: Right ones among them.
        confidence: Their mean confidence.
    """

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
        correct: Videos whose most probable class was right.
        top1: correct / count.
        top5: Share with the right class among the five most probable; None up to five classes.
        mean_class_accuracy: Mean over the classes that occur of their own accuracy.
        loss: Mean cross-entropy in nats.
        calibration_error: Expected calibration error, 15 bins (Guo et al. 2017).
        wilson, bootstrap: 95 % intervals of `top1`.
        per_class: One entry a class, in class order.
        confusion: ``confusion[i][j]`` = videos of class i that were taken for class j.
        calibration: The ranges of confidence that `calibration_error` is summed over, where any
            answer is; empty in results of versions that did not keep them.
    """

    count: int
    correct: int
    top1: float
    top5: float | None
    mean_class_accuracy: float
    loss: float
    calibration_error: float
    wilson: Interval
    bootstrap: Interval
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return asdict(self)


class ClassificationSums:
    """Running sums of a classification over batches; merge those of several processes by adding.

    Ties between classes go to the lowest class number, for top-1 as for top-5, so that an answer
    does not depend on the sorting algorithm of a device.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        size = len(classes)
        self.confusion: NDArray[np.int64] = np.zeros((size, size), dtype=np.int64)
        self.top5_correct = 0
        self.loss_sum = 0  # in units of 1 / _ONE, as `bin_confidence`
        self.bin_count: NDArray[np.int64] = np.zeros(CALIBRATION_BINS, dtype=np.int64)
        self.bin_correct: NDArray[np.int64] = np.zeros(CALIBRATION_BINS, dtype=np.int64)
        self.bin_confidence = [0] * CALIBRATION_BINS

    def add(self, probabilities: Tensor, labels: Tensor, valid: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            probabilities: float [B, classes], each row sums to 1 (softmax, averaged over views).
            labels: int64 [B].
            valid: bool [B], False for padding rows, which are left out; None = all count.

        Raises:
            ValueError: A shape or a label does not fit the classes, or a value is not finite.
        """
        size = len(self.classes)
        if probabilities.shape != (labels.shape[0], size):
            raise ValueError(
                f"probabilities: shape {tuple(probabilities.shape)}, expected "
                f"({labels.shape[0]}, {size})"
            )
        if valid is not None:
            probabilities, labels = probabilities[valid], labels[valid]
        if labels.numel() == 0:
            return
        if int(labels.min()) < 0 or int(labels.max()) >= size:
            raise ValueError(f"labels: a value is outside 0..{size - 1}")
        shares = probabilities.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(shares).all()):
            raise ValueError("probabilities: a value is not finite")
        truth = labels.to("cpu", torch.int64)
        own = shares.gather(1, truth[:, None])
        # Rank of the true class = classes strictly more probable + equally probable before it.
        before = torch.arange(size)[None, :] < truth[:, None]
        rank = ((shares > own) | ((shares == own) & before)).sum(dim=1)
        # argmax does not promise which of several equal entries it returns; the lowest is taken.
        numbers = torch.arange(size).expand_as(shares)
        answers = torch.where(shares == shares.amax(dim=1, keepdim=True), numbers, size).amin(dim=1)
        np.add.at(self.confusion, (truth.numpy(), answers.numpy()), 1)
        self.top5_correct += int((rank < 5).sum())
        # One by one: a vectorised logarithm may differ in the last bit at the end of a batch.
        least = torch.finfo(torch.float64).tiny
        losses = [-math.log(max(share, least)) for share in own.flatten().tolist()]
        self.loss_sum += sum(_fixed_point(np.array(losses)))
        self._add_calibration(shares.amax(dim=1).numpy(), (rank == 0).numpy())

    def _add_calibration(self, confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> None:
        """Put answers into their confidence bin; a bin holds (low, high], the first also 0."""
        bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
        bins = np.clip(bins, 0, CALIBRATION_BINS - 1)
        np.add.at(self.bin_count, bins, 1)
        np.add.at(self.bin_correct, bins, hit.astype(np.int64))
        for number, value in zip(bins.tolist(), _fixed_point(confidence), strict=True):
            self.bin_confidence[number] += value

    def merge(self, other: ClassificationSums) -> None:
        """Add the sums of another process or of another part of the data.

        Raises:
            ValueError: The classes differ.
        """
        if other.classes != self.classes:
            raise ValueError("classes: sums over different classes cannot be added")
        self.confusion += other.confusion
        self.top5_correct += other.top5_correct
        self.loss_sum += other.loss_sum
        self.bin_count += other.bin_count
        self.bin_correct += other.bin_correct
        both = zip(self.bin_confidence, other.bin_confidence, strict=True)
        self.bin_confidence = [own + more for own, more in both]

    @property
    def count(self) -> int:
        """Videos counted so far."""
        return int(self.confusion.sum())

    def metrics(self, seed: int = 0) -> ClassificationMetrics:
        """All figures.

        Args:
            seed: Of the bootstrap interval.

        Returns:
            The metrics.

        Raises:
            ValueError: Nothing was counted.
        """
        count = self.count
        if count == 0:
            raise ValueError("metrics: no video was counted")
        correct = int(np.trace(self.confusion))
        of_class = self.confusion.sum(axis=1)
        per_class = tuple(
            ClassMetrics(name, int(of_class[index]), int(self.confusion[index, index]))
            for index, name in enumerate(self.classes)
        )
        present = [entry.accuracy for entry in per_class if entry.accuracy is not None]
        right = zip(self.bin_correct.tolist(), self.bin_confidence, strict=True)
        gap = sum(abs(correct * _ONE - confidence) for correct, confidence in right)
        return ClassificationMetrics(
            count=count,
            correct=correct,
            top1=correct / count,
            top5=self.top5_correct / count if len(self.classes) > 5 else None,
            mean_class_accuracy=float(np.mean(present)),
            loss=self.loss_sum / (count * _ONE),
            calibration_error=gap / (count * _ONE),
            wilson=wilson_interval(correct, count),
            bootstrap=bootstrap_interval(correct, count, seed),
            per_class=per_class,
            confusion=tuple(tuple(int(value) for value in row) for row in self.confusion),
            calibration=self._calibration(),
        )

    def _calibration(self) -> tuple[CalibrationBin, ...]:
        return tuple(
            CalibrationBin(
                low=number / CALIBRATION_BINS,
                high=(number + 1) / CALIBRATION_BINS,
                count=int(self.bin_count[number]),
                correct=int(self.bin_correct[number]),
                confidence=self.bin_confidence[number] / (int(self.bin_count[number]) * _ONE),
            )
            for number in np.flatnonzero(self.bin_count).tolist()
        )


def _fixed_point(values: NDArray[np.float64]) -> list[int]:
    """Values of at most 709 (the largest loss) as whole multiples of 1 / _ONE."""
    return np.rint(values * _ONE).astype(np.int64).tolist()


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax over the last dimension in float64: float [..., classes] -> float64, same shape."""
    return F.softmax(logits.detach().to(torch.float64), dim=-1)


_MULTI_LABEL_RESAMPLES = 200


@dataclass(frozen=True)
class ClassPrecision:
    """Results of one class.

    Attributes:
        name: Class name.
        count: Videos that have the class.
        average_precision: Area under precision over recall, in [0, 1]; None without such a video.
    """

    name: str
    count: int
    average_precision: float | None


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics:
    """All figures of one evaluation with several classes per video.

    Attributes:
        count: Videos counted; equals the data set (less the listed bad videos).
        mean_average_precision: Mean over the classes that occur, in [0, 1].
        loss: Mean binary cross-entropy in nats, over videos and classes.
        bootstrap: 95 % interval of the mean average precision, over videos (200 resamples).
        per_class: One entry a class, in class order.
    """

    count: int
    mean_average_precision: float
    loss: float
    bootstrap: Interval
    per_class: tuple[ClassPrecision, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return asdict(self)


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Sum of precision times the growth of recall, down the ranking; ties are one step.

    Args:
        scores: float64 [n].
        positive: bool [n], at least one True.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hits = np.cumsum(positive[order])
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    found = hits[last_of_tie]
    precision = found / (np.flatnonzero(last_of_tie) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


class MultiLabelScores:
    """Scores of all videos, collected over batches.

    Attributes:
        classes: Class names.
        rows, scores, truth: One entry a batch: int64 [b], float64 [b, classes], bool [b, classes].
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        """Start without a video."""
        self.classes = classes
        self.rows: list[NDArray[np.int64]] = []
        self.scores: list[NDArray[np.float64]] = []
        self.truth: list[NDArray[np.bool_]] = []

    def add(self, rows: NDArray[np.int64], probabilities: Tensor, targets: Tensor) -> None:
        """Collect a batch.

        Args:
            rows: int64 [B], manifest rows.
            probabilities: float [B, classes], each in [0, 1].
            targets: float or bool [B, classes].

        Raises:
            ValueError: Shapes do not fit or a value is not finite.
        """
        shape = (len(rows), len(self.classes))
        if probabilities.shape != shape or targets.shape != shape:
            raise ValueError(
                f"probabilities: shapes {tuple(probabilities.shape)} and {tuple(targets.shape)}, "
                f"expected {shape}"
            )
        shares = probabilities.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(shares).all()):
            raise ValueError("probabilities: a value is not finite")
        self.rows.append(rows)
        self.scores.append(shares.numpy())
        self.truth.append((targets > 0.5).cpu().numpy())

    def merge(self, other: MultiLabelScores) -> None:
        """Add the scores of another process or of another part of the data."""
        if other.classes != self.classes:
            raise ValueError("classes: scores over different classes cannot be put together")
        self.rows += other.rows
        self.scores += other.scores
        self.truth += other.truth

    def metrics(self, seed: int = 0) -> MultiLabelMetrics:
        """All figures, the same in whatever order the batches came.

        Args:
            seed: Of the bootstrap interval.

        Raises:
            ValueError: Nothing was collected, or no class occurs.
        """
        scores, truth = self._in_order()
        per_class = tuple(
            ClassPrecision(
                name,
                int(truth[:, index].sum()),
                average_precision(scores[:, index], truth[:, index])
                if truth[:, index].any()
                else None,
            )
            for index, name in enumerate(self.classes)
        )
        return MultiLabelMetrics(
            count=len(scores),
            mean_average_precision=_mean_precision(scores, truth),
            loss=_loss(scores, truth),
            bootstrap=_bootstrap(scores, truth, seed),
            per_class=per_class,
        )

    def summary(self) -> tuple[int, float, float]:
        """Videos, mean average precision and loss, without the interval that takes long."""
        scores, truth = self._in_order()
        return len(scores), _mean_precision(scores, truth), _loss(scores, truth)

    def _in_order(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        if not self.rows:
            raise ValueError("metrics: no video was counted")
        order = np.argsort(np.concatenate(self.rows), kind="stable")
        return np.concatenate(self.scores)[order], np.concatenate(self.truth)[order]


def _loss(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    own = np.where(truth, scores, 1.0 - scores)
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def _mean_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    present = np.flatnonzero(truth.any(axis=0))
    if present.size == 0:
        raise ValueError("metrics: no video has any class")
    return float(np.mean([average_precision(scores[:, c], truth[:, c]) for c in present]))


def _bootstrap(scores: NDArray[np.float64], truth: NDArray[np.bool_], seed: int) -> Interval:
    generator = np.random.Generator(np.random.PCG64(derive_seed(seed, "bootstrap")))
    found = []
    for _ in range(_MULTI_LABEL_RESAMPLES):
        drawn = generator.integers(0, len(scores), len(scores))
        if truth[drawn].any():
            found.append(_mean_precision(scores[drawn], truth[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))
