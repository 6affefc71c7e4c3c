"""The alarm on runs that were really made: healthy ones, a collapse at once, a collapse late."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vjepa.masking import MaskConfig, MaskingConfig, MaskSampler
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.tasks import FeaturePrediction, collapse_alarm
from vjepa.tasks.masked_prediction import normalise_features

RECORDED = json.loads((Path(__file__).parent / "health_reports.json").read_text())
"""Health reports of pretraining runs of 2026-11-28 to 30, and the loss at each."""


@pytest.mark.parametrize("run", RECORDED["healthy"])
def test_no_alarm_in_a_healthy_run(run: str) -> None:
    reports = RECORDED["healthy"][run]
    assert len(reports) >= 4
    assert [collapse_alarm(reports[:end]) for end in range(1, len(reports) + 1)] == [None] * len(
        reports
    )


def test_the_healthy_runs_include_one_whose_clips_became_alike() -> None:
    """Its cosine would ring without the rank; its online probe rose from 16.5 to 29.5 %."""
    reports = RECORDED["healthy"]["demo recipe, synthetic set, ImageNet's numbers, seed 5"]
    cosines = [report["pairwise_cosine"] for report in reports]
    assert cosines[-1] > 0.95
    assert cosines[-1] > min(cosines) + 0.1


def test_a_run_that_collapsed_at_once_is_told_at_its_first_report() -> None:
    (reports,) = RECORDED["collapsed at once"].values()
    told = collapse_alarm(reports[:1])
    assert told is not None
    assert "data.normalisation measured" in told


class LeakingTargets(FeaturePrediction):
    """From some update on the targets are the encoder's own, with their gradient: they collapse."""

    leaks = False

    def targets(self, clips: Tensor) -> Tensor:
        if self.leaks and torch.is_grad_enabled():
            return normalise_features(self.encoder(clips))
        return super().targets(clips)


def _squares(rng: np.random.Generator) -> Tensor:
    """Clips of a coloured square that moves over a plain background: float32 [32, 3, 4, 16, 16]."""
    clips = np.zeros((32, 3, 4, 16, 16), np.float32) + rng.normal(0, 0.3, (32, 3, 1, 1, 1))
    for clip in clips:
        start, speed, colour = rng.integers(0, 12, 2), rng.integers(-2, 3, 2), rng.normal(0, 1, 3)
        for time in range(4):
            top, left = np.clip(start + time * speed, 0, 12)
            clip[:, time, top : top + 4, left : left + 4] = colour[:, None, None]
    return torch.from_numpy(clips.astype(np.float32))


def test_a_run_that_collapses_late_is_told_when_it_does() -> None:
    """Trained here: 150 healthy updates, then 100 in which gradients reach the targets."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sizes = EncoderConfig(
        width=24, depth=1, heads=3, image_size=16, num_frames=4, patch_size=4, patch_init_std=0.2
    )
    predictor = PredictorConfig(width=12, depth=1, num_mask_tokens=1)
    future = MaskingConfig(masks=(MaskConfig(kind="tube", tube_ratio=0.0, context_frames=2),))
    sampler = MaskSampler(future, sizes.grid, 2, 0)
    task = LeakingTargets(VJEPA(ModelConfig(encoder=sizes, predictor=predictor)), 2.0)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.05)
    masks, reports, alarms = sampler.sample(np.arange(32), 0), [], []
    for update in range(1, 251):
        task.leaks = update > 150
        clips = _squares(rng)
        loss = task(clips, masks).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for online, target in task.ema_pairs():
                for source, follower in zip(online.parameters(), target.parameters(), strict=True):
                    follower.lerp_(source, 0.01)
            if update % 50 == 0:
                found = task.health_of(clips, masks)
                reports.append({name: float(value) for name, value in found.items()})
                reports[-1]["loss"] = float(loss)
                alarms.append(collapse_alarm(reports))
    assert alarms[:3] == [None] * 3, "a small model that learns"
    assert any("fell from" in told for told in alarms[3:] if told)
