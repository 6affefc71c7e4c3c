"""From a batch of clips to what the tasks take, on the device that trains; parts add up."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import tiny
from torch.testing import assert_close

from vjepa.data import ClipConfig, TransformConfig
from vjepa.data.loader.loader import ClipBatch
from vjepa.jobs.pretrain import DataConfig, ObjectiveConfig, PretrainConfig, build_task
from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskingConfig, MaskSampler
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, normalise_clip
from vjepa.tasks import BatchSize, FeaturePrediction, LeVJEPAConfig, PixelPrediction

ENCODER = EncoderConfig(width=24, depth=1, heads=2, image_size=64, num_frames=4)


def _config(count: str) -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig(encoder=ENCODER),
        masking=MaskingConfig(count=count),  # ty: ignore[invalid-argument-type]
        data=DataConfig(
            batch_size=4, clip=ClipConfig(num_frames=4), transform=TransformConfig(crop_size=64)
        ),
    )


def _batch(step: int) -> ClipBatch:
    numbers = torch.Generator().manual_seed(step)
    clips = torch.randint(256, (4, 3, 4, 64, 64), dtype=torch.uint8, generator=numbers)
    rows = np.zeros((4, 2), dtype=np.int64)
    return ClipBatch(step, np.arange(4 * step, 4 * step + 4), clips, None, rows, 0, 0.0)


@pytest.mark.parametrize("count", ["fixed", "prefix", "packed"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_part_holds_its_clips_and_their_masks(count: str, processes: int) -> None:
    """The second of two parts, or all that the second of two processes holds."""
    config, batch = _config(count), _batch(3)
    sampler = MaskSampler(config.masking, ENCODER.grid, ENCODER.tubelet_size, config.seed)
    wanted = sampler.sample(batch.ordinals, batch.step)
    half = replace(batch, ordinals=batch.ordinals[2:], clips=batch.clips[2:])
    inputs = build_task(config).inputs
    clips, masks, size = inputs(batch, 1, 2) if processes == 1 else inputs(half, 0, 1)
    torch.testing.assert_close(clips, normalise_clip(batch.clips[2:]), rtol=0.0, atol=0.0)
    assert size == BatchSize.of(wanted)
    for mine, all_masks in zip(masks, wanted, strict=True):
        theirs = all_masks.slice(2, 4)
        assert torch.equal(mine.context, theirs.context)
        assert torch.equal(mine.target, theirs.target)


def test_own_data_may_number_samples_as_they_like_where_masks_are_fixed() -> None:
    """Only the ordinals decide; the other counts need the whole batch's, and say so."""
    own = replace(_batch(0), ordinals=np.array([70, 3, 9, 20]))
    for count, wrong in (("packed", own), ("prefix", replace(_batch(2), step=1))):
        with pytest.raises(ValueError, match=r"ordinals: .* batch_size 4; number them so, or use"):
            build_task(_config(count)).inputs(wrong, 0, 1)
    task = build_task(_config("fixed"))
    first, second = task.inputs(_batch(0), 0, 1)[1], task.inputs(own, 0, 1)[1]
    assert not torch.equal(first[0].target, second[0].target)
    assert torch.equal(task.inputs(_batch(0), 0, 1)[1][0].target, first[0].target)
    tensor: Any = replace(_batch(0), ordinals=torch.arange(4))
    assert torch.equal(task.inputs(tensor, 0, 1)[1][0].target, first[0].target)


@pytest.mark.parametrize("name", ["vjepa", "pixel", "levjepa"])
def test_clips_of_another_size_than_the_models_masks_are_refused(name: Any) -> None:
    objective = ObjectiveConfig(name=name, levjepa=LeVJEPAConfig(local_size=32))
    model, batch = ModelConfig(encoder=replace(ENCODER, cls=name == "levjepa")), _batch(0)
    task = build_task(replace(_config("fixed"), objective=objective, model=model))
    for clips in (batch.clips[:, :, :2], batch.clips.repeat(1, 1, 1, 2, 2)):
        with pytest.raises(ValueError, match=r"batch.clips: .* tokens .* model's are \(2, 4, 4\)"):
            task.inputs(replace(batch, clips=clips), 0, 1)
    with pytest.raises(ValueError, match=r"optim.accumulation_steps: 5 parts of 4 samples; use"):
        task.inputs(batch, 0, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("count", ["fixed", "prefix", "packed"])
def test_inputs_reach_a_gpu_without_waiting_for_it(count: str) -> None:
    config = _config(count)
    task = build_task(config).to("cuda")
    task.inputs(_batch(0), 0, 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = _batch(1)
        clips, masks, _ = task.inputs(batch, 0, 1)
        wanted = batch.clips.clone()
        batch.clips.zero_()  # the loader writes the next batch there
    finally:
        torch.cuda.set_sync_debug_mode("default")
    there, there_masks, _ = build_task(config).inputs(replace(batch, clips=wanted), 0, 1)
    torch.testing.assert_close(clips.cpu(), there)
    for mine, theirs in zip(masks, there_masks, strict=True):
        assert torch.equal(mine.context.cpu(), theirs.context)
        assert torch.equal(mine.target.cpu(), theirs.target)


@pytest.mark.parametrize("count", ["prefix", "fixed", "packed"])
@pytest.mark.parametrize("pixels", [False, True])
def test_uneven_parts_add_up(count: str, pixels: bool) -> None:
    torch.manual_seed(0)
    task = (
        tiny.shaken(PixelPrediction(tiny.MODEL))
        if pixels
        else FeaturePrediction(tiny.shaken(VJEPA(tiny.MODEL)), variance_coefficient=0.5)
    )
    video = tiny.clips(batch=5)
    config = MaskingConfig(masks=(SHORT_RANGE, LONG_RANGE), count=count)
    masks = MaskSampler(config, tiny.ENCODER.grid, 2, 0).sample(np.arange(5), 0)
    with torch.no_grad():
        whole = task(video, masks)
        outputs = []
        for start, stop in pairwise((0, 1, 3, 5)):
            part = tuple(kind.slice(start, stop) for kind in masks)
            outputs.append(task(video[start:stop], part, BatchSize.of(masks)))
    assert_close(sum(output.loss for output in outputs), whole.loss)
    for name, value in whole.terms.items():
        assert_close(sum(output.terms[name] for output in outputs), value, msg=name)


def test_the_size_of_a_batch_follows_from_a_part_where_all_clips_count_alike() -> None:
    config = MaskingConfig(masks=(SHORT_RANGE, LONG_RANGE), count="fixed")
    masks = MaskSampler(config, tiny.ENCODER.grid, 2, 0).sample(np.arange(6), 0)
    part = tuple(kind.slice(2, 4) for kind in masks)
    assert BatchSize.of(part, clips=6) == BatchSize.of(masks)
    assert BatchSize.of(masks).targets == tuple(kind.target.numel() for kind in masks)
