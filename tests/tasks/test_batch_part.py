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
from vjepa.tasks import BatchPart, FeaturePrediction, PixelPrediction


@pytest.mark.parametrize("count", ["prefix", "fixed", "packed"])
@pytest.mark.parametrize("pixels", [False, True])
def test_uneven_parts_add_up(count: str, pixels: bool) -> None:
    torch.manual_seed(0)
    objective = (
        shaken(PixelPrediction(MODEL))
        if pixels
        else FeaturePrediction(shaken(VJEPA(MODEL)), variance_coefficient=0.5)
    )
    video = clips(batch=5)
    config = MaskingConfig(masks=(SHORT_RANGE, LONG_RANGE), count=count)
    masks = MaskSampler(config, ENCODER.grid, 2, 0).sample(np.arange(5), 0)
    with torch.no_grad():
        whole = objective(video, masks)
        outputs = []
        for start, stop in pairwise((0, 1, 3, 5)):
            part = tuple(kind.slice(start, stop) for kind in masks)
            outputs.append(objective(video[start:stop], part, BatchPart.of(part, masks)))
    assert_close(sum(output.loss for output in outputs), whole.loss)
    for name, value in whole.metrics.items():
        assert_close(sum(output.metrics[name] for output in outputs), value, msg=name)


def test_packed_parts_weigh_by_their_tokens() -> None:
    config = MaskingConfig(masks=(SHORT_RANGE, LONG_RANGE), count="packed")
    masks = MaskSampler(config, ENCODER.grid, 2, 0).sample(np.arange(4), 0)
    parts = [
        BatchPart.of(tuple(kind.slice(clip, clip + 1) for kind in masks), masks)
        for clip in range(4)
    ]
    assert [part.clips for part in parts] == [0.25] * 4
    shares = [part.targets[0] for part in parts]
    assert sum(shares) == pytest.approx(1)
    assert len(set(shares)) > 1
