"""What the pictures are made of: values that can be checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vjepa.checkpoint import save_model
from vjepa.data.clips.plan import ClipConfig
from vjepa.errors import UserError
from vjepa.jobs.show import (
    Shot,
    feature_grid,
    feature_rows,
    mask_strips,
    prediction_errors,
    prediction_rows,
    read_shot,
    show_features,
    show_predictions,
)
from vjepa.masking import MaskConfig, MaskingConfig, MaskSampler
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig, normalise_clip
from vjepa.reporting.pictures import film_beside, pca_colours, write_moving, write_rows

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


def test_masks_hide_the_future(frames: np.ndarray) -> None:
    clip, shown = mask_strips(frames, _FUTURE, _MODEL.encoder, seed=0, ordinal=0)
    assert [frame.shape for frame in clip.frames] == [(192, 192, 3)] * 4, "32 pixels, six times"
    assert (shown.frames[3] == 128).all(), "the last frame is hidden"
    np.testing.assert_array_equal(shown.frames[0], clip.frames[0])


def test_feature_grid_is_the_encoders_output(frames: np.ndarray, model: VJEPA) -> None:
    grid = feature_grid(model.target_encoder, frames)
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    tokens = model.target_encoder(normalise_clip(clip))[0].detach()
    assert grid.shape == (4, 4, 4, 48)
    np.testing.assert_allclose(grid.reshape(64, 48), tokens.numpy(), atol=1e-6)


def test_a_clip_has_a_strip_of_colours_for_each_encoder(frames: np.ndarray, model: VJEPA) -> None:
    sharp = frames.repeat(7, axis=1).repeat(7, axis=2)
    encoders = {"a": model.encoder, "b": model.target_encoder}
    rows = feature_rows([Shot(frames, sharp, "walk.mp4")], encoders)
    assert [name for name, _ in rows] == ["walk.mp4", "a", "b"]
    assert all(clip.shape == (8, 224, 224, 3) for _, clip in rows)
    np.testing.assert_array_equal(rows[0][1], sharp)
    grid = pca_colours(feature_grid(model.encoder, frames))
    middles = rows[1][1][0, 28::56, 28::56].astype(int)
    assert np.abs(middles - grid[0]).mean() < 20, "blended between the middles of patches"
    np.testing.assert_array_equal(rows[1][1][0], rows[1][1][1])


def test_prediction_error_is_relative_to_the_mean_feature(frames: np.ndarray, model: VJEPA) -> None:
    sampler = MaskSampler(_FUTURE, (4, 4, 4), 2, 0)
    masks = sampler.sample(np.array([0], dtype=np.int64), 0)[0]
    [error], predicted = prediction_errors(model, frames, masks, 0)
    assert predicted[2:].all()
    assert not predicted[:2].any()
    assert (error[:2] == 0).all()
    with torch.no_grad():
        for parameter in model.predictor.predictor_proj.parameters():
            parameter.zero_()
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    target = model.target_encoder(normalise_clip(clip))[0].detach()
    target = torch.nn.functional.layer_norm(target, (48,))
    places = masks.target[0]
    expected = target[places].abs().mean() / (target[places] - target.mean(0)).abs().mean()
    [error], predicted = prediction_errors(model, frames, masks, 0)
    assert error[predicted].mean() == pytest.approx(float(expected), rel=1e-4)
    [(rows, mean)] = prediction_rows(model, Shot(frames, frames), _FUTURE, 0, 0)
    assert mean == pytest.approx(float(expected), rel=1e-4)
    assert [name for name, _ in rows] == ["clip", "shown", "error"]


def test_a_video_that_is_too_short_is_filled_up_and_said_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "short.mp4"
    write_moving(list(np.full((5, 32, 32, 3), 90, np.uint8)), path, 0.1)
    clip = ClipConfig(num_frames=4, stride=2, sampling="exact")
    assert len(read_shot(path, clip, 32).frames) == 4
    assert "has 5 frames, a clip takes 7" in caplog.text
    with pytest.raises(UserError, match=r"short\.mp4: has 5 frames, .* takes 7: too short"):
        read_shot(path, clip, 32, whole=True)
    caplog.clear()
    read_shot(path, replace(clip, num_frames=3), 32, whole=True)
    assert not caplog.text


@pytest.mark.parametrize(
    ("still", "film"), [("b.png", "b.webp"), ("b.tif", "b.webp"), ("b.webp", "b_moving.webp")]
)
def test_a_moving_picture_never_takes_the_place_of_its_still(
    tmp_path: Path, still: str, film: str
) -> None:
    rows = [("clip", np.zeros((2, 32, 32, 3), np.uint8))]
    out = tmp_path / still
    said = write_rows(rows, out, film_beside(out, "webp", []), "what is seen")
    assert said == f"{tmp_path / still}, {tmp_path / film}"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((still, film))
    beside = film_beside(out, "webp", [tmp_path / film])
    assert beside == tmp_path / film.replace(".", "_moving."), "an input"
    assert film_beside(out, "webp", []) == tmp_path / film, "the same call again"
    (tmp_path / film).write_bytes(b"another's")
    with pytest.raises(UserError, match=rf"{film}: is there, and was not made with .*{still}"):
        film_beside(out, "webp", [])
    out.unlink()
    with pytest.raises(UserError, match="give another --out, or remove it"):
        film_beside(out, "webp", [])


def test_another_film_is_not_replaced_and_a_form_that_is_not_written_is_told_at_once(
    tmp_path: Path,
) -> None:
    """Before the model is looked for."""
    (tmp_path / "other.mp4").write_bytes(b"a holiday")
    for out, moving, said in (
        ("other.png", "mp4", r"other\.mp4: is there"),
        ("m.psd", "webp", r"m\.psd: no form of picture that is written ends in '\.psd'"),
        ("m.bmp", "webp", r"m\.bmp: a \.bmp file cannot note .* use \.png, \.jpg, \.webp or \.tif"),
    ):
        with pytest.raises(UserError, match=said):
            show_features([tmp_path / "a.mp4"], tmp_path / "x", "target", tmp_path / out, moving)
    for out, said in (("m.psd", r"m\.psd: no form of picture"), ("m.gif", r"a \.gif file cannot")):
        with pytest.raises(UserError, match=said):
            show_predictions(tmp_path / "a.mp4", tmp_path / "x", tmp_path / out)
    assert (tmp_path / "other.mp4").read_bytes() == b"a holiday"


def test_a_model_that_another_job_has_trained_is_shown_as_well(
    frames: np.ndarray, model: VJEPA, tmp_path: Path
) -> None:
    """Its checkpoint holds that job's config, which is none of a pretraining."""
    video, tuned = tmp_path / "a.mp4", tmp_path / "tuned"
    write_moving(frames, video, 0.25)
    how = {"clip": {"num_frames": 8, "stride": 1}, "view": {"crop_size": 32}}
    save_model(tuned, model, run={"classifier": {"dropout": 0.1}}, preprocess=how)
    (line,) = show_features([video], tuned, "target", tmp_path / "f.png")
    assert line == f"{tmp_path / 'f.png'}, {tmp_path / 'f.webp'}"
    assert (tmp_path / "f.webp").is_file()
