from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.evaluation.metrics import Accuracy, probabilities_of

CLASSES = tuple("abcdefg")


def _data(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, len(CLASSES), generator=generator)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    return probabilities_of(logits), labels


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


def test_many_answers_do_not_overflow() -> None:
    sums = Accuracy(("a", "b"))
    _add(
        sums, torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    )  # the largest loss
    once = sums.metrics()
    for _ in range(27):
        sums.merge(copy.deepcopy(sums))
    many = sums.metrics()
    assert many.count == 1 << 27
    assert (many.loss, many.calibration_error) == (once.loss, once.calibration_error) != (0.0, 0.0)
    assert many.calibration[0].confidence == 1.0


def test_other_classes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="classes"):
        Accuracy(CLASSES).merge(Accuracy(("x", "y")))


def test_confusion_and_classes_by_hand() -> None:
    sums = Accuracy(("cat", "dog", "emu"))
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    _add(sums, probabilities, torch.tensor([0, 1, 1]))
    got = sums.metrics()
    assert got.confusion == ((1, 0, 0), (1, 1, 0), (0, 0, 0))
    assert [entry.accuracy for entry in got.per_class] == [1.0, 0.5, None]
    assert got.mean_class_accuracy == 0.75  # the class without a video is not in the mean
    assert got.top5 is None  # three classes


def test_ties_go_to_the_lowest_class() -> None:
    sums = Accuracy(("a", "b"))
    even = torch.full((2, 2), 0.5)
    _add(sums, even, torch.tensor([0, 1]))
    assert sums.metrics().confusion == ((1, 0), (1, 0))


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
