from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.evaluation.metrics import AveragePrecision, average_precision

CLASSES = ("a", "b", "c")


def _plain_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Precision at every threshold, weighted by the recall that it gains."""
    total, seen = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        gained = int(positive[above].sum()) - seen
        seen += gained
        total += gained / positive.sum() * positive[above].mean()
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_that_of_the_definition(entries) -> None:
    scores = np.array([score for score, _ in entries], dtype=np.float64)
    positive = np.array([value for _, value in entries])
    positive[0] = True
    found = average_precision(scores, positive)
    assert found == pytest.approx(_plain_average_precision(scores, positive))


def test_known_values() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx(5 / 6)
    assert average_precision(scores, np.array([True, True, False, False])) == 1.0
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25


def _scores(splits: list[int], rows: Sequence[int] = range(12)) -> AveragePrecision:
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(12, 3, generator=generator, dtype=torch.float64)
    truth = (torch.rand(12, 3, generator=generator) > 0.6).float()
    truth[:, 2] = 0.0  # no video has it
    truth[:2, :2] = 1.0
    collected = AveragePrecision(CLASSES)
    for part in np.split(np.array(rows), splits):
        other = AveragePrecision(CLASSES)
        other.add(part, shares[part], truth[part])
        collected.merge(other)
    return collected


def test_batches_and_processes_do_not_matter() -> None:
    whole = _scores([])
    metrics = whole.metrics(seed=3)
    assert metrics == _scores([5, 6]).metrics(seed=3)
    backwards = AveragePrecision(CLASSES)
    for part in ([8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]):
        backwards.merge(_scores([], part))
    assert backwards.metrics(seed=3) == metrics
    assert metrics.count == 12
    assert metrics.per_class[2].average_precision is None
    values = [entry.average_precision for entry in metrics.per_class[:2]]
    assert metrics.mean_average_precision == pytest.approx(np.mean(values))
    assert metrics.bootstrap.low < metrics.mean_average_precision < metrics.bootstrap.high
    assert whole.summary() == {
        "count": 12,
        "mean_average_precision": metrics.mean_average_precision,
        "loss": metrics.loss,
    }


def test_what_does_not_fit_is_refused() -> None:
    collected = AveragePrecision(CLASSES)
    with pytest.raises(ValueError, match="no video"):
        collected.metrics()
    with pytest.raises(ValueError, match="expected"):
        collected.add(np.arange(2), torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite"):
        collected.add(np.arange(1), torch.full((1, 3), torch.nan), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="classes"):
        collected.merge(AveragePrecision(("x",)))
    collected.add(np.arange(1), torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no video has any class"):
        collected.metrics()
