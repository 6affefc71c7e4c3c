"""The Python that users write: as the README shows it, and what is refused with its remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.jobs.probe.tiny_probe import probe_config
from tests.jobs.tiny_run import tiny_config, write_set

import vjepa
from vjepa.data import Manifest
from vjepa.errors import UserError
from vjepa.jobs.probe.probe import train


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def run(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that was trained by a plain call."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder, manifest, "optim.steps=2", "optim.warmup_steps=1")
    result = vjepa.pretrain(config, folder / "first")
    assert result.step == 2
    return folder / "first"


@pytest.fixture
def video(manifest: Path) -> str:
    return Manifest.open(manifest).path(0)


def test_a_path_an_array_and_a_list_give_the_same(run: Path, video: str) -> None:
    encoder = vjepa.load_encoder(run)
    clip = encoder.preprocess(video)
    assert (clip.shape, clip.dtype) == ((1, 3, 4, 32, 32), torch.float32)
    tokens = encoder(clip)
    assert tokens.shape == (1, encoder.config.num_tokens, encoder.config.width)
    frames = vjepa.load_clip(video, num_frames=4, stride=1).frames.permute(0, 2, 3, 1).numpy()
    assert torch.equal(encoder.preprocess(frames), clip)
    assert torch.equal(encoder.preprocess(torch.from_numpy(frames)), clip)
    several = encoder.preprocess([video, Path(video), frames])
    assert torch.equal(several, clip.expand(3, -1, -1, -1, -1))


def test_an_encoder_knows_the_clip_of_its_training(run: Path) -> None:
    preprocess = vjepa.load_encoder(run).preprocess
    assert (preprocess.clip.num_frames, preprocess.clip.stride) == (4, 1)
    assert preprocess.view.crop_size == 32


def test_a_checkpoint_from_before_there_was_a_record_is_read(run: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(run / "checkpoints" / "step_00000002", tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    values = json.loads(config.read_text())
    del values["preprocess"]
    config.write_text(json.dumps(values))
    assert vjepa.load_encoder(tmp_path / "old").preprocess == vjepa.load_encoder(run).preprocess


def test_features_of_a_whole_file(run: Path, video: str) -> None:
    encoder = vjepa.load_encoder(run)
    features = vjepa.extract_features(encoder, video)
    assert features.tokens.shape[1:] == (4, 4, encoder.config.width)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (np.zeros((4, 32, 32, 3), np.float32), "uint8"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"\[T, H, W, 3\]"),
        ([], "no video"),
        ("nothing.mp4", "nothing.mp4"),
    ],
)
def test_what_cannot_be_a_video_is_refused(run: Path, wrong: object, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        vjepa.load_encoder(run).preprocess(wrong)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8), "encoder.preprocess"),
        (torch.zeros(1, 4, 3, 32, 32), r"transpose\(1, 2\)"),
        (torch.full((1, 3, 4, 32, 32), 200.0), "not normalised"),
    ],
)
def test_what_cannot_be_an_input_is_refused(run: Path, wrong: torch.Tensor, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        vjepa.load_encoder(run)(wrong)


def test_a_probe_answers_for_any_video(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    train(probe_config(videos, checkpoint), tmp_path / "probe")
    probe = vjepa.load_probe(tmp_path / "probe")
    paths = [Manifest.open(videos).path(row) for row in (0, 1)]
    answers = probe.predict(paths)
    assert [answer.path for answer in answers] == paths
    for answer in answers:
        shares = [share.probability for share in answer.classes]
        assert {share.name for share in answer.classes} <= set(probe.saved.classes)
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="nothing"):
        vjepa.load_probe(tmp_path / "nothing")
