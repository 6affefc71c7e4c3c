"""Figures by hand, in any order and partition, and their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.errors import UserError
from vjepa.evaluation.metrics import (
    Accuracy,
    AveragePrecision,
    ConfidenceInterval,
    MultiLabelMetrics,
    average_precision,
    jackknife_interval,
    wilson_interval,
)

CLASSES = tuple("abcdefg")


def _data(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, len(CLASSES), generator=generator)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    return logits.double().softmax(dim=-1), labels


def _add(sums: Accuracy, probabilities: torch.Tensor, labels: torch.Tensor) -> None:
    sums.add(np.arange(len(probabilities)), probabilities, labels)


def _sums(probabilities: torch.Tensor, labels: torch.Tensor, batch: int) -> Accuracy:
    sums = Accuracy(CLASSES)
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        _add(sums, probabilities[part], labels[part])
    return sums


@pytest.mark.parametrize("batch", [1, 8, 10, 103, 500])
def test_uneven_last_batches_change_nothing(batch: int) -> None:
    probabilities, labels = _data(103)
    got = _sums(probabilities, labels, batch).metrics()
    predicted = probabilities.argmax(dim=1)
    assert got.count == 103
    assert got.correct == int((predicted == labels).sum())
    assert got.top1 == got.correct / 103
    order = probabilities.argsort(dim=1, descending=True)[:, :5]
    assert got.top5 == pytest.approx(float((order == labels[:, None]).any(1).double().mean()))
    nll = -probabilities[torch.arange(103), labels].log()
    assert got.loss == pytest.approx(float(nll.mean()), rel=1e-12)
    assert sum(sum(row) for row in got.confusion) == 103
    # The mean of per-batch percentages, which the sums avoid, is another number here.
    if batch == 10:
        hits = (predicted == labels).double()
        per_batch = torch.stack([chunk.mean() for chunk in hits.split(10)]).mean()
        assert float(per_batch) != pytest.approx(got.top1, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(50)), st.sets(st.integers(1, 49), max_size=6), st.integers(1, 9))
def test_order_and_partition_change_no_bit(order: list[int], cuts: set[int], batch: int) -> None:
    probabilities, labels = _data(50)
    # Shares of many sizes, so that floats added in another order would differ.
    probabilities = torch.softmax(probabilities * torch.linspace(1, 900, 50)[:, None], dim=1)
    whole = _sums(probabilities, labels, 50).metrics()
    total = Accuracy(CLASSES)
    for part in np.split(np.array(order), sorted(cuts)):
        total.merge(_sums(probabilities[part], labels[part], batch))
    assert total.metrics() == whole


def test_confusion_and_classes_by_hand() -> None:
    sums = Accuracy(("cat", "dog", "emu"))
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    _add(sums, probabilities, torch.tensor([0, 1, 1]))
    got = sums.metrics()
    assert got.confusion == ((1, 0, 0), (1, 1, 0), (0, 0, 0))
    assert [entry.accuracy for entry in got.per_class] == [1.0, 0.5, None]
    assert got.mean_class_accuracy == 0.75  # the class without a video is not in the mean
    assert got.top5 is None  # three classes
    tied = Accuracy(("a", "b"))  # ties go to the lowest class
    _add(tied, torch.full((2, 2), 0.5), torch.tensor([0, 1]))
    assert tied.metrics().confusion == ((1, 0), (1, 0))


def test_calibration_error_by_hand() -> None:
    sums = Accuracy(("a", "b"))
    # Four answers of confidence 0.9 of which three are right: |0.75 - 0.9| = 0.15.
    probabilities = torch.tensor([[0.9, 0.1]] * 4, dtype=torch.float64)
    _add(sums, probabilities, torch.tensor([0, 0, 0, 1]))
    assert sums.metrics().calibration_error == pytest.approx(0.15, abs=1e-12)
    (only,) = sums.metrics().calibration
    assert (only.low, only.high, only.count, only.correct) == (13 / 15, 14 / 15, 4, 3)
    assert only.confidence == pytest.approx(0.9)
    sure = Accuracy(("a", "b"))
    _add(sure, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert sure.metrics().calibration_error == 0.0
    assert sure.metrics().loss == 0.0


def test_bad_input_is_refused() -> None:
    sums = Accuracy(CLASSES)
    probabilities, labels = _data(4)
    with pytest.raises(ValueError, match="shape"):
        _add(sums, probabilities[:, :3], labels)
    with pytest.raises(ValueError, match="outside"):
        _add(sums, probabilities, labels + len(CLASSES))
    with pytest.raises(ValueError, match="finite"):
        _add(sums, probabilities * float("nan"), labels)
    with pytest.raises(ValueError, match="no video"):
        sums.metrics()
    with pytest.raises(ValueError, match="classes"):
        sums.merge(Accuracy(("x", "y")))


SHOWN = ("a", "b", "c")


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


def _shown(splits: list[int], rows: Sequence[int] = range(12)) -> AveragePrecision:
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(12, 3, generator=generator, dtype=torch.float64)
    truth = (torch.rand(12, 3, generator=generator) > 0.6).float()
    truth[:, 2] = 0.0  # no video has it
    truth[:2, :2] = 1.0
    collected = AveragePrecision(SHOWN)
    for part in np.split(np.array(rows), splits):
        other = AveragePrecision(SHOWN)
        other.add(part, shares[part], truth[part])
        collected.merge(other)
    return collected


def test_batches_and_processes_do_not_matter() -> None:
    whole = _shown([])
    metrics = whole.metrics()
    assert metrics == _shown([5, 6]).metrics()
    backwards = AveragePrecision(SHOWN)
    for part in ([8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]):
        backwards.merge(_shown([], part))
    assert backwards.metrics() == metrics
    assert metrics.count == 12
    assert metrics.per_class[2].average_precision is None
    values = [entry.average_precision for entry in metrics.per_class[:2]]
    assert metrics.mean_average_precision == pytest.approx(np.mean(values))
    assert metrics.interval.low < metrics.mean_average_precision < metrics.interval.high
    assert whole.summary() == {
        "count": 12,
        "mean_average_precision": metrics.mean_average_precision,
        "loss": metrics.loss,
    }


def test_what_does_not_fit_is_refused() -> None:
    collected = AveragePrecision(SHOWN)
    with pytest.raises(ValueError, match="no video"):
        collected.metrics()
    with pytest.raises(ValueError, match="expected"):
        collected.add(np.arange(2), torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite"):
        collected.add(np.arange(1), torch.full((1, 3), torch.nan), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="classes"):
        collected.merge(AveragePrecision(("x",)))
    collected.add(np.arange(1), torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(UserError, match="not one of the videos that are measured has any class"):
        collected.metrics()


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: method 3 (score).
    for correct, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        got = wilson_interval(correct, count)
        assert (round(got.low, 4), round(got.high, 4)) == (low, high)


def test_ends_stay_in_the_unit_interval_and_counts_are_checked() -> None:
    assert wilson_interval(7, 7).high == 1.0
    assert wilson_interval(0, 0) == ConfidenceInterval(0.0, 1.0)
    with pytest.raises(ValueError, match="correct"):
        wilson_interval(5, 4)


def test_overlap() -> None:
    assert ConfidenceInterval(0.1, 0.3).overlaps(ConfidenceInterval(0.3, 0.5))
    assert not ConfidenceInterval(0.1, 0.3).overlaps(ConfidenceInterval(0.31, 0.5))


@pytest.mark.parametrize("rare", [0.06, 0.3])
def test_the_interval_of_precisions_holds_what_other_videos_would_give(rare: float) -> None:
    """Also where classes are rare, of which a bootstrap's lay above the figure itself."""
    random, names = np.random.default_rng(0), tuple("abcde")

    def measured() -> MultiLabelMetrics:
        truth = random.random((40, 5)) < np.array([rare, rare, rare, 0.3, 0.5])
        shares = 1 / (1 + np.exp(-random.normal(size=truth.shape) - truth))
        answers = AveragePrecision(names)
        answers.add(np.arange(40), torch.from_numpy(shares), torch.from_numpy(truth))
        return answers.metrics()

    found = [measured() for _ in range(60)]
    expected = np.mean([one.mean_average_precision for one in found])
    assert all(
        0 <= one.interval.low < one.mean_average_precision < one.interval.high <= 1 for one in found
    )
    held = np.mean([one.interval.low <= expected <= one.interval.high for one in found])
    assert held >= 0.88  # 93 to 94 % of 200
    assert np.mean([one.interval.high - one.interval.low for one in found]) < 0.5


def test_a_jackknife_of_a_mean_is_its_students_interval() -> None:
    values = np.random.default_rng(1).random(30)
    found = jackknife_interval(float(values.mean()), 30, lambda kept: float(values[kept].mean()))
    half = 2.045 * values.std(ddof=1) / np.sqrt(30)
    assert found.low == pytest.approx(values.mean() - half, abs=1e-4)
    assert found.high == pytest.approx(values.mean() + half, abs=1e-4)
    many = np.random.default_rng(2).random(1000)  # in 200 groups of five
    found = jackknife_interval(float(many.mean()), 1000, lambda kept: float(many[kept].mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * many.std() / np.sqrt(1000), rel=0.2)
    assert jackknife_interval(0.5, 1, lambda _: None) == ConfidenceInterval(0, 1)
