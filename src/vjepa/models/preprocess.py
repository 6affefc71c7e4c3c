"""From pixels to what the encoder expects."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

PIXEL_MEAN = (0.485, 0.456, 0.406)
"""Channel means of the input, red green blue, on the scale 0..1."""
PIXEL_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations, red green blue, on the scale 0..1."""

Colour = tuple[float, float, float]


@lru_cache(maxsize=16)
def _scale_and_shift(
    device: torch.device, means: Colour, deviations: Colour
) -> tuple[Tensor, Tensor]:
    """Factors [3,1,1,1] of the affine map, once per device (a copy to a GPU would stop it)."""
    mean = torch.tensor(means, dtype=torch.float64)
    std = torch.tensor(deviations, dtype=torch.float64)
    scale, shift = 1.0 / (255.0 * std), -mean / std
    return (
        scale.to(torch.float32).to(device)[:, None, None, None],
        shift.to(torch.float32).to(device)[:, None, None, None],
    )


def normalise_clip(
    clips: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    mean: Colour = PIXEL_MEAN,
    deviation: Colour = PIXEL_STD,
) -> Tensor:
    """Pixels to normalised numbers: (x / 255 - mean) / deviation for each colour, on 0..1.

    `clips` is uint8 (or float on the scale 0..255) [B, 3, T, H, W] or [3, T, H, W], RGB; the
    arithmetic is float32, whatever `dtype` the result is to have.
    """
    if clips.ndim not in (4, 5) or clips.shape[-4] != 3:
        raise ValueError(f"clips must be [..., 3, T, H, W] in RGB, got {tuple(clips.shape)}")
    scale, shift = _scale_and_shift(clips.device, mean, deviation)
    return torch.addcmul(shift, clips.to(torch.float32), scale).to(dtype)


def still_clip(images: Tensor, num_frames: int) -> Tensor:
    """Still images [B, C, H, W] as clips of repeated frames, a view [B, C, T, H, W].

    The paper's way to encode images; it repeats 16 times.
    """
    return images[:, :, None].expand(-1, -1, num_frames, -1, -1)
