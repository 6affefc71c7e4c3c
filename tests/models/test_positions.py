from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.tiny import ENCODER, IMAGE_ENCODER
from torch.testing import assert_close

from vjepa.models.embedding import (
    position_code,
    resample_position_code,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)

CPU = torch.device("cpu")


def test_1d_code_is_the_formula() -> None:
    code = sincos_1d(torch.tensor([0, 3]), 8)
    assert code.dtype == torch.float64
    assert_close(code[0], torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64))
    rates = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    assert_close(code[1], torch.cat([(3 * rates).sin(), (3 * rates).cos()]), atol=1e-15, rtol=0)
    with pytest.raises(ValueError, match="even"):
        sincos_1d(torch.arange(2), 7)


def test_codes_of_an_encoder_follow_its_configuration() -> None:
    assert_close(position_code(ENCODER, 24, CPU)[0], sincos_3d((2, 4, 4), 24).float())
    halves = replace(ENCODER, position_split="half")
    assert_close(position_code(halves, 24, CPU)[0], sincos_3d((2, 4, 4), 24, "half").float())
    assert_close(position_code(IMAGE_ENCODER, 24, CPU)[0], sincos_2d((4, 4), 24).float())
    assert position_code(ENCODER, 24, torch.device("meta")).is_meta


@pytest.mark.parametrize("is_image", [False, True])
def test_resampling_to_the_same_grid_changes_nothing(is_image: bool) -> None:
    config = IMAGE_ENCODER if is_image else ENCODER
    code = position_code(config, 24, CPU)
    again = resample_position_code(code, config.grid, config.grid, is_image=is_image)
    assert_close(again, code, atol=1e-6, rtol=0)


def test_resampling_always_reaches_the_wanted_size() -> None:
    # 14 -> 61 comes out one short when a scale factor is given instead of the size.
    code = torch.randn(1, 14 * 14, 4)
    out = resample_position_code(code, (1, 14, 14), (1, 61, 61), is_image=True)
    assert out.shape == (1, 61 * 61, 4)
