"""A tiny checkpoint and probe config for tests of frozen evaluation."""

from __future__ import annotations

from pathlib import Path

import torch

from vjepa.checkpoint import save_model
from vjepa.config import load_config
from vjepa.data.clips.dataset import ReadingConfig
from vjepa.evaluation.results import Evaluation
from vjepa.jobs.probe.config import ProbeConfig, VideosConfig
from vjepa.jobs.probe.probe import evaluate
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig

TINY = ModelConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=2, image_size=32, num_frames=4, patch_size=16, tubelet_size=2
    ),
    predictor=PredictorConfig(width=12, depth=1),
)


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint with random weights that says how its clips were cut."""
    torch.manual_seed(0)
    run = {"data": {"clip": {"num_frames": 4, "stride": 2}}}
    return save_model(folder / "model", VJEPA(TINY), run=run)


def probe_config(videos: Path, checkpoint: Path, **changes: object) -> ProbeConfig:
    """A short probe training on the colour of the tiny videos."""
    plain = {
        "encoder.path": str(checkpoint),
        "data.label": "colour",
        "data.train.manifest": str(videos),
        "data.train.split": "train",
        "data.test.split": "test",
        "data.view.crop_size": 32,
        "data.view.short_side": 32,
        "data.reading.num_workers": 0,
        "features.batch_size": 5,
        "optim.epochs": 25,
        "optim.batch_size": 8,
        "optim.learning_rates": [1e-3, 3e-3],
        "optim.weight_decays": [0.01, 0.1],
        "num_threads": 1,
    }
    return load_config(ProbeConfig, overrides={**plain, **changes})


def evaluate_here(probe: Path, videos: Path, encoder: Path | None = None) -> Evaluation:
    """Measure a saved probe on the test videos, without worker processes."""
    return evaluate(
        probe,
        VideosConfig(manifest=videos, split="test"),
        encoder=encoder,
        reading=ReadingConfig(num_workers=0),
        device="cpu",
        num_threads=1,
    )
