"""The Python that users write: as the README shows it, and what is refused with its remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.jobs.probe.tiny_probe import probe_config
from tests.jobs.tiny_run import tiny_config, write_set
from torch import nn

import vjepa
from vjepa.checkpoint import save_model
from vjepa.config import from_dict, to_dict
from vjepa.data import Manifest
from vjepa.demo import demo
from vjepa.errors import UserError
from vjepa.jobs import decode, features, learn
from vjepa.jobs.decode import open_decoder
from vjepa.jobs.detect import train as detect
from vjepa.jobs.detect.detector import load_detector
from vjepa.jobs.export import export
from vjepa.jobs.features import FeaturesConfig
from vjepa.jobs.finetune import job as finetune
from vjepa.jobs.probe.probe import train, train_splits
from vjepa.jobs.search import Database
from vjepa.jobs.show import show_run

JOBS = {
    vjepa.pretrain: "PretrainConfig",
    train: "ProbeConfig",
    train_splits: "ProbeConfig",
    detect.train: "DetectConfig",
    decode.train: "DecodeConfig",
    learn.run: "LearnConfig",
    demo.run: "DemoConfig",
    finetune.run: "FinetuneConfig",
}


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


def test_encoders_of_a_model_know_it_too_saved_again_and_made_for_another_size(
    run: Path, tmp_path: Path
) -> None:
    known, model = vjepa.load_encoder(run).preprocess, vjepa.load_model(run)
    assert model.encoder.preprocess == model.target_encoder.preprocess == known
    assert vjepa.load_encoder(save_model(tmp_path / "saved", model)).preprocess == known
    other = model.target_encoder.rebuilt_for(image_size=48, num_frames=6).preprocess
    assert (other.clip.num_frames, other.clip.stride, other.view.crop_size) == (6, 1, 48)


def test_a_checkpoint_from_before_there_was_a_record_is_read(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step_00000002", tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    values = json.loads(config.read_text())
    del values["preprocess"]
    config.write_text(json.dumps(values))
    assert vjepa.load_encoder(tmp_path / "old").preprocess == vjepa.load_encoder(run).preprocess


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (np.zeros((4, 32, 32, 3), np.float32), "uint8"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"\[T, H, W, 3\]"),
        ([], "no video"),
        ("nothing.mp4", "nothing.mp4"),
        (list(np.zeros((4, 32, 32, 3), np.uint8)), r"np\.stack\(frames\)"),
        ([Image.new("RGB", (32, 32))] * 4, r"Image is no video: .* np\.stack\(frames\)"),
        ([[Image.new("RGB", (32, 32))] * 4], "list is no video"),
        (Image.new("RGB", (32, 32)), "Image is no video"),
        (None, "NoneType is no video"),
        (b"a.mp4", "bytes is no video"),
    ],
)
def test_what_cannot_be_a_video_is_refused(run: Path, wrong: object, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        vjepa.load_encoder(run).preprocess(wrong)


def test_frames_that_are_put_together_as_the_refusal_says_are_a_video(run: Path) -> None:
    preprocess = vjepa.load_encoder(run).preprocess
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 48, 3), np.uint8)
    images = [Image.fromarray(frame) for frame in frames]
    assert torch.equal(preprocess(np.stack(images)), preprocess(frames))
    assert torch.equal(preprocess(clip for clip in [frames, frames])[1:], preprocess(frames))


def test_what_is_no_path_and_no_encoder_is_refused_with_the_remedy(run: Path, video: str) -> None:
    encoder = vjepa.load_encoder(run)
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    for call in (vjepa.load_clip, lambda wrong: vjepa.extract_features(encoder, wrong)):
        for wrong in (frames, list(frames), torch.from_numpy(frames), [Image.new("RGB", (9, 9))]):
            with pytest.raises(UserError, match=r"is no video: give its path, or .*preprocess"):
                call(wrong)
    wrapped = nn.DataParallel(encoder)
    with pytest.raises(UserError, match=r"DataParallel has no .*; give .* inside, encoder\.module"):
        vjepa.extract_features(wrapped, video)
    found = vjepa.extract_features(wrapped.module, video)
    assert torch.equal(found.tokens, vjepa.extract_features(encoder, video).tokens)
    for load in (vjepa.load_encoder, vjepa.load_model, vjepa.load_probe, vjepa.load_features):
        with pytest.raises(UserError, match="DataParallel was given, where a path or name"):
            load(wrapped)
    with pytest.raises(ValueError, match=r"must be a tensor .*, got list"):
        encoder.normalise(list(frames))
    with pytest.raises(UserError, match=r"PosixPath has no .*; vjepa\.load_encoder gives one"):
        vjepa.extract_features(run, video)  # type: ignore[arg-type]
    for load in (vjepa.load_encoder, vjepa.load_model):
        for size in ("image_size", "num_frames", "num_heads"):
            with pytest.raises(UserError, match=f"{size}: must be at least 1, got 0"):
                load(run, **{size: 0})


def test_a_room_is_there_without_an_import_of_its_own() -> None:
    """As the docs and errors name it."""
    code = "import vjepa; vjepa.config.load_config; vjepa.checkpoint.read_probe; vjepa.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("AttributeError: module 'vjepa' has no attribute 'nothing'\n")


def test_a_clip_is_asked_for_in_plain_values_too(run: Path, video: str) -> None:
    asked: Any = {"num_frames": 3, "stride": 2}
    assert torch.equal(
        vjepa.load_clip(video, clip=asked).frames, vjepa.load_clip(video, 3, 2).frames
    )
    whole: Any = vjepa.load_encoder(run).preprocess
    with pytest.raises(UserError, match=r"clip: .* expected a group of settings \(num_frames"):
        vjepa.load_clip(video, clip=whole)
    text: Any = "0.1"
    with pytest.raises(UserError, match=r"start_seconds '0\.1': .* a number"):
        vjepa.load_clip(video, start_seconds=text)


def test_features_are_float32_whatever_torch_makes_by_default(run: Path, video: str) -> None:
    encoder = vjepa.load_encoder(run)
    torch.set_default_dtype(torch.float64)
    try:
        assert vjepa.extract_features(encoder, video).tokens.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_config_may_be_plain_values_and_is_no_name(
    run: Path, manifest: Path, tmp_path: Path
) -> None:
    config = tiny_config(run.parent, manifest, "optim.steps=2", "optim.warmup_steps=1")
    assert vjepa.pretrain(to_dict(config), str(run)).step == 2  # type: ignore[arg-type]
    for job, cls in JOBS.items():
        with pytest.raises(
            UserError, match=rf"'small' .*vjepa\.config\.load_config\({cls}, \.\.\.\)"
        ):
            job("small", tmp_path / "out")
    with pytest.raises(UserError, match=r"optm.* did you mean optim\?"):
        vjepa.pretrain({"optm": {}}, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_jobs_take_folders_as_text(run: Path, video: str, tmp_path: Path) -> None:
    config, out = from_dict(FeaturesConfig, {"encoder": {"path": run}}), str(tmp_path / "out")
    assert features.run(config, video, out).encoded == 1
    again = features.run(config, (path for path in [video]), out)
    assert (again.encoded, again.kept) == (0, 1)
    with pytest.raises(UserError, match="NoneType was given, where a path"):
        features.run(config, None, out)  # type: ignore[arg-type]
    assert video in vjepa.load_features(out)
    assert show_run(str(run))
    assert Path(export(str(run), str(tmp_path / "e.pt2"), "torch-export").file).is_file()
    for call in (open_decoder, load_detector, Database):
        with pytest.raises(UserError, match="nothing"):
            call(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8), "encoder.preprocess"),
        (torch.zeros(1, 4, 3, 32, 32), r"transpose\(1, 2\)"),
        (torch.zeros(1, 4, 32, 32, 3), r"\[B, T, H, W, C\]: give video\.permute"),
        (torch.full((1, 3, 4, 32, 32), 200.0), "not normalised"),
    ],
)
def test_what_cannot_be_an_input_is_refused(run: Path, wrong: torch.Tensor, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        vjepa.load_encoder(run)(wrong)


def test_the_readme(
    manifest: Path,
    run: Path,
    videos: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its Python runs as it stands there."""
    train(probe_config(videos, checkpoint), str(tmp_path / "runs" / "probe"))
    shutil.copytree(run, tmp_path / "runs" / "first")
    for row, name in enumerate(("a.mp4", "b.mp4")):
        shutil.copy(Manifest.open(videos).path(row), tmp_path / name)
    changes = ("optim.steps=2", "optim.warmup_steps=1")
    names: dict[str, Any] = {"config": tiny_config(tmp_path, manifest, *changes)}
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    code = readme.partition("```python")[2].partition("```")[0]
    assert "vjepa.pretrain(config" in code
    exec(code.replace("probe.predict", "answers = probe.predict"), names)
    width = names["encoder"].config.width
    assert names["tokens"].shape == (1, names["encoder"].config.num_tokens, width)
    assert names["features"].tokens.shape[1:] == (4, 4, width)
    probe, answers = names["probe"], names["answers"]
    assert [Path(answer.path).name for answer in answers] == ["a.mp4", "b.mp4"]
    for answer in answers:
        shares = [share.probability for share in answer.classes]
        assert {share.name for share in answer.classes} <= set(probe.saved.classes)
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="nothing"):
        vjepa.load_probe(tmp_path / "nothing")
