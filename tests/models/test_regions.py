from __future__ import annotations

import math

import pytest
import torch
from tests.models.tiny import ENCODER, clips
from torch import Tensor

from vjepa.models import Encoder, RegionConfig, region_features


def _features(boxes: Tensor) -> Tensor:
    return region_features(Encoder(ENCODER), clips(2), boxes, RegionConfig())


@pytest.mark.parametrize("clip", [2, 20_000, -1, 0.5, math.nan])
def test_a_box_of_a_clip_that_is_not_there_is_refused(clip: float) -> None:
    """It was read from foreign memory, or ended the process."""
    with pytest.raises(ValueError, match=r"clips among 0 \.\. 1, got clips \["):
        _features(torch.tensor([[0, 0.0, 0, 9, 9], [clip, 0.0, 0, 9, 9]]))


def test_boxes_without_a_clip_or_an_end_are_refused() -> None:
    with pytest.raises(ValueError, match=r"boxes must be \[M, 5\].*got \[1, 4\]"):
        _features(torch.zeros(1, 4))
    for side in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            _features(torch.tensor([[0, 0.0, 0, 9, side]]))


def test_no_box_and_whole_numbers_are_taken() -> None:
    assert _features(torch.zeros(0, 5)).shape == (0, 48)
    assert _features(torch.tensor([[1, 0, 0, 9, 9]])).shape == (1, 48)
