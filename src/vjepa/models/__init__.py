"""Patch embedding, positions, attention, encoder, predictor, attentive pooler, size presets.

Everything here needs torch alone. Shapes: B batch, C channels, T frames, H W pixels, t h w token
grid, N = t*h*w tokens, K context tokens, M target tokens, D encoder width, P predictor width.
"""

from vjepa.models.config import (
    PIXEL_MEAN,
    PIXEL_STD,
    EncoderConfig,
    InputConfig,
    ModelConfig,
    PredictorConfig,
)
from vjepa.models.decoder import Decoder, DecoderConfig
from vjepa.models.embedding import patchify, position_code, resample_position_code, unpatchify
from vjepa.models.encoder import Encoder
from vjepa.models.pooling import AttentiveClassifier, AttentivePooler, LinearClassifier
from vjepa.models.predictor import VJEPA, Predictor
from vjepa.models.preprocess import (
    far_from_input,
    input_content,
    normalise_clip,
    still_clip,
    to_pixels,
)
from vjepa.models.presets import PRESETS, VJEPA2_MODELS, authors_name
from vjepa.models.regions import RegionConfig, region_features

__all__ = [
    "PIXEL_MEAN",
    "PIXEL_STD",
    "PRESETS",
    "VJEPA",
    "VJEPA2_MODELS",
    "AttentiveClassifier",
    "AttentivePooler",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "InputConfig",
    "LinearClassifier",
    "ModelConfig",
    "Predictor",
    "PredictorConfig",
    "RegionConfig",
    "authors_name",
    "far_from_input",
    "input_content",
    "normalise_clip",
    "patchify",
    "position_code",
    "region_features",
    "resample_position_code",
    "still_clip",
    "to_pixels",
    "unpatchify",
]
