"""Metrics where a video may have several classes at once: mean average precision.

Average precision needs the order of all scores, so here scores are collected instead of counts, and
those of several processes are put together row by row before anything is computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.counter_random import derive_seed
from vjepa.evaluation.intervals import Interval

_BOOTSTRAP_RESAMPLES = 200


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
    for _ in range(_BOOTSTRAP_RESAMPLES):
        drawn = generator.integers(0, len(scores), len(scores))
        if truth[drawn].any():
            found.append(_mean_precision(scores[drawn], truth[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))
