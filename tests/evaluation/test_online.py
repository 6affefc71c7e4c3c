from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.tiny_videos import with_bad_video, write_manifest

from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.labels import Labels
from vjepa.evaluation.online import OnlineProbe, OnlineProbeConfig, choose_rows
from vjepa.models import Encoder, EncoderConfig

TINY = EncoderConfig(
    width=24, depth=1, heads=2, image_size=32, num_frames=4, patch_size=8, tubelet_size=2
)


def _encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(TINY)


def _probe(encoder: Encoder, config: OnlineProbeConfig) -> OnlineProbe:
    return OnlineProbe(
        encoder,
        config,
        ClipConfig(num_frames=4, stride=2),
        ViewConfig(crop_size=32, short_side=32),
        "float32",
        seed=0,
        reading=ReadingConfig(num_workers=0),
    )


def test_it_measures_the_label_on_the_validation_part(videos: Path) -> None:
    encoder = _encoder().train()
    probe = _probe(encoder, OnlineProbeConfig(manifest=videos, label="colour", every_steps=7))
    assert probe.every_steps == 7
    got = probe.run(7)
    assert got["online_probe/count"] == 9  # every validation video, no more
    assert got["online_probe/top1"] > 0.6  # colours are seen even by random features
    assert got["online_probe/top1"] * 9 == pytest.approx(round(got["online_probe/top1"] * 9))
    assert got["online_probe/steps_top1"] > 0.6
    assert got["online_probe/tokens_top1"] > 0.6
    assert got["online_probe/top1_low"] < got["online_probe/top1"] <= got["online_probe/top1_high"]
    assert got == probe.run(8)  # nothing but the weights matters
    assert encoder.training
    with torch.no_grad():  # features that know nothing: all the same
        for parameter in encoder.parameters():
            parameter.zero_()
    assert probe.run(9)["online_probe/top1"] <= 4 / 9


def test_features_that_tell_no_more_than_before_the_first_update_are_told(
    videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = _encoder()
    probe = _probe(encoder, OnlineProbeConfig(manifest=videos, label="colour"))
    probe.run(5)
    assert not caplog.text, "a process that began later knows of no floor"
    with torch.no_grad():
        before = encoder.patch_embed.proj.weight.clone()
        encoder.patch_embed.proj.weight.zero_()
    low = probe.run(0)["online_probe/tokens_top1"]
    probe.run(5)
    assert f"tell no more of colour than before the first update: {100 * low:.1f} %" in caplog.text
    caplog.clear()
    with torch.no_grad():
        encoder.patch_embed.proj.weight.copy_(before)
    assert probe.run(10)["online_probe/top1"] == 1
    assert not caplog.text


def test_it_follows_the_live_encoder_and_leaves_no_gradient(videos: Path) -> None:
    encoder = _encoder()
    probe = _probe(encoder, OnlineProbeConfig(manifest=videos, label="colour", max_clips=9))
    before = probe.run(1)
    with torch.no_grad():
        encoder.patch_embed.proj.weight.normal_()
    assert probe.run(2)["online_probe/train_top1"] <= 1.0
    assert before != probe.run(2)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_bad_videos_are_left_out_with_a_warning(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = with_bad_video(videos, "validation", tmp_path / "m.parquet")
    config = OnlineProbeConfig(manifest=tmp_path / "m.parquet", label="colour", batch_size=4)
    assert _probe(_encoder(), config).run(0)["online_probe/count"] == 8
    assert broken in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "shape"}, r"^online_probe\.manifest: .*no label 'shape'.*--online_probe null"),
        ({"validation_split": "val"}, r"^online_probe\.manifest: .*no row of split 'val'"),
        ({"train_split": "training"}, r"^online_probe\.manifest: .*no row of split 'training'"),
        (
            {"manifest": Path("no.parquet")},
            r"^online_probe\.manifest: manifest no\.parquet: .*--online_probe null",
        ),
    ],
)
def test_bad_input(videos: Path, fields: dict, message: str) -> None:
    config = OnlineProbeConfig(**{"manifest": videos, "label": "colour", **fields})
    with pytest.raises(UserError, match=message):
        _probe(_encoder(), config)


def _with_rows(videos: Path, target: Path, rows: list[ManifestRow]) -> Path:
    manifest = Manifest.open(videos)
    own = [manifest.full_row(row) for row in range(len(manifest))]
    return write_manifest([*own, *rows], target)


def test_a_video_in_both_parts_and_images_among_videos_are_refused(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, still = Manifest.open(videos).full_row(0), tmp_path / "still.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(still)
    image = ManifestRow(info=inspect_file(str(still)), split="train", labels={"colour": "red"})
    for row, message in (
        (replace(known, split="validation"), "split validation: 1 of its 10 videos are in split"),
        (image, "1 of its 25 files are images among videos"),
    ):
        manifest = _with_rows(videos, tmp_path / "m.parquet", [row])
        with pytest.raises(UserError, match=message):
            _probe(_encoder(), OnlineProbeConfig(manifest=manifest, label="colour"))
    manifest = _with_rows(videos, tmp_path / "m.parquet", [known])
    _probe(_encoder(), OnlineProbeConfig(manifest=manifest, label="colour"))
    assert "1 of its 25 rows name a file that another row names" in caplog.text


def test_features_that_are_not_finite_stop_it(videos: Path) -> None:
    encoder = _encoder()
    probe = _probe(encoder, OnlineProbeConfig(manifest=videos, label="colour", max_clips=9))
    with torch.no_grad():
        encoder.norm.bias[3] = float("nan")
    with pytest.raises(UserError, match="features that are not finite"):
        probe.run(1)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_clips": 1}, "max_clips"),
        ({"every_steps": 0}, "every_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"validation_split": "train"}, "validation_split"),
    ],
)
def test_impossible_settings(fields: dict, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        OnlineProbeConfig(**{"manifest": Path("m"), "label": "colour", **fields})


def test_chosen_videos_are_few_balanced_and_always_the_same() -> None:
    labels = Labels("x", ("a", "b", "c"), np.arange(300) % 3)
    rows = choose_rows(labels, 100, 0)
    assert 97 <= len(rows) <= 100
    assert labels.take(rows).counts().min() >= 32
    assert np.array_equal(rows, choose_rows(labels, 100, 0))
    assert len(choose_rows(labels, 2, 0)) == 2
    assert len(choose_rows(labels, 300, 0)) == 300
