"""Reading the recorded numbers and rebuilding the tiny model that made them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig

FEATURES = {"atol": 2e-5, "rtol": 0.0}
LOSSES = {"atol": 1e-6, "rtol": 0.0}
GRADIENTS = {"atol": 1e-6, "rtol": 0.0}
LOGITS = {"atol": 1e-5, "rtol": 0.0}

TINY = ModelConfig(
    encoder=EncoderConfig(width=48, depth=3, heads=3, image_size=64),
    predictor=PredictorConfig(width=24, depth=2),
)
"""Grid 8 x 4 x 4 = 128 tokens."""


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of one .safetensors file."""
    return load_file(folder / f"{name}.safetensors")


def plain_names(state: dict[str, Tensor], *drop: str) -> dict[str, Tensor]:
    """A state dict without the wrappers' prefixes and without the names in `drop`."""
    names = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in state.items()}
    return {k: v for k, v in names.items() if k not in drop}


def tiny_checkpoint(folder: Path) -> dict:
    """The pretraining checkpoint as it was saved."""
    return torch.load(folder / "pretrain_tiny.pth.tar", weights_only=True)


def tiny_model(folder: Path) -> VJEPA:
    """The tiny model with the checkpoint's weights, loaded without the package's own reader."""
    checkpoint = tiny_checkpoint(folder)
    model = VJEPA(TINY)
    for part, code in (
        ("encoder", "pos_embed"),
        ("target_encoder", "pos_embed"),
        ("predictor", "predictor_pos_embed"),
    ):
        model.get_submodule(part).load_state_dict(plain_names(checkpoint[part], code))
    return model
