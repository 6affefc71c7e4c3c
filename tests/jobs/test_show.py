"""What the pictures are made of: values that can be checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.jobs.show import (
    feature_grid,
    features_picture,
    masks_picture,
    prediction_error,
    prediction_picture,
)
from vjepa.masking import MaskConfig, MaskingConfig, MaskSampler
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig, normalise_clip

_MODEL = ModelConfig(
    encoder=EncoderConfig(
        width=48, depth=1, heads=3, image_size=32, num_frames=8, patch_size=8, patch_init_std=0.2
    ),
    predictor=PredictorConfig(width=24, depth=1, num_mask_tokens=1),
)
_FUTURE = MaskingConfig(masks=(MaskConfig(kind="tube", tube_ratio=0.0, context_frames=4),))


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)


@pytest.fixture
def model() -> VJEPA:
    torch.manual_seed(0)
    return VJEPA(_MODEL).eval()


def test_masks_picture_hides_the_future(frames: np.ndarray) -> None:
    picture = masks_picture(frames, _FUTURE, 2, 8, seed=0, ordinal=0)
    height = (picture.shape[0] - 4) // 2
    second = picture[height + 4 :, -(8 * 100) :]
    assert (second[:, -96:] == 128).all(), "the last frame is hidden"
    assert (picture[:height, -96:] != 128).any()


def test_feature_grid_is_the_encoders_output(frames: np.ndarray, model: VJEPA) -> None:
    grid = feature_grid(model.target_encoder, frames)
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    tokens = model.target_encoder(normalise_clip(clip))[0].detach()
    assert grid.shape == (4, 4, 4, 48)
    np.testing.assert_allclose(grid.reshape(64, 48), tokens.numpy(), atol=1e-6)


def test_features_picture_has_a_row_for_each_encoder(frames: np.ndarray, model: VJEPA) -> None:
    one = features_picture([frames], {"a": model.encoder})
    two = features_picture([frames], {"a": model.encoder, "b": model.target_encoder})
    assert two.shape[0] > one.shape[0]
    assert two.shape[1] == one.shape[1]


def test_prediction_error_is_relative_to_the_mean_feature(frames: np.ndarray, model: VJEPA) -> None:
    sampler = MaskSampler(_FUTURE, (4, 4, 4), 2, 0)
    masks = sampler.sample(np.array([0], dtype=np.int64), 0)[0]
    error = prediction_error(model, frames, masks, 0)
    assert error.predicted[2:].all()
    assert not error.predicted[:2].any()
    assert (error.relative[:2] == 0).all()
    with torch.no_grad():
        for parameter in model.predictor.predictor_proj.parameters():
            parameter.zero_()
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    target = model.target_encoder(normalise_clip(clip))[0].detach()
    target = torch.nn.functional.layer_norm(target, (48,))
    places = masks.target[0]
    expected = target[places].abs().mean() / (target[places] - target.mean(0)).abs().mean()
    assert prediction_error(model, frames, masks, 0).mean == pytest.approx(
        float(expected), rel=1e-4
    )
    assert prediction_picture(frames, error).ndim == 3
