"""Schedules against the series recorded from the reference implementation (float64)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    ema_momentum,
    learning_rate,
    weight_decay,
)

PAPER = OptimConfig()
TINY = OptimConfig(steps=20, warmup_steps=4)
PROBE = OptimConfig(
    steps=2000,
    warmup_steps=0,
    peak_lr=1e-3,
    final_lr=0.0,
    schedule_stretch=1.0,
    start_weight_decay=0.01,
    final_weight_decay=1e-6,
)


@pytest.fixture(scope="module")
def series(golden_dir: Path) -> dict[str, Tensor]:
    return load_file(golden_dir / "schedules.safetensors")


def _assert_equal(ours: list[float], recorded: Tensor) -> None:
    torch.testing.assert_close(
        torch.tensor(ours, dtype=torch.float64), recorded, rtol=0.0, atol=1e-12
    )


def test_paper_recipe(series: dict[str, Tensor]) -> None:
    updates = series["paper/update"].tolist()
    assert PAPER.schedule_steps == 112_500
    _assert_equal([learning_rate(k, PAPER) for k in updates], series["paper/lr"])
    _assert_equal([weight_decay(k, PAPER) for k in updates], series["paper/wd"])
    linear = replace(PAPER, weight_decay_schedule="linear")
    _assert_equal([weight_decay(k, linear) for k in updates], series["paper/wd_linear"])
    _assert_equal([ema_momentum(k, EmaConfig(), PAPER) for k in updates], series["paper/momentum"])


def test_tiny_run_also_beyond_its_schedule(series: dict[str, Tensor]) -> None:
    count = len(series["tiny/lr"])
    assert count == 30 > TINY.schedule_steps == 25
    _assert_equal([learning_rate(k, TINY) for k in range(1, count + 1)], series["tiny/lr"])
    _assert_equal([weight_decay(k, TINY) for k in range(1, count + 1)], series["tiny/wd"])
    momentum = series["tiny/momentum"]
    _assert_equal(
        [ema_momentum(k, EmaConfig(), TINY) for k in range(1, len(momentum) + 1)], momentum
    )


def test_probe_recipe(series: dict[str, Tensor]) -> None:
    updates = series["probe/update"].tolist()
    _assert_equal([learning_rate(k, PROBE) for k in updates], series["probe/lr"])
    _assert_equal([weight_decay(k, PROBE) for k in updates], series["probe/wd"])
