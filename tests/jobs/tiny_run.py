"""A tiny video set and pretraining config for tests of whole jobs."""

from __future__ import annotations

from pathlib import Path

from vjepa.config import load_config
from vjepa.demo import SyntheticConfig
from vjepa.demo.synthetic_files import synthesise
from vjepa.jobs.pretrain import PretrainConfig

RECIPE = """
seed: 3
model:
  encoder: {width: 48, depth: 1, heads: 3, image_size: 32, num_frames: 4, patch_size: 8}
  predictor: {width: 24, depth: 1}
data:
  batch_size: 8
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
