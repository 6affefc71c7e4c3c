from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vjepa.models import (
    PRESETS,
    VJEPA2_MODELS,
    AttentiveClassifier,
    Encoder,
    EncoderConfig,
    ModelConfig,
    Predictor,
    PredictorConfig,
    authors_name,
)


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "encoder", "predictor", "probe"),
    [
        ("vitt16", 5.63, 21.4, None),
        ("vits16", 21.9, None, None),
        ("vitb16", 86.2, None, None),
        ("vitl16", 303.9, 22.1, 13.0),
        ("vith16", 631.6, 22.3, 20.2),
    ],
)
def test_sizes_are_those_of_the_released_models(
    name: str, encoder: float, predictor: float | None, probe: float | None
) -> None:
    """In millions of parameters, as rounded in the authors' logs."""
    config = PRESETS[name]
    with torch.device("meta"):
        ours = Encoder(config)
    assert all(p.is_meta for p in ours.parameters())
    assert ours.pos_embed.is_meta
    assert _millions(ours) == pytest.approx(encoder, abs=0.051 if encoder > 10 else 0.0051)
    if predictor is not None:
        with torch.device("meta"):
            found = _millions(Predictor(config, PredictorConfig()))
        assert found == pytest.approx(predictor, abs=0.051)
    if probe is not None:
        with torch.device("meta"):
            found = _millions(AttentiveClassifier(config.width, config.heads, 400))
        # The authors' count has an output projection that their code never applies; ours has not.
        unused = (config.width + 1) * config.width / 1e6
        assert found + unused == pytest.approx(probe, abs=0.051)


def test_giant_has_its_mlp_width() -> None:
    assert PRESETS["vitg16"].mlp_width == 6144
    with torch.device("meta"):
        encoder = Encoder(PRESETS["vitg16"])
    assert _millions(encoder) == pytest.approx(1012, rel=0.01)


def test_grid_and_token_count() -> None:
    config = EncoderConfig(width=48, depth=1, heads=3, image_size=384, num_frames=8)
    assert config.grid == (4, 24, 24)
    assert config.num_tokens == 4 * 24 * 24
    assert config.patch_values == 3 * 2 * 16 * 16
    assert not config.is_image_model
    assert replace(config, num_frames=1, tubelet_size=1).is_image_model


WIDE = EncoderConfig(width=48, heads=3)
HALVES = EncoderConfig(width=48, heads=3, position_split="half")


@pytest.mark.parametrize(
    ("build", "sizes", "says"),
    [
        (EncoderConfig, {"heads": 5}, "width: "),
        (EncoderConfig, {"width": 0}, "width must be above 0"),
        (EncoderConfig, {"image_size": 100}, "image_size: "),
        (EncoderConfig, {"num_frames": 15}, "num_frames: "),
        (EncoderConfig, {"mlp_ratio": -1.0}, "mlp_ratio must be above 0"),
        (EncoderConfig, {"channels": 0}, "channels must be above 0"),
        (
            EncoderConfig,
            {"width": 36, "heads": 3, "position_split": "half"},
            "width: .*multiple of 8",
        ),
        (
            EncoderConfig,
            {"width": 42, "heads": 3, "num_frames": 1, "tubelet_size": 1},
            "width: .*multiple of 4",
        ),
        (PredictorConfig, {"num_mask_tokens": 0}, "num_mask_tokens must be above 0"),
        (PredictorConfig, {"width": 25, "heads": 3}, "width: "),
        (
            ModelConfig,
            {"encoder": HALVES, "predictor": PredictorConfig(width=36, heads=3)},
            r"predictor\.width: ",
        ),
        (
            ModelConfig,
            {"encoder": WIDE, "predictor": PredictorConfig(width=32)},
            r"predictor\.width: ",
        ),
    ],
)
def test_impossible_sizes_name_their_field(
    build: Callable[..., object], sizes: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        build(**sizes)


def test_a_uniform_position_code_exists_for_any_even_width() -> None:
    EncoderConfig(width=42, heads=3)


def test_encoders_are_called_as_their_authors_call_them() -> None:
    named = {name: authors_name(PRESETS[name]) for name in ("vitl16", "vitg16", *VJEPA2_MODELS)}
    assert named["vitl16"] == "V-JEPA 1 ViT-L/16"
    assert named["vitg16"] == "V-JEPA 1 ViT-g/16"
    assert named["vjepa2_vitl16"] == "V-JEPA 2 ViT-L/16"
    assert named["vjepa2_vitg16_384"] == "V-JEPA 2 ViT-g/16"
    assert named["vjepa2_1_vitb16"] == "V-JEPA 2.1 ViT-B/16"
    assert named["vjepa2_1_vitG16"] == "V-JEPA 2.1 ViT-G/16"
