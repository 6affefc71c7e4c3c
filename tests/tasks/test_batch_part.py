"""A batch that is cut into parts has the loss and the metrics of the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.models.tiny import ENCODER, MODEL, clips, shaken
from torch.testing import assert_close

from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskingConfig, MaskSampler
from vjepa.models import VJEPA
from vjepa.tasks import BatchSize, FeaturePrediction, PixelPrediction


@pytest.mark.parametrize("count", ["prefix", "fixed", "packed"])
@pytest.mark.parametrize("pixels", [False, True])
def test_uneven_parts_add_up(count: str, pixels: bool) -> None:
    torch.manual_seed(0)
    task = (
        shaken(PixelPrediction(MODEL))
        if pixels
        else FeaturePrediction(shaken(VJEPA(MODEL)), variance_coefficient=0.5)
    )
    video = clips(batch=5)
    config = MaskingConfig(masks=(SHORT_RANGE, LONG_RANGE), count=count)
    masks = MaskSampler(config, ENCODER.grid, 2, 0).sample(np.arange(5), 0)
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
    masks = MaskSampler(config, ENCODER.grid, 2, 0).sample(np.arange(6), 0)
    part = tuple(kind.slice(2, 4) for kind in masks)
    assert BatchSize.of(part, clips=6) == BatchSize.of(masks)
    assert BatchSize.of(masks).targets == tuple(kind.target.numel() for kind in masks)
