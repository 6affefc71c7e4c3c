"""A short fine-tuning of the tiny checkpoint on the colours of the tiny videos."""

from __future__ import annotations

from pathlib import Path

RECIPE = """
data:
  label: colour
  train: {split: train}
  test: {split: test}
  batch_size: 4
  crop_scale: [0.5, 1.0]
  loader: {num_workers: 0}
mix: {group: 2}
optim: {epochs: null, steps: 6, peak_lr: 3.0e-3}
training:
  device: cpu
  num_threads: 1
  log_every_steps: 1
  checkpoint_every_steps: 2
  keep_every_steps: 2
"""


def write_recipe(folder: Path, videos: Path, checkpoint: Path) -> Path:
    """The recipe with its data and encoder; returns the YAML file."""
    path = folder / "finetune.yaml"
    text = RECIPE.replace("train: {", f"train: {{manifest: {videos}, ")
    path.write_text(f"encoder: {{path: {checkpoint}}}\n{text}")
    return path
