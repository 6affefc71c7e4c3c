"""A tiny checkpoint and probe config for tests of frozen evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tests.evaluation.tiny_videos import write_manifest

from vjepa.checkpoint import save_model
from vjepa.config import load_config
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.evaluation.results import Evaluation, ProbeResult
from vjepa.jobs.probe.config import ProbeConfig, VideosConfig
from vjepa.jobs.probe.probe import evaluate, train
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
        "optim.min_steps": 0,
        "optim.batch_size": 8,
        "optim.learning_rates": [1e-3, 3e-3],
        "optim.weight_decays": [0.01, 0.1],
        "num_threads": 1,
    }
    return load_config(ProbeConfig, overrides={**plain, **changes})


def train_probe(
    videos: Path, checkpoint: Path, out: Path, **changes: object
) -> tuple[ProbeResult, Evaluation]:
    """Train the probe of `probe_config`; its result and what it measured on the test videos."""
    result = train(probe_config(videos, checkpoint, **changes), out)
    assert result.test is not None
    return result, result.test


def relabelled(
    videos: Path, target: Path, relabel: Callable[[str, str, int], dict[str, str | None]]
) -> Path:
    """A copy of a manifest; `relabel` gives the labels for (colour, split, number in the split)."""
    manifest, seen = Manifest.open(videos), Counter()
    rows = []
    for row, split in enumerate(manifest.table.column("split").to_pylist()):
        labels = relabel(manifest.labels("colour")[row], split, seen[split])
        rows.append(ManifestRow(info=manifest.row(row), split=split, labels=labels))
        seen[split] += 1
    return write_manifest(rows, target)


def evaluate_here(
    probe: Path, videos: Path, encoder: Path | None = None, split: str | None = "test", **more: bool
) -> Evaluation:
    """Measure a saved probe on the test videos, without worker processes."""
    return evaluate(
        probe,
        VideosConfig(manifest=videos, split=split),
        encoder=encoder,
        reading=ReadingConfig(num_workers=0),
        device="cpu",
        num_threads=1,
        **more,
    )
