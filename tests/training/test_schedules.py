"""Schedules: shape of the curves, purity and bad values (golden parity is in tests/golden)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    ema_momentum,
    learning_rate,
    unreached,
    weight_decay,
)


@given(steps=st.integers(1, 5000), warmup=st.integers(0, 2000), stretch=st.floats(1.0, 2.0))
def test_curves_stay_within_their_ends(steps: int, warmup: int, stretch: float) -> None:
    config = OptimConfig(steps=steps, warmup_steps=min(warmup, steps), schedule_stretch=stretch)
    rates = [learning_rate(k, config) for k in range(1, steps + 1)]
    decays = [weight_decay(k, config) for k in range(1, steps + 1)]
    momenta = [ema_momentum(k, EmaConfig(), config) for k in range(1, steps + 1)]
    assert all(1e-6 - 1e-15 <= rate <= 6.25e-4 + 1e-15 for rate in rates)
    assert decays == sorted(decays)
    assert decays[-1] <= 0.4 + 1e-12
    assert momenta == sorted(momenta)
    assert momenta[0] == 0.998


def test_learning_rate_peaks_at_the_end_of_the_warmup() -> None:
    config = OptimConfig(steps=100, warmup_steps=10, schedule_stretch=1.0)
    rates = [learning_rate(k, config) for k in range(1, 101)]
    assert rates.index(max(rates)) == 9
    assert rates[9] == pytest.approx(6.25e-4)
    assert rates[99] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"warmup_steps": 100}, []),  # the last update has the peak
        ({"warmup_steps": 101}, [r"ends at 0\.000621 and never reaches optim\.peak_lr 0\.000625"]),
        ({"warmup_steps": 12_000}, [r"ends at 0\.000204 and never reaches"]),
        ({"clip_from_step": 101}, ["no gradient is clipped in 100 updates"]),
        ({"clip_from_step": 101, "clip_norm": None}, []),
    ],
)
def test_what_so_few_updates_never_reach_is_said(changes: dict[str, Any], said: list[str]) -> None:
    config = replace(OptimConfig(steps=100, warmup_steps=10), **changes)
    for text, pattern in zip(unreached(config), said, strict=True):
        assert re.search(pattern, text)


def test_constant_schedules() -> None:
    ends = {"start_weight_decay": 0.05, "final_weight_decay": 0.05}
    config = OptimConfig(steps=50, warmup_steps=0, peak_lr=1e-3, final_lr=1e-3, **ends)
    ema = EmaConfig(start_momentum=0.99, final_momentum=0.99)
    for update in (1, 17, 50):
        assert learning_rate(update, config) == pytest.approx(1e-3)
        assert weight_decay(update, config) == pytest.approx(0.05)
        assert ema_momentum(update, ema, config) == pytest.approx(0.99)


def test_momentum_never_passes_its_final_value() -> None:
    config = OptimConfig(steps=10, warmup_steps=0, schedule_stretch=1.0)
    assert ema_momentum(1000, EmaConfig(final_momentum=0.999), config) == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("steps", "stretch", "length"), [(90_000, 1.25, 112_500), (10, 1.1, 11), (7, 1.25, 8)]
)
def test_stretched_length(steps: int, stretch: float, length: int) -> None:
    assert OptimConfig(steps=steps, schedule_stretch=stretch).schedule_steps == length


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("warmup_steps", -1),
        ("start_lr", -1e-3),
        ("peak_lr", float("nan")),
        ("final_lr", float("inf")),
        ("schedule_stretch", 0.9),
        ("start_weight_decay", -0.1),
        ("final_weight_decay", float("nan")),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("clip_norm", 0.0),
        ("clip_from_step", -1),
        ("accumulation_steps", 0),
        ("start_momentum", 1.5),
        ("final_momentum", 1.5),
    ],
)
def test_bad_field_is_named(field: str, value: Any) -> None:
    config = EmaConfig() if field.endswith("momentum") else OptimConfig()
    with pytest.raises(ValueError, match=rf"^{field}[. :]"):
        replace(config, **{field: value})
