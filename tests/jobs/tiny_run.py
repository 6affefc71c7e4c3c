"""A tiny video set, pretraining config and what runs leave, for tests of whole jobs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests import warm

from vjepa.config import load_config
from vjepa.demo.synthetic import SyntheticConfig
from vjepa.demo.synthetic_files import synthesise
from vjepa.jobs.pretrain import PretrainConfig

_TIMINGS = {
    "clips_per_second",
    "cpu_share",
    "data_wait_share",
    "cpu_seconds",
    "elapsed_cpu_seconds",
    "elapsed_seconds",
    "resident_gigabytes",
    "seconds",
}

RECIPE = """
seed: 3
model:
  encoder: {width: 48, depth: 1, heads: 3, image_size: 32, num_frames: 4, patch_size: 8}
  predictor: {width: 24, depth: 1}
data:
  batch_size: 8
  normalisation: model  # measuring reads more clips than these runs
  clip: {num_frames: 4, stride: 1}
  transform: {crop_size: 32}
  loader: {num_workers: 1, prefetch_batches: 2}
optim: {steps: 40, warmup_steps: 4}
training:
  device: cpu
  num_threads: 1
  log_every_steps: 2
  checkpoint_every_steps: 5
  keep_every_steps: 5
  health_every_steps: 10
"""

CAUSAL = ("model.encoder.cls=true", "model.encoder.attention=block_causal")
LEVJEPA = (
    *CAUSAL,
    "objective.name=levjepa",
    "objective.levjepa={local_views: 2, local_size: 16, dropped: 0.5, directions: 32}",
)
"""Overrides of the recipe."""


def write_box_set(folder: Path, num_train: int, num_test: int) -> None:
    """A set for detection: two moments a clip of digits with boxes."""
    config = SyntheticConfig(
        num_clips_train=num_train,
        num_clips_validation=0,
        num_clips_test=num_test,
        num_frames=4,
        size=32,
        object_size=0.3,
        travel=0.2,
        zoom=1.5,
        boxes=True,
        num_segments=2,
    )
    synthesise(config, folder, workers=1)


def write_set(folder: Path) -> Path:
    """A few labelled videos; returns their manifest."""
    config = SyntheticConfig(
        num_clips_train=90, num_clips_validation=11, num_clips_test=11, num_frames=6, size=32
    )
    return synthesise(config, folder / "set", workers=1)[0]


def write_recipe(folder: Path, manifest: Path) -> Path:
    """The recipe with its data source; returns the YAML file."""
    path = folder / "tiny.yaml"
    source = f"  sources: [{{manifest: {manifest}, split: train}}]\n"
    path.write_text(RECIPE.replace("data:\n", "data:\n" + source))
    return path


def tiny_config(folder: Path, manifest: Path, *overrides: str) -> PretrainConfig:
    """The recipe as a config."""
    return load_config(PretrainConfig, [write_recipe(folder, manifest)], overrides)


def launch(folder: Path, jobs: list[dict[str, Any]]) -> tuple[list[list[int]], str]:
    """Run jobs as `rank_host` says; exit codes of each one's processes, and all words."""
    host = warm.call("tests.jobs.rank_host:launch_all", [jobs], folder / "jobs.log")
    try:
        assert host.wait(timeout=1800) == 0, host.said
    finally:
        host.end_all()
    return json.loads(host.said.splitlines()[-1]), host.said


def launch_all(folder: Path, jobs: list[dict[str, Any]], killed: dict[str, Any]) -> None:
    """Run jobs, and one that is killed on its way; all must end well and without a warning."""
    codes, said = launch(folder, [*jobs, killed])
    assert codes[:-1] == [[0] * job["ranks"] for job in jobs], said
    assert codes[-1][-1] == 0, said
    assert -signal.SIGKILL in codes[-1], said
    assert "Warning" not in said, said


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights of a run's checkpoint."""
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def metrics(run: Path) -> list[dict[str, Any]]:
    """A run's log without what was measured of the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMINGS} for line in lines]
