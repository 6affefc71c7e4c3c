"""Our step and the plain one of the benchmarks do the same: equal losses, norms and weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch import nn
from torch.testing import assert_close

from vjepa.masking import MaskingConfig, MaskSampler
from vjepa.models import VJEPA
from vjepa.runtime.device import Precision
from vjepa.tasks import FeaturePrediction
from vjepa.training import EmaConfig, OptimConfig, TrainingConfig, build_learner, train_step
from vjepa.training.schedules import ema_momentum, learning_rate, weight_decay

_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "plain_step.py"
OPTIM, EMA = OptimConfig(steps=8, warmup_steps=2, clip_norm=0.5), EmaConfig()


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_step", _FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _assert_weights(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        parts = (one, two)
        if name.endswith("qkv.bias"):
            # The keys' bias has no true gradient, so AdamW moves it by rounding noise.
            parts = tuple(torch.cat(tensor.chunk(3)[::2]) for tensor in parts)
        assert_close(*parts, atol=tolerance, rtol=0.0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("precision", "loss_tolerance", "weight_tolerance"),
    [("float32", 1e-5, 2e-5), ("bfloat16", 5e-3, 4e-3)],
)
def test_five_updates_are_equal(
    plain: ModuleType,
    precision: Precision,
    loss_tolerance: float,
    weight_tolerance: float,
    recompute: bool,
) -> None:
    torch.manual_seed(0)
    model = shaken(VJEPA(MODEL))
    trainer = plain.PlainTrainer(model, torch.device("cpu"), bfloat16=precision == "bfloat16")
    training = TrainingConfig(
        device="cpu", precision=precision, num_threads=1, activation_checkpointing=recompute
    )
    learner = build_learner(FeaturePrediction(model), OPTIM, EMA, training)
    sampler = MaskSampler(MaskingConfig(count="prefix"), ENCODER.grid, 2, seed=0)
    for update in range(1, 6):
        clip, masks = clips(seed=update), sampler.sample(np.arange(3) + 3 * update, update)
        values = train_step(learner, [(clip, masks)], update).values
        loss, norms = trainer.step(
            clip,
            masks,
            rate=learning_rate(update, OPTIM),
            decay=weight_decay(update, OPTIM),
            momentum=ema_momentum(update, EMA, OPTIM),
            clip_norm=0.5,
        )
        assert float(values["loss"]) == pytest.approx(loss, abs=loss_tolerance)
        for name, norm in norms.items():
            # The plain step looks at its norms after clipping.
            clipped = min(0.5, float(values[f"grad_norm/{name}"]))
            assert norm == pytest.approx(clipped, rel=2e-2 if precision == "bfloat16" else 1e-4)
    _assert_weights(model.encoder, trainer.encoder, weight_tolerance)
    _assert_weights(model.predictor, trainer.predictor, weight_tolerance)
    _assert_weights(model.target_encoder, trainer.target, weight_tolerance)
