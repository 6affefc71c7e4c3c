"""What the pixels alone tell: linear probes without an encoder, beside which numbers stand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vjepa.config import load_config
from vjepa.data.manifest import Manifest
from vjepa.evaluation.clips import EvaluationClips, ViewConfig
from vjepa.evaluation.intervals import wilson_interval
from vjepa.evaluation.labels import labels_of
from vjepa.evaluation.ridge import fit_ridge
from vjepa.evaluation.splits import stratified_subset
from vjepa.jobs.demo_config import DemoConfig
from vjepa.jobs.demo_probes import LABELS, Cell, EncoderName
from vjepa.jobs.pretrain_config import PretrainConfig
from vjepa.jobs.probe_config import ProbeConfig

_SIDE = 16
_READ_AT_ONCE = 256


def middle_frame(grey: Tensor) -> Tensor:
    """The middle frame alone, which cannot show motion: float [n, T, S, S] -> [n, S*S]."""
    return grey[:, grey.shape[1] // 2].flatten(1)


def frame_differences(grey: Tensor) -> Tensor:
    """What changes from each frame to the next: float [n, T, S, S] -> [n, (T-1)*S*S]."""
    return grey.diff(dim=1).flatten(1)


_BASELINES: dict[EncoderName, Callable[[Tensor], Tensor]] = {
    "middle frame": middle_frame,
    "frame differences": frame_differences,
}


@dataclass(frozen=True)
class _Part:
    """One split: grey clips float32 [n, T, 16, 16] with their manifest rows."""

    manifest: Manifest
    grey: Tensor


def pixel_baselines(config: DemoConfig, out: Path, manifest: Path) -> list[Cell]:
    """Ridge classifiers on raw pixels, for the same draws of labelled clips as the probes.

    Args:
        config: The demo's settings.
        out: The demo's folder; its frame cache is used.
        manifest: The video set.

    Returns:
        One row for each baseline, label and number of labels. Intervals are Wilson's over test
        clips: there is no pretraining whose seed could matter.
    """
    train, test = (_read(config, out, manifest, split) for split in ("train", "test"))
    cells = []
    for label in LABELS:
        fit_labels = labels_of(train.manifest, label)
        truth = labels_of(test.manifest, label, classes=fit_labels.classes)
        expected = torch.from_numpy(truth.indices)
        for per_class, draws in (
            (config.few_labels_per_class, config.label_draws),
            (config.many_labels_per_class, 1),
        ):
            for name, features in _BASELINES.items():
                inputs, held = features(train.grey), features(test.grey)
                shares = []
                for draw in range(draws):
                    rows = stratified_subset(fit_labels, per_class=per_class, seed=draw)
                    numbers = torch.from_numpy(fit_labels.indices[rows])
                    fitted = fit_ridge(inputs[rows], numbers, len(fit_labels.classes))
                    right = fitted.scores(held).argmax(dim=1) == expected
                    shares.append(float(right.double().mean()))
                top1 = statistics.fmean(shares)
                interval = wilson_interval(round(top1 * len(expected)), len(expected))
                cells.append(Cell(label, "ridge", per_class, name, top1, interval, 0, ()))
    return cells


def _read(config: DemoConfig, out: Path, manifest: Path, split: str) -> _Part:
    """All clips of a split as the encoders see them, in grey and at 16 x 16 pixels."""
    pretrain = load_config(PretrainConfig, [config.recipe], ["online_probe=null"], "pretrain")
    probe = load_config(
        ProbeConfig,
        [config.probe_recipe],
        {"data.reading.frame_cache_folder": str(out / "cache" / "frames")},
        recipes="probe",
    ).data
    view = probe.view or ViewConfig(crop_size=pretrain.model.encoder.image_size)
    rows = Manifest.open(manifest).select(split=split)
    with EvaluationClips(rows, pretrain.data.clip, view, probe.reading) as source:
        parts = [
            _to_grey(batch.clips[:, 0]) for batch in source.batches(0, len(source), _READ_AT_ONCE)
        ]
    return _Part(rows, torch.cat(parts))


def _to_grey(clips: Tensor) -> Tensor:
    """uint8 [n, 3, T, H, W] -> float32 [n, T, 16, 16] by averaging."""
    grey = clips.float().mean(dim=1)
    return torch.nn.functional.adaptive_avg_pool2d(grey, _SIDE)
