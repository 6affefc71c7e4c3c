"""Twenty training updates, put together from our own parts, against the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import LOSSES, tensors, tiny_model
from torch import Tensor
from torch.testing import assert_close

from vjepa.masking import TokenMasks
from vjepa.tasks import FeaturePrediction
from vjepa.training.optim import EmaPairs, build_optimizer, set_schedules, update_ema
from vjepa.training.schedules import (
    EmaConfig,
    OptimConfig,
    ema_momentum,
    learning_rate,
    weight_decay,
)

UPDATES = 20
WEIGHTS = {"atol": 1e-5, "rtol": 0.0}
OPTIM = OptimConfig(
    steps=UPDATES,
    warmup_steps=4,
    start_lr=2e-4,
    peak_lr=6.25e-4,
    final_lr=1e-6,
    clip_norm=None,
)
EMA = EmaConfig()


@dataclass(frozen=True)
class Run:
    """What our training leaves behind.

    Attributes:
        losses: Before each update.
        weights: By number of updates done, then by the record's names.
    """

    losses: list[float]
    weights: dict[int, dict[str, Tensor]]


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "train_3_steps")


def _masks(recorded: dict[str, Tensor], update: int) -> tuple[TokenMasks, ...]:
    return tuple(
        TokenMasks(
            context=recorded[f"masks/{update - 1}/{kind}/context"],
            target=recorded[f"masks/{update - 1}/{kind}/target"],
        )
        for kind in ("short", "long")
    )


@pytest.fixture(scope="module")
def run(golden_dir: Path, recorded: dict[str, Tensor]) -> Run:
    clip = tensors(golden_dir, "pretrain_forward")["input/clip"]
    objective = FeaturePrediction(tiny_model(golden_dir))
    optimizer = build_optimizer(objective.trainable(), OPTIM)
    pairs = EmaPairs.of(objective.ema_pairs())
    losses, weights = [], {0: _copy(objective)}
    for update in range(1, UPDATES + 1):
        set_schedules(optimizer, update, OPTIM)
        optimizer.zero_grad()
        output = objective(clip, _masks(recorded, update))
        output.loss.backward()
        optimizer.step()
        update_ema(pairs, ema_momentum(update, EMA, OPTIM))
        losses.append(output.loss.item())
        if update in (1, 3, UPDATES):
            weights[update] = _copy(objective)
    return Run(losses, weights)


def _copy(objective: FeaturePrediction) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.state_dict().items()}


def test_schedules(recorded: dict[str, Tensor]) -> None:
    for name, schedule in (("lr", learning_rate), ("wd", weight_decay)):
        ours = [schedule(update, OPTIM) for update in range(1, UPDATES + 1)]
        assert_close(torch.tensor(ours, dtype=torch.float64), recorded[name], atol=1e-12, rtol=0)
    ours = [ema_momentum(update, EMA, OPTIM) for update in range(1, UPDATES + 1)]
    assert_close(torch.tensor(ours, dtype=torch.float64), recorded["momentum"], atol=1e-12, rtol=0)


def test_losses(run: Run, recorded: dict[str, Tensor]) -> None:
    assert_close(torch.tensor(run.losses), recorded["loss"].float(), **LOSSES)


@pytest.mark.parametrize("update", [1, 3, UPDATES])
def test_weights(run: Run, recorded: dict[str, Tensor], update: int) -> None:
    prefix = f"after_{update}/"
    names = [name.removeprefix(prefix) for name in recorded if name.startswith(prefix)]
    if update == 3:
        assert len(names) == 72 + 40, "all trained parameters and the target encoder's"
    assert names
    for full_name in names:
        part, name = full_name.split("/", 1)
        ours = run.weights[update][f"{part}.{name}"]
        wanted = recorded[prefix + full_name]
        moved = (wanted - run.weights[0][f"{part}.{name}"]).abs().max()
        if name.endswith("qkv.bias"):
            # The keys' bias has no true gradient, so AdamW moves it by rounding noise.
            ours, wanted = (torch.cat(tensor.chunk(3)[::2]) for tensor in (ours, wanted))
        assert_close(ours, wanted, **WEIGHTS, msg=lambda text, n=full_name: f"{n}: {text}")
        if part != "target_encoder":
            assert moved > 1e-4, f"{full_name}: the comparison must see the training"
