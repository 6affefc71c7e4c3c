"""Fixed sine-cosine position codes and their resampling to other grids.

A 1-D code of width d at position x is sin(x w_j), j < d/2, followed by cos(x w_j), with
w_j = 10000^(-2j/d), computed in float64. Codes of a grid put the axes side by side; positions count
tokens from 0. Codes are fixed: never trained, never saved.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vjepa.models.config import EncoderConfig


def sincos_1d(positions: Tensor, width: int) -> Tensor:
    """The 1-D code at positions [n] of any dtype: float64 [n, width], sines, then cosines."""
    if width % 2:
        raise ValueError(f"width: {width} must be even: sines and cosines come in pairs")
    exponents = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[:, None] * 10000.0 ** (-2.0 * exponents / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_3d(
    grid: tuple[int, int, int], width: int, split: Literal["uniform", "half"] = "uniform"
) -> Tensor:
    """The code of a video grid: columns [time | height | width], rows time-major.

    "uniform" gives each axis 2*ceil(D/6) columns and cuts the result to D (D = 1024: 342 each, the
    last two columns lost); all released models use it. "half" gives D/2 to time and D/4 to each
    side. float64 [t*h*w, D] on the CPU.
    """
    if split == "uniform":
        part = 2 * -(-width // 6)
        widths = (part, part, part)
    else:
        widths = (width // 2, width // 4, width // 4)
    t, h, w = grid
    tables = [
        sincos_1d(torch.arange(n, device="cpu"), d) for n, d in zip(grid, widths, strict=True)
    ]
    parts = [
        tables[0][:, None, None].expand(t, h, w, -1),
        tables[1][None, :, None].expand(t, h, w, -1),
        tables[2][None, None, :].expand(t, h, w, -1),
    ]
    return torch.cat(parts, dim=-1).reshape(t * h * w, -1)[:, :width]


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """The code of an image grid: columns [height | width], D/2 each, rows row-major.

    float64 [h*w, D] on the CPU; D is a multiple of 4.
    """
    h, w = grid
    rows = sincos_1d(torch.arange(h, device="cpu"), width // 2)
    columns = sincos_1d(torch.arange(w, device="cpu"), width // 2)
    parts = [rows[:, None].expand(h, w, -1), columns[None, :].expand(h, w, -1)]
    return torch.cat(parts, dim=-1).reshape(h * w, -1)


def position_code(config: EncoderConfig, width: int, device: torch.device) -> Tensor:
    """The position code for an encoder's own grid, float32 [1, N, width]."""
    if device.type == "meta":
        return torch.empty(1, config.num_tokens, width, device=device)
    if config.is_image_model:
        code = sincos_2d(config.grid[1:], width)
    else:
        code = sincos_3d(config.grid, width, config.position_split)
    return code[None].to(torch.float32).to(device)


def resample_position_code(
    code: Tensor, grid: tuple[int, int, int], new_grid: tuple[int, int, int], *, is_image: bool
) -> Tensor:
    """Stretch a code [1, t*h*w, D] over another grid, as the authors do for other input sizes.

    Trilinear for video, bicubic over the two sides for an image model (t = 1 in both grids);
    half-pixel centres, no antialiasing. The target size is given, not a scale factor, so that no
    grid comes out one short.
    """
    volume = code.to(torch.float32).reshape(1, *grid, code.shape[-1]).permute(0, 4, 1, 2, 3)
    if is_image:
        volume = F.interpolate(
            volume[:, :, 0], size=new_grid[1:], mode="bicubic", align_corners=False
        )[:, :, None]
    else:
        volume = F.interpolate(volume, size=new_grid, mode="trilinear", align_corners=False)
    return volume.flatten(2).transpose(1, 2).contiguous().to(code.dtype)
