"""Patch embedding, positions, attention, encoder, predictor, attentive pooler, size presets.

Everything here needs torch alone. Shapes: B batch, C channels, T frames, H W pixels, t h w token
grid, N = t*h*w tokens, K context tokens, M target tokens, D encoder width, P predictor width.
"""

from vjepa.models.attention import Block, Packing, attend
from vjepa.models.config import PRESETS, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.models.embedding import (
    gather_patches,
    patchify,
    position_code,
    resample_position_code,
    sincos_1d,
    sincos_2d,
    sincos_3d,
    token_grid,
    unpatchify,
)
from vjepa.models.encoder import Encoder
from vjepa.models.pooling import (
    AttentiveClassifier,
    AttentivePooler,
    LinearClassifier,
    PoolerVariant,
)
from vjepa.models.predictor import VJEPA, Predictor
from vjepa.models.preprocess import PIXEL_MEAN, PIXEL_STD, normalise_clip, still_clip

__all__ = [
    "PIXEL_MEAN",
    "PIXEL_STD",
    "PRESETS",
    "VJEPA",
    "AttentiveClassifier",
    "AttentivePooler",
    "Block",
    "Encoder",
    "EncoderConfig",
    "LinearClassifier",
    "ModelConfig",
    "Packing",
    "PoolerVariant",
    "Predictor",
    "PredictorConfig",
    "attend",
    "gather_patches",
    "normalise_clip",
    "patchify",
    "position_code",
    "resample_position_code",
    "sincos_1d",
    "sincos_2d",
    "sincos_3d",
    "still_clip",
    "token_grid",
    "unpatchify",
]
