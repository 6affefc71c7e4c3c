"""Published models, V-JEPA and others, from video to result, by the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.conftest import Outcome
from tests.evaluation.tiny_videos import make_set, write_video

import vjepa as library
from vjepa.checkpoint.catalogue import MODELS
from vjepa.data.loader.reading import ReadingConfig
from vjepa.jobs.probe.config import VideosConfig
from vjepa.jobs.probe.probe import evaluate

Run = Callable[..., Outcome]
TINY = {
    "videomae_tiny.pth": ("VideoMAE", 3, 64, 64, 48),
    "videomae_tiny_hf.safetensors": ("VideoMAE", 3, 64, 64, 48),
    "videomaev2_tiny.pth": ("VideoMAE", 4, 56, 56, 44),
    "mvd_tiny.pth": ("MVD", 3, None, 64, 48),
    "omnimae_tiny.torch": ("OmniMAE", 3, None, 64, 48),
    "hiera_tiny.pth": ("Hiera", 16, None, 64, 96),
    "ijepa_tiny.pth.tar": ("I-JEPA", 3, None, 80, 48),
    "dinov2_tiny.pth": ("DINOv2", 3, None, 56, 48),
    "openclip_tiny.bin": ("OpenCLIP", 3, None, 56, 48),
    "pretrain_tiny.pth.tar": ("the authors' pretraining checkpoint", 3, None, 64, 48),
    "v2_pretrain_tiny.pt": ("the authors' V-JEPA 2 checkpoint", 2, 64, 64, 44),
    "v2_1_pretrain_tiny.pt": ("the authors' V-JEPA 2.1 checkpoint", 2, 64, 64, 32),
}
"""Title, heads, what is to be said of its size, size of the clips, width."""
CALLED = {
    "pretrain_tiny.pth.tar": "V-JEPA 1, width 48, depth 3",
    "v2_pretrain_tiny.pt": "V-JEPA 2, width 44, depth 3",
    "v2_1_pretrain_tiny.pt": "V-JEPA 2.1, width 32, depth 12",
}
"""What results call V-JEPA's own, which are no sizes of the authors."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of six videos to train on and three to test."""
    return make_set(tmp_path_factory.mktemp("small"), {"train": 6, "test": 3})


@pytest.fixture(scope="module")
def files(golden_dir: Path) -> Path:
    """The small files in the layouts of the eight."""
    return golden_dir / "baselines"


def _options(file: Path) -> list[str]:
    _, heads, size, _, _ = TINY[file.name]
    options = ["--encoder.path", str(file), "--encoder.num_heads", str(heads)]
    return options if size is None else [*options, "--encoder.image_size", str(size)]


def _train(run: Run, file: Path, manifest: Path, out: Path, *more: object) -> Outcome:
    crop = TINY[file.name][3]
    return run(
        *("probe", "train", *_options(file), "--data.label", "colour"),
        *("--data.train.manifest", manifest, "--data.train.split", "train"),
        *("--data.test.split", "test", "--data.view.crop_size", crop, "--optim.epochs", "null"),
        *("--optim.steps", 3, "--optim.min_steps", 0, "--data.reading.num_workers", 0),
        *("--device", "cpu", "--num_threads", 1, "--out", out, *more),
    )


@pytest.mark.parametrize("name", TINY)
def test_from_video_to_result(
    name: str, vjepa: Run, files: Path, small: Path, tmp_path: Path
) -> None:
    title, heads, size, _, width = TINY[name]
    if title in ("Hiera", "DINOv2", "OpenCLIP"):
        pytest.importorskip("timm")
    (file,), probe = files.parent.rglob(name), tmp_path / "probe"
    options = [option.replace("encoder.", "").replace("_", "-") for option in _options(file)[2:]]
    checked = vjepa("models", "check", file, *options)
    assert checked.code == 0, checked.err
    assert f"{file}: {title}" in checked.out
    assert f"width {width}, depth" in checked.out
    trained = _train(vjepa, file, small, probe)
    assert trained.code == 0, trained.err
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    saved = json.loads((probe / "probe.json").read_text())["encoder"]
    assert (saved["file_hash"], saved["file"]) == (digest, str(file))
    is_other = not title.startswith("the authors'")  # or one of V-JEPA's, which the file names
    assert saved["model"].startswith(title) if is_other else saved["model"] is None
    result = json.loads((probe / "result.json").read_text())
    model = saved["model"] or CALLED[name]
    assert result["encoder"].startswith(f"{model}, {file} (SHA-256 {digest[:12]})")
    assert is_other or ", target encoder" in result["encoder"]
    assert all(f"assumed {what}" in result["encoder"] for what in saved["assumed"])
    nothing_assumed = ("MVD", "Hiera", "I-JEPA", "DINOv2", TINY["pretrain_tiny.pth.tar"][0])
    assert saved["assumed"] or title in nothing_assumed

    again = evaluate(
        probe,
        VideosConfig(manifest=small, split="test"),
        reading=ReadingConfig(num_workers=0),
        device="cpu",
        num_threads=1,
    )
    assert json.loads(json.dumps(asdict(again.metrics))) == result["test"]["metrics"]
    video = next(small.parent.glob("test_*.mp4"))
    guessed = vjepa("probe", "predict", probe, video, "--device", "cpu")
    assert guessed.code == 0
    assert result["encoder"] in guessed.out

    video = tmp_path / "wide.mp4"
    write_video(video, np.random.default_rng(0).integers(0, 256, (9, 32, 64, 3), np.uint8))
    made = vjepa(
        *("features", video, *_options(file), "--pool", "video", "--readers", 0),
        *("--device", "cpu", "--out", tmp_path / "features"),
    )
    assert made.code == 0, made.err
    loaded = library.load_features(tmp_path / "features")[str(video)]
    assert loaded.tokens.shape == (width,)
    encoder = library.load_encoder(file, num_heads=heads, image_size=size)
    found = library.extract_features(encoder, video, pool="video")
    torch.testing.assert_close(found.tokens, loaded.tokens)
    one_size = title in ("VideoMAE", "MVD", "OmniMAE", "Hiera", "OpenCLIP")
    assert (found.box[3] < 32) == one_size, found.box  # its centre square


def test_heads_that_are_not_trained_and_few_labels(
    vjepa: Run, files: Path, small: Path, tmp_path: Path
) -> None:
    file, cache = files / "mvd_tiny.pth", tmp_path / "cache"
    more = ("--features.cache_dir", cache)
    nearest = _train(vjepa, file, small, tmp_path / "knn", "--probe.kind", "knn", *more)
    assert nearest.code == 0, nearest.err
    draws = ("--data.labels_per_class", 1, "--data.num_splits", 2)
    few = _train(vjepa, file, small, tmp_path / "few", "--probe.kind", "linear", *draws, *more)
    assert few.code == 0, few.err
    assert (tmp_path / "few" / "splits.json").is_file()
    (key, *_), *others = (
        [json.loads(path.read_text())] for path in sorted(cache.glob("*/features.json"))
    )
    assert len(others) == 1  # the videos to train on and those of the test, for both jobs
    assert key["encoder"]["model"].startswith("MVD")
    untrained = _train(vjepa, file, small, tmp_path / "new", *more, "--encoder.random", "true")
    assert untrained.code == 0, untrained.err
    assert "UNTRAINED" in untrained.out
    assert len(list(cache.glob("*/features.json"))) == 4
    video = next(small.parent.glob("test_*.mp4"))
    assert vjepa("probe", "predict", tmp_path / "new", video, "--device", "cpu").code == 0


@pytest.mark.parametrize("name", ["mvd_tiny.pth", "ijepa_tiny.pth.tar", "hiera_tiny.pth"])
def test_features_are_drawn(
    name: str, vjepa: Run, files: Path, small: Path, tmp_path: Path
) -> None:
    if name.startswith("hiera"):
        pytest.importorskip("timm")
    video, out = next(small.parent.glob("test_*.mp4")), tmp_path / "a.png"
    heads = TINY[name][1]
    drawn = vjepa(
        *("show", "features", video, "--model", files / name, "--num-heads", heads, "--out", out)
    )
    assert drawn.code == 0, drawn.err
    assert out.stat().st_size > 1000


def test_a_model_by_its_name_lies_in_the_cache_and_must_be_that_model(
    vjepa: Run, files: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VJEPA_MODELS", str(tmp_path))
    asked = ("features", small, "--encoder.path", "mvd_vitl16", "--out", tmp_path / "out")
    assert "Google Drive" in vjepa(*asked).error
    other = (*asked[:3], "dinov2_vitg14", *asked[4:])
    assert "vjepa models get dinov2_vitg14" in vjepa(*other).error
    near = (*asked[:3], "dinov2_vitg", *asked[4:])
    assert "did you mean dinov2_vitg14?" in vjepa(*near).error
    folder = tmp_path / "mvd_vitl16"
    folder.mkdir()
    (folder / "a.pth").symlink_to(files / "mvd_tiny.pth")
    refused = vjepa(*asked, "--encoder.num_heads", 3).error
    assert f"not {MODELS['mvd_vitl16'].title}" in refused


def test_a_table_is_stretched_when_asked(
    vjepa: Run, files: Path, small: Path, tmp_path: Path
) -> None:
    """Whole frames, and a probe at another size that knows its positions again."""
    file, video = files / "mvd_tiny.pth", next(small.parent.glob("test_*.mp4"))
    more = (*_options(file), "--encoder.position_code", "table_stretched", "--device", "cpu")
    whole = vjepa("features", video, *more, "--readers", 0, "--out", tmp_path / "f")
    assert whole.code == 0, whole.err
    probe = tmp_path / "probe"
    crop = ("--data.view.crop_size", 96, "--probe.kind", "nearest_mean")
    trained = _train(vjepa, file, small, probe, *more[:-2], *crop)
    assert trained.code == 0, trained.err
    saved = json.loads((probe / "probe.json").read_text())
    assert saved["encoder"]["config"]["position"] == "given_stretched"
    assert vjepa("probe", "predict", probe, video, "--device", "cpu").code == 0
    image = ("--encoder.path", files / "ijepa_tiny.pth.tar", "--encoder.num_heads", 3, *more[-4:])
    assert (
        "table_stretched is for" in vjepa("features", video, *image, "--out", tmp_path / "g").error
    )


@pytest.fixture
def mvd(files: Path) -> dict[str, Any]:
    """The content of a file, to be damaged."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(files / "mvd_tiny.pth", weights_only=True)


def test_what_cannot_be_is_refused_in_one_line(
    vjepa: Run, files: Path, small: Path, mvd: dict[str, Any], tmp_path: Path
) -> None:
    def refused(path: Path, *more: object) -> str:
        asked = ("--encoder.path", path, *more, "--out", tmp_path / "out")
        return vjepa("features", small, *asked).error

    damaged = tmp_path / "a.pth"

    def saved(**changes: Any) -> Path:
        torch.save({"model": mvd["model"] | changes}, damaged)
        return damaged

    heads = ("--encoder.num_heads", 3)
    # Another model's values under similar names: a table that is not the family's.
    other = torch.randn_like(mvd["model"]["pos_embed"])
    assert "pos_embed differs by" in refused(saved(pos_embed=other), *heads)
    assert "unexpected (extra.weight)" in refused(saved(**{"extra.weight": other}), *heads)
    short = dict(mvd["model"])
    del short["blocks.1.mlp.fc2.bias"]
    torch.save({"model": short}, damaged)
    assert "1 missing (blocks.1.mlp.fc2.bias)" in refused(damaged, *heads)
    assert "heads" in refused(files / "mvd_tiny.pth")
    (tmp_path / "half.pth").write_bytes((files / "mvd_tiny.pth").read_bytes()[:300_000])
    assert "truncated" in refused(tmp_path / "half.pth", *heads)
    # Of the width of a published model, with fewer blocks.
    wide = {n: torch.zeros(1024, 3, 2, 16, 16) if "patch" in n else t for n, t in short.items()}
    torch.save({"model": wide | {"pos_embed": torch.zeros(1, 1568, 1024)}}, damaged)
    assert "MVD ViT-L/16, teacher L, 400 epochs of Kinetics-400 has 24" in refused(damaged)
    tuned = {n: t for n, t in short.items() if "_img" not in n and "_vid" not in n}
    torch.save({"module": tuned | {"fc_norm.weight": torch.zeros(48)}}, damaged)
    assert "fine-tuned with labels" in refused(damaged)

    dinov2 = files / "dinov2_tiny.pth"
    pytest.importorskip("timm")
    assert "an image model" in refused(dinov2, *heads, "--encoder.num_frames", 16)
    assert "not whole patches of 14; take encoder.image_size 56" in refused(
        dinov2, *heads, "--encoder.image_size", 64
    )
    framing = ("--framing.kind", "centre", "--framing.size", 60)
    assert "not whole patches of 14" in refused(dinov2, *heads, *framing)
    assert "two_poolings is not DINOv2's" in refused(
        dinov2, *heads, "--encoder.tokens", "two_poolings"
    )
    whole = ("--framing.kind", "whole")
    assert "framing.kind" in refused(files / "openclip_tiny.bin", *heads, *whole)
    clips = ("--framing.kind", "centre", "--framing.size", 96)
    assert "is not stretched" in refused(files / "mvd_tiny.pth", *heads, *clips)
    assert "encoder.image_size 96" in refused(
        files / "mvd_tiny.pth", *heads, "--encoder.image_size", 96
    )
    assert not (tmp_path / "out" / "features.json").exists()


def test_a_file_that_would_run_code_is_refused(vjepa: Run, small: Path, tmp_path: Path) -> None:
    torch.save({"model": {}, "args": Path("/")}, tmp_path / "a.pth")
    asked = ("--encoder.path", tmp_path / "a.pth", "--out", tmp_path / "out")
    assert "could run code" in vjepa("features", small, *asked).error


def test_a_probe_refuses_another_encoder(
    vjepa: Run, files: Path, small: Path, tmp_path: Path
) -> None:
    file, probe = files / "videomae_tiny_hf.safetensors", tmp_path / "probe"
    assert _train(vjepa, file, small, probe, "--probe.kind", "nearest_mean").code == 0
    video = next(small.parent.glob("test_*.mp4"))
    with_encoder = ("probe", "predict", probe, video, "--device", "cpu", "--encoder")
    same = vjepa(*with_encoder, files / "videomae_tiny.pth")  # the same weights in other names
    assert same.code == 0, same.err
    changed = load_file(file)
    changed["videomae.layernorm.bias"] += 1
    save_file(changed, tmp_path / "b.safetensors")
    assert "trained for another encoder" in vjepa(*with_encoder, tmp_path / "b.safetensors").error
    assert (
        "the probe's encoder is VideoMAE"
        in vjepa(*with_encoder, files / "videomaev2_tiny.pth").error
    )
    assert "trained for another encoder" in vjepa(*with_encoder, files / "mvd_tiny.pth").error
