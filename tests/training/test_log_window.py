"""Means, rates and waiting times of the log's lines."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.training.toy import ToyBatch

from vjepa.runtime.distributed import Team
from vjepa.training.step import StepValues
from vjepa.training.trainer import LogWindow

_BATCH = ToyBatch(np.arange(4), torch.empty(0))


def _clock() -> Iterator[float]:
    yield from (10.0, 14.0, 20.0, 21.0)


def _values(update: int, loss: float, finite: bool = True) -> StepValues:
    return StepValues(
        update, {"loss": torch.tensor(loss)}, torch.tensor(finite), torch.tensor(False)
    )


def test_means_and_rates() -> None:
    ticks = _clock()
    window = LogWindow(lambda: next(ticks))
    for update, loss in enumerate((1.0, 2.0, 6.0), start=5):
        window.add(_values(update, loss), _BATCH, seconds_waited=0.5)
    assert len(window) == 3
    steps, values, ranks = window.read(Team())
    assert (values["first_step"], values["loss"], values["seconds"]) == (5, 3.0, 4.0)
    assert values["clips_per_second"] == 3.0
    assert values["data_wait_share"] == pytest.approx(0.375)
    assert [step.update for step in steps] == [5, 6, 7]
    assert ranks == {}
    window.restart()
    assert len(window) == 0


def test_bad_updates_are_left_out_of_the_means() -> None:
    window = LogWindow()
    window.add(_values(1, 2.0), _BATCH, 0.0)
    window.add(_values(2, math.nan, finite=False), _BATCH, 0.0)
    assert not window.last_was_applied()
    steps, values, _ = window.read(Team())
    assert (values["loss"], values["skipped"]) == (2.0, 1)
    assert [step.finite for step in steps] == [True, False]


def test_all_bad_is_not_a_number() -> None:
    window = LogWindow()
    window.add(_values(1, math.inf, finite=False), _BATCH, 0.0)
    assert math.isnan(window.read(Team())[1]["loss"])
