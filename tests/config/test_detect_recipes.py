"""The recipes of the paper's detection rows: the values of Table 10, and that they build."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vjepa.config import load_config, recipe_names
from vjepa.jobs.detect.config import DetectConfig
from vjepa.models import PRESETS, Encoder, RegionConfig, region_features

ROWS = {
    "ava_vitl16_224": ("vitl16", 224, (17, 19, 21, 23)),
    "ava_vith16_224": ("vith16", 224, (25, 27, 29, 31)),
    "ava_vith16_384": ("vith16", 384, (25, 27, 29, 31)),
}


def test_every_row_ships() -> None:
    assert {*ROWS, "synthetic"} == set(recipe_names("detect"))


@pytest.mark.parametrize("name", ROWS)
def test_the_values_of_table_10(name: str) -> None:
    config = load_config(DetectConfig, [name], recipes="detect")
    preset, size, layers = ROWS[name]
    optim, clip = config.optim, config.data.clip
    assert (optim.epochs, optim.batch_size, optim.weight_decay) == (30, 64, 0.05)
    assert (optim.start_lr, optim.peak_lr, optim.final_lr) == (1e-6, 1e-4, 1e-6)
    assert optim.warmup_epochs == 2
    assert clip is not None
    assert (clip.num_frames, clip.stride, clip.sampling) == (16, 4, "exact")
    assert config.data.view.crop_size == size
    assert config.regions.layers == layers == RegionConfig().layers_of(PRESETS[preset])
    assert config.data.test_on == "predicted"
    assert config.end_to_end is None


def test_the_levels_of_an_encoder_are_its_layers() -> None:
    sizes = PRESETS["vjepa2_1_vitl16"]
    assert RegionConfig().layers_of(sizes) == (5, 11, 17, 23)
    assert RegionConfig(layers=(23, 5)).layers_of(sizes) == (23, 5)
    for wrong in ((19, 23), (5, 5)):
        with pytest.raises(ValueError, match=r"blocks \(5, 11, 17, 23\), each once"):
            RegionConfig(layers=wrong).layers_of(sizes)


@pytest.mark.parametrize("name", ROWS)
def test_builds_on_the_meta_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a whole frame of 16 to 9 to the logits of three boxes."""
    config = load_config(DetectConfig, [name], recipes="detect")
    sizes = PRESETS[ROWS[name][0]]
    monkeypatch.setattr(  # which has no kernel there
        "torchvision.ops.roi_align",
        lambda maps, boxes, size, *_: maps.new_empty(len(boxes), maps.shape[1], size, size),
    )
    side = config.data.view.short_side
    with torch.device("meta"):
        video = torch.empty(1, 3, 16, side, round(16 / 9 * side / 16) * 16)
        vectors = region_features(Encoder(sizes), video, torch.empty(3, 5), config.regions)
        logits = nn.Linear(config.regions.width(sizes), 80)(vectors)
    assert logits.shape == (3, 80)
