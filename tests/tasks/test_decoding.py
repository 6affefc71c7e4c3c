"""Decoding: the loss by its formula, frozen parts, and what is random of a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, shaken
from torch.testing import assert_close

from vjepa.masking import MaskingConfig, MaskSampler
from vjepa.models import VJEPA, Decoder, DecoderConfig, normalise_clip, patchify
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import Decoding

COUNT = 4


def _task(count: Literal["prefix", "fixed", "packed"] = "fixed") -> Decoding:
    torch.manual_seed(0)
    sampler = MaskSampler(MaskingConfig(count=count), ENCODER.grid, 2, seed=0)
    decoder = Decoder(ENCODER, DecoderConfig(width=24, depth=1, heads=3))
    return Decoding(shaken(VJEPA(MODEL)), shaken(decoder), 0.3, 5, sampler, COUNT)


def _batch() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (COUNT, 3, 4, 16, 16), generator=generator, dtype=torch.uint8)
    return SimpleNamespace(clips=clips, ordinals=np.arange(8, 8 + COUNT), step=2)


@pytest.mark.parametrize("count", ["prefix", "fixed", "packed"])
def test_the_loss_is_its_formula_clip_by_clip(count: Literal["prefix", "fixed", "packed"]) -> None:
    task, batch = _task(count), _batch()
    clips, masks, _, noise, times, kept = inputs = task.inputs(batch, 0, 1)
    assert 0 < int(kept.sum()) < kept.numel()
    sums, numbers = np.zeros(2), np.zeros(2)
    for kind, mask in enumerate(masks):
        for b in range(COUNT):
            one, s = mask.sample(b), times[b, kind]
            clip = clips[b, None]
            context = task.encoder(clip, one.context)
            features = task.predictor(context, one.context, one.target, kind)
            x = patchify(normalise_clip(batch.clips[b, None]), 2, 4)[0, one.target[0]]
            z = s * x + (1 - s) * noise[b, one.target[0]]
            named = task.decoder(
                *(z[None], s.reshape(1, 1), features, one.target), kept=kept[b, kind].reshape(1, 1)
            )[0]
            velocity = (named - z) / (1 - s) - (x - noise[b, one.target[0]])
            sums[kind] += float(velocity.detach().square().sum())
            numbers[kind] += velocity.numel()
    output = task(*inputs)
    assert times.max() < 0.95, "where it is bounded the formula differs"
    assert_close(float(output.loss.detach()), float((sums / numbers).mean()), rtol=1e-4, atol=0)


def test_parts_of_a_batch_sum_to_the_whole_and_train_the_decoder_alone() -> None:
    task, batch = _task("packed"), _batch()
    task(*task.inputs(batch, 0, 1)).loss.backward()
    whole = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in whole} == {"decoder"}
    assert len(whole) == len(list(task.decoder.parameters()))
    task.zero_grad()
    for part in range(2):
        task(*task.inputs(batch, part, 2)).loss.backward()
    for name, gradient in whole.items():
        assert_close(task.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5)
    assert (
        set(task.saved_modules()) == set(task.trainable()) | {"average"} == {"decoder", "average"}
    )


def test_health_says_how_much_of_the_pixels_is_explained() -> None:
    task, batch = _task(), _batch()
    health = task.health(batch, COUNT, ProcessGroup())
    assert {"explained_vs_mean_token", "explained_vs_position_mean"} <= set(health)
    assert task.alarm([{name: float(value) for name, value in health.items()}]) is None
