"""From nothing to an answer about a video, through the command line alone, at toy size."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vjepa.cli.main import main
from vjepa.reporting.pictures import write_moving

_RECIPE = """
model:
  encoder: {width: 48, depth: 1, heads: 3, image_size: 32, num_frames: 4, patch_size: 16}
  predictor: {width: 24, depth: 1}
data:
  batch_size: 4
  clip: {num_frames: 4, stride: 1}
  transform: {crop_size: 32, horizontal_flip: false}
  loader: {num_workers: 0}
optim: {steps: 4, warmup_steps: 1}
training: {device: cpu, log_every_steps: 1, checkpoint_every_steps: 2, health_every_steps: 2}
"""


def _do(*argv: object) -> None:
    assert main([str(arg) for arg in argv]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a synthetic set, a pretrained run and a probe."""
    folder = tmp_path_factory.mktemp("all")
    (folder / "tiny.yaml").write_text(_RECIPE)
    manifest = folder / "set" / "manifest.parquet"
    _do(
        *("data", "synth", "--out", folder / "set", "--workers", 1, "--num_frames", 4),
        *("--size", 32, "--num_clips_train", 22, "--num_clips_validation", 1),
        *("--num_clips_test", 11),
    )
    _do(
        *("pretrain", "--config", folder / "tiny.yaml", "--data.sources.0.manifest", manifest),
        *("--data.sources.0.split", "train", "--out", folder / "run"),
    )
    _do(
        *("probe", "train", "--encoder.path", folder / "run", "--data.label", "motion"),
        *("--data.train.manifest", manifest, "--data.train.split", "train"),
        *("--data.test.split", "test", "--data.reading.num_workers", 0, "--optim.epochs", 1),
        *("--device", "cpu", "--out", folder / "probe"),
    )
    return folder


@pytest.fixture
def video(folder: Path) -> Path:
    return folder / "set" / "test" / "000000.mp4"


def test_a_finished_run_has_all_files_and_nothing_left_to_do(folder: Path, vjepa: Callable) -> None:
    run = folder / "run"
    assert (run / "config.yaml").is_file()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert steps[-1] == 4
    assert (run / "checkpoints" / "step_00000004" / "model.safetensors").is_file()
    outcome = vjepa("pretrain", "--out", run)
    assert outcome.code == 0
    assert "done at step 4 of 4" in outcome.out


def test_a_run_folder_is_not_taken_for_another_run(folder: Path, vjepa: Callable) -> None:
    error = vjepa("pretrain", "--out", folder / "run", "--optim.peak_lr", 5).error
    assert "holds a run with another config (optim.peak_lr: " in error


def test_probe_eval_repeats_the_number_of_its_training(folder: Path, vjepa: Callable) -> None:
    result = json.loads((folder / "probe" / "result.json").read_text())
    outcome = vjepa(
        *("probe", "eval", folder / "probe", folder / "set" / "manifest.parquet"),
        *("--split", "test", "--device", "cpu", "--json", folder / "again.json"),
        *("--confusion", folder / "again.svg", "--calibration", folder / "calibration.svg"),
    )
    assert outcome.code == 2  # all else is done
    assert "error: --calibration: 11 answers are too few" in outcome.err
    assert not (folder / "calibration.svg").exists()
    assert outcome.out.startswith(f"encoder: {folder / 'run'}")
    again = json.loads((folder / "again.json").read_text())
    assert again["metrics"] == result["test"]["metrics"]
    assert (folder / "again.svg").read_text().startswith("<?xml")
    assert f"{again['metrics']['correct']} of 11 videos of split test" in outcome.out


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--confusion", "c.jpg", "must end in .png or .svg"),
        ("--calibration", "c.txt", "must end in .png or .svg"),
        ("--json", "taken/m.json", "cannot be written (a file is where a folder should be)"),
    ],
)
def test_probe_eval_refuses_files_that_it_could_not_write(
    folder: Path, tmp_path: Path, vjepa: Callable, option: str, name: str, message: str
) -> None:
    manifest = folder / "set" / "manifest.parquet"
    (tmp_path / "taken").write_text("")
    outcome = vjepa("probe", "eval", folder / "probe", manifest, option, tmp_path / name)
    assert f"{tmp_path / name}: {message}" in outcome.error
    assert "top-1" not in outcome.out  # before any work


def test_probe_predict_names_classes_and_what_it_cannot_read(
    folder: Path, video: Path, tmp_path: Path, vjepa: Callable
) -> None:
    predict = ("probe", "predict", folder / "probe", video, "--top", 2, "--device", "cpu")
    outcome = vjepa(*predict)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"encoder: {folder / 'run'}")
    assert lines[1] == str(video)
    assert len(lines) == 4
    assert all("%" in line for line in lines[2:])
    (tmp_path / "empty.mp4").write_bytes(b"")
    outcome = vjepa(*predict[:4], tmp_path / "empty.mp4", *predict[4:])
    assert outcome.code == 1
    assert outcome.out.splitlines()[:4] == lines
    assert f"{tmp_path / 'empty.mp4'}\n  cannot be read: " in outcome.out


@pytest.mark.parametrize(
    ("what", "options", "pictures"),
    [
        ("masks", ("--config", "tiny.yaml"), 1),
        ("features", ("--model", "run"), 1),
        ("predictions", ("--model", "run"), 2),  # one for each kind of mask
    ],
)
def test_show_draws(
    folder: Path,
    video: Path,
    tmp_path: Path,
    vjepa: Callable,
    what: str,
    options: tuple[str, str],
    pictures: int,
) -> None:
    option, name = options
    outcome = vjepa("show", what, video, option, folder / name, "--out", tmp_path / "out.png")
    assert outcome.code == 0, outcome.err
    drawn = [path.read_bytes() for path in tmp_path.glob("out*.png")]
    assert len(drawn) == pictures
    assert all(content.startswith(b"\x89PNG") for content in drawn)


def test_show_predictions_of_every_level(golden_dir: Path, tmp_path: Path, vjepa: Callable) -> None:
    """V-JEPA 2.1: sizes from the command line, and a row for each of its four levels."""
    video = tmp_path / "long.mp4"
    pictures = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), np.uint8)
    write_moving(pictures, video, 0.1)
    show = ("show", "predictions", video, "--out", tmp_path / "out.png", "--model")
    sizes = ("--num-heads", 2, "--image-size", 64, "--num-frames", 8)
    outcome = vjepa(*show, golden_dir / "vjepa2" / "v2_1_pretrain_tiny.pt", *sizes)
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "out_0.png") as levels:
        height = levels.height
    outcome = vjepa(*show, golden_dir / "vjepa2" / "v2_pretrain_tiny.pt", *sizes)
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "out_0.png") as one:
        assert height > 1.7 * one.height, "six rows, and three"
    towards = vjepa(*show, golden_dir / "vjepa2" / "v2_1_distilled_tiny.pt", *sizes)
    assert "trained towards another encoder" in towards.error


def test_show_run(folder: Path, tmp_path: Path, vjepa: Callable) -> None:
    out = tmp_path / "report.html"
    outcome = vjepa("show", "run", folder / "run", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "4 of 4" in outcome.out
    assert "<svg" in out.read_text()
    outcome = vjepa("show", "run", folder / "run", "--out", tmp_path / "report.png")
    assert (outcome.code, "must end in .html" in outcome.err) == (2, True)


def test_ctrl_c_saves_and_says_how_to_resume(folder: Path, tmp_path: Path) -> None:
    """In the middle of a real process."""
    command = [sys.executable, "-m", "vjepa", "pretrain", "--config", str(folder / "tiny.yaml")]
    command += ["--data.sources.0.manifest", str(folder / "set" / "manifest.parquet")]
    command += ["--out", "run", "--optim.steps", "1000000", "--training.num_threads", "1"]
    process = subprocess.Popen(
        [*command, "--training.checkpoint_every_steps", "1000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    stopped = re.search(r"stopped at your request at step (\d+) of 1000000: run", out)
    assert stopped, out
    assert "resume with: vjepa pretrain --out run" in out
    checkpoint = tmp_path / "run" / "checkpoints" / f"step_{int(stopped[1]):08d}"
    assert (checkpoint / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["probe", "train"], "probe train needs --out DIR"),
        (["probe", "train", "--out", "x"], "data.label: not set"),
        (["probe", "train", "--out", "x", "--data.lable", "a"], "did you mean data.label?"),
        (["probe", "eval", "none", "m.parquet"], "none"),
        (["probe", "predict", "none", "a.mp4"], "none"),
        (["show", "run", "none"], "none"),
        (["show", "features", "a.mp4", "--model", "none"], "none"),
        (["show", "masks", "none.mp4"], "none.mp4"),
    ],
)
def test_bad_input(argv: list[str], message: str, vjepa: Callable) -> None:
    assert message in vjepa(*argv).error
