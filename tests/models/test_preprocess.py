from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from vjepa.models import PIXEL_MEAN, PIXEL_STD, normalise_clip


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (3, 4, 5, 6)])
def test_normalisation_is_the_formula_in_any_dtype(shape: tuple[int, ...]) -> None:
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    out = normalise_clip(clips)
    assert out.dtype == torch.float32
    small = normalise_clip(clips, torch.bfloat16)
    assert_close(small, out.bfloat16(), atol=0, rtol=0)
    for channel in range(3):
        wanted = (clips.select(-4, channel) / 255 - PIXEL_MEAN[channel]) / PIXEL_STD[channel]
        assert_close(out.select(-4, channel), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5, 6), (1, 3, 4, 5, 6, 7), (3, 4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="clips"):
        normalise_clip(torch.zeros(shape, dtype=torch.uint8))
