"""Encoders behind the protocol: position codes for other sizes, image models, models of timm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.jobs.probe.tiny_probe import evaluate_here, train_probe

from vjepa.checkpoint import save_model
from vjepa.cli.main import main
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_encoder, preprocess_of
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import compile_encoder, fit_to_clips, open_encoder, reopen_encoder
from vjepa.models import VJEPA, Encoder, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.models.encoder import FrameEncoder

SIZES = {"width": 24, "depth": 1, "heads": 2, "image_size": 32, "patch_size": 16}
VIDEO = EncoderConfig(num_frames=4, **SIZES)
IMAGE = EncoderConfig(num_frames=1, tubelet_size=1, **SIZES)


def _saved(folder: Path, config: EncoderConfig) -> Path:
    torch.manual_seed(0)
    model = VJEPA(ModelConfig(encoder=config, predictor=PredictorConfig(width=12, depth=1)))
    save_model(folder, model)
    return folder


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(tmp_path_factory.mktemp("models") / "video", VIDEO)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(tmp_path_factory.mktemp("models") / "image", IMAGE)


def test_two_readings_of_the_position_code(video_model: Path) -> None:
    """Two frames into a model of four: the code resampled, or computed for two."""
    clip = torch.randn(1, 3, 2, 32, 32)
    found = {}
    for code in ("stretched", "computed"):
        config = EncoderSourceConfig(path=video_model, position_code=code)
        frozen = fit_to_clips(open_encoder(config), config, 2, 32)
        found[code] = frozen.encoder(clip)
        again = reopen_encoder(frozen.identity)
        assert torch.equal(again.encoder(clip), found[code])
        assert again.identity == frozen.identity
    assert not torch.allclose(found["stretched"], found["computed"], atol=1e-4)
    whole = open_encoder(EncoderSourceConfig(path=video_model)).encoder
    assert isinstance(whole, Encoder)
    wanted = whole.rebuilt_for(image_size=32, num_frames=2)(clip)
    assert torch.equal(found["computed"], wanted)


def test_an_image_model_of_ours_sees_frames_alone(image_model: Path) -> None:
    config = EncoderSourceConfig(path=image_model)
    frozen = open_encoder(config)
    assert isinstance(frozen.encoder, FrameEncoder)
    assert preprocess_of(image_model, frozen.identity.config).clip.num_frames == 16
    assert frozen.encoder(torch.randn(1, 3, 6, 32, 32)).shape == (1, 6 * 4, 24)
    again = reopen_encoder(frozen.identity)
    assert again.identity == frozen.identity
    assert fit_to_clips(frozen, config, 6, 32) is frozen
    computed = fit_to_clips(frozen, replace(config, position_code="computed"), 6, 64)
    clip, whole = torch.randn(1, 3, 6, 64, 64), frozen.encoder.image_encoder
    assert isinstance(whole, Encoder)
    made = FrameEncoder(whole.rebuilt_for(image_size=64, num_frames=1), computed.identity.config)
    assert torch.equal(computed.encoder(clip), made(clip))
    assert not torch.equal(frozen.encoder(clip), made(clip))
    assert torch.equal(reopen_encoder(computed.identity).encoder(clip), made(clip))


def test_an_image_model_in_python_takes_what_its_preprocess_makes(image_model: Path) -> None:
    encoder = load_encoder(image_model)
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2)
    frames = frames.repeat(3, 3)
    middle = encoder.normalise(torch.full((1, 3, 1, 32, 32), 2, dtype=torch.uint8))
    assert torch.equal(encoder(encoder.preprocess(frames)), encoder(middle))


def test_computed_positions_are_refused_where_the_table_is_stored(golden_dir: Path) -> None:
    file = golden_dir / "baselines" / "ijepa_tiny.pth.tar"
    config = EncoderSourceConfig(path=file, num_heads=3, position_code="computed")
    with pytest.raises(UserError, match=r"encoder\.position_code: computed: .*leave it out"):
        fit_to_clips(open_encoder(config), config, 4, 80)


def test_a_random_encoder_is_asked_for_in_two_ways_and_says_so(video_model: Path) -> None:
    one, other = (
        open_encoder(EncoderSourceConfig(path=video_model, seed=3, **fields))
        for fields in ({"random": True}, {"which": "random"})
    )
    assert one.identity == other.identity
    assert "UNTRAINED, random weights of seed 3" in one.identity.sentence
    trained = open_encoder(EncoderSourceConfig(path=video_model)).identity
    assert (
        trained.sentence == f"{video_model}, target encoder (weights {trained.weights_hash[:12]})"
    )


def test_compiling_goes_block_by_block(image_model: Path, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    compile_encoder(open_encoder(EncoderSourceConfig(path=image_model)).encoder)
    assert [kind.__name__ for kind in compiled] == ["Block"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": Path("x"), "timm": "resnet18"}, "timm: give path or timm"),
        ({"timm_weights": Path("x")}, "timm_weights"),
        ({"timm": "resnet18"}, "timm_weights: give the file of its weights, or ask for fresh"),
        ({"timm": "resnet18", "timm_weights": Path("x"), "random": True}, "one of the two"),
        ({"timm": "resnet18", "random": True, "num_heads": 3}, "num_heads: a model of timm says"),
        ({"timm": "resnet18", "random": True, "image_size": 224}, "image_size: a model of timm"),
        ({"timm": "resnet18", "timm_weights": Path("x"), "which": "context"}, "which: a model of"),
        (
            {"timm": "resnet18", "random": True, "position_code": "table_stretched"},
            "position_code: a model of timm",
        ),
    ],
)
def test_impossible_sources(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderSourceConfig(**fields)


def test_a_model_of_timm_is_opened_again_by_name_and_seed(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    frozen = open_encoder(EncoderSourceConfig(timm="resnet18", random=True, seed=4))
    assert (frozen.identity.timm, frozen.identity.which, frozen.identity.seed) == (
        "resnet18",
        "random",
        4,
    )
    assert frozen.identity.sentence.startswith("timm resnet18, UNTRAINED, random weights of seed 4")
    assert reopen_encoder(frozen.identity).identity == frozen.identity
    torch.save(frozen.encoder.image_encoder.model.state_dict(), tmp_path / "w.pth")
    loaded = open_encoder(EncoderSourceConfig(timm="resnet18", timm_weights=tmp_path / "w.pth"))
    assert loaded.identity.weights_hash == frozen.identity.weights_hash
    assert loaded.identity.which == "target"
    assert reopen_encoder(loaded.identity).identity == loaded.identity


def test_an_image_model_through_the_whole_video_protocol(
    videos: Path, image_model: Path, tmp_path: Path
) -> None:
    changes = {
        "data.clip.num_frames": 3,
        "data.clip.stride": 2,
        "data.view.num_segments": 2,
        "optim.epochs": 2,
    }
    _, test = train_probe(videos, image_model, tmp_path / "probe", **changes)
    assert evaluate_here(tmp_path / "probe", videos).metrics == test.metrics


def _write_images(folder: Path) -> None:
    """ImageNet's layout: split / class / image; the class is a colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for channel, name in enumerate(("n0001", "n0002")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (40, 48, 3)).astype(np.uint8)
                pixels[..., channel] = 255
                Image.fromarray(pixels).save(folder / split / name / f"{name}_{7 * number}.JPEG")


@pytest.mark.parametrize("frames", [16, 2])
def test_class_folders_of_images_to_a_number(
    video_model: Path, tmp_path: Path, frames: int
) -> None:
    pytest.importorskip("torchvision")
    _write_images(tmp_path / "set")
    manifest = tmp_path / "m.parquet"
    index = ["data", "index", str(tmp_path / "set"), "--label_from_folder", "true"]
    assert main([*index, "--out", str(manifest)]) == 0
    changes = {
        "encoder.position_code": "computed",
        "data.label": "label",
        "data.test.split": "validation",
        "data.clip.num_frames": frames,
        "data.augment.policy": "image_paper",
        "features.online": True,
        "optim.epochs": 15,
        "optim.learning_rates": [3e-3],
        "optim.weight_decays": [0.01],
    }
    result, test = train_probe(manifest, video_model, tmp_path / "probe", **changes)
    assert test.metrics.count == 8
    assert result.num_classes == 2
    assert test.metrics.top1 >= 0.75
    assert evaluate_here(tmp_path / "probe", manifest, split="validation").metrics == test.metrics


def test_no_encoder_is_an_error() -> None:
    with pytest.raises(UserError, match=r"encoder\.path: not set"):
        open_encoder(EncoderSourceConfig())
