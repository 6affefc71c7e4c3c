from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.evaluation.tiny_videos import with_bad_video, write_manifest
from tests.jobs.probe.tiny_probe import TINY, evaluate_here, probe_config, relabelled, train_probe

from vjepa import extract_features, load_encoder
from vjepa.checkpoint import save_model
from vjepa.cli.main import main
from vjepa.config import dump_yaml, from_dict, load_config
from vjepa.data import Manifest
from vjepa.data.manifest.manifest import ManifestRow
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.labels import load_split
from vjepa.evaluation.results import load_result
from vjepa.evaluation.saved_probe import load_saved_probe
from vjepa.jobs.probe import probe as probe_job
from vjepa.jobs.probe.config import ProbeConfig, VideosConfig
from vjepa.jobs.probe.inputs import open_inputs
from vjepa.jobs.probe.predict import load_probe
from vjepa.jobs.probe.probe import evaluate, train, train_splits
from vjepa.models import VJEPA, InputConfig
from vjepa.tasks import Output
from vjepa.tasks.classification import Classification


@pytest.fixture(scope="module")
def trained(videos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained probe."""
    out = tmp_path_factory.mktemp("probes") / "colour"
    train(probe_config(videos, checkpoint), out)
    return out


def test_features_that_have_no_room_are_refused_before_one_is_computed(
    videos: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """24 videos of 2 x 2 x 2 tokens, 24 wide, in float32: 18 432 bytes."""
    monkeypatch.setattr(probe_job, "available_bytes", lambda: 18_432 - 1)
    config = probe_config(videos, checkpoint)
    with pytest.raises(UserError, match=r"features of 24 clips take .* memory; 0\.0 GB are free: "):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(probe_job, "available_bytes", lambda: 18_432)
    caplog.set_level("INFO", "vjepa")
    train(probe_config(videos, checkpoint, **{"optim.epochs": 1}), tmp_path / "out")
    assert "features of 24 clips take about 0.018 MB of memory" in caplog.text
    cached = {"features.cache_dir": str(tmp_path / "cache")}
    inputs = open_inputs(probe_config(videos, checkpoint, **cached), None)
    probe_job.check_room(inputs)
    assert f"of disk ({tmp_path / 'cache'})" in caplog.text


def test_a_probe_learns_counts_every_video_and_writes_everything_down(
    trained: Path, videos: Path, checkpoint: Path
) -> None:
    result = load_result(trained)
    assert result.test is not None
    assert result.test.metrics.count == 11  # uneven batches: 5 + 5 + 1
    assert result.test.metrics.top1 > 0.7
    assert result.num_train == 24
    assert result.num_classes == 3
    assert len(result.selection) == 4
    assert sum(head.chosen for head in result.selection) == 1
    assert {head.count for head in result.selection} == {6}  # two of each class held out
    assert result.config["data"]["clip"]["num_frames"] == 4  # as in the pretraining
    assert result.config["data"]["clip"]["stride"] == 2
    assert result.versions["torch"] == torch.__version__
    assert set(result.versions) == {"vjepa", "torch", "python", "av", "numpy", "torchvision"}
    assert sum(entry.count for entry in result.test.metrics.calibration) == 11
    assert set(result.seconds) == {"set-up", "features", "training", "test"}
    split = load_split(trained / "split.json")
    assert len(split.fit) == 18
    assert not set(split.fit_paths) & set(split.choose_paths)
    assert "chosen" in (trained / "result.md").read_text()
    assert (trained / "metrics.jsonl").read_text().count('"kind": "train"') >= 1
    stored = from_dict(ProbeConfig, result.config)
    assert load_config(ProbeConfig, [trained / "config.yaml"]) == stored
    saved = load_saved_probe(trained)
    assert saved.classes == ("blue", "green", "red")
    assert saved.encoder.path == str(checkpoint)
    assert result.test.metrics.loss > 0.0
    assert asdict(evaluate_here(trained, videos)) == asdict(result.test)  # the very same figures
    assert (trained / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert not (trained / "calibration.png").exists()  # 11 answers say nothing of it
    with (trained / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len({answer["path"] for answer in answers}) == 11
    right = sum(answer["answer"] == answer["class"] for answer in answers)
    assert right == result.test.metrics.correct
    losses = [-math.log(float(answer["share"])) for answer in answers]
    assert math.fsum(losses) / 11 == pytest.approx(result.test.metrics.loss, rel=1e-9)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_who_stopped_a_probe_is_told_by_the_exit_code(
    videos: Path, checkpoint: Path, tmp_path: Path, number: int, code: int, capsys
) -> None:
    config = probe_config(videos, checkpoint)
    (tmp_path / "probe.yaml").write_text(dump_yaml(config))
    forward, calls = Classification.forward, []

    def signalled(self: Classification, *inputs: torch.Tensor) -> Output:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return forward(self, *inputs)

    command = ["probe", "train", "--config", str(tmp_path / "probe.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "forward", signalled)
        assert main([*command, "--out", str(tmp_path / "out")]) == code
    by = {75: "by the system", 130: "at your request"}[code]
    assert f"interrupted: stopped {by}" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "out")]) == 0


def test_training_again_gives_the_same_probe(
    trained: Path, videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(99)  # nothing depends on torch's generator
    again = train(probe_config(videos, checkpoint), tmp_path / "again")
    first = load_result(trained)
    assert again.selection == first.selection
    assert again.test == first.test
    assert (tmp_path / "again/probe.safetensors").read_bytes() == (
        trained / "probe.safetensors"
    ).read_bytes()


def test_a_random_encoder_of_the_same_architecture(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    changes = {"encoder.which": "random", "encoder.seed": 3, "optim.learning_rates": [1e-3]}
    result, test = train_probe(videos, checkpoint, tmp_path / "a", **changes)
    other, _ = train_probe(videos, checkpoint, tmp_path / "b", **{**changes, "encoder.seed": 4})
    assert result.which == "random"
    assert result.weights_hash != other.weights_hash
    # The probe file alone rebuilds the random weights.
    assert evaluate_here(tmp_path / "a", videos).metrics == test.metrics


def test_context_encoders_and_pixel_checkpoints(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    state, hashes = load_file(checkpoint / "model.safetensors"), set()
    moved = Path(shutil.copytree(checkpoint, tmp_path / "moved"))
    state["encoder.norm.bias"] = state["encoder.norm.bias"] + 1.0
    save_file(state, moved / "model.safetensors", metadata={"format": "pt"})
    steps = {"optim.epochs": None, "optim.steps": 2, "optim.weight_decays": [0.01]}
    for which in ("target", "context"):
        changes = {**steps, "encoder.which": which}
        hashes.add(train_probe(videos, moved, tmp_path / which, **changes)[0].weights_hash)
    assert len(hashes) == 2
    described = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(described | {"objective": "pixel"}))
    kept = {name: t for name, t in state.items() if name.startswith("encoder.")}
    save_file(kept, moved / "model.safetensors", metadata={"format": "pt"})
    _, test = train_probe(videos, moved, tmp_path / "pixel", **steps)
    assert test.metrics.count == 11


def test_low_shot_uses_k_rows_of_each_class(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = probe_config(videos, checkpoint, **{"data.labels_per_class": 3, "seed": 5})
    result = train(config, tmp_path / "x")
    split = load_split(tmp_path / "x/split.json")
    assert result.num_train == 9
    assert len(split.fit) == 6
    assert len(split.choose) == 3
    assert split.labels_per_class == 3
    one_head = {"optim.learning_rates": [1e-3], "optim.weight_decays": [0.01]}
    config = probe_config(videos, checkpoint, **one_head, **{"data.label_fraction": 0.5})
    result = train(config, tmp_path / "y")
    assert result.selection == ()  # nothing to choose, so nothing is held out
    assert len(load_split(tmp_path / "y/split.json").fit) == 12
    assert result.num_train == 12


def test_validation_videos_choose_where_they_are_given(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    config = probe_config(videos, checkpoint, **{"data.validation.split": "validation"})
    result = train(config, tmp_path / "x")
    assert {head.count for head in result.selection} == {9}
    assert load_split(tmp_path / "x/split.json").choose == ()
    assert result.num_train == 24
    with pytest.raises(UserError, match=r"9 of its 9 videos are ones that .* chosen on"):
        evaluate_here(tmp_path / "x", videos, split="validation")


@pytest.mark.parametrize(
    "how",
    [{"probe.kind": "ridge"}, {"optim.learning_rates": [1e-3], "optim.weight_decays": [0.01]}],
)
def test_validation_videos_are_left_alone_where_nothing_is_chosen(
    videos: Path,
    checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: dict[str, Any],
) -> None:
    caplog.set_level("INFO", "vjepa")
    config = probe_config(videos, checkpoint, **{"data.validation.split": "validation", **how})
    assert train(config, tmp_path / "x").selection == ()
    assert "data.validation: not used: with one head there is nothing to choose" in caplog.text
    assert load_split(tmp_path / "x/split.json").validation_paths == ()
    assert evaluate_here(tmp_path / "x", videos, split="validation").metrics.count == 9


def test_refit_trains_the_chosen_head_on_all_rows(
    trained: Path, videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    plain, _ = train_probe(videos, checkpoint, tmp_path / "plain", **{"optim.refit": False})
    assert plain.selection == load_result(trained).selection
    # Training the chosen setting alone on all rows is what the refit does.
    chosen = next(head for head in plain.selection if head.chosen)
    setting = {
        "optim.learning_rates": [chosen.learning_rate],
        "optim.weight_decays": [chosen.weight_decay],
    }
    train_probe(videos, checkpoint, tmp_path / "alone", **setting)
    weights = [
        (folder / "probe.safetensors").read_bytes()
        for folder in (tmp_path / "alone", trained, tmp_path / "plain")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_features_come_from_the_cache(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "videos"
    shutil.copytree(videos.parent, own)
    cache = {"features.cache_dir": str(tmp_path / "cache")}
    config = probe_config(own / "manifest.parquet", checkpoint, **cache)
    train(config, tmp_path / "first")
    for video in own.glob("*.mp4"):
        video.unlink()  # nothing is read any more
    second = train(replace(config, seed=1), tmp_path / "second")
    assert second.test is not None
    assert second.test.metrics.count == 11
    other_label = {"data.label": "parity", "data.labels_per_class": 3}
    other = probe_config(own / "manifest.parquet", checkpoint, **cache, **other_label)
    assert train(other, tmp_path / "3").label == "parity"
    with pytest.raises(UserError, match="cannot be evaluated"):
        train(replace(config, encoder=replace(config.encoder, which="random")), tmp_path / "4")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_video_that_the_manifest_knows_to_be_bad_is_refused_before_features(
    videos: Path, checkpoint: Path, tmp_path: Path, split: str
) -> None:
    manifest = tmp_path / "m.parquet"
    with_bad_video(videos, split, manifest, is_known=True)
    with pytest.raises(UserError, match=r"broken\.mp4: cannot be evaluated \(truncated\)"):
        open_inputs(probe_config(manifest, checkpoint))
    open_inputs(probe_config(manifest, checkpoint, **{"data.on_bad_video": "list"}))


@pytest.mark.parametrize("online", [False, True])
def test_bad_videos_stop_the_job_or_are_named(
    videos: Path, checkpoint: Path, tmp_path: Path, online: bool
) -> None:
    short = {"features.online": online, "optim.epochs": 1, "optim.weight_decays": [0.01]}
    listing = {**short, "data.on_bad_video": "list"}
    manifest = tmp_path / "m.parquet"
    for split, counts in (("test", (24, 10)), ("train", (23, 11))):
        broken = with_bad_video(videos, split, manifest)
        with pytest.raises(UserError, match=r"broken\.mp4: cannot be evaluated"):
            train(probe_config(manifest, checkpoint, **short), tmp_path / split)
        result, test = train_probe(manifest, checkpoint, tmp_path / split, **listing)
        assert (result.num_train, test.metrics.count) == counts
        listed = test.bad_videos if split == "test" else result.train_bad_videos
        assert [bad.path for bad in listed] == [broken]
        assert broken in (tmp_path / split / "result.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.path": None}, r"encoder\.path: not set"),
        ({"encoder.path": "nowhere"}, "nowhere"),
        ({"data.label": None}, r"data\.label: not set"),
        ({"data.label": "color"}, r"no label 'color' \(labels: colour, parity\)"),
        ({"data.train.manifest": None}, r"data\.train\.manifest: not set"),
        ({"data.train.split": "trian"}, "no row of split 'trian'"),
        ({"data.test.split": "tst"}, "no row of split 'tst'"),
        ({"data.train.split": None}, r"data\.test: 11 of its 11 videos are in data\.train too"),
        ({"data.test.split": "train"}, r"data\.test: 24 of its 24 videos are in data\.train too"),
        (
            {"data.validation.split": "test"},
            r"data\.test: 11 of its 11 videos are in data\.validation too",
        ),
        ({"data.labels_per_class": 9}, "has 8 training rows"),
        ({"data.clip": {"num_frames": 3, "stride": 2}}, "multiples of the encoder's tubelet"),
        ({"probe.num_heads": 7}, r"probe\.num_heads: 7 must divide the encoder's width"),
    ],
    ids=str,
)
def test_bad_input(
    videos: Path, checkpoint: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(probe_config(videos, checkpoint, **changes), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("split", "value", "message"),
    [
        ("train", None, "label 'colour' is missing in 1 of 24 rows"),
        ("test", None, "label 'colour' is missing in 1 of 11 rows"),
        ("test", "mauve", "class 'mauve' of label 'colour' has no training sample"),
    ],
)
def test_incomplete_labels(
    videos: Path, checkpoint: Path, tmp_path: Path, split: str, value: str | None, message: str
) -> None:
    def relabel(colour: str, part: str, number: int) -> dict[str, str | None]:
        return {"colour": value if (part, number) == (split, 0) else colour}

    manifest = relabelled(videos, tmp_path / "m.parquet", relabel)
    with pytest.raises(UserError, match=message):
        train(probe_config(manifest, checkpoint), tmp_path / "x")


def test_every_way_to_a_figure_refuses_training_videos(
    trained: Path, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = r"24 of its 44 videos are ones that this probe was trained .* \(first: .*\); name the"
    with pytest.raises(UserError, match=message):
        evaluate_here(trained, videos, split=None)
    with pytest.raises(UserError, match="24 of its 24 videos are ones that"):
        evaluate_here(trained, videos, split="train")
    found = evaluate_here(trained, videos, split="train", allow_training_videos=True)
    assert (found.metrics.count, found.trained_on) == (24, 24)
    paths = sorted(videos.parent.glob("train_*.mp4"))[:2]
    load_probe(trained, device="cpu").predict([*paths, videos.parent / "test_000.mp4"])
    assert "2 of these 3 videos trained the probe" in caplog.text


def test_copies_of_training_videos_under_other_names_are_counted(
    trained: Path, videos: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, rows = Manifest.open(videos), []
    for row in range(3):  # of the training part; the last is no copy but of equal size
        own = tmp_path / f"{row}.mp4"
        content = bytearray(Path(manifest.path(row)).read_bytes())
        if row == 2:
            content[-5] ^= 1
        own.write_bytes(content)
        labels = {"colour": manifest.labels("colour")[row]}
        rows.append(ManifestRow(info=replace(manifest.row(row), path=str(own)), labels=labels))
    copied = write_manifest(rows, tmp_path / "copied.parquet")
    found = evaluate_here(trained, copied, split=None)
    assert (found.metrics.count, found.trained_on) == (3, 2)
    assert "videos: 2 of its 3 videos, under another name, are ones that this" in caplog.text
    changes = {"data.test.manifest": str(copied), "data.test.split": None, "optim.epochs": 1}
    _, test = train_probe(videos, checkpoint, tmp_path / "x", **changes)
    assert test.trained_on == 2
    assert "2 of these videos, or copies" in (tmp_path / "x/result.md").read_text()


def test_few_labels_train_for_some_hundred_updates(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    one = {"optim.learning_rates": [1e-3], "optim.weight_decays": [0.0], "optim.epochs": 1}
    result, _ = train_probe(videos, checkpoint, tmp_path / "x", **one, **{"optim.min_steps": 300})
    assert result.steps == 300
    assert "Head: 300 updates on 24 labelled videos" in (tmp_path / "x/result.md").read_text()
    more, _ = train_probe(videos, checkpoint, tmp_path / "y", **one, **{"optim.min_steps": 2})
    assert more.steps == 3  # one pass in batches of 8
    assert load_config(ProbeConfig).optim.min_steps == 300


def test_weights_that_are_not_finite_are_refused(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    state = load_file(checkpoint / "model.safetensors")
    for number, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        broken = Path(shutil.copytree(checkpoint, tmp_path / f"model{number}"))
        state["target_encoder.blocks.0.mlp.fc1.weight"][0, 0] = value
        save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="finite"):
            train(probe_config(videos, broken), tmp_path / f"probe{number}")


def test_an_image_among_videos(
    trained: Path, videos: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = tmp_path / "still.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(still)
    manifest = Manifest.open(videos)
    splits = manifest.table.column("split").to_pylist()
    rows = [
        ManifestRow(info=manifest.row(row), split=splits[row], labels={"colour": colour})
        for row, colour in enumerate(manifest.labels("colour"))
    ]
    image = ManifestRow(info=inspect_file(str(still)), split="test", labels={"colour": "red"})
    mixed = write_manifest([*rows, image], tmp_path / "mixed.parquet")
    message = r"split test: 1 of its 12 files are images among videos \(first image: .*still\.png\)"
    with pytest.raises(UserError, match=message):
        train(probe_config(mixed, checkpoint), tmp_path / "x")
    with pytest.raises(UserError, match=message):
        evaluate(trained, VideosConfig(manifest=mixed, split="test"))
    left = train(probe_config(mixed, checkpoint, **{"data.on_bad_video": "list"}), tmp_path / "y")
    videos_alone = VideosConfig(manifest=mixed, split="test")
    assert left.test is not None
    assert left.test.metrics.count == 11
    assert evaluate(tmp_path / "y", videos_alone, on_bad_video="list").metrics == left.test.metrics
    assert "1 of its 12 files are images among videos" in caplog.text
    images = write_manifest([image], tmp_path / "images.parquet")
    changes = {"data.test.manifest": str(images)}
    with pytest.raises(UserError, match=r"data\.test: its files are images, those of data\.train"):
        train(probe_config(videos, checkpoint, **changes), tmp_path / "x")
    with pytest.raises(UserError, match="its files are images, the probe was trained on videos"):
        evaluate(trained, VideosConfig(manifest=images))
    load_probe(trained, device="cpu").predict([still])
    assert "trained on videos, and 1 of these 1 files are others" in caplog.text
    assert not (tmp_path / "x").exists()


def test_an_empty_manifest(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    empty = Manifest.open(videos).table.slice(0, 0)
    Manifest(empty, tmp_path).write(tmp_path / "m.parquet")
    with pytest.raises(UserError, match="has no rows"):
        train(probe_config(tmp_path / "m.parquet", checkpoint), tmp_path / "x")


def test_nothing_in_out_is_overwritten(
    trained: Path, videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    config = probe_config(videos, checkpoint)
    before = {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()}
    assert train(config, trained).date == load_result(trained).date, "it is done already"
    with pytest.raises(UserError, match="holds a probe of another config"):
        train(replace(config, seed=config.seed + 1), trained)
    assert {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()} == before
    for name, text in (("config.yaml", "seed: 0\nobjective: vjepa\n"), ("notes.txt", "mine")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
        before = {path: path.read_bytes() for path in folder.iterdir()}
        several = replace(config, data=replace(config.data, num_splits=2, labels_per_class=3))
        for job, wanted in ((train, config), (train_splits, several)):
            with pytest.raises(UserError, match=r"give (another|a new or empty) --out"):
                job(wanted, folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_probe_for_another_encoder_is_refused(
    trained: Path, videos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = save_model(tmp_path / "other", VJEPA(TINY))
    with pytest.raises(UserError, match="trained for another encoder"):
        evaluate_here(trained, videos, encoder=other)
    row = ManifestRow(info=Manifest.open(videos).row(0))
    unlabelled = write_manifest([row], tmp_path / "m.parquet")
    with pytest.raises(UserError, match="no label 'colour'"):
        evaluate(trained, VideosConfig(manifest=unlabelled))


def test_an_encoder_that_has_moved_is_asked_for(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "before"
    shutil.copytree(checkpoint, moved)
    _, test = train_probe(videos, moved, tmp_path / "x", **{"optim.epochs": 1})
    moved.rename(tmp_path / "after")
    with pytest.raises(UserError, match="not there any more"):
        evaluate_here(tmp_path / "x", videos)
    found = evaluate_here(tmp_path / "x", videos, encoder=tmp_path / "after")
    assert found.metrics == test.metrics


def test_floors_stand_beside_the_number(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Random weights with the same input and probe, and ridge on pixels of the same clips."""
    manifest = relabelled(videos, tmp_path / "m.parquet", lambda c, *_: {"colour": c})
    config = probe_config(manifest, checkpoint, floors=True, **{"optim.epochs": 2})
    result = train(config, tmp_path / "probe")
    assert [floor.name for floor in result.floors] == [
        "random weights, same input and probe",
        "ridge on middle frame",
        "ridge on all frames",
        "ridge on frame differences",
        "ridge on size of differences",
    ]
    assert {floor.count for floor in result.floors} == {11}
    assert result.floors[1].correct >= 9, "colour is seen in one frame"
    random = load_result(tmp_path / "probe" / "random_weights")
    assert random.which == "random"
    assert random.test is not None
    assert random.test.metrics.correct == result.floors[0].correct
    assert load_result(tmp_path / "probe") == result
    assert "| ridge on size of differences |" in (tmp_path / "probe" / "result.md").read_text()
    alone = probe_config(manifest, checkpoint, **{"optim.epochs": 2, "encoder.random": True})
    assert train(alone, tmp_path / "alone").test == random.test
    # After a call that was stopped at its end.
    for seed, colours, is_same in ((0, "red green", True), (0, "green red", False), (1, "", False)):
        new = dict(zip(("red", "green"), colours.split(), strict=False))
        relabelled(videos, manifest, lambda c, *_, new=new: {"colour": new.get(c, c)})
        (tmp_path / "probe" / "result.json").unlink()
        train(replace(config, seed=seed), tmp_path / "probe")
        again = load_result(tmp_path / "probe" / "random_weights")
        assert (again.config["seed"], again == random) == (seed, is_same)
    with pytest.raises(UserError, match="linear, and without floors"):
        probe_config(videos, checkpoint, floors=True, **{"data.multi_label": True})


@pytest.mark.parametrize("pool", ["mean", "steps", "all"])
def test_a_ridge_probe_is_fitted_saved_and_read(
    pool: str, videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    changes = {"probe.kind": "ridge", "probe.pool": pool}
    result, test = train_probe(videos, checkpoint, tmp_path / "probe", **changes)
    assert test.metrics.top1 > 0.7
    assert result.steps == 0
    numbers = load_saved_probe(tmp_path / "probe").head.state_dict()["mean"].numel()
    assert numbers == 24 * {"mean": 1, "steps": 2, "all": 8}[pool]
    assert evaluate_here(tmp_path / "probe", videos).metrics == test.metrics


def test_training_goes_on_while_the_held_out_rows_gain(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """From 2 updates, which know nothing, to twice as many and again."""
    more = {
        "optim.epochs": None,
        "optim.steps": 2,
        "optim.max_steps": 64,
        "optim.learning_rates": [3e-3],
        "optim.weight_decays": [0.01],
    }
    result, test = train_probe(videos, checkpoint, tmp_path / "probe", **more)
    tried = [head.steps for head in result.selection]
    assert tried == [2**power for power in range(1, len(tried) + 1)]
    (chosen,) = (head for head in result.selection if head.chosen)
    assert result.steps == chosen.steps > 2
    assert chosen.rank == min(head.rank for head in result.selection)
    assert chosen.steps in tried[-2:], "the last that was tried, or that before it"
    assert test.metrics.top1 > 0.5
    assert {head.count for head in result.selection} == {6}, "held out of the training labels"


def test_videos_unlike_those_of_the_training_are_a_warning_with_both_numbers(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a probe and in features of files; once for a set."""
    sizes = replace(TINY.encoder, input=InputConfig(mean=(0.9,) * 3, deviation=(0.05,) * 3))
    run = {"data": {"clip": {"num_frames": 4, "stride": 2}}}
    model = save_model(tmp_path / "m", VJEPA(replace(TINY, encoder=sizes)), run=run)
    train(probe_config(videos, model, **{"probe.kind": "ridge"}), tmp_path / "probe")
    said = "input is made for 0.90 0.90 0.90 and 0.05 0.05 0.05"
    assert caplog.text.count(said) == 2, "training and test videos"
    caplog.clear()
    extract_features(load_encoder(model), Manifest.open(videos).path(0))
    assert caplog.text.count(said) == 1
