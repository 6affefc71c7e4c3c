"""`vjepa finetune`: from labelled videos to classes of any video, through the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.evaluation.tiny_videos import coloured_frames, with_bad_video, write_video
from tests.jobs.finetune.tiny_finetune import write_recipe
from tests.jobs.probe.tiny_probe import relabelled
from tests.jobs.tiny_run import metrics, weights

import vjepa
from vjepa.checkpoint import read_encoder
from vjepa.cli.main import main
from vjepa.config import load_config
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import preprocess_of
from vjepa.jobs.export import export
from vjepa.jobs.finetune import job
from vjepa.jobs.finetune.config import FinetuneConfig
from vjepa.jobs.finetune.inputs import build_task, merged, open_inputs
from vjepa.jobs.finetune.saved import load_finetuned


@pytest.fixture(scope="module")
def recipe(videos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("finetune"), videos, checkpoint)


def _finetune(recipe: Path, out: Path, *options: object) -> int:
    return main(["finetune", "--config", str(recipe), "--out", str(out), *map(str, options)])


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 updates, with a look at validation videos."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ("--data.validation.split", "validation", "--training.evaluate_every_steps", 3)
    assert _finetune(recipe, out, *options) == 0
    return out


def test_a_run_is_trained_measured_and_used(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((run / "result.json").read_text())
    measured = result["test"]["metrics"]
    assert (result["num_train"], result["num_classes"], measured["count"]) == (24, 3, 11)
    assert result["which"] == "fine-tuned"
    looks = [line for line in metrics(run) if line["kind"] == "evaluation"]
    assert [(line["step"], line["validation/count"]) for line in looks] == [(3, 9), (6, 9)]
    assert metrics(run)[0]["loss"] == pytest.approx(np.log(3), abs=1e-3)  # the first: ln(classes)
    # The same figure again, digit for digit.
    again = tmp_path / "again.json"
    options = ("--split", "test", "--device", "cpu", "--json", str(again))
    assert main(["finetune", "eval", str(run), str(videos), *options]) == 0
    found = json.loads(again.read_text())
    assert found["metrics"] == measured
    assert found["encoder"] == result["encoder"]
    write_video(tmp_path / "new.mp4", coloured_frames("green", 5))
    capsys.readouterr()
    asked = ["finetune", "predict", str(run / "model"), str(tmp_path / "new.mp4"), "--top", "3"]
    assert main([*asked, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(colour in said for colour in ("red", "green", "blue"))
    # The encoder is there for features, too; a probe on it sees one clip, not the test's views.
    encoder, _ = read_encoder(run / "model")
    assert load_finetuned(run).saved.settings.view.join == "average"
    # One door for what names classes.
    opened = vjepa.load_probe(run, device="cpu")
    assert opened.saved.encoder == load_finetuned(run, device="cpu").saved.encoder
    assert opened.trained_on
    for unread in ("encoder", "cache_dir"):
        with pytest.raises(UserError, match="a fine-tuned model holds its encoder"):
            vjepa.load_probe(run, **{unread: run / "model"})
    assert preprocess_of(run / "model", encoder.config).view == ViewConfig(crop_size=32)
    saved = load_file(run / "model" / "model.safetensors")
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, saved["encoder.blocks.0.mlp.fc1.weight"])
    # Exported, the run has its classes.
    report = export(run, tmp_path / "tuned.pt2", "torch-export", batch=2)
    assert report.result == "shares of 3 classes, float32 [batch, 3]"
    program, probe = torch.export.load(tmp_path / "tuned.pt2").module(), load_finetuned(run)
    pixels = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    pooled = probe.extractor.frozen.encoder(encoder.normalise(pixels))
    torch.testing.assert_close(program(pixels), probe.saved.head(pooled).softmax(dim=-1))
    # Videos that it was trained on are refused.
    assert main(["finetune", "eval", str(run), str(videos), "--device", "cpu"]) == 2
    assert "trained or chosen on" in capsys.readouterr().err


def test_a_file_is_no_fine_tuned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is the remedy that of a released probe, whose options this command does not have."""
    (tmp_path / "probe.pt").touch()
    assert main(["finetune", "eval", str(tmp_path / "probe.pt"), "m.parquet"]) == 2
    said = capsys.readouterr().err
    assert "probe.pt: not a fine-tuned model" in said
    assert "--label" not in said


def test_resumed_and_accumulated_runs_are_the_same(run: Path, recipe: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    for name in ("checkpoints/step_00000004", "checkpoints/step_00000006", "model", "result.json"):
        target = cut / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert main(["finetune", "--out", str(cut)]) == 0
    ours, theirs = weights(cut, 6), weights(run, 6)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(cut) == metrics(run)
    # In two micro-batches: mixing, drop path and dropout follow from the samples' numbers.
    parts = tmp_path / "parts"
    regularised = ("--classifier.dropout", 0.3, "--trained.drop_path", 0.5)
    assert _finetune(recipe, tmp_path / "one", *regularised, "--optim.steps", 2) == 0
    options = (*regularised, "--optim.steps", 2, "--optim.accumulation_steps", 2)
    assert _finetune(recipe, parts, *options) == 0
    _assert_close(weights(parts, 2), weights(tmp_path / "one", 2))


def test_compiled_blocks_in_bfloat16_train_the_same(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a GPU, drop path and layer-wise rates included, but run without a compiler."""
    compiled, traced = torch.nn.Module.compile, list[torch.nn.Module]()

    def trace(module: torch.nn.Module) -> None:
        traced.append(module)
        compiled(module, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    options = ("--training.precision", "bfloat16", "--trained.drop_path", 0.5, "--optim.steps", 3)
    for name, compile_it in (("plain", "false"), ("compiled", "true")):
        asked = ("--training.compile", compile_it)
        assert _finetune(recipe, tmp_path / name, *options, *asked) == 0
    assert traced
    plain, ours = (metrics(tmp_path / name) for name in ("plain", "compiled"))
    for mine, other in zip(ours, plain, strict=True):
        for key in ("loss", "grad_norm/encoder", "grad_norm/head"):
            assert mine[key] == pytest.approx(other[key], rel=0.02, abs=1e-6), key
    assert (tmp_path / "compiled" / "result.json").is_file()


def _assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in theirs.items():
        if not name.endswith("qkv.bias"):  # the keys' part has no gradient but rounding noise
            torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=0, msg=name)


def test_it_learns_what_it_is_shown(recipe: Path, videos: Path, tmp_path: Path) -> None:
    options = ("--optim.steps", 60, "--mix.probability", 0, "--training.log_every_steps", 30)
    more = ("--data.augment.rand_augment", "false", "--training.checkpoint_every_steps", 60)
    assert _finetune(recipe, tmp_path / "run", *options, *more) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["metrics"]["top1"] > 0.6  # three colours


def test_averaged_weights_are_what_is_measured(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    momentum = ("--ema.start_momentum", 0.9, "--ema.final_momentum", 0.9, "--optim.steps", 2)
    readout = ("--classifier.readout", "final_norm_then_mean")
    assert _finetune(recipe, out, *momentum, *readout) == 0
    stored, model = weights(out, 2), load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(model[name], stored[f"target_{name}"]) for name in model)
    assert not torch.equal(model["head.linear.weight"], stored["head.linear.weight"])
    assert "head.norm.weight" not in model


@pytest.mark.parametrize("name", ["videomae_tiny.pth", "mvd_tiny.pth"])
def test_a_model_of_others_is_fine_tuned_with_its_table_of_positions(
    name: str, recipe: Path, golden_dir: Path, videos: Path, tmp_path: Path
) -> None:
    """It has no predictor, and its table lies in the checkpoint, since nothing can compute it."""
    out, file = tmp_path / "run", golden_dir / "baselines" / name
    size = 64 if name.startswith("videomae") else None  # a file of MVD holds its table
    given = ("--encoder.path", file, "--encoder.num_heads", 3, "--optim.steps", 2)
    assert _finetune(recipe, out, *given, "--encoder.image_size", size or "null") == 0
    begun, _ = read_encoder(file, num_heads=3, image_size=size)
    stored = load_file(out / "model" / "model.safetensors")
    assert torch.equal(stored["encoder.pos_embed"], begun.pos_embed)
    name = "blocks.0.mlp.fc1.weight"
    assert not torch.equal(stored[f"encoder.{name}"], begun.get_parameter(name))
    probe = load_finetuned(out, device="cpu")
    video = torch.randn(2, 3, 16, 64, 64)
    encoder, _ = read_encoder(out / "model")  # as `vjepa features` takes it
    with torch.no_grad():
        tokens = encoder(video, final_norm=False)
        pooled = probe.extractor.frozen.encoder(video)
        torch.testing.assert_close(tokens.mean(dim=1, keepdim=True), pooled, atol=1e-6, rtol=0)
    (answer,) = probe.predict(next(videos.parent.glob("test_*.mp4")))
    assert {one.name for one in answer.classes} == {"blue", "green", "red"}
    # It goes on from its checkpoint, to the same weights.
    shutil.rmtree(out / "checkpoints" / "step_00000002")
    shutil.rmtree(out / "model")
    (out / "result.json").unlink()
    assert main(["finetune", "--out", str(out)]) == 0


@pytest.mark.parametrize("last_blocks", [0, 1])
def test_only_the_last_blocks_are_trained(recipe: Path, last_blocks: int, checkpoint: Path) -> None:
    config = load_config(FinetuneConfig, [recipe], [f"trained.last_blocks={last_blocks}"])
    inputs = open_inputs(config)
    task = build_task(config, inputs.encoder, 3)
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    blocks = {name for name in trained if name.startswith("encoder.blocks.0.")}
    assert {name for name in trained if name.startswith("encoder.")} == blocks
    assert bool(blocks) == (last_blocks == 1)
    assert "head.linear.weight" in trained


def test_lora_trains_small_matrices_and_ends_as_a_plain_model(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--trained.lora_rank", 2, "--optim.steps", 3, "--trained.drop_path", 0)
    assert _finetune(recipe, out, *options) == 0
    stored, model = weights(out, 3), load_file(out / "model" / "model.safetensors")
    assert any(".lora_A." in name for name in stored)
    with pytest.raises(UserError, match=r"give the plain model that it writes at its end"):
        read_encoder(out)
    assert not any("lora" in name or "base_layer" in name for name in model)
    layer = "encoder.blocks.0.attn.qkv"
    moved = model[f"{layer}.weight"] - stored[f"{layer}.base_layer.weight"]
    assert moved.abs().max() > 0
    assert torch.linalg.svdvals(moved)[2] < 1e-6, "its rank is at most 2"
    # The merged weights compute what the adapters did.
    config = load_config(FinetuneConfig, [out / "config.yaml"])
    task = build_task(config, open_inputs(config).encoder, 3).eval()
    task.load_state_dict(stored)
    probe = load_finetuned(out, device="cpu")
    video = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        tokens = task.encoder(video, final_norm=False)
        pooled = probe.extractor.frozen.encoder(video)
        torch.testing.assert_close(task.head(tokens), probe.saved.head(pooled), atol=1e-5, rtol=0)
    resumed = merged(stored, config.trained.lora_scale)
    assert torch.equal(resumed[f"{layer}.weight"], model[f"{layer}.weight"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mix.group", 3), "mix.group: 3 does not divide the 8 clips of a micro-batch"),
        (("--mix.group", 1), "mix.group: 1 mixes nothing; give 2 or more, or mix.probability 0"),
        (("--optim.accumulation_steps", 3), "data.batch_size: 4 videos cannot be divided into 3"),
        (("--data.label", "taste"), "no label 'taste' (labels: colour, parity)"),
        (("--data.validation.split", "test"), "in data.test too"),
        (("--data.test.split", "train"), "in data.train too"),
        (("--data.labels_per_class", 9), "fewer than the 9 asked for"),
        (("--trained.last_blocks", 2), "trained.last_blocks: 2, use at most the encoder's 1"),
        (("--trained", "{last_blocks: 0, lora_rank: 2}"), "lora_rank: last_blocks 0 trains no"),
        (("--encoder.timm", "x"), "give path or timm"),
        (("--data.size", 30), "data.size 30 must be multiples"),
        (("--encoder.path", "nowhere"), "nowhere: no such file or folder"),
        (("--data.sampling", "sparse"), "sampling"),
    ],
)
def test_bad_input_is_one_line_and_claims_nothing(
    recipe: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert _finetune(recipe, out, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert not out.exists()


@pytest.mark.parametrize(("gigabytes", "parts"), [(0.3, 4), (0.2, None)])
def test_parts_that_memory_asks_for_are_of_whole_videos_and_groups(
    recipe: Path, tmp_path: Path, gigabytes: float, parts: int | None
) -> None:
    config = load_config(FinetuneConfig, [recipe], [f"training.max_gigabytes={gigabytes}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_memory_needed", lambda *given: {"activations": 1e9 / given[4]})
        with pytest.raises(UserError, match="a smaller recipe") as caught:
            job.run(config, tmp_path / "run")
    found = re.findall(r"--optim\.accumulation_steps (\d+)", str(caught.value))
    assert {*map(int, found)} == ({parts} if parts else set())


def test_a_time_that_is_over_at_once_is_said(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _finetune(recipe, tmp_path, "--training.max_minutes", "1e-9") == 2
    assert "training.max_minutes: over before the first update" in capsys.readouterr().err


def test_bad_labels_and_other_classes(
    recipe: Path, run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(colour: str, split: str, number: int) -> dict[str, str | None]:
        return {"colour": None if (split, number) == ("train", 4) else colour}

    def foreign(colour: str, split: str, number: int) -> dict[str, str | None]:
        return {"colour": "violet" if (split, number) == ("test", 0) else colour}

    def fourth(colour: str, split: str, number: int) -> dict[str, str | None]:
        return {"colour": "violet" if (split, number) == ("train", 0) else colour}

    for relabel, said in (
        (some, "label 'colour' is missing in 1 of 24 rows"),
        (foreign, "class 'violet' of label 'colour' has no training sample"),
    ):
        manifest = relabelled(videos, tmp_path / "other.parquet", relabel)
        out = tmp_path / "bad"
        assert _finetune(recipe, out, "--data.train.manifest", manifest) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()
    # A run goes on with the classes that it began with, or not at all: nothing is changed.
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    config = (cut / "config.yaml").read_text()
    other = relabelled(videos, tmp_path / "four.parquet", fourth)
    (cut / "config.yaml").write_text(config.replace(str(videos), str(other)))
    assert main(["finetune", "--out", str(cut)]) == 2
    error = capsys.readouterr().err
    assert "its checkpoint has 3 classes (blue, green, red), data.label colour now has 4" in error
    assert weights(cut, 6).keys() == weights(run, 6).keys()
    # Fewer videos than at the beginning.
    (cut / "config.yaml").write_text(
        config.replace("labels_per_class: null", "labels_per_class: 2")
    )
    assert main(["finetune", "--out", str(cut)]) == 2
    assert "this run began with 24 labelled videos" in capsys.readouterr().err
    assert main(["finetune", "--out", str(run), "--optim.peak_lr", "1e-5"]) == 2
    assert "another config (optim.peak_lr" in capsys.readouterr().err


def test_a_bad_training_video_is_replaced_and_a_bad_test_video_named(
    recipe: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = tmp_path / "train.parquet", tmp_path / "tested" / "test.parquet"
    with_bad_video(videos, "train", train)
    test.parent.mkdir()
    broken = with_bad_video(videos, "test", test)
    out, steps = tmp_path / "run", ("--optim.steps", 6)
    options = ("--data.train.manifest", train, "--data.test.manifest", test, *steps)
    with_bad_video(videos, "test", known := test.parent / "known.parquet", is_known=True)
    assert _finetune(recipe, out, *options[:3], known, *steps) == 2
    assert "broken.mp4: cannot be evaluated (truncated)" in capsys.readouterr().err
    assert not (out / "config.yaml").exists(), "before the training"
    assert _finetune(recipe, out, *options) == 2
    assert "broken.mp4: cannot be evaluated" in capsys.readouterr().err
    # Training is done and kept; only the measurement is made again.
    assert _finetune(recipe, out, *options, "--data.on_bad_video", "list") == 0
    assert f"Not evaluated: {broken}" in capsys.readouterr().out
    assert "broken.mp4" in (out / "bad_videos.jsonl").read_text()


def test_what_is_no_finetuned_model_says_so(
    recipe: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, said in (
        (tmp_path, "it was not written by `vjepa finetune`"),
        (checkpoint, "a checkpoint without a classifier"),
    ):
        assert main(["finetune", "predict", str(folder), "x.mp4"]) == 2
        assert said in capsys.readouterr().err
