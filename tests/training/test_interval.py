"""Means, rates and waiting times of an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vjepa.runtime.distributed import Team
from vjepa.training.log_window import Interval
from vjepa.training.step import StepValues


def _clock() -> Iterator[float]:
    yield from (10.0, 14.0, 20.0, 21.0)


def _values(update: int, loss: float, finite: bool = True) -> StepValues:
    return StepValues(update, {"loss": torch.tensor(loss)}, torch.tensor(finite))


def test_means_and_rates() -> None:
    ticks = _clock()
    interval = Interval(lambda: next(ticks))
    for update, loss in enumerate((1.0, 2.0, 6.0), start=5):
        interval.add(_values(update, loss), np.arange(4), seconds_waited=0.5)
    assert len(interval) == 3
    summary = interval.read(Team())
    assert summary.means == {"loss": 3.0}
    assert summary.seconds == 4.0
    assert summary.clips_per_second == 3.0
    assert summary.data_wait_share == pytest.approx(0.375)
    assert [step.update for step in summary.steps] == [5, 6, 7]
    interval.restart()
    assert len(interval) == 0


def test_bad_updates_are_left_out_of_the_means() -> None:
    interval = Interval()
    interval.add(_values(1, 2.0), np.arange(4), 0.0)
    interval.add(_values(2, math.nan, finite=False), np.arange(4), 0.0)
    assert not interval.last_was_applied()
    summary = interval.read(Team())
    assert summary.means == {"loss": 2.0}
    assert [step.finite for step in summary.steps] == [True, False]


def test_all_bad_is_not_a_number() -> None:
    interval = Interval()
    interval.add(_values(1, math.inf, finite=False), np.arange(4), 0.0)
    assert math.isnan(interval.read(Team()).means["loss"])
