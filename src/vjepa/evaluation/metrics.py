"""Classification metrics from sums and counts.

A batch adds to integer counts and to float64 sums, and every figure is computed from these at the
end: batches of unequal size, padding, and several processes (add up their sums) all give the same
numbers, and the count equals the data set. The released evaluation instead averages per-batch
percentages, which weighs the videos of a short last batch more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vjepa.evaluation.intervals import Interval, bootstrap_interval, wilson_interval

CALIBRATION_BINS = 15
"""Equal-width bins of the confidence in [0, 1] for the expected calibration error."""


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
        self.loss_sum = 0.0
        self.bin_count: NDArray[np.int64] = np.zeros(CALIBRATION_BINS, dtype=np.int64)
        self.bin_correct: NDArray[np.int64] = np.zeros(CALIBRATION_BINS, dtype=np.int64)
        self.bin_confidence: NDArray[np.float64] = np.zeros(CALIBRATION_BINS)

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
        self.loss_sum += float(-own.clamp_min(torch.finfo(torch.float64).tiny).log().sum())
        self._add_calibration(shares.amax(dim=1).numpy(), (rank == 0).numpy())

    def _add_calibration(self, confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> None:
        """Put answers into their confidence bin; a bin holds (low, high], the first also 0."""
        bins = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
        bins = np.clip(bins, 0, CALIBRATION_BINS - 1)
        np.add.at(self.bin_count, bins, 1)
        np.add.at(self.bin_correct, bins, hit.astype(np.int64))
        np.add.at(self.bin_confidence, bins, confidence)

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
        self.bin_confidence += other.bin_confidence

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
        gap = np.abs(self.bin_correct - self.bin_confidence).sum() / count
        return ClassificationMetrics(
            count=count,
            correct=correct,
            top1=correct / count,
            top5=self.top5_correct / count if len(self.classes) > 5 else None,
            mean_class_accuracy=float(np.mean(present)),
            loss=self.loss_sum / count,
            calibration_error=float(gap),
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
                confidence=float(self.bin_confidence[number] / self.bin_count[number]),
            )
            for number in np.flatnonzero(self.bin_count).tolist()
        )


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax over the last dimension in float64: float [..., classes] -> float64, same shape."""
    return F.softmax(logits.detach().to(torch.float64), dim=-1)
