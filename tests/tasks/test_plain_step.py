"""Our step and the plain one of the benchmarks do the same: equal losses, norms and weights.

In float32 the two are compared with each other. In bfloat16 they round in another order, and on
each processor in a different one, so that each is compared with float32 instead.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch import Tensor, nn
from torch.testing import assert_close

from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA
from vjepa.runtime.device import Precision
from vjepa.tasks import FeaturePrediction
from vjepa.training import EmaConfig, OptimConfig, TrainingConfig, build_learner, train_step
from vjepa.training.schedules import ema_momentum, learning_rate, weight_decay

_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "plain_step.py"
CLIP_NORM = 0.6  # the predictor's norms lie on both sides of it
OPTIM, EMA = OptimConfig(steps=8, warmup_steps=2, clip_norm=CLIP_NORM), EmaConfig()
ROUNDING = 2.0**-8  # of bfloat16, relative: it keeps 8 bits


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_step", _FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Course:
    """What five updates gave: losses, gradient norms (clipped) and how far each weight came."""

    losses: list[float]
    norms: list[dict[str, float]]
    moved: dict[str, Tensor]


def _model() -> VJEPA:
    torch.manual_seed(0)
    return shaken(VJEPA(MODEL))


def _batches() -> Iterator[tuple[int, Tensor, list[TokenMasks]]]:
    sampler = MaskSampler(MaskingConfig(count="prefix"), ENCODER.grid, 2, seed=0)
    for update in range(1, 6):
        yield update, clips(seed=update), sampler.sample(np.arange(3) + 3 * update, update)


def _moved(
    encoder: nn.Module, predictor: nn.Module, target_encoder: nn.Module
) -> dict[str, Tensor]:
    start, moved = _model(), {}
    parts = {"encoder": encoder, "predictor": predictor, "target_encoder": target_encoder}
    for part, module in parts.items():
        begin = start.get_submodule(part).named_parameters()
        for (name, old), new in zip(begin, module.parameters(), strict=True):
            change = (new - old).detach()
            if name.endswith("qkv.bias"):
                # The keys' bias has no true gradient, so AdamW moves it by rounding noise.
                change = torch.cat(change.chunk(3)[::2])
            moved[f"{part}.{name}"] = change
    return moved


def _ours(precision: Precision, *, recompute: bool = False) -> Course:
    model = _model()
    training = TrainingConfig(
        device="cpu", precision=precision, num_threads=1, activation_checkpointing=recompute
    )
    learner = build_learner(FeaturePrediction(model), OPTIM, EMA, training)
    losses, norms = [], []
    for update, clip, masks in _batches():
        values = train_step(learner, [(clip, masks)], update).values
        losses.append(float(values["loss"]))
        # The plain step looks at its norms after clipping.
        names = ("encoder", "predictor")
        norms.append({name: min(CLIP_NORM, float(values[f"grad_norm/{name}"])) for name in names})
    return Course(losses, norms, _moved(model.encoder, model.predictor, model.target_encoder))


def _theirs(plain: ModuleType, precision: Precision) -> Course:
    trainer = plain.PlainTrainer(_model(), torch.device("cpu"), bfloat16=precision == "bfloat16")
    losses, norms = [], []
    for update, clip, masks in _batches():
        loss, norm = trainer.step(
            clip,
            masks,
            rate=learning_rate(update, OPTIM),
            decay=weight_decay(update, OPTIM),
            momentum=ema_momentum(update, EMA, OPTIM),
            clip_norm=CLIP_NORM,
        )
        losses.append(loss)
        norms.append(norm)
    return Course(losses, norms, _moved(trainer.encoder, trainer.predictor, trainer.target))


def _assert_equal(one: Course, two: Course, loss: float, norm: float, weight: float) -> None:
    """Losses and weights within an absolute tolerance, norms within a relative one."""
    assert one.losses == pytest.approx(two.losses, abs=loss)
    for ours, theirs in zip(one.norms, two.norms, strict=True):
        assert ours == pytest.approx(theirs, rel=norm)
    assert_close(one.moved, two.moved, atol=weight, rtol=0.0)


@pytest.mark.parametrize("recompute", [False, True])
def test_five_updates_are_equal(plain: ModuleType, recompute: bool) -> None:
    ours, theirs = _ours("float32", recompute=recompute), _theirs(plain, "float32")
    assert {norms["predictor"] < CLIP_NORM for norms in ours.norms} == {True, False}
    _assert_equal(ours, theirs, loss=1e-5, norm=1e-4, weight=2e-5)


def test_bfloat16_is_float32_but_for_rounding(plain: ModuleType) -> None:
    """For ours, ours with recomputing, and the plain step; on every processor."""
    exact = _ours("float32")
    way = torch.cat([change.flatten() for change in exact.moved.values()])
    recomputed = _ours("bfloat16", recompute=True)
    for course in (_ours("bfloat16"), recomputed, _theirs(plain, "bfloat16")):
        # The loss, near 1, is a mean over many tokens, whose roundings cancel: below one is left. A
        # gradient comes through some hundred rounded products, whose errors add up like a random
        # walk: of the order of ten roundings, and so does the way of all weights together. AdamW
        # lets a single weight whose gradient is near zero go wholly astray.
        _assert_equal(course, exact, loss=ROUNDING, norm=16 * ROUNDING, weight=4e-3)
        error = torch.cat([change.flatten() for change in course.moved.values()]) - way
        assert error.norm() <= 16 * ROUNDING * way.norm()
