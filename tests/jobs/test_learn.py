"""`vjepa learn`: from any folder of videos to a report, within its time, through kills."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shlex
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tests import warm
from tests.data.clip_files import write_video
from tests.data.video_files import Spec, damage
from tests.data.video_files import write_video as write_whole
from tests.evaluation.tiny_videos import coloured_frames
from tests.evaluation.tiny_videos import write_video as write_frames

from vjepa.cli.main import main
from vjepa.config import dump_yaml, load_config
from vjepa.data.clips.views import ViewConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.metrics import Accuracy
from vjepa.evaluation.results import load_result
from vjepa.jobs import learn, learn_probes, learn_report
from vjepa.jobs.learn import LearnConfig
from vjepa.jobs.learn_probes import plan_probe, stop_in_time
from vjepa.jobs.pretrain import PretrainConfig, build_task
from vjepa.models import Encoder
from vjepa.reporting.runs import read_run
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.workers import WorkerPool

_TINY = """
model:
  encoder: {width: 48, depth: 1, heads: 3, image_size: 32, num_frames: 4, patch_size: 8}
  predictor: {width: 24, depth: 1, num_mask_tokens: 1}
masking:
  masks: [{kind: tube, tube_ratio: 0.0, context_frames: 2}]
  count: fixed
data:
  clip: {num_frames: 4, stride: null, fps: 4.0, short_video: stretch}
  transform: {crop_size: 32}
  loader: {frame_cache_gigabytes: 0.1}
optim: {steps: 30, warmup_steps: 2}
training: {max_minutes: 1, num_threads: 1}
"""


_LEARNT_FROM = re.compile(r"<b>(\d+)</b><span>videos to learn from, files skipped: (\d+)")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(_TINY)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with odd names, a portrait, a nested folder, and files that are no use."""
    root = tmp_path_factory.mktemp("own videos")
    for number in range(5):
        write_frames(_made(root / "red" / f"r {number}.mp4"), coloured_frames("red", number))
        blue = root / "deep" / "blue" / f'b – 100% "{number}".mp4'
        write_frames(_made(blue), coloured_frames("blue", 10 + number))
    write_video(root / "red" / "portrait.mp4", height=64, width=32)
    write_video(root / "lonely" / "one.mp4")
    write_video(root / "red" / "short.mp4", num_frames=3)
    (root / "red" / "broken.mp4").write_bytes(b"no video")
    (root / "notes.txt").write_text("not looked at")
    return root


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _config(recipe: Path, *sources: Path, **fields: object) -> LearnConfig:
    # How often a run is logged is chosen by its speed: on a fast machine not once in 30 updates.
    often = ("training.log_every_steps=1",)
    usual = {"minutes": 30.0, "batch_size": 4, "workers": 1, "device": "cpu", "settings": often}
    return replace(LearnConfig(recipe=str(recipe), sources=sources), **usual | fields)


@pytest.fixture(scope="module")
def finished(folder: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learn") / "out"
    assert learn.run(_config(recipe, folder), out) is None
    return out


def test_the_report_is_one_page_with_everything(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    for title in (
        "What the features know of your classes",
        "What has to be predicted",
        "How training went",
        "What the features look like",
        "Where the prediction is right and wrong",
        "Which moments are alike",
        "How to go on",
    ):
        assert title in page, title
    go_on = f"vjepa learn --out {finished} --minutes 60"
    assert go_on in page, "twice the 30 that it had"
    commands = html.unescape(page.split("How to go on")[1].split("</pre>")[0])
    given = next(line for line in commands.splitlines() if line.startswith("vjepa show features"))
    videos = shlex.split(given)[3:5]
    assert all(Path(video).is_file() for video in videos), "it can be pasted"
    assert f"vjepa features {finished}/videos.parquet --encoder.path" in commands
    assert "short.mp4" in page, "files that were not used are named"
    assert "<svg" in page
    assert len(list((finished / "pictures").glob("*.png"))) >= 4


def test_files_are_used_or_named_and_the_test_part_is_kept_apart(
    finished: Path, folder: Path
) -> None:
    choices = json.loads((finished / "choices.json").read_text())
    skipped = {Path(path).name: reason for path, reason in choices["skipped"]}
    assert skipped.keys() == {"short.mp4", "broken.mp4"}
    assert "3 frames, a clip takes 4" in skipped["short.mp4"]
    text = "\n".join(choices["lines"])
    assert re.search(r"12, \d+ s in all; files skipped: 2", text)
    assert "2 classes, by folder" in text
    manifest = Manifest.open(finished / "videos.parquet")
    splits = manifest.categories("split")
    split_of = {Path(manifest.path(n)): splits.classes[splits.codes[n]] for n in range(12)}
    tested = {path for path, split in split_of.items() if split == "test"}
    assert sorted(path.parent.name for path in tested) == ["blue", "red"], "a fifth of each class"
    assert split_of[folder / "lonely" / "one.mp4"] == "unlabelled", "a class of one"
    run = read_run(finished / "run")
    assert [source["split"] for source in run.config["data"]["sources"]] == ["train", "unlabelled"]
    assert len(list((finished / "probe").iterdir())) == 2, "trained and untrained"


def test_the_folder_knows_the_rest_of_the_command(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[LearnConfig] = []
    monkeypatch.setattr(learn, "run", lambda config, out: asked.append(config))
    assert main(["learn", "--out", str(finished), "--minutes", "60"]) == 0
    assert main(["learn", "--out", str(finished)]) == 0
    before = load_config(LearnConfig, [finished / "config.yaml"])
    assert asked == [replace(before, minutes=60.0), before]
    assert before.sources


def test_the_same_command_has_nothing_to_do_and_more_minutes_go_on(
    finished: Path, folder: Path, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    caplog.set_level("INFO", "vjepa")
    before = (out / "report.html").stat().st_mtime_ns
    assert learn.run(_config(recipe, folder), out) is None
    assert "--minutes 60 goes on" in caplog.text
    assert "of the sources are" not in caplog.text, "neither new nor gone"
    assert (out / "report.html").stat().st_mtime_ns == before
    done = read_run(out / "run").steps_done
    kept = json.loads((out / "choices.json").read_text())
    assert kept["reported_updates"] == done
    (out / "choices.json").write_text(json.dumps(kept | {"reported_updates": done - 1}))
    new = write_video(folder / "red" / "new.mp4", num_frames=6)
    try:
        learn.run(_config(recipe, folder), out)
    finally:
        new.unlink()
    assert f"files of the sources that are new, and not used: 1 (first: {new})" in caplog.text
    assert f"shows update {done - 1}, and learning has gone on to {done}: --minutes" in caplog.text
    gone = folder / "red" / "r 1.mp4"
    gone.rename(tmp_path / "r 1.mp4")  # a file that is lost meanwhile costs no report
    other = folder / "red" / "r 2.mp4"
    times = other.stat().st_atime_ns, other.stat().st_mtime_ns
    other.touch()
    try:
        learn.run(_config(recipe, folder, minutes=60.0), out)
    finally:
        (tmp_path / "r 1.mp4").rename(gone)
        os.utime(other, ns=times)
    assert f"that are gone: 1 (first: {gone})" in caplog.text
    assert f"that are no longer as they were: 1 (first: {other})" in caplog.text
    assert (out / "report.html").stat().st_mtime_ns > before
    assert read_run(out / "run").steps_done >= done
    assert read_run(out / "run").config["training"]["max_minutes"] > 30
    with pytest.raises(UserError, match="batch_size"):
        learn.run(_config(recipe, folder, batch_size=8), out)
    with pytest.raises(UserError, match="holds nothing of `vjepa learn`"):
        learn.run(_config(recipe, folder), folder)


def test_what_is_left_of_the_time_steers_probes_and_pictures(
    finished: Path, folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    page = (out / "report.html").read_text()
    assert "Time was short" not in page
    count, skipped = map(int, _LEARNT_FROM.search(page).groups())
    damaged = Manifest.open(out / "videos.parquet").select(split="train").path(0)
    bad = {"path": damaged, "reason": "frame 3 cannot be decoded", "step": 0, "kind": "decode"}
    (out / "run" / "bad_videos.jsonl").write_text(json.dumps(bad) + "\n")
    # Of the hour a probe gets a quarter: not for 11 videos, and enough for some of each class.
    monkeypatch.setattr(learn, "seconds_a_clip", lambda *_: 120.0)
    learn.run(_config(recipe, folder, minutes=60.0), out)
    (probe,) = (out / "probe").glob("target_*_50_updates_of_??%")
    result = load_result(probe)
    assert result.steps == 50
    assert result.test is not None
    assert (result.num_train + result.test.metrics.count) < 11
    page = (out / "report.html").read_text()
    assert "each probe was trained with 50 of 300 updates on" in page
    assert "are sought among 12 instead of 96" in page
    assert _LEARNT_FROM.search(page).groups() == (f"{count - 1}", f"{skipped + 1}")
    assert "while learning: frame 3 cannot be decoded" in page, "as any file that was not used"
    monkeypatch.setattr(learn, "seconds_a_clip", lambda *_: 1e6)
    learn.run(_config(recipe, folder, minutes=90.0), out)
    page = (out / "report.html").read_text()
    assert "no probe was trained" in page
    assert "What the features know" not in page


@pytest.mark.parametrize(
    ("mine", "random", "said"),
    [(36, 20, "above"), (21, 20, "not told apart from"), (4, 20, "below")],
)
def test_the_report_says_how_the_trained_encoder_stands(mine: int, random: int, said: str) -> None:
    results = {}
    for name, correct in (("target", mine), ("random", random)):
        answers = Accuracy(("a", "b"))
        shares = torch.eye(2)[(torch.arange(40) >= correct).long()]
        answers.add(np.arange(40), shares, torch.zeros(40, dtype=torch.int64))
        test = SimpleNamespace(metrics=answers.metrics(), trained_on=0)
        results[name] = SimpleNamespace(test=test)
    state = SimpleNamespace(steps_done=1, newest=lambda _: {}, bad_videos=())
    data = SimpleNamespace(data=SimpleNamespace(sources=(), batch_size=4))
    answer, _ = learn_report._headline(results, 0, (), state, data, None)
    assert answer.endswith(f"By the 95 % interval it is {said} the untrained one.")
    assert f"{mine} of 40 unseen videos" in answer
    results["target"].test.trained_on = 3
    answer, _ = learn_report._headline(results, 0, (), state, data, None)
    assert f"{mine} of 40 test videos" in answer
    assert answer.endswith("3 of them are copies of training videos: the number is too good.")
    results["target"].test.trained_on = 1
    answer, _ = learn_report._headline(results, 0, (), state, data, None)
    assert answer.endswith("1 of them is a copy of a training video: the number is too good.")


def test_reading_and_measuring_count_in_the_plan(
    finished: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clips of each video are measured before the time for learning is known, once."""
    run = read_run(finished / "run")
    assert run.config["data"]["normalisation"] == "model"
    assert run.config["model"]["encoder"]["input"]["mean"] is not None
    made: list[int] = []
    settle = learn.settle_input

    def slow(config: PretrainConfig, out: Path, group: ProcessGroup, clips: int) -> PretrainConfig:
        made.append(clips)
        settled = settle(config, out, group, clips)
        time.sleep(2.0)
        return settled

    monkeypatch.setattr(learn, "settle_input", slow)
    choices = learn._choose(
        _config(
            recipe, finished / "index.parquet", settings=("data.loader.frame_cache_gigabytes=0",)
        ),
        _made(tmp_path / "out" / "any").parent,
        time.monotonic(),
    )
    assert made == [4 * 12]
    assert choices.minutes_beside > choices.minutes_kept + 2.0 / 60
    assert choices.seconds_an_update >= 4 * 2.0 / made[0], "an update waits for its four clips"
    assert any("processes, " in line and "s a clip" in line for line in choices.lines)
    given = ("data.loader.frame_cache_gigabytes=0", "data.normalisation=model")
    choices = learn._choose(
        _config(recipe, finished / "index.parquet", settings=given),
        _made(tmp_path / "out" / "any").parent,
        time.monotonic(),
    )
    assert any("decoded by" in line for line in choices.lines)
    assert not any("s a clip" in line for line in choices.lines), "none was read"


def _choices(folder: Path) -> learn.Choices:
    return TypeAdapter(learn.Choices).validate_json((folder / "choices.json").read_bytes())


def test_settings_go_before_what_is_chosen(finished: Path, recipe: Path) -> None:
    given = ("training.device=cpu", "training.max_minutes=3", "data.loader.num_workers=0")
    config = _config(recipe, finished, device="auto", workers=None, settings=given)
    choices = replace(_choices(finished), minutes_beside=2.0)
    made = learn._pretraining(config, choices, finished)
    assert (made.training.device, made.training.max_minutes) == ("cpu", 3.0)
    assert made.data.loader.num_workers == 0
    assert "3.0 of 30 minutes are for learning" in learn._time_line(config, choices)
    assert (
        learn._pretraining(replace(config, minutes=4.0), choices, finished).training.max_minutes
        == 2.0
    )


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({"device": "cpu"}, "training.device=cuda", "training.device: cuda, but the option says"),
        ({"workers": 1}, "data.loader.num_workers=0", "num_workers: 0, but the option says 1"),
        ({"batch_size": 4}, "data.batch_size=6", "batch_size: 6, but the option says 4"),
        ({"minutes": 2.0}, "training.max_minutes=3", "max_minutes: 3: give more --minutes"),
    ],
)
def test_settings_that_contradict_an_option_are_refused(
    options: dict[str, Any], settings: str, said: str, folder: Path, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        learn.run(_config(recipe, folder, settings=(settings,), **options), tmp_path / "out")


def test_a_size_is_of_the_recipe_small_alone(recipe: Path) -> None:
    with pytest.raises(ValueError, match="size: tiny is of the recipe small"):
        _config(recipe, size="tiny")


@pytest.mark.parametrize("recipe", ["demo", "demo_levjepa"])
def test_an_update_of_any_recipe_is_timed(recipe: str) -> None:
    """Masks that are cut to the shortest of a batch are drawn for the whole batch."""
    config = load_config(PretrainConfig, [recipe], ["data.batch_size=4"], "pretrain")
    assert learn.seconds_an_update(config) > 0


def test_a_probe_as_large_as_there_is_time_for() -> None:
    how = {"videos": 40, "a_video": 1.0, "updates": 300, "an_update": 0.1, "fewest": 6}
    plans = {seconds: plan_probe(seconds, **how) for seconds in (100, 70, 60, 25, 12, 10, -5)}
    assert plans[100] == plans[70] == (1.0, 300)
    assert plans[60] == (1.0, 200), "updates are left out first"
    assert plans[25] == (0.5, 50), "then videos"
    assert plans[12] == (pytest.approx(7 / 40), 50)
    assert plans[10] is None
    assert plans[-5] is None


@pytest.mark.parametrize(("slower", "ends"), [(1, 480), (2, 360), (100, 300)])
def test_learning_ends_earlier_where_the_machine_has_become_slower(
    slower: int, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 600 s 120 are kept; after 200 s an update takes so many times longer."""
    now = 0.0
    monkeypatch.setattr(learn_probes, "time", SimpleNamespace(monotonic=lambda: now))
    is_time = stop_in_time(600.0, 120.0, 300.0)
    while not is_time():
        now += 1.0 if now < 200 else slower
    assert ends <= now <= ends + 3 * slower
    late = stop_in_time(100.0, 120.0, 300.0)
    assert [late(), late()] == [False, True], "there is always one update"


def test_a_killed_call_goes_on_where_it_was(folder: Path, recipe: Path, tmp_path: Path) -> None:
    """By the command line: SIGKILL while it trains, then the same command."""
    out = tmp_path / "out"
    endless = "[optim.steps=100000, training.checkpoint_every_steps=5]"
    command = ["learn", folder, "--out", out]
    command += ["--recipe", recipe, "--batch-size=4", "--workers=1", "--device=cpu"]
    command += ["--minutes=30", f"--settings={endless}", "--label=none"]
    checkpoints = out / "run" / "checkpoints"

    def trained_beyond(step: int) -> warm.WarmProcess:
        process = warm.vjepa(*command, log=tmp_path / "log")
        deadline = time.monotonic() + 600
        while not any(int(p.name[5:]) > step for p in checkpoints.glob("step_????????")):
            assert process.poll() is None, process.said
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    trained_beyond(0).kill()
    newest = max(int(p.name[5:]) for p in checkpoints.glob("step_????????"))
    process = trained_beyond(newest)
    process.send_signal(signal.SIGINT)
    code, said = process.wait(), process.said
    assert code == 130, said
    assert "going on in" in said
    assert f"resuming after step {newest}" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said


def test_a_folder_that_was_moved_says_so(finished: Path, folder: Path, recipe: Path) -> None:
    moved = shutil.copytree(finished, finished.with_name("moved"))
    configs = moved / "config.yaml", moved / "run" / "config.yaml"
    before = [config.read_bytes() for config in configs]
    choices = (moved / "choices.json").read_text()
    (moved / "choices.json").write_text(choices.replace(str(finished), "/elsewhere"))
    assert learn.run(_config(recipe, folder), moved) is None, "nothing is to be done"
    with pytest.raises(
        UserError, match=r"/elsewhere/videos\.parquet: is gone; was its folder moved"
    ):
        learn.run(_config(recipe, folder, minutes=60.0), moved)
    assert [config.read_bytes() for config in configs] == before, "a refused call is forgotten"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_not_remembered(
    finished: Path, folder: Path, recipe: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(finished, tmp_path / "again")
    before = (again / "config.yaml").read_bytes()
    for out in (again, tmp_path / "new"):
        with pytest.raises(UserError, match="device: cuda was asked for"):
            learn.run(_config(recipe, folder, minutes=60.0, device="cuda"), out)
    assert (again / "config.yaml").read_bytes() == before
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_a_video_that_turns_out_to_be_damaged_is_skipped(recipe: Path, tmp_path: Path) -> None:
    """One of three: replacing it at each draw would have ended training at the 10th."""
    videos = tmp_path / "videos"
    for name in ("a.mp4", "b.mp4"):
        write_video(_made(videos / name), num_frames=60)
    damaged, out = write_whole(videos / "c.mp4", Spec(num_frames=60, b_frames=0)), tmp_path / "out"
    damage(damaged, 2, 3)
    assert learn.run(_config(recipe, videos), out) is None
    page = html.unescape((out / "report.html").read_text())
    assert _LEARNT_FROM.search(page).groups() == ("2", "1")
    assert f"{damaged}</td>" in page, "and why"
    assert "videos    2, " in page
    assert read_run(out / "run").steps_done == 30
    assert not read_run(out / "run").bad_videos
    damage(write_whole(tmp_path / "d.mp4", Spec(num_frames=60, b_frames=0)), 2, 3)
    with pytest.raises(UserError, match=r"no video to learn from can be decoded: .*d\.mp4: frame"):
        learn.run(_config(recipe, tmp_path / "d.mp4"), tmp_path / "nothing")


def test_one_long_video_and_a_manifest_in_place_of_a_folder(recipe: Path, tmp_path: Path) -> None:
    """Also: no label; the moments that are alike are of other times; a space in a path."""
    long = write_video(tmp_path / "long.mp4", num_frames=240)
    out = tmp_path / "my own"
    assert learn.run(_config(recipe, long, minutes=45.0), out) is None
    page = (out / "report.html").read_text()
    assert f"vjepa learn --out &#39;{out}&#39; --minutes 90" in page
    assert "Which moments are alike" in page
    assert "What the features know" not in page
    assert "<b>1</b><span>video to learn from</span>" in page
    assert f"vjepa show run &#39;{out}&#39;/run\n" in page, "it can be pasted into a shell"
    settings = _config(recipe, out / "index.parquet")
    made, skipped = learn._find_videos(settings, 4, tmp_path)
    assert ([Path(made.path(n)) for n in range(len(made))], skipped) == ([long], ())


def test_a_manifest_with_labels_as_a_whole_run(folder: Path, recipe: Path, tmp_path: Path) -> None:
    """Its labels and its test part are taken; its paths are relative to it."""
    manifest = tmp_path / "own.parquet"
    rows = ["path,colour,split"]
    for number in range(5):
        split = "test" if number == 4 else "train"
        rows.append(f"{folder}/red/r {number}.mp4,red,{split}")
        rows.append(f'{folder}/deep/blue/b – 100% "{number}".mp4,blue,{split}')
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row.split(",") for row in rows)
    assert main(["data", "index", str(tmp_path / "own.csv"), "--out", str(manifest)]) == 0
    out = tmp_path / "out"
    command = ["learn", str(manifest), "--out", str(out), "--recipe", str(recipe)]
    command += ["--batch-size=4", "--workers=1", "--device=cpu", "--minutes=30"]
    assert main(command) == 0
    text = "\n".join(json.loads((out / "choices.json").read_text())["lines"])
    assert "2 classes, by label colour (--label): 8 videos to train on, 2 to test on" in text
    assert "the split test" in text
    assert "What the features know of your classes" in (out / "report.html").read_text()


def _split(tmp_path: Path, lines: list[str], **fields: object) -> tuple[dict[str, str], str]:
    """The split of each video of a list, and what is said."""
    for seed, line in enumerate(lines[1:]):
        path = tmp_path / line.split(",")[0]
        if not path.exists():
            write_video(path, num_frames=6, seed=seed)
    source = tmp_path / "list.csv"
    source.write_text("\n".join(lines) + "\n")
    config = replace(LearnConfig(sources=(source,)), **fields)
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    found, _ = learn._find_videos(config, 4, out)
    made, said = learn._split_videos(config, found, out / "videos.parquet")
    splits = made.categories("split")
    return {
        Path(made.path(n)).stem: splits.classes[splits.codes[n]] for n in range(len(made))
    }, said


def test_labels_of_lists_and_their_own_test_parts(tmp_path: Path) -> None:
    rows = [f"{name}{n}.mp4,{name}" for name in "ab" for n in range(6)]
    drawn, said = _split(tmp_path, ["path,what", *rows], test_fraction=0.34)
    assert list(drawn.values()).count("test") == 4, "two of six, of each class"
    assert "label what" in said
    again, _ = _split(tmp_path, ["path,what", *rows], test_fraction=0.34)
    other, _ = _split(tmp_path, ["path,what", *rows], test_fraction=0.34, seed=1)
    assert again == drawn != other
    parts = [f"{row},{'test' if '5' in row else 'train'}" for row in rows]
    given, said = _split(tmp_path, ["path,what,split", *parts, "c0.mp4,c,test"])
    assert {name for name, split in given.items() if split == "test"} == {"a5", "b5"}
    assert given["c0"] == "left out", "its class has nothing to train on"
    assert "the split test" in said
    other_words = [part.replace("test", "val").replace("train", "Training") for part in parts]
    assert _split(tmp_path, ["path,what,split", *other_words])[0] == {
        name: split for name, split in given.items() if name != "c0"
    }
    parts[4] = f"{rows[4]},validation"
    three, said = _split(tmp_path, ["path,what,split", *parts])
    assert three["a4"] == "left out", "where there is a test part, validation is for others"
    assert list(three.values()).count("train") == 9
    assert "9 videos to train on, 2 to test on" in said
    several = ["path,what,who", *(f"{row},me" for row in rows)]
    assert "there are the labels what, who: name one" in _split(tmp_path, several)[1]
    assert "by label who" not in _split(tmp_path, several, label="who")[1], "one class only"
    one_class = _split(tmp_path, several, label="who")[1]
    assert "none: label who gives fewer than two classes" in one_class
    none, said = _split(tmp_path, ["path,what", *rows], label="none")
    assert said == "probe     none: not asked for (--label)"
    assert set(none.values()) == {"unlabelled"}
    with pytest.raises(UserError, match="no label 'nosuch'"):
        _split(tmp_path, several, label="nosuch")


def test_a_copy_of_what_is_trained_on_is_not_tested_on(tmp_path: Path) -> None:
    rows = [f"{name}{n}.mp4,{name}" for name in "ab" for n in range(6)]
    drawn, _ = _split(tmp_path, ["path,what", *rows], test_fraction=0.34)
    of_class = [[name for name, part in drawn.items() if name[0] == one] for one in "ab"]
    tested = [name for name in of_class[0] if drawn[name] == "test"]
    learnt = next(name for name in of_class[1] if drawn[name] == "train")
    shutil.copy(tmp_path / f"{learnt}.mp4", tmp_path / f"{tested[0]}.mp4")
    again, said = _split(tmp_path, ["path,what", *rows], test_fraction=0.34)
    assert again == drawn | {tested[0]: "train"}
    assert "3 to test on" in said
    assert "34% of each class's files (--test_fraction) but 1, copies of others" in said
    given = [f"{row},{'test' if row[:2] in tested else 'train'}" for row in rows]
    parts, _ = _split(tmp_path, ["path,what,split", *given])
    assert parts[tested[0]] == "test", "a part that was given is taken; the report names the copies"


def test_a_video_that_two_sources_name_is_not_in_two_parts(tmp_path: Path) -> None:
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"):
        write_video(tmp_path / "videos" / name, num_frames=4)
    config = LearnConfig(sources=(tmp_path / "videos", tmp_path / "videos" / "a"))
    made, skipped = learn._find_videos(config, 4, tmp_path)
    assert len(made) == 4
    first = [tmp_path / "videos" / "a" / name for name in ("1.mp4", "2.mp4")]
    reasons = [f"the same file as {path}, which is taken" for path in first]
    assert [why for _, why in skipped] == reasons


def test_what_a_link_leads_to_is_taken_once(tmp_path: Path) -> None:
    for name in ("a/1.mp4", "a/2.mp4"):
        write_video(tmp_path / "videos" / name, num_frames=4)
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "videos" / "a")
    made, skipped = learn._find_videos(LearnConfig(sources=(tmp_path / "videos",)), 4, tmp_path)
    assert len(made) == 2
    assert [Path(path).parent.name for path, _ in skipped] == ["linked"] * 2


def test_a_file_with_two_labels_is_said_to_have_them(tmp_path: Path) -> None:
    write_video(tmp_path / "1.mp4", num_frames=4)
    (tmp_path / "list.csv").write_text("path,what\n1.mp4,walk\n1.mp4,run\n")
    _, skipped = learn._find_videos(LearnConfig(sources=(tmp_path / "list.csv",)), 4, tmp_path)
    assert [why for _, why in skipped] == [
        f"the same file as {tmp_path / '1.mp4'}, which is taken with its labels {{'what': 'walk'}}"
    ]


def test_classes_and_parts_that_are_not_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{name}{n}.mp4,{name}" for name in "ab" for n in range(4)]
    _, said = _split(tmp_path, ["path,what", *rows, "c0.mp4,cup", "d0.mp4,door"])
    assert said.endswith("; left out, with one video: cup, door")
    assert not caplog.text
    parts = [f"{row},{'test' if '3' in row else 'trian'}" for row in rows]
    _split(tmp_path, ["path,what,split", *parts])
    assert "split 'trian' is none of train, validation and test: its 6 videos are trained on" in (
        caplog.text
    )


def test_the_largest_size_that_gets_enough_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {32: 0.1, 56: 0.4, 64: 2.0}
    monkeypatch.setattr(
        learn, "seconds_an_update", lambda config: seconds[config.model.encoder.image_size]
    )
    lefts = (90, 900, 2500, 12_000)
    chosen = {left: learn._choose_size(LearnConfig(), [], left)[0] for left in lefts}
    assert chosen == {90: "tiny", 900: "tiny", 2500: "small", 12_000: "medium"}
    assert learn._choose_size(LearnConfig(size="medium"), [], 1.0)[:2] == ("medium", 2.0)
    _, _, settings = learn._choose_size(LearnConfig(), ["optim.peak_lr=1e-3"], 90)
    assert settings[-1] == "optim.peak_lr=1e-3", "what is asked for goes before the size's own"


def test_a_run_that_was_begun_keeps_what_its_recipe_was(
    finished: Path, tmp_path: Path, recipe: Path
) -> None:
    settings = (f"data.sources=[{{manifest: {json.dumps(str(finished / 'videos.parquet'))}}}]",)
    packaged, own = LearnConfig(), LearnConfig(recipe=str(recipe))
    before = learn._load(packaged, [*settings, "data.clip.fps=5"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_yaml(before))
    choices = replace(_choices(finished), settings=settings)
    assert learn._pretraining(packaged, choices, tmp_path).data.clip.fps == 5
    assert learn._pretraining(packaged, choices, tmp_path / "other").data.clip.fps == 8
    assert learn._pretraining(own, choices, tmp_path).data.clip.fps == 4, "a changed file is told"


def test_every_size_is_a_config_that_builds() -> None:
    for name in learn._SIZES:
        config = learn._load(LearnConfig(), learn._SIZES[name])
        assert build_task(config).saved_modules()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--out", "x"], "name a folder"),
        (["videos"], "--out"),
        (["nosuch", "--out", "x"], "nosuch"),
        (["videos", "--out", "x", "--minutes", "0"], "minutes"),
        (["videos", "--out", "x", "--test-fraction", "1"], "test_fraction"),
        (["videos", "--out", "x", "--size", "huge"], "size"),
        (["empty", "--out", "x"], "no video"),
        (["photos", "--out", "x"], "a still image"),
        (["a.parquet", "b.mp4", "--out", "x"], "a manifest comes alone"),
        (["a.parquet", "--out", "x", "--index.label_from_folder=true"], "index: is for sources"),
        (["videos", "--out", "."], "vjepa learn"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "videos" / "a.mp4", num_frames=4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "a.jpg")
    assert main(["learn", *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert named in lines[0]
    assert "nosuch" not in argv or not (tmp_path / "x").exists(), "nothing is left behind"


def test_a_config_file_takes_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("minutes: 3\nsize: tiny\nsettings: ['optim.peak_lr=1e-3']\n")
    made = load_config(LearnConfig, [path], ["test_fraction=0.5"])
    assert (made.minutes, made.size, made.test_fraction) == (3.0, "tiny", 0.5)
    assert learn._load(made, learn._SIZES["tiny"]).optim.peak_lr == 1e-3


def test_moments_of_a_long_film_are_read_one_at_a_time(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their frames together need more memory than a reader has; without any there is no section."""
    film = write_video(tmp_path / "film.mp4", num_frames=240, height=720, width=1280)
    manifest = Manifest.from_rows([ManifestRow(info=inspect_file(str(film)))], tmp_path)
    config = load_config(PretrainConfig, [recipe], recipes="pretrain")
    encoder = Encoder(config.model.encoder).eval()
    view, most = ViewConfig(crop_size=32, short_side=32), 60
    assert most * 4 * 3 * 720 * 1280 > 0.5e9
    monkeypatch.setattr(learn_report, "WorkerPool", partial(WorkerPool, memory_gigabytes=0.5))
    moments = partial(
        learn_report._encode_moments, manifest, config, {"one": encoder}, set(), view, most
    )
    (rows, frames, seconds), features = moments()
    assert (len(rows), frames.shape, features["one"].shape) == (60, (60, 4), (60, 48))
    assert seconds == pytest.approx(frames[:, 2] / 12)
    assert (np.diff(seconds) > 0).all()
    film.unlink()
    assert learn_report.moment_sections(manifest, config, {"one": encoder}, set()) == []
    assert f"96 could not be read and are left out (first: {film}: " in caplog.text
