"""Twenty updates of the reference's training loop, through our task and our train_step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import tensors, tiny_model
from torch import Tensor

from vjepa.masking import TokenMasks
from vjepa.tasks import BatchSize, FeaturePrediction
from vjepa.training import EmaConfig, OptimConfig, TrainingConfig, build_learner, train_step
from vjepa.training.schedules import ema_momentum

WEIGHT_TOLERANCE, LOSS_TOLERANCE = 1e-5, 1e-6
NUM_UPDATES = 20


def _parts(
    clips: Tensor, recorded: dict[str, Tensor], update: int, parts: int
) -> Iterator[tuple[Tensor, tuple[TokenMasks, ...], BatchSize]]:
    masks = [
        TokenMasks(
            recorded[f"masks/{update - 1}/{kind}/context"],
            recorded[f"masks/{update - 1}/{kind}/target"],
        )
        for kind in ("short", "long")
    ]
    for part in range(parts):
        size = len(clips) // parts
        span = slice(part * size, (part + 1) * size)
        kinds = tuple(mask.slice(span.start, span.stop) for mask in masks)
        yield clips[span], kinds, BatchSize.of(masks)


def _assert_weights(
    model: torch.nn.Module, start: dict[str, Tensor], recorded: dict[str, Tensor], update: int
) -> int:
    state, prefix = model.state_dict(), f"after_{update}/"
    names = [name for name in recorded if name.startswith(prefix)]
    if update == 3:
        assert len(names) == 72 + 40, "all trained parameters and the target encoder's"
    for name in names:
        own_name = name.removeprefix(prefix).replace("/", ".")
        ours, theirs = state[own_name], recorded[name]
        if not own_name.startswith("target_encoder"):
            moved = (theirs - start[own_name]).abs().max()
            assert moved > 1e-4, f"{name}: the comparison must see the training"
        if name.endswith("qkv.bias"):
            # The keys' bias has no true gradient: AdamW amplifies rounding noise there.
            ours, theirs = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=WEIGHT_TOLERANCE, msg=name)
    return len(names)


@pytest.mark.parametrize("parts", [1, 2])
def test_twenty_updates(golden_dir: Path, parts: int) -> None:
    """In one go, and accumulated over one clip at a time: the same numbers."""
    recorded = tensors(golden_dir, "train_3_steps")
    clips = tensors(golden_dir, "pretrain_forward")["input/clip"]
    model = tiny_model(golden_dir)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    learner = build_learner(
        FeaturePrediction(model),
        OptimConfig(steps=NUM_UPDATES, warmup_steps=4, clip_norm=None, accumulation_steps=parts),
        EmaConfig(),
        TrainingConfig(device="cpu", num_threads=1),
    )
    losses, compared = [], 0
    for update in range(1, NUM_UPDATES + 1):
        values = train_step(learner, _parts(clips, recorded, update, parts), update)
        losses.append(values.values["loss"].double())
        groups = learner.optimizer.param_groups
        assert groups[0]["lr"] == pytest.approx(recorded["lr"][update - 1].item(), abs=1e-12)
        decay = recorded["wd"][update - 1].item()
        assert groups[0]["weight_decay"] == pytest.approx(decay, abs=1e-12)
        assert groups[2]["weight_decay"] == 0.0
        momentum = ema_momentum(update, EmaConfig(), learner.optim)
        assert momentum == pytest.approx(recorded["momentum"][update - 1].item(), abs=1e-12)
        if update in (1, 3, NUM_UPDATES):
            compared += _assert_weights(model, start, recorded, update)
    expected = recorded["loss"]
    torch.testing.assert_close(torch.stack(losses), expected, rtol=0.0, atol=LOSS_TOLERANCE)
    assert compared == sum(name.startswith("after_") for name in recorded) > 130
