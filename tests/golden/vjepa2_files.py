"""The tiny models of V-JEPA 2 and 2.1 with the recorded weights, without the package's reader."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.golden.golden_files import plain_names
from torch import Tensor

from vjepa.models import VJEPA, Encoder, EncoderConfig, ModelConfig, Predictor, PredictorConfig

TWO = ModelConfig(
    encoder=EncoderConfig(
        width=44,
        depth=3,
        heads=2,
        mlp_ratio=192 / 44,
        image_size=64,
        num_frames=8,
        position="rotary",
    ),
    predictor=PredictorConfig(width=20, depth=2, heads=1, num_mask_tokens=10, shared_mask_token=0),
)
"""Grid 4 x 4 x 4 = 64 tokens, as is the next one's."""

TWO_ONE = ModelConfig(
    encoder=EncoderConfig(
        width=32,
        depth=12,
        heads=2,
        image_size=64,
        num_frames=8,
        position="rotary_pairs",
        position_reference=16,
        levels=(2, 5, 8, 11),
        modalities=True,
    ),
    predictor=PredictorConfig(
        width=20,
        depth=4,
        heads=1,
        num_mask_tokens=8,
        shared_mask_token=0,
        levels=4,
        predicts_context=True,
    ),
)


def read(folder: Path, name: str) -> dict:
    """A recorded file of the authors' layout."""
    return torch.load(folder / "vjepa2" / name, weights_only=True)


def two(folder: Path) -> VJEPA:
    """V-JEPA 2."""
    content, model = read(folder, "v2_pretrain_tiny.pt"), VJEPA(TWO)
    for part in ("encoder", "predictor", "target_encoder"):
        model.get_submodule(part).load_state_dict(plain_names(content[part]))
    return model


def encoder_of_two_one(stored: dict[str, Tensor], config: EncoderConfig) -> Encoder:
    """An encoder of V-JEPA 2.1 from tensors named as its authors do."""
    encoder, names = Encoder(config), {}
    for name, tensor in plain_names(stored).items():
        head, _, rest = name.partition(".")
        if head == "patch_embed_img":
            name = f"patch_embed.image.{rest}"
        elif head.endswith("_mod_embed"):
            kind = "image" if head.startswith("img") else "video"
            name = f"patch_embed.{kind}_vector"
        elif head == "norms_block":
            level, end = rest.split(".")
            last = int(level) == len(config.levels) - 1
            name = f"norm.{end}" if last else f"level_norms.{config.levels[int(level)]}.{end}"
        names[name] = tensor
    encoder.load_state_dict(names)
    return encoder


def predictor_of_two_one(stored: dict[str, Tensor], config: ModelConfig) -> Predictor:
    """A predictor of V-JEPA 2.1 likewise."""
    predictor, names = Predictor(config.encoder, config.predictor), {}
    for name, tensor in plain_names(stored).items():
        if name.endswith("_mod_embed"):
            kind = "image" if name.startswith("img") else "video"
            name = f"modality_vectors.{kind}"
        names[name] = tensor
    predictor.load_state_dict(names)
    return predictor
