"""Attention of a probe and nearest moments: on values that are known, and as commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vjepa.cli.main import main
from vjepa.data.clips.windows import FramingConfig
from vjepa.demo.synthetic import SyntheticConfig, render_clip
from vjepa.errors import UserError
from vjepa.evaluation.frozen import ClipSettings, EncodingConfig
from vjepa.evaluation.heads import HeadConfig, HeadKind, build_head
from vjepa.evaluation.preprocess import preprocess_of
from vjepa.evaluation.saved_probe import SavedProbe
from vjepa.evaluation.video_features import FileFeatures
from vjepa.jobs.features import FeaturesConfig
from vjepa.jobs.features import run as write_features
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.jobs.probe.encoder import open_encoder
from vjepa.jobs.search import Moment
from vjepa.jobs.show_frozen import moments_of, nearest_moments, show_neighbours
from vjepa.models.pooling import AttentivePooler, PoolerVariant
from vjepa.reporting.pictures import write_moving

_LONG = SyntheticConfig(num_frames=16, travel=0.6, background_speed=0.6)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        frames = list(render_clip(_LONG, "train", number).frames)
        write_moving(frames, folder / f"{number}.mp4", 0.125)
    return folder


@pytest.fixture(scope="module")
def features(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "space"
    config = FeaturesConfig(encoder=EncoderSourceConfig(path=Path("demo")), pool="space", readers=0)
    write_features(config, [videos], out)
    return out


def save_probe(folder: Path, kind: HeadKind) -> Path:
    identity = open_encoder(EncoderSourceConfig(path=Path("demo"))).identity
    size, form = identity.config, HeadConfig(kind=kind)
    seen = preprocess_of("demo", size)
    head = build_head(form, size.width, size.heads, 2, num_stored=1)
    settings = ClipSettings(clip=seen.clip, view=seen.view, features=EncodingConfig())
    folder.mkdir()
    SavedProbe(
        label="motion",
        classes=("left", "right"),
        encoder=identity,
        settings=settings,
        form=form,
        head=head,
        training={},
    ).save(folder)
    return folder


@pytest.mark.parametrize("variant", ["released", "released_2"])
def test_attention_is_what_the_pooler_reads_with(variant: PoolerVariant) -> None:
    torch.manual_seed(0)
    pooler, tokens = AttentivePooler(16, 4, depth=2, variant=variant), torch.randn(2, 9, 16)
    shares = pooler.attention(tokens)
    assert shares.shape == (2, 4, 1, 9)
    block = pooler.cross_attention_block
    seen = pooler.blocks[0](tokens) if variant == "released_2" else tokens
    values = block.xattn.kv(block.norm1(seen)).unflatten(-1, (2, 4, 4))[:, :, 1]
    read = torch.einsum("bhqn,bnhd->bqhd", shares, values).flatten(2)
    wanted = block.xattn(pooler.query_tokens.expand(2, -1, -1), block.norm1(seen))
    torch.testing.assert_close(read, wanted)


def test_the_attention_of_a_probe_as_a_still_and_a_moving_picture(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe, out = save_probe(tmp_path / "probe", "attentive"), tmp_path / "a.png"
    command = ["show", "attention", str(videos / "0.mp4"), "--out", str(out), "--probe"]
    assert main([*command, str(probe)]) == 0
    assert "half of the attention lies on" in capsys.readouterr().out
    picture = np.asarray(Image.open(out))
    assert len(picture) > 5 * 192, "the clip, the mean, three heads"
    red, green, _ = picture[2 * 196 : 2 * 196 + 190, -190:, :3].mean((0, 1))
    assert abs(red - green) < 60, "it looks everywhere alike: about an even share, which is yellow"
    assert getattr(Image.open(tmp_path / "a.webp"), "n_frames", 1) == 8
    linear = save_probe(tmp_path / "linear", "linear")
    assert main([*command, str(linear)]) == 2
    assert "a linear probe has no query" in capsys.readouterr().err


def _features_of(path: str, rows: list[list[float]]) -> FileFeatures:
    count, numbers = len(rows), np.arange(2 * len(rows)).reshape(-1, 2)
    return FileFeatures(
        torch.tensor(rows), np.arange(count) * 1.0, numbers, (count, 1, 1), None, path
    )


def test_moments_are_means_of_steps_that_follow_each_other() -> None:
    rows, places = moments_of(_features_of("a", [[0.0], [2.0], [4.0]]), 2)
    np.testing.assert_allclose(rows, [[1.0], [3.0]])
    assert [(one.start, one.end) for one in places] == [(0, 1), (1, 2)]
    assert [(one.first_frame, one.last_frame) for one in places] == [(0, 3), (2, 5)]
    rows, places = moments_of(_features_of("a", [[0.0], [2.0]]), 5)
    np.testing.assert_allclose(rows, [[1.0]])
    assert [(one.start, one.end) for one in places] == [(0, 1)]


def test_the_nearest_moments_do_not_overlap_nor_are_they_the_query() -> None:
    a = _features_of("a", [[1.0, 0.0], [0.9, 0.1], [-1.0, 0.9], [0.8, 0.3]])
    b = _features_of("b", [[-1.0, -1.2], [0.7, 0.4]])
    query = np.array([1.0, 0.0], np.float32)
    found = nearest_moments(query, Moment("a", 0.0, 0.0, 0, 1, 1.0), [a, b], 1, 3)
    assert [(one.path, one.start) for one in found] == [("a", 1.0), ("a", 3.0), ("b", 1.0)]
    assert found[0].alike > found[1].alike > 0.5
    found = nearest_moments(query, Moment("c", 0.0, 0.0, 0, 1, 1.0), [a, b], 2, 3)
    assert len(found) == 3, "of three moments of a the middle one overlaps both others"
    assert {(one.path, one.start) for one in found} == {("a", 0.0), ("a", 2.0), ("b", 0.0)}


def test_a_clip_of_the_set_is_nearest_to_its_copy(
    videos: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((videos / "1.mp4").read_bytes())
    command = ["show", "neighbours", str(copy), "--features", str(features), "--most", "2"]
    assert main([*command, "--out", str(tmp_path / "n.png")]) == 0
    assert Image.open(tmp_path / "n.png").height > 3 * 192
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(" 1.00")
    assert first.endswith("1.mp4")


def test_a_video_that_was_replaced_is_named_and_encoded_anew_as_a_query(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, copy = tmp_path / "own", tmp_path / "copy.mp4"
    shutil.copytree(videos, own)
    shutil.copy(own / "1.mp4", copy)
    config = FeaturesConfig(encoder=EncoderSourceConfig(path=Path("demo")), pool="space", readers=0)
    write_features(config, [own], tmp_path / "features")
    assert show_neighbours(copy, tmp_path / "features", tmp_path / "n.png", most=1)
    assert not caplog.records
    shutil.copy(own / "2.mp4", own / "1.mp4")
    line, _ = show_neighbours(copy, tmp_path / "features", tmp_path / "n.png", most=1)
    assert line.endswith(str(own / "1.mp4"))
    assert f"{own / '1.mp4'}: has changed since it was looked at" in caplog.text
    line, _ = show_neighbours(own / "1.mp4", tmp_path / "features", tmp_path / "n.png", most=1)
    assert line.startswith(" 1.00")
    assert line.endswith(str(own / "2.mp4"))


def test_a_model_of_timm_that_was_moved_is_found_by_its_weights(
    videos: Path, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    weights, out = tmp_path / "w.pth", tmp_path / "features"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    encoder = EncoderSourceConfig(timm="test_vit", timm_weights=weights)
    framing = FramingConfig(kind="centre", size=160)
    config = FeaturesConfig(encoder=encoder, framing=framing, pool="space", readers=0)
    write_features(config, [videos], out)
    moved = weights.rename(tmp_path / "moved.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        show_neighbours(videos / "1.mp4", out, tmp_path / "n.png")
    assert show_neighbours(videos / "1.mp4", out, tmp_path / "n.png", model=moved)


def test_features_of_another_encoder_are_refused(
    videos: Path, features: Path, tmp_path: Path, checkpoint: Path
) -> None:
    video, out = videos / "1.mp4", tmp_path / "n.png"
    with pytest.raises(UserError, match=r"features of other weights or settings \(weights_hash"):
        show_neighbours(video, features, out, model=checkpoint)
    with pytest.raises(UserError, match="not a folder of features"):
        show_neighbours(video, tmp_path, out)
    with pytest.raises(UserError, match=r"--at: 9; .* runs to"):
        show_neighbours(video, features, out, at=9.0)
    assert not out.exists()
