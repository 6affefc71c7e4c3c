"""Losses that jump."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vjepa.training.spikes import WINDOW, SpikeGate


def _gate(losses: list[float], factor: float = 3.0) -> SpikeGate:
    gate = SpikeGate(factor, torch.device("cpu"))
    for update, loss in enumerate(losses, start=1):
        gate.add(update, torch.tensor(loss), torch.tensor(True))
    return gate


@pytest.mark.parametrize(("loss", "spike"), [(2.9, False), (3.1, True), (math.inf, True)])
def test_a_spike_is_far_above_the_median(loss: float, spike: bool) -> None:
    gate = _gate([1.0] * 15 + [100.0])
    assert bool(gate.is_spike(torch.tensor(loss))) is spike


def test_the_first_updates_pass() -> None:
    assert not _gate([1.0] * 15).is_spike(torch.tensor(1e9))


def test_the_median_follows_what_was_applied() -> None:
    gate = _gate([1.0] * WINDOW)
    for update in range(1, WINDOW + 1):
        gate.add(update, torch.tensor(50.0), torch.tensor(update % 4 == 0))
    assert gate.is_spike(torch.tensor(140.0)) is not None
    assert not gate.is_spike(torch.tensor(140.0))
    assert gate.is_spike(torch.tensor(151.0))


def test_the_memory_survives_a_checkpoint() -> None:
    gate = _gate([0.1 * number for number in range(1, 40)])
    other = SpikeGate(3.0, torch.device("cpu"))
    other.load_state(json.loads(json.dumps(gate.state())))
    assert other.state() == gate.state()
    assert other.is_spike(torch.tensor(7.0))
