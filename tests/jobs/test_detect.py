"""The detection job on a small synthetic set: trained, measured again, resumed, and refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tests.jobs.tiny_run import write_box_set
from torch import Tensor
from torchvision.models import get_model

from vjepa.checkpoint import save_model
from vjepa.cli.main import main
from vjepa.data.boxes import BoxTable
from vjepa.data.clips.key_frames import KeyFrameViewConfig
from vjepa.data.clips.plan import ClipPlan
from vjepa.data.video.inspect import inspect_file
from vjepa.evaluation.box_features import KeyFrames, boxes_of_clips
from vjepa.evaluation.preprocess import load_model
from vjepa.jobs.detect import train
from vjepa.jobs.detect.predict import BoxAnswer, draw, label_place
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.reporting.runs import read_run, status_of
from vjepa.tasks import Detection
from vjepa.training import Trainer

_SETTINGS = (
    "--encoder.path=demo",
    "--data.view.short_side=32",
    "--data.view.crop_size=32",
    "--data.view.train_short_sides=[32,40]",
    "--data.view.horizontal_flip=false",
    "--data.reading.num_workers=0",
    "--optim.batch_size=4",
    "--optim.warmup_epochs=0",
    "--optim.peak_lr=0.003",
    "--training.device=cpu",
    "--training.num_threads=1",
)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    write_box_set(folder, 12, 6)
    return folder


def _train(boxes: Path, out: Path, *more: str) -> int:
    tables = (
        f"--data.train={boxes / 'boxes_train.parquet'}",
        f"--data.test={boxes / 'boxes_test.parquet'}",
    )
    return main(["detect", "train", *tables, *_SETTINGS, "--out", str(out), *more])


def _figure(path: Path) -> float:
    found = json.loads(path.read_text())
    return found.get("test", found)["metrics"]["mean_average_precision"]


@pytest.fixture(scope="module")
def detector(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "detector"
    more = ("--features.passes=2", f"--features.cache_dir={out.parent / 'cache'}")
    assert _train(boxes, out, "--optim.epochs=20", *more) == 0
    return out


def test_the_set_has_what_a_detector_must_cope_with(boxes: Path) -> None:
    table = BoxTable.open(boxes / "boxes_train.parquet")
    assert len(table.rows_of("nobody"))
    found = table.rows_of("predicted")
    assert any(table.labels[row] == () for row in found)  # false people
    assert len({second for _, second in table.keys}) == 2  # key frames of a clip
    assert all(2 <= len(table.labels[row] or ()) <= 3 for row in table.rows_of("truth"))
    assert (boxes / "train_persons.csv").is_file()


def test_the_same_figure_again(
    boxes: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, found = str(boxes / "boxes_test.parquet"), tmp_path / "found.csv"
    again = ["detect", "eval", str(detector), table, "--json", str(tmp_path / "a.json")]
    assert main([*again, "--detections", str(found), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "rules alphaction" in said
    assert "boxes of people that a detector found" in said
    first = _figure(detector / "result.json")
    assert _figure(tmp_path / "a.json") == first
    assert main(["detect", "eval", str(found), table, "--json", str(tmp_path / "b.json")]) == 0
    assert _figure(tmp_path / "b.json") == first
    assert "rules alphaction" in (detector / "result.md").read_text()
    more = ("--boxes", "truth", "--rules", "slowfast", "--scores", "class_times_person")
    assert main([*again, *more, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "true boxes" in said
    assert "rules slowfast" in said


def test_it_learns_what_is_there(boxes: Path, detector: Path, tmp_path: Path) -> None:
    """On its own training boxes it is far above a head that knows nothing."""
    table = str(boxes / "boxes_train.parquet")
    again = ["detect", "eval", str(detector), table, "--boxes", "truth", "--device", "cpu"]
    assert main([*again, "--json", str(tmp_path / "own.json")]) == 0
    weights = load_file(detector / "detector.safetensors")
    assert weights["weight"].shape == (20, 3 * 96)
    assert _figure(tmp_path / "own.json") > 0.5


def test_sides_of_training_boxes_are_moved_at_random(boxes: Path) -> None:
    """Out by up to a fifth of the width or a tenth of the height, in by up to half of that."""
    data = KeyFrames.open(boxes / "boxes_train.parquet")
    view = KeyFrameViewConfig(short_side=32, jitter_boxes=(0.2, 0.1))
    plan = ClipPlan(frames=np.zeros(4, np.int64), resize_to=(3200, 3200), resize="antialias")
    by_key = data.by_key(data.table.rows_of("truth"))

    def moved(draw: tuple[int, int] | None) -> NDArray[np.float64]:
        plans = [(plan, key, rows, draw) for key, rows in by_key.items()]
        return boxes_of_clips(data, plans, view)[:, 1:].double().numpy()

    exact, one = moved(None), moved((0, 0))
    size = np.tile(exact[:, 2:] - exact[:, :2], 2)
    inside = ((exact > 0) & (exact < 3200) & (one > 0) & (one < 3200)).all(axis=1)
    out = ((one - exact) * (-1, -1, 1, 1) / size)[inside]
    assert len(out) > 20
    low, high = out.min(axis=0), out.max(axis=0)
    assert (low >= (-0.1001, -0.0501) * 2).all()
    assert (high <= (0.2001, 0.1001) * 2).all()
    assert (low < (-0.05, -0.02) * 2).all()
    assert (high > (0.15, 0.07) * 2).all()
    assert np.array_equal(one, moved((0, 0)))
    assert not np.array_equal(one, moved((0, 1)))


def test_cached_vectors_need_no_video(boxes: Path, detector: Path, tmp_path: Path) -> None:
    moved = tmp_path / "set"
    shutil.copytree(boxes, moved)
    for split in ("train", "test"):
        shutil.rmtree(moved / split)
    cache = f"--features.cache_dir={detector.parent / 'cache'}"
    more = ("--optim.epochs=20", "--features.passes=2", cache)
    assert _train(moved, tmp_path / "again", *more) == 0
    assert _figure(tmp_path / "again" / "result.json") == _figure(detector / "result.json")
    assert _train(moved, tmp_path / "other", "--optim.epochs=1") == 2  # other passes: to be read


def test_encoder_and_head_together_and_resumed(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        "--end_to_end.layer_decay=0.8",
        "--end_to_end.drop_path=0.2",
        "--optim.epochs=0.8",
        "--optim.accumulation_steps=2",
        "--training.checkpoint_every_steps=2",
    )
    assert _train(boxes, tmp_path / "whole", *more) == 0
    inputs, calls = Detection.inputs, iter(range(100))

    def failing(task: Detection, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        if next(calls) == 6:  # in the fourth update
            raise RuntimeError("the power is gone")
        return inputs(task, batch, part, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Detection, "inputs", failing)
        with pytest.raises(RuntimeError, match="power"):
            _train(boxes, tmp_path / "parts", *more)
    assert _train(boxes, tmp_path / "parts", *more, "--seed=1") == 2
    assert status_of(read_run(tmp_path / "parts")).state.startswith("ended: process 0: ends with")
    assert _train(boxes, tmp_path / "parts", *more) == 0
    state = read_run(tmp_path / "parts")
    assert status_of(state).state == "done: all updates are done and measured"
    assert state.steps_done == state.steps_total
    whole, parts = (
        load_file(tmp_path / name / "detector.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert "trained from" in result["encoder"]
    assert _figure(tmp_path / "parts" / "result.json") == _figure(tmp_path / "whole/result.json")
    table = str(boxes / "boxes_test.parquet")
    again = ["detect", "eval", str(tmp_path / "whole"), table, "--device", "cpu"]
    assert main([*again, "--json", str(tmp_path / "again.json")]) == 0
    assert _figure(tmp_path / "again.json") == _figure(tmp_path / "whole" / "result.json")


def test_a_head_goes_on_with_the_encoder_it_began_with_and_no_other(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its encoder's run is trained on meanwhile. Names of classes break no table."""
    encoder, out = tmp_path / "encoder", tmp_path / "out"
    more = [f"--encoder.path={encoder}", "--optim.epochs=1", "--training.checkpoint_every_steps=1"]
    for part in ("train", "test"):
        table = BoxTable.open(boxes / f"boxes_{part}.parquet")
        named = {label: f"{name}|x" for label, name in table.classes.items()}
        replace(table, classes=named).write(tmp_path / f"{part}.parquet")
        more.append(f"--data.{part}={tmp_path / part}.parquet")
    model = load_model("demo")
    save_model(encoder, model)
    old = (encoder / "model.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_detector", _stopped)
        assert _train(boxes, out, *more) == 130
    shutil.rmtree(encoder)
    model.target_encoder.norm.bias.data += 1
    save_model(encoder, model)
    assert _train(boxes, out, *more) == 2
    assert f"was begun with other weights than {encoder} holds now" in capsys.readouterr().err
    (encoder / "model.safetensors").write_bytes(old)
    assert _train(boxes, out, *more) == 0
    head, _, *rows = re.findall(r"^\|.*$", (out / "result.md").read_text(), re.MULTILINE)
    assert head == "| class | true boxes | average precision |"
    assert len(rows) > 5
    assert all(re.fullmatch(r"\| [^|]+\\\|x \| \d+ \| \d+\.\d\d % \|", row) for row in rows)


def _set_rewritten(boxes: Path, folder: Path, **changed: Any) -> tuple[str, ...]:
    """Both tables written to the folder with something else in them, as settings."""
    for part in ("train", "test"):
        table = BoxTable.open(boxes / f"boxes_{part}.parquet")
        replace(table, **changed.get(part, changed)).write(folder / f"{part}.parquet")
    return tuple(f"--data.{part}={folder / part}.parquet" for part in ("train", "test"))


@pytest.mark.parametrize("how", ["--seed=0", "--end_to_end.layer_decay=0.8"])
def test_a_detector_goes_on_with_the_tables_it_began_with_and_no_others(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """The tables at the same paths are written anew meanwhile."""
    table, out = BoxTable.open(boxes / "boxes_train.parquet"), tmp_path / "out"
    more = (*_set_rewritten(boxes, tmp_path), "--optim.epochs=0.5", how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_detector", _stopped)
        assert _train(boxes, out, *more) == 130
    swapped = dict(zip(table.classes, reversed(table.classes.values()), strict=True))
    row = int(table.rows_of("truth")[0])
    labels = tuple(own[:1] if n == row and own else own for n, own in enumerate(table.labels))
    for said, changed in (
        ("classes", {"classes": swapped}),
        ("classes", {"classes": dict(reversed(table.classes.items()))}),
        ("boxes", {"train": {"box": table.box * 0.99}, "test": {}}),
        ("boxes", {"train": {"labels": labels}, "test": {}}),
    ):
        _set_rewritten(boxes, tmp_path, **changed)
        assert _train(boxes, out, *more) == 2
        error = capsys.readouterr().err
        assert f"out: was begun with other {said} than {tmp_path / 'train.parquet'}" in error
        assert "bring that table back, or give another --out" in error
    _set_rewritten(boxes, tmp_path)
    assert _train(boxes, out, *more) == 0
    with pytest.MonkeyPatch.context() as patch:  # checkpoints of before cannot tell
        patch.setattr(train, "_learnt", lambda *_: {})
        patch.setattr(train, "load_detector", _stopped)
        assert _train(boxes, tmp_path / "old", *more) == 130
    assert _train(boxes, tmp_path / "old", *more) == 0


def _stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--regions.layers=[1,3]",), "[1, 3] must be some of the encoder's blocks 0 .. 2"),
        (("--data.view.short_side=30",), "30 is not whole patches of 8: 24 is"),
        (("--data.train=nothing.parquet",), "nothing.parquet: no such file"),
        (("--data.num_videos=50",), "50 of 12 videos"),
        (("--data.test=TRAIN",), "of its videos are trained on, too"),
        (("--data.videos=nothing.parquet",), "nothing.parquet, is not there"),
        (("--features.passes=2", "--data.view.augment=false"), "all would be the same"),
        (
            ("--end_to_end.drop_path=0", "--data.on_bad_video=list"),
            "data.on_bad_video: list leaves nothing out with end_to_end",
        ),
        (("--data.view.augment=false", "--data.view.jitter_boxes=[0.2,0.1]"), "set augment true"),
        (("--optim.accumulation_steps=9",), "4 key frames cannot be divided into 9"),
        (("--encoder.path=nowhere",), "nowhere"),
    ],
)
def test_refused_before_any_work(
    boxes: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = tuple(x.replace("TRAIN", str(boxes / "boxes_train.parquet")) for x in more)
    assert _train(boxes, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_training_that_its_time_ends_is_measured(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(boxes, tmp_path, "--training.max_minutes=1e-9") == 2
    error = capsys.readouterr().err
    assert "training.max_minutes: over before the first update; give more" in error
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_used", lambda self, *_: float(self._completed >= 2))
        assert _train(boxes, tmp_path, "--training.max_minutes=60") == 0
    said = capsys.readouterr().out
    assert "trained: 2 updates" in said
    assert f"detector: {tmp_path}" in said
    saved = json.loads((tmp_path / "detector.json").read_text())
    assert saved["training"]["steps"] == 2
    assert 0 <= _figure(tmp_path / "result.json") <= 1


def test_a_training_that_was_stopped_while_it_was_measured_goes_on(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "load_detector", _stopped)
        assert _train(boxes, tmp_path / "out", "--optim.epochs=1") == 130
    assert (tmp_path / "out" / "detector.json").is_file()
    assert _train(boxes, tmp_path / "out", "--optim.epochs=2") == 2, "another config"
    less = ("--training.activation_checkpointing=true", "--optim.accumulation_steps=2")
    assert _train(boxes, tmp_path / "out", "--optim.epochs=1", *less) == 0
    figure = _figure(tmp_path / "out" / "result.json")
    assert 0 <= figure <= 1
    assert _train(boxes, tmp_path / "out", "--optim.epochs=1") == 0, "measured anew"
    assert _figure(tmp_path / "out" / "result.json") == figure


def test_videos_that_are_gone(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "set"
    shutil.copytree(boxes, moved)
    gone = moved / "train" / "train_000003.mp4"
    gone.rename(tmp_path / "away.mp4")
    assert _train(moved, tmp_path / "out", "--optim.epochs=1") == 2
    assert "train_000003.mp4: second" in capsys.readouterr().err
    assert _train(moved, tmp_path / "out", "--optim.epochs=1", "--data.on_bad_video=list") == 0
    more = ("--optim.epochs=1", f"--features.cache_dir={tmp_path / 'cache'}")
    assert _train(moved, tmp_path / "other", *more, "--data.on_bad_video=list") == 0
    assert "not read: " in capsys.readouterr().out
    assert _train(moved, tmp_path / "strict", *more) == 2, "what is kept lacks a video"
    assert "train_000003.mp4: second" in capsys.readouterr().err
    (tmp_path / "away.mp4").rename(gone)
    assert _train(moved, tmp_path / "back", *more, "--data.on_bad_video=list") == 0
    assert "not read: " not in capsys.readouterr().out
    from vjepa.data.manifest.manifest import Manifest

    manifest = Manifest.open(moved / "manifest.parquet").select(split="test")
    manifest.write(moved / "manifest.parquet")
    assert _train(moved, tmp_path / "third") == 2
    assert "of its videos are not in" in capsys.readouterr().err


def test_a_test_whose_video_is_gone_goes_on_without_it(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the setting that the error names, and with what was trained before it."""
    moved, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(boxes, moved)
    (moved / "test" / "test_000001.mp4").unlink()
    assert _train(moved, out, "--optim.epochs=1") == 2
    assert "set data.on_bad_video: list" in capsys.readouterr().err
    weights = (out / "detector.safetensors").read_bytes()
    assert _train(moved, out, "--optim.epochs=1", "--data.on_bad_video=list") == 0
    assert "not read: " in capsys.readouterr().out
    assert (out / "detector.safetensors").read_bytes() == weights


def test_eval_refuses_what_does_not_fit(
    boxes: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(boxes / "boxes_test.parquet")
    rows = {
        "word.csv": ("test_000000,0.5,0.1,0.1,0.5,0.5,1,high", "score (column 8) is 'high'"),
        "nan.csv": ("test_000000,0.5,0.1,0.1,0.5,0.5,1,nan", "score (column 8) is 'nan'"),
        "short.csv": ("test_000000,0.5,0.1,0.1,0.5,0.5,1", "7 columns, wanted 2 or 8"),
        "other.csv": ("film,0.5,0.1,0.1,0.5,0.5,1,0.5", "not one of its 1 videos is in"),
        "pixels.csv": ("test_000000,0.5,3,3,16,16,1,0.5", "row 1: a box far outside of the frame"),
        "excel.csv": ("test_000000;0.5;0.1;0.1;0.5;0.5;1;0.5", "not by semicolons"),
    }
    for name, (row, said) in rows.items():
        (tmp_path / name).write_text(row + "\n")
        assert main(["detect", "eval", str(tmp_path / name), table]) == 2
        assert said in capsys.readouterr().err
    row = "test_000000,0.5,0.1,0.1,0.5,0.5,1,0.5\n"
    (tmp_path / "part.csv").write_text(row + "film,0.5,0.1,0.1,0.5,0.5,1,0.5\n")
    assert main(["detect", "eval", str(tmp_path / "part.csv"), table]) == 0
    assert "1 videos of the file are not in the table (first: film)" in capsys.readouterr().out
    turned, other = "test_000001,0.5,0.5,0.1,0.1,0.5,1,0.5\n", "film,0.5,0.1,0.1,0.5,0.5,99,0.5\n"
    (tmp_path / "some.csv").write_text(row.replace(",0.5,0.1", ",900,0.1") + turned + other)
    assert main(["detect", "eval", str(tmp_path / "some.csv"), table]) == 0
    said = capsys.readouterr().out
    assert " moments of the file are not in the table (first: test_000000 at 900); 1 of" in said
    assert (
        "1 of 2 classes of the file are not in the table (first: 99); 1 boxes of the file" in said
    )
    of_detectors = ("--detections=a.csv", "--encoder=demo", "--cache-dir=c", "--boxes=truth")
    for option in (*of_detectors, "--device=cuda", "--on-bad-video=list"):
        assert main(["detect", "eval", str(tmp_path / "part.csv"), table, option]) == 2
        assert f"{option.partition('=')[0]}: is for a detector" in capsys.readouterr().err
    assert main(["detect", "eval", str(tmp_path), table]) == 2
    assert "not a detector" in capsys.readouterr().err
    assert main(["detect", "eval", str(detector), str(boxes / "manifest.parquet")]) == 2
    assert "is no table of boxes" in capsys.readouterr().err
    fewer = tmp_path / "fewer"
    text = (boxes / "actions.pbtxt").read_text().replace("digit_9", "nine")
    (tmp_path / "map.pbtxt").write_text(text)
    made = ["data", "ava", str(boxes / "test.csv"), "--videos", str(boxes / "manifest.parquet")]
    assert main([*made, "--out", f"{fewer}.parquet", "--label_map", f"{tmp_path}/map.pbtxt"]) == 0
    assert main(["detect", "eval", str(detector), f"{fewer}.parquet"]) == 2
    assert "classes, the detector was trained on" in capsys.readouterr().err
    assert _train(boxes, detector) == 2
    assert "holds a run with another config" in capsys.readouterr().err
    bare = tmp_path / "bare"
    shutil.copytree(detector, bare)
    shutil.rmtree(bare / "checkpoints")
    assert _train(boxes, bare) == 2
    assert "holds a detector already" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(detector, broken)
    weights = load_file(broken / "detector.safetensors")
    _save(broken / "detector.safetensors", {"weight": weights["weight"]})
    assert main(["detect", "eval", str(broken), table]) == 2
    assert "do not belong together" in capsys.readouterr().err


def test_people_of_a_file_are_given_classes(
    boxes: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, people = boxes / "test" / "test_000001.mp4", boxes / "test_persons.csv"
    again = ["detect", "predict", str(detector), str(video), "--device", "cpu"]
    given = ["--persons", str(people), "--min-person-score", "0.5"]
    rows = [line for line in people.read_text().splitlines() if line.startswith("test_000001,")]
    files = ["--out", str(tmp_path / "a.jsonl"), "--draw", str(tmp_path / "a.mp4")]
    assert main([*again, *given, *files]) == 0
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(found) == len(rows) > 0
    assert sorted(one["box"][0] for one in found) == sorted(float(r.split(",")[2]) for r in rows)
    assert len(found[0]["classes"]) == 3
    shares = [entry["share"] for entry in found[0]["classes"]]
    assert shares == sorted(shares, reverse=True)
    drawn, plain = _frames(tmp_path / "a.mp4"), _frames(video)
    assert len(drawn) == len(plain) == 8
    assert drawn[0].shape[0] == 384  # words on 32 pixels cannot be read
    middle = drawn[2].astype(int)
    assert (abs(middle - np.kron(plain[2], np.ones((12, 12, 1)))).max(axis=2) > 60).any()
    assert main([*again, *given, "--out", str(tmp_path / "a.csv")]) == 0
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(rows) + 1
    each = [row.replace(",,", f",{number},") for row in rows for number in (1, 2)]
    each += [row.rpartition(",")[0].replace(",,", ",3,") + ",0.6" for row in rows]
    (tmp_path / "each.csv").write_text("\n".join(each))  # a row for each class of a box
    (tmp_path / "pixels.csv").write_text("test_000001,0.5,3,3,16,16,,0.9")
    (tmp_path / "truth.csv").write_text("test_000001,0.5,0.1,0.1,0.5,0.5,1,12")
    capsys.readouterr()
    for file in (people, tmp_path / "each.csv"):
        assert main([*again, "--persons", str(file), "--min-person-score", "0.5"]) == 0
        assert capsys.readouterr().out.count(" s  [") == len(rows)
    for more, said in (
        ([], "give a csv file (--persons) or the weights"),
        (["--persons", str(boxes / "train_persons.csv")], "names none of the videos"),
        (["--persons", str(tmp_path / "pixels.csv")], "a box far outside of the frame"),
        (["--persons", str(tmp_path / "truth.csv")], "row 1: the score 12 is not in 0 .. 1"),
        ([*given, "--out", "a.txt"], "must end in .csv or .jsonl"),
        ([*given, "--draw", "a.gif"], "must end in .mp4"),
        ([*given, "--min-person-score", "1"], "no person with a score of 1"),
        ([*given, "--every", "0.5"], "--every: is for --person-detector"),
        ([*given, "--person-model", "yolo"], "--person-model: is for --person-detector"),
        ([*given, "--draw", str(video)], "would be lost"),
        (["--person-detector", "no.pth"], "no.pth: no such file"),
        (["--person-detector", "no.pth", "--person-model", "yolo"], "torchvision has"),
    ):
        assert main([*again, *more]) == 2
        assert said in capsys.readouterr().err


def test_a_folder_is_drawn_if_it_holds_one_video_and_not_over_it(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known before the detector is looked for."""
    command = ["detect", "predict", "none", str(tmp_path), "--persons", "p.csv", "--draw"]
    video = Path(shutil.copy(boxes / "test" / "test_000001.mp4", tmp_path / "a.mp4"))
    assert main([*command, str(video)]) == 2
    assert "a.mp4: is the video, and would be lost; name another" in capsys.readouterr().err
    shutil.copy(video, tmp_path / "b.mp4")
    assert main([*command, str(tmp_path / "drawn.mp4")]) == 2
    assert "drawn.mp4: takes one video, these are 2; name one" in capsys.readouterr().err


def test_a_box_is_drawn_half_way_to_a_moment_without_people(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second of 8 frames, looked at every .2 s, or where a file names people."""
    info, seen = inspect_file(str(boxes / "test" / "test_000001.mp4")), list[int]()
    monkeypatch.setattr(
        "vjepa.jobs.detect.predict._draw_boxes", lambda pen, shown, *_: seen.append(len(shown))
    )
    people = tmp_path / "people.csv"
    seconds = (0, 0.16, 0.32, 0.8)
    people.write_text("".join(f"test_000001,{s},0.2,0.2,0.6,0.6,,0.5\n" for s in seconds))
    box = (0.2, 0.2, 0.6, 0.6)
    third = float(np.arange(0.1, 1, 0.2)[2])
    for second, how, shown in ((third, (None, 0.2), 1), (0.32, (people,), 2)):
        answers = [BoxAnswer(info.path, second, box, 0.9, (("walk", 0.9),))]
        draw(info, answers, tmp_path / "a.mp4", *how)
        assert sum(seen) == shown
        seen.clear()


def test_no_label_covers_another() -> None:
    """Wherever the boxes are, as long as there is room; the first is right above its box."""
    size, random = (360, 360), np.random.default_rng(0)
    assert label_place((10, 50, 40, 90), (80, 20), size, []) == (10, 30, 90, 50)
    assert label_place((350, 0, 360, 9), (80, 20), size, []) == (280, 0, 360, 20)
    for _ in range(50):
        taken: list[tuple[float, float, float, float]] = []
        for x, y in random.uniform(100, 160, (8, 2)):
            label = tuple(random.uniform(10, (120, 24)))
            taken.append(label_place((x, y, x + 60, y + 90), label, size, taken))
        for number, (left, top, right, bottom) in enumerate(taken):
            assert 0 <= left < right <= 360
            assert 0 <= top < bottom <= 360
            for a, b, c, d in taken[:number]:
                assert c <= left or right <= a or d <= top or bottom <= b
    assert label_place((0, 0, 9, 9), (9, 400), size, [(0, 0, 9, 9)])[1] == 0  # no room at all


def test_people_found_by_torchvisions_detector(
    boxes: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a file of random weights, which call every proposal a person: the way, not the eye."""
    name, video = "fasterrcnn_mobilenet_v3_large_320_fpn", boxes / "test" / "test_000001.mp4"
    model = get_model(name, weights=None, weights_backbone=None)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[1] += 20
    weights = tmp_path / "people.pth"
    torch.save(model.state_dict(), weights)
    again = ["detect", "predict", str(detector), str(video), "--device", "cpu"]
    again += ["--person-detector", str(weights), "--every", "0.2"]
    assert main([*again, "--person-model", name, "--out", str(tmp_path / "a.jsonl")]) == 0
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    # More moments than are looked at together.
    assert sorted({one["second"] for one in found}) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert all(one["person_score"] > 0.9 and one["box"][0] < one["box"][2] for one in found)
    assert main(again) == 2  # the weights of another model
    assert "is not a file of weights of torchvision's fasterrcnn" in capsys.readouterr().err


def _frames(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def _save(path: Path, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(weights, path)


def test_a_table_of_positions_that_cannot_be_stretched_is_refused(
    boxes: Path, golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = golden_dir / "baselines" / "mvd_tiny.pth"
    more = (f"--encoder.path={file}", "--encoder.num_heads=3", "--regions.layers=[1]")
    assert _train(boxes, tmp_path / "out", *more) == 2
    assert "is not stretched" in capsys.readouterr().err
    more = (*more, "--encoder.position_code=table_stretched", "--end_to_end.layer_decay=0.8")
    assert _train(boxes, tmp_path / "out", *more) == 2
    assert "table of positions cannot be saved" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "patch"), [("ijepa_tiny.pth.tar", 16), ("dinov2_tiny.pth", 14)])
def test_blocks_of_image_models_are_read_too_frame_by_frame(
    name: str, patch: int, boxes: Path, golden_dir: Path, tmp_path: Path
) -> None:
    """Both blocks of the small files, as four of the large ones (Tables 5 and 6)."""
    crop = 4 * patch
    sizes = (f"--data.view.{key}={crop}" for key in ("short_side", "crop_size"))
    more = (f"--encoder.path={golden_dir / 'baselines' / name}", "--encoder.num_heads=3", *sizes)
    more = (*more, f"--data.view.train_short_sides=[{crop},{crop}]", "--data.clip.num_frames=4")
    out = tmp_path / "out"
    assert _train(boxes, out, *more, "--optim.epochs=0.1") == 0
    head = load_file(out / "detector.safetensors")["weight"]
    assert head.shape[1] == 2 * 48
    assert _figure(out / "result.json") >= 0


def test_an_encoder_whose_heads_fit_no_usual_predictor_is_trained(
    boxes: Path, tmp_path: Path
) -> None:
    encoder = EncoderConfig(width=40, depth=1, heads=5, image_size=32, num_frames=4)
    sizes = ModelConfig(encoder=encoder, predictor=PredictorConfig(width=20, depth=1))
    source = save_model(tmp_path / "model", VJEPA(sizes))
    more = (f"--encoder.path={source}", "--end_to_end.layer_decay=0.8", "--optim.epochs=0.1")
    assert _train(boxes, tmp_path / "out", *more) == 0
