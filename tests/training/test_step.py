"""One update: order of things, gradient accumulation, precision, what is not finite."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests.training.toy import OPTIM, TRAINING, ToyData, ToyTask
from torch import nn

from vjepa.errors import UserError
from vjepa.training import (
    EmaConfig,
    Learner,
    OptimConfig,
    TrainingConfig,
    build_learner,
    train_step,
)
from vjepa.training.schedules import ema_momentum
from vjepa.training.step import StepValues

EMA = EmaConfig(start_momentum=0.9)
DATA = ToyData(batch_size=7)


def _learner(optim: OptimConfig = OPTIM, training: TrainingConfig = TRAINING) -> Learner:
    return build_learner(ToyTask(dropout=0.0), optim, EMA, training)


def _step(learner: Learner, update: int, data: ToyData = DATA) -> StepValues:
    parts = learner.optim.accumulation_steps
    batch = data.batch(update - 1)
    micro_batches = [learner.task.inputs(batch, part, parts) for part in range(parts)]
    return train_step(learner, micro_batches, update)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulated_gradient_is_that_of_the_whole_batch(parts: int) -> None:
    """Seven samples in unequal parts: only sums over the batch's size give its mean."""
    whole, cut = _learner(), _learner(replace(OPTIM, accumulation_steps=parts))
    values = [_step(whole, 1).values, _step(cut, 1).values]
    for name in ("loss", "target_mean", "grad_norm/encoder", "grad_norm/predictor"):
        torch.testing.assert_close(values[0][name], values[1][name], rtol=1e-5, atol=1e-6)
    for name, module in whole.modules.items():
        pairs = zip(module.parameters(), cut.modules[name].parameters(), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_what_a_task_holds_itself_is_refused_and_a_table_that_is_not_saved_is_taken() -> None:
    """It would be neither trained nor saved: no resume would be exact."""
    parameter, buffer, table = ToyTask(), ToyTask(), ToyTask()
    parameter.scale = nn.Parameter(torch.ones(()))
    buffer.register_buffer("mean", torch.zeros(()))
    table.register_buffer("table", torch.zeros(()), persistent=False)
    for task, name in ((parameter, "scale"), (buffer, "mean")):
        with pytest.raises(UserError, match=rf"ToyTask\.{name}: is not saved; put it into"):
            build_learner(task, OPTIM, EMA, TRAINING)
    build_learner(table, OPTIM, EMA, TRAINING)


@pytest.mark.parametrize("parts", [1, 3])
def test_moving_average_follows_once_and_after_the_optimiser(parts: int) -> None:
    learner = _learner(replace(OPTIM, accumulation_steps=parts))
    before = [p.clone() for p in learner.pairs.target]
    _step(learner, 5)
    momentum = ema_momentum(5, EMA, OPTIM)
    for old, new, online in zip(before, learner.pairs.target, learner.pairs.online, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * online)
        assert not torch.equal(new, old)


def test_rate_is_that_of_the_update() -> None:
    learner = _learner()
    _step(learner, 3)
    assert {group["lr"] for group in learner.optimizer.param_groups} == {1e-2}


def test_bad_update_changes_no_weight_and_is_reported() -> None:
    learner = _learner()
    _step(learner, 1)
    before = copy.deepcopy({name: m.state_dict() for name, m in learner.modules.items()})
    values = _step(learner, 2, ToyData(bad_updates=[2]))
    assert not values.finite
    for name, module in learner.modules.items():
        assert all(torch.equal(v, before[name][k]) for k, v in module.state_dict().items())
    assert _step(learner, 3).finite
    weight = learner.modules["encoder"].get_parameter("0.weight")
    assert not torch.equal(weight, before["encoder"]["0.weight"])
    assert all(p.isfinite().all() for p in learner.pairs.target)


def test_infinite_gradient_of_a_finite_loss_is_seen() -> None:
    learner = _learner()
    encoder = learner.modules["encoder"]
    hook = encoder.get_parameter("0.weight").register_hook(lambda grad: grad * float("inf"))
    values = _step(learner, 1)
    hook.remove()
    assert values.values["loss"].isfinite()
    assert not values.finite


def test_bfloat16_keeps_float32_weights() -> None:
    learner = _learner(training=replace(TRAINING, precision="bfloat16"))
    exact = _learner()
    seen: list[torch.dtype] = []
    linear = learner.modules["encoder"].get_submodule("0")
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    rounded, plain = _step(learner, 1), _step(exact, 1)
    assert seen == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in learner.pairs.online + learner.pairs.target)
    torch.testing.assert_close(rounded.values["loss"], plain.values["loss"], rtol=0.02, atol=0.0)
    assert not torch.equal(rounded.values["loss"], plain.values["loss"])


def test_a_moving_average_needs_its_momentum() -> None:
    with pytest.raises(ValueError, match=r"^ema: "):
        build_learner(ToyTask(), OPTIM, None, TRAINING)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("parts", [1, 2])
def test_no_host_synchronisation_on_a_gpu(parts: int) -> None:
    training = replace(TRAINING, device="cuda", precision="bfloat16")
    learner = _learner(replace(OPTIM, accumulation_steps=parts), training)
    inputs = learner.task.inputs
    batches = [[inputs(DATA.batch(k), part, parts) for part in range(parts)] for k in range(4)]
    train_step(learner, batches[0], 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for update in (2, 3, 4):
            values = train_step(learner, batches[update - 1], update)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values.finite
