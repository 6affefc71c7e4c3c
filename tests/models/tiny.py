"""Small models for the tests of this room."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from vjepa.models import EncoderConfig, ModelConfig, PredictorConfig

Net = TypeVar("Net", bound=nn.Module)

ENCODER = EncoderConfig(width=24, depth=2, heads=3, image_size=16, num_frames=4, patch_size=4)
"""Grid 2 x 4 x 4 = 32 tokens."""

MODEL = ModelConfig(encoder=ENCODER, predictor=PredictorConfig(width=12, depth=2))

IMAGE_ENCODER = EncoderConfig(
    width=24, depth=2, heads=3, image_size=16, num_frames=1, patch_size=4, tubelet_size=1
)


def shaken(module: Net, seed: int = 0) -> Net:
    """The module with every parameter random, so that no term vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def clips(batch: int = 3, frames: int = 4, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Random normalised clips [B, 3, T, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, frames, size, size, generator=generator)
