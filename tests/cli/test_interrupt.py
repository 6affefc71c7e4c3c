"""Ctrl-C in the middle of a real process: a checkpoint, exit code 130, and the way to go on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from vjepa.cli.main import main

_RECIPE = """
model:
  encoder: {width: 48, depth: 1, heads: 3, image_size: 32, num_frames: 4, patch_size: 16}
  predictor: {width: 24, depth: 1}
data:
  batch_size: 4
  clip: {num_frames: 4, stride: 1}
  transform: {crop_size: 32}
  loader: {num_workers: 0}
optim: {steps: 1000000, warmup_steps: 1}
training: {device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_steps: 1000000}
"""


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(_RECIPE)
    sizes = ("--num_clips_train", "4", "--num_clips_validation", "1", "--num_clips_test", "1")
    few = ("--size", "32", "--num_frames", "4", "--workers", "1")
    assert main(["data", "synth", "--out", str(tmp_path / "set"), *sizes, *few]) == 0
    command = ["pretrain", "--config", "tiny.yaml", "--out", "run"]
    source = ["--data.sources.0.manifest", "set/manifest.parquet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vjepa", *command, *source],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
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
