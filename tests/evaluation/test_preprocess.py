"""What an encoder's input is where nothing is asked for: spacing of frames, framing of pixels."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vjepa.checkpoint import convert, described, read_encoder, save_model
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import (
    Preprocess,
    load_encoder,
    load_model,
    preprocess_of,
    with_assumed_spacing,
)
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import open_encoder

SIZES = {"num_heads": 2, "image_size": 64, "num_frames": 8}
BY_TIME = ClipConfig(num_frames=8, stride=None, fps=4.0)


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    return golden_dir / "vjepa2"


@pytest.mark.parametrize("name", ["v2_pretrain_tiny.pt", "v2_1_pretrain_tiny.pt", "hf_base_tiny"])
def test_clips_of_the_second_v_jepa_are_four_frames_a_second(name: str, folder: Path) -> None:
    """As they were trained, where the file is silent; and what was read says so."""
    sizes = {} if name.startswith("hf") else SIZES
    path = folder / name
    assert load_encoder(path, **sizes).preprocess.clip == BY_TIME
    _, report = read_encoder(path, **sizes)
    assert "assumed     4 frames a second, where no clip is asked for (data.clip)" in str(report)
    frozen = open_encoder(EncoderSourceConfig(path=path, **sizes))
    said = "assumed 4 frames a second (data.clip, window.fps)"
    assert said not in frozen.identity.sentence
    noted = with_assumed_spacing(frozen, path).identity
    assert said in noted.sentence
    assert noted.settings == frozen.identity.settings  # by which features are known again


def test_what_a_checkpoint_says_goes_before_and_the_first_v_jepa_keeps_its_stride(
    folder: Path, golden_dir: Path, tmp_path: Path
) -> None:
    silent, says = tmp_path / "silent", tmp_path / "says"
    convert(folder / "v2_pretrain_tiny.pt", silent, **SIZES)
    model = load_model(silent)
    assert preprocess_of(silent, model.config.encoder).clip == BY_TIME
    save_model(says, model, preprocess={"clip": {"num_frames": 4, "stride": 2}})
    assert preprocess_of(says, model.config.encoder).clip == ClipConfig(num_frames=4, stride=2)
    save_model(tmp_path / "run", model, run={"data": {"clip": {"num_frames": 4, "stride": 3}}})
    run = tmp_path / "run"
    assert preprocess_of(run, model.config.encoder).clip == ClipConfig(num_frames=4, stride=3)
    for path in (says, run):
        assert described(path) is not None
        frozen = open_encoder(EncoderSourceConfig(path=path))
        assert with_assumed_spacing(frozen, path) is frozen
    first = golden_dir / "pretrain_tiny.pth.tar"
    encoder, _ = read_encoder(first, num_heads=3)
    assert preprocess_of(first, encoder.config).clip.stride == 4


def test_the_weights_of_a_hugging_face_folder_are_the_folder(folder: Path) -> None:
    hub = folder / "hf_base_tiny"
    whole, by_file = load_encoder(hub), load_encoder(hub / "model.safetensors")
    assert (by_file.config, by_file.preprocess) == (whole.config, whole.preprocess)
    frozen = open_encoder(EncoderSourceConfig(path=hub / "model.safetensors"))
    assert frozen.identity.file == str(hub / "model.safetensors")


def test_an_array_of_as_many_frames_is_the_clip_and_another_has_no_times(folder: Path) -> None:
    preprocess = load_encoder(folder / "hf_base_tiny").preprocess
    frames = np.zeros((9, 80, 90, 3), np.uint8)
    assert preprocess(frames[:8]).shape == (1, 3, 8, 64, 64)
    with pytest.raises(UserError, match="the frame rate is unknown"):
        preprocess(frames)


def _hub(folder: Path, tmp_path: Path, **says: Any) -> Path:
    """A Hugging Face folder whose video processor says something else; None: nothing of that."""
    copy = tmp_path / "hub"
    shutil.copytree(folder / "hf_base_tiny", copy)
    file = copy / "video_preprocessor_config.json"
    content = json.loads(file.read_text()) | says
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return copy


@pytest.mark.parametrize(
    ("says", "view"),
    [
        ({}, ViewConfig(crop_size=64)),
        ({"size": None, "crop_size": None}, ViewConfig(crop_size=64)),
        ({"crop_size": 64}, ViewConfig(crop_size=64)),
        ({"size": {"shortest_edge": 64}}, ViewConfig(crop_size=64, short_side=64)),
        (
            {"size": {"shortest_edge": 128}, "crop_size": {"height": 96, "width": 96}},
            ViewConfig(crop_size=96, short_side=128),
        ),
    ],
)
def test_a_hugging_face_folder_is_shown_frames_as_it_says(
    says: dict[str, Any],
    view: ViewConfig,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = _hub(folder, tmp_path, **says)
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(path)
    assert encoder.preprocess.view == view
    assert encoder.config.image_size == view.crop_size
    assert not caplog.records
    clip = encoder.preprocess(np.zeros((8, 100, 120, 3), np.uint8))
    with torch.no_grad():
        assert encoder(clip).shape == (1, 4 * (view.crop_size // 16) ** 2, 44)
    # At another size in proportion.
    wide = load_encoder(path, image_size=128).preprocess.view
    short = None if view.short_side is None else view.short_side * 128 // view.crop_size
    assert wide == ViewConfig(crop_size=128, short_side=short)


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ({"do_resize": False}, "do_resize false"),
        ({"do_center_crop": False}, "do_center_crop false"),
        ({"resample": 3}, "resample 3"),
        ({"size": {"height": 64, "width": 64}}, 'size {"height": 64, "width": 64}'),
        ({"size": {"shortest_edge": 32}}, 'size {"shortest_edge": 32}'),
        ({"crop_size": {"height": 64, "width": 96}}, 'crop_size {"height": 64, "width": 96}'),
    ],
)
def test_what_of_it_cannot_be_done_is_said_once(
    says: dict[str, Any],
    said: str,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = _hub(folder, tmp_path, **says)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert load_encoder(path).preprocess.view == ViewConfig(crop_size=64)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert f"video_preprocessor_config.json: not done here: {said}; the short side is" in warning
    assert "brought to 73 pixels" in warning


def test_what_a_given_group_leaves_at_its_defaults_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip, view = ClipConfig(num_frames=8, stride=2), ViewConfig(crop_size=32, short_side=40)
    own = Preprocess(clip=clip, view=view)
    assert own.unless_given(None, own.view) == (own.clip, own.view)
    assert not caplog.records
    given = ViewConfig(num_segments=2, crop_size=16)
    assert own.unless_given(None, given, "data.") == (own.clip, given)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("data.view: has defaults where the encoder has something else")
    assert "short_side None (the encoder's: 40); give" in said
    assert "crop_size" not in said
