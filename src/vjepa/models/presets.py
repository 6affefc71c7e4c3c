"""Sizes by name: the paper's encoders, and the released models of V-JEPA 2 and 2.1."""

from __future__ import annotations

from dataclasses import replace

from vjepa.models.config import EncoderConfig, ModelConfig, PredictorConfig

PRESETS: dict[str, EncoderConfig] = {
    "vitt16": EncoderConfig(width=192, depth=12, heads=3),
    "vits16": EncoderConfig(width=384, depth=12, heads=6),
    "vitb16": EncoderConfig(width=768, depth=12, heads=12),
    "vitl16": EncoderConfig(width=1024, depth=24, heads=16),
    "vith16": EncoderConfig(width=1280, depth=32, heads=16),
    "vitg16": EncoderConfig(width=1408, depth=40, heads=16, mlp_ratio=48 / 11),
}
"""Encoders by the names that recipes and benchmarks use: 224 pixels, 16 frames, patch 16.

Heads of L and H are the authors' 16 (the paper does not give them); g is the usual 1408 x 40.
"""

_PREDICTOR = PredictorConfig(depth=12, heads=12, num_mask_tokens=10, shared_mask_token=0)


def _two(size: str, pixels: int, heads: int | None = None) -> ModelConfig:
    """A model of V-JEPA 2: a size of the table above, made for 64 frames."""
    encoder = replace(
        PRESETS[size],
        heads=heads or PRESETS[size].heads,
        image_size=pixels,
        num_frames=64,
        position="rotary",
    )
    return ModelConfig(encoder=encoder, predictor=_PREDICTOR)


def _two_one(encoder: EncoderConfig, levels: tuple[int, ...], *, distilled: bool) -> ModelConfig:
    """A model of V-JEPA 2.1; B and L are distilled from G, whose last level they predict."""
    encoder = replace(
        encoder,
        image_size=384,
        num_frames=64,
        position="rotary_pairs",
        position_reference=16,
        levels=levels,
        modalities=True,
    )
    predictor = replace(
        _PREDICTOR,
        depth=12 if distilled else 24,
        num_mask_tokens=8,
        levels=1 if distilled else 4,
        out_width=1664 if distilled else None,
        predicts_context=True,
    )
    return ModelConfig(encoder=encoder, predictor=predictor)


VJEPA2_MODELS: dict[str, ModelConfig] = {
    "vjepa2_vitl16": _two("vitl16", 256),
    "vjepa2_vith16": _two("vith16", 256),
    "vjepa2_vitg16": _two("vitg16", 256, heads=22),
    "vjepa2_vitg16_384": _two("vitg16", 384, heads=22),
    "vjepa2_1_vitb16": _two_one(PRESETS["vitb16"], (2, 5, 8, 11), distilled=True),
    "vjepa2_1_vitl16": _two_one(PRESETS["vitl16"], (5, 11, 17, 23), distilled=True),
    "vjepa2_1_vitg16": _two_one(
        replace(PRESETS["vitg16"], heads=22), (9, 19, 29, 39), distilled=False
    ),
    "vjepa2_1_vitG16": _two_one(
        EncoderConfig(width=1664, depth=48, heads=26, mlp_ratio=64 / 13),
        (11, 23, 37, 47),
        distilled=False,
    ),
}
"""The released models of V-JEPA 2 and 2.1, whole; their encoders are presets, too."""
PRESETS |= {name: model.encoder for name, model in VJEPA2_MODELS.items()}


def authors_name(sizes: EncoderConfig) -> str:
    """What V-JEPA's authors call an encoder of these sizes, as "V-JEPA 2 ViT-L/16"."""
    number = {"rotary": "2", "rotary_pairs": "2.1"}.get(sizes.position, "1")
    letters = {(own.width, own.depth): name.split("vit")[1][0] for name, own in PRESETS.items()}
    letter = letters.get((sizes.width, sizes.depth))
    if letter is None:
        return f"V-JEPA {number}, width {sizes.width}, depth {sizes.depth}"
    letter = letter if letter == "g" else letter.upper()
    return f"V-JEPA {number} ViT-{letter}/{sizes.patch_size}"
