"""Position codes and their resampling against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.golden_files import FEATURES, tensors, tiny_model
from torch import Tensor
from torch.testing import assert_close

from vjepa.models import EncoderConfig
from vjepa.models.embedding import (
    position_code,
    resample_position_code,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)

CODES = {"atol": 1e-6, "rtol": 0.0}


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Tensor]:
    return tensors(golden_dir, "posembed")


def test_every_recorded_3d_code(recorded: dict[str, Tensor]) -> None:
    stems = sorted({name.rsplit("/", 1)[0] for name in recorded if name.startswith("3d_")})
    assert len(stems) == 11
    for stem in stems:
        _, width, side, depth, split = stem.split("_")
        grid = (int(depth), int(side), int(side))
        exact = sincos_3d(grid, int(width), "uniform" if split == "uniform" else "half")
        code = exact.to(torch.float32)
        if f"{stem}/full" in recorded:
            assert_close(code, recorded[f"{stem}/full"], **CODES, msg=stem)
        else:
            rows = code[recorded[f"{stem}/row_index"]]
            assert_close(rows, recorded[f"{stem}/rows"], **CODES, msg=stem)
        assert_close(exact.mean(0), recorded[f"{stem}/column_mean"], atol=1e-12, rtol=0)
        assert_close(exact.square().mean(0), recorded[f"{stem}/column_meansq"], atol=1e-12, rtol=0)


def test_1d_and_2d_codes(recorded: dict[str, Tensor]) -> None:
    assert_close(sincos_2d((4, 4), 48).to(torch.float32), recorded["2d_48_4/full"], **CODES)
    one = sincos_1d(torch.arange(8), 48)
    assert_close(one.to(torch.float32), recorded["1d_48_8/full"], **CODES)
    assert_close(one.mean(0), recorded["1d_48_8/column_mean"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", ["16x96x96", "8x64x64", "16x64x96", "32x48x80", "2x64x64"])
def test_inputs_of_other_sizes(golden_dir: Path, recorded: dict[str, Tensor], size: str) -> None:
    frames, height, width = (int(n) for n in size.split("x"))
    encoder = tiny_model(golden_dir).target_encoder
    code = resample_position_code(
        encoder.pos_embed, (8, 4, 4), (frames // 2, height // 16, width // 16), is_image=False
    )
    assert_close(code, recorded[f"interp/{size}/pos_embed"], **CODES)
    clip = tensors(golden_dir, "pretrain_forward")["input/clip"][:1]
    clip = clip[:, :, torch.arange(frames) % 16]
    clip = clip[:, :, :, torch.arange(height) % 64][..., torch.arange(width) % 64]
    with torch.no_grad():
        out = encoder(clip)
        some = encoder(clip, torch.tensor([[5, 1]]))
    assert_close(out, recorded[f"interp/{size}/encoder_output"], **FEATURES)
    assert some.shape == (1, 2, 48)


def test_image_code_is_resampled_bicubically(recorded: dict[str, Tensor]) -> None:
    config = EncoderConfig(width=48, depth=1, heads=3, image_size=64, num_frames=1, tubelet_size=1)
    code = resample_position_code(
        position_code(config, 48, torch.device("cpu")), (1, 4, 4), (1, 6, 6), is_image=True
    )
    wanted = recorded["interp2d/96x96/pos_embed"]
    assert_close(code.reshape(wanted.shape), wanted, **CODES)
