"""`vjepa decode train | sample`: trained, resumed, drawn, and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.jobs.tiny_run import metrics, weights

import vjepa
from vjepa.checkpoint import convert, save_model
from vjepa.cli.main import main
from vjepa.data.clips.plan import ClipConfig
from vjepa.demo.synthetic import SyntheticConfig
from vjepa.demo.synthetic_files import synthesise
from vjepa.errors import UserError
from vjepa.jobs.decode import decode_clip, open_decoder, show_samples
from vjepa.jobs.show_time import surprise_of
from vjepa.models import VJEPA, InputConfig, ModelConfig
from vjepa.reporting.pictures import write_moving

_SMALL = (
    *("--decoder.width", "24", "--decoder.depth", "1", "--decoder.heads", "3"),
    *("--data.batch_size", "8", "--optim.warmup_steps", "2", "--optim.peak_lr", "2e-2"),
    *("--training.num_threads", "1"),
    *("--training.log_every_steps", "5", "--training.checkpoint_every_steps", "10"),
    *("--data.loader.frame_cache_gigabytes", "0"),  # its workers cost seconds of imports
    *("--training.keep_every_steps", "10", "--training.health_every_steps", "10"),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SyntheticConfig(num_clips_train=24, num_clips_validation=0, num_clips_test=2)
    return synthesise(config, tmp_path_factory.mktemp("set"), workers=1)[0]


def _train(manifest: Path, out: Path, *more: str, model: str = "demo") -> int:
    source = ("--data.sources.0.manifest", str(manifest), "--data.sources.0.split", "train")
    command = ["decode", "train", "--config", "demo", "--model", model, *source, *_SMALL]
    return main([*command, "--out", str(out), *more])


@pytest.fixture(scope="module")
def run(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("decoder") / "run"
    assert _train(manifest, out, "--optim.steps", "20") == 0
    return out


@pytest.fixture(scope="module")
def video(manifest: Path) -> Path:
    return manifest.parent / "test" / "000000.mp4"


def test_it_learns_and_says_how_well(run: Path) -> None:
    lines = metrics(run)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert "explained_vs_mean_token" in next(line for line in lines if line["kind"] == "health")
    assert {name.partition(".")[0] for name in weights(run, 20)} == {"decoder", "average"}


def test_a_run_that_was_cut_short_ends_with_the_same_weights(
    run: Path, manifest: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000020")
    assert main(["decode", "train", "--out", str(cut)]) == 0
    again = weights(cut, 20)
    assert all(torch.equal(value, again[name]) for name, value in weights(run, 20).items())
    assert _train(manifest, cut, "--optim.steps", "20", "--decoder.width", "48") == 2


def test_too_little_memory_is_known_before_the_work(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--optim.steps", "20", "--data.batch_size", "512", "--training.max_gigabytes", "0.3")
    assert _train(manifest, tmp_path / "run", *more) == 2
    told = capsys.readouterr().err
    assert "needs about" in told
    assert "--optim.accumulation_steps" in told
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_samples_fill_what_is_hidden_and_nothing_else(run: Path, video: Path) -> None:
    opened = open_decoder(run)
    clip, (masks,) = opened.preprocess.pixels(video), opened.masks()
    drawn = decode_clip(opened, clip, masks, seeds=(3, 4, 3), steps=2)
    assert drawn.shape == (3, 3, 8, 32, 32)
    assert torch.equal(drawn[:, :, :4], clip[:, :4].expand(3, -1, -1, -1, -1)), "the first half"
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    # No hidden pixel of the clip reaches the decoder.
    other = clip.clone()
    other[:, 4:] = 255 - other[:, 4:]
    assert torch.equal(decode_clip(opened, other, masks, seeds=(3,), steps=2)[0], drawn[0])
    # And no visible one but through the predictions.
    opened.model.predictor.predictor_proj.weight.data.zero_()
    other[:, :4] = 255 - other[:, :4]
    blind = [decode_clip(opened, c, masks, seeds=(3,), steps=2)[0, :, 4:] for c in (clip, other)]
    assert torch.equal(*blind)


def test_the_command_draws_a_still_and_a_moving_picture(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.png"
    command = ["decode", "sample", str(video), "--decoder", str(run), "--out", str(out)]
    assert main([*command, "--samples", "2", "--steps", "2"]) == 0
    assert "mean absolute error" in capsys.readouterr().out
    still = Image.open(out)
    assert still.width > 8 * 192
    assert still.height > 6 * 192, "clip, seen, two samples, mean, spread"
    moving = Image.open(out.with_suffix(".webp"))
    assert getattr(moving, "n_frames", 1) == 8
    assert main([*command, "--samples", "1", "--steps", "1", "--moving", "mp4"]) == 0
    assert vjepa.load_clip(out.with_suffix(".mp4"), 8, 1).frames.shape[0] == 8
    shutil.copy(video, own := out.with_suffix(".mp4"))
    command[2] = str(own)
    assert main([*command, "--samples", "1", "--steps", "1", "--moving", "mp4"]) == 0
    assert own.read_bytes() == video.read_bytes(), "the video is not written over"
    assert (tmp_path / "s_moving.mp4").is_file()


def test_what_cannot_be_decoded_is_refused(
    run: Path, manifest: Path, video: Path, tmp_path: Path
) -> None:
    demo = vjepa.load_model("demo")
    torch.manual_seed(0)
    other = save_model(tmp_path / "other", VJEPA(demo.config))
    out = tmp_path / "s.png"
    with pytest.raises(UserError, match=r"was trained on other weights than those of .*other"):
        open_decoder(run, other)
    with pytest.raises(UserError, match="holds no decoder but a model"):
        open_decoder(other)
    with pytest.raises(UserError, match="no such folder"):
        open_decoder(tmp_path / "nothing")
    with pytest.raises(UserError, match="--kind: 1, use 0 to 0: the decoder was trained"):
        show_samples(video, run, out, kind=1)
    with pytest.raises(UserError, match=r"s\.webp: must end in .png"):
        show_samples(video, run, tmp_path / "s.webp")
    with pytest.raises(UserError, match="--samples: 0"):
        show_samples(video, run, out, samples=0)
    with pytest.raises(UserError, match="holds a decoder and no model"):
        vjepa.load_model(run)
    short = synthesise(
        SyntheticConfig(num_clips_train=1, num_clips_validation=0, num_clips_test=0, num_frames=5),
        tmp_path / "short",
        workers=1,
    )[0]
    with pytest.raises(UserError, match=r"000000\.mp4.* 5 frames"):
        show_samples(short.parent / "train" / "000000.mp4", run, out)
    assert not out.exists()


def test_an_authors_file_and_a_model_as_v_jepa_2_are_decoded(
    manifest: Path, video: Path, tmp_path: Path
) -> None:
    file = tmp_path / "demo.pth.tar"
    convert("demo", file)
    demo = vjepa.load_model("demo").config
    torch.manual_seed(0)
    rotary = ModelConfig(
        encoder=replace(
            demo.encoder, width=48, heads=3, position="rotary", levels=(0, 2), modalities=True
        ),
        predictor=replace(
            demo.predictor, width=24, heads=1, num_mask_tokens=4, shared_mask_token=1, levels=2
        ),
    )
    for model in (file, save_model(tmp_path / "rotary", VJEPA(rotary))):
        out = tmp_path / f"run_{model.stem}"
        short = ("--num_heads", "3", "--data.clip", "{num_frames: 8, stride: 1}")
        assert _train(manifest, out, "--optim.steps", "2", *short, model=str(model)) == 0
        opened = open_decoder(out)
        clip, masks = opened.preprocess.pixels(video), opened.masks()
        assert len(masks) == 2, "nothing is known of its masks: the paper's"
        for kind, mask in enumerate(masks):
            drawn = decode_clip(opened, clip, mask, kind, steps=1)[0]
            assert (drawn != clip).any()
    write_moving(list(np.zeros((12, 32, 32, 3), np.uint8)), tmp_path / "black.mp4", 0.1)
    found = surprise_of(opened.model, tmp_path / "black.mp4", ClipConfig(num_frames=8, stride=1))
    assert found.errors.shape == (3, 4, 4)
    assert (found.errors > 0).all()


def test_a_decoder_does_not_go_on_with_other_weights(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    torch.manual_seed(0)
    save_model(model, VJEPA(vjepa.load_model("demo").config))
    short = ("--data.clip", "{num_frames: 8, stride: 1}")
    assert _train(manifest, out, "--optim.steps", "1", *short, model=str(model)) == 0
    shutil.rmtree(model)
    save_model(model, VJEPA(vjepa.load_model("demo").config))
    assert main(["decode", "train", "--out", str(out), "--optim.steps", "2"]) == 2
    assert "was begun with other weights" in capsys.readouterr().err


def _objective(folder: Path, name: str) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "objective": name}))
    return str(folder)


def test_models_that_predict_no_features_are_refused(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = vjepa.load_model("demo").config
    pixel = _objective(save_model(tmp_path / "pixel", VJEPA(demo)), "pixel")
    change = InputConfig(content="change")
    blind = replace(demo, encoder=replace(demo.encoder, input=change))
    save_model(tmp_path / "change", VJEPA(blind))
    for model, says in (
        (pixel, "'pixel', which predicts no features"),
        (str(tmp_path / "change"), "'change' of a clip and not its pixels"),
        (str(tmp_path / "missing"), "no such file or folder"),
    ):
        out = tmp_path / "run"
        assert _train(manifest, out, model=model) == 2
        assert says in capsys.readouterr().err
        assert not out.exists()
    odd = ("--decoder.width", "31", "--decoder.heads", "31")
    assert _train(manifest, tmp_path / "run", *odd) == 2
    assert "decoder.width: 31 must be even" in capsys.readouterr().err
    assert main(["decode", "train", "--model", "demo", "--decoder.heads", "7", "--out", "o"]) == 2
    assert "error: decoder.heads: 7: width: 160 must be a multiple" in capsys.readouterr().err
    assert main(["decode", "train", "--model", "demo", "--out", str(tmp_path / "run")]) == 2
    assert "data.sources is empty" in capsys.readouterr().err
