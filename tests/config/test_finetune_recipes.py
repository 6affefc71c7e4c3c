"""The recipes of fine-tuning: the four columns of Table 11, and small ones for own data."""

from __future__ import annotations

import pytest
import torch

from vjepa.config import load_config, recipe_names, recipe_path
from vjepa.jobs.finetune.config import FinetuneConfig, check_batch
from vjepa.jobs.finetune.inputs import build_task
from vjepa.models import PRESETS, Encoder
from vjepa.training.schedules import learning_rate

# drop path, head dropout, batch, epochs, rate as used, warm-up epochs, start, end, flip, segments
TABLE = {
    "k400_vitl16": (0.1, 0.0, 256, 35, 2e-3, 5, 1e-6, 1e-6, True, 5),
    "k400_vith16": (0.2, 0.0, 1024, 25, 2e-3, 5, 4e-8, 4e-5, True, 5),
    "ssv2_vitl16": (0.2, 0.5, 256, 15, 5e-4, 5, 1e-6, 1.5e-4, False, 2),
    "ssv2_vith16": (0.2, 0.5, 256, 15, 5e-4, 5, 1e-6, 1.5e-4, False, 2),
}
OURS = ("finetune_vits", "finetune_few_labels")


def _load(name: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, [name], recipes="finetune")


def test_these_ship() -> None:
    assert set(recipe_names("finetune")) == {*TABLE, *OURS}


@pytest.mark.parametrize("name", TABLE)
def test_the_values_of_table_11(name: str) -> None:
    drop, dropout, batch, epochs, peak, warm, start, end, flip, segments = TABLE[name]
    config = _load(name)
    data, mix, optim = config.data, config.mix, config.optim
    assert (config.trained.drop_path, config.classifier.dropout) == (drop, dropout)
    assert (data.batch_size, data.repeats, data.horizontal_flip) == (batch, 2, flip)
    assert data.clip is not None
    assert (data.clip.num_frames, data.clip.stride, data.size) == (16, 4, 224)
    assert (data.test_segments, data.test_crops) == (segments, 3)
    assert (mix.mixup, mix.cutmix, mix.probability, mix.cutmix_share) == (0.8, 1.0, 1.0, 0.5)
    assert (mix.label_smoothing, data.augment.rand_augment) == (0.1, True)
    assert data.augment.erasing == 0.25
    assert config.trained.layer_decay == 0.75
    videos = 100 * batch
    schedules = optim.schedules(videos, batch)
    assert schedules.steps == 100 * epochs
    assert schedules.warmup_steps == 100 * warm
    assert learning_rate(100 * warm, schedules) == pytest.approx(peak)
    assert learning_rate(100 * epochs, schedules) == pytest.approx(end)
    assert (schedules.start_lr, schedules.clip_norm) == (start, None)
    assert schedules.start_weight_decay == schedules.final_weight_decay == 0.05
    assert (optim.betas, optim.eps) == ((0.9, 0.999), 1e-8)
    for processes in (8, 64):
        check_batch(config, processes)


def test_misprints_are_named() -> None:
    head = recipe_path("finetune", "ssv2_vith16").read_text()
    assert "MISPRINT" in head
    assert "1.5e-3" in head
    assert "data.sampling uniform" in head


@pytest.mark.parametrize("name", [*TABLE, *OURS])
def test_says_its_command_and_builds_on_the_meta_device(name: str) -> None:
    head = recipe_path("finetune", name).read_text()
    assert f"# Command: vjepa finetune --config {name} " in head
    config = _load(name)
    preset = PRESETS[name.split("_")[1] if name in TABLE else "vits16"]
    with torch.device("meta"):
        task = build_task(config, Encoder(preset), 400)
        inputs = torch.empty(1, 3, 16, 224, 224), torch.empty(1, 400)
        assert task(*inputs).loss.shape == ()
    assert all(
        p.requires_grad for n, p in task.named_parameters() if n.startswith("encoder.blocks")
    )
