"""The recipes of the paper's frozen evaluation: every row of Table 9 but AVA."""

from __future__ import annotations

import pytest
import torch

from vjepa.checkpoint.catalogue import MODELS
from vjepa.config import load_config, recipe_names, recipe_path
from vjepa.evaluation.evaluate import join_clips
from vjepa.evaluation.heads import build_head
from vjepa.jobs.probe.config import HeadSetting, ProbeConfig
from vjepa.models import PRESETS

SETS = {"k400_16x8x3": (8, 400), "ssv2_16x2x3": (2, 174)}
IMAGES = {"in1k": 1000, "places205": 205, "inat21": 10_000}
NAMES = [f"{name}{size}" for name in (*SETS, *IMAGES) for size in ("", "_384")]


def _load(name: str) -> ProbeConfig:
    return load_config(ProbeConfig, [name], recipes="probe")


def test_every_row_ships() -> None:
    assert set(NAMES) <= set(recipe_names("probe"))


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_table_9(name: str) -> None:
    config = _load(name)
    data, optim, augment = config.data, config.optim, config.data.augment
    is_image = name.split("_")[0] in IMAGES
    assert data.clip is not None
    assert data.view is not None
    assert (data.clip.num_frames, data.clip.stride) == (16, 4)
    assert data.view.crop_size == (384 if name.endswith("_384") else 224)
    assert optim.epochs == 20
    assert optim.batch_size == (1024 if is_image else 256)
    assert config.grid == (HeadSetting(1e-3, 0.01, "attentive"),)
    assert augment.crop_scale == (0.08, 1.0)
    assert augment.crop_aspect == pytest.approx((0.75, 4 / 3))
    assert augment.policy == ("image_paper" if is_image else "paper")
    assert augment.flips == (not name.startswith("ssv2"))
    assert config.features.online
    segments = 1 if is_image else SETS[name.removesuffix("_384")][0]
    assert (data.view.num_segments, data.view.num_views) == (segments, 1 if is_image else 3)
    assert data.view.join == "tokens"


@pytest.mark.parametrize("preset", ["vitl16", "vith16"])
@pytest.mark.parametrize("name", NAMES)
def test_builds_on_the_meta_device_for_l_and_h(name: str, preset: str) -> None:
    """From the clips of two videos to their logits."""
    config, encoder = _load(name), PRESETS[preset]
    view = config.data.view
    assert view is not None
    bare = name.removesuffix("_384")
    classes = IMAGES[bare] if bare in IMAGES else SETS[bare][1]
    tokens = 8 * (view.crop_size // encoder.patch_size) ** 2
    with torch.device("meta"):
        head = build_head(config.probe, encoder.width, encoder.heads, classes)
        maps = torch.empty(2, view.clips_per_video, tokens, encoder.width)
        inputs = join_clips(maps, view.num_segments, view.join)
        assert inputs.shape == (2, view.num_views, view.num_segments * tokens, encoder.width)
        assert head(inputs.flatten(0, 1)).shape == (2 * view.num_views, classes)


@pytest.mark.parametrize("name", NAMES)
def test_says_its_source_and_command(name: str) -> None:
    head = recipe_path("probe", name).read_text().partition("\ndata:")[0]
    for word in ("Table 9", "Table 6", f"# Command: vjepa probe train --config {name} "):
        assert word in head


FROZEN = (*SETS, *IMAGES)
OTHERS = [name for name, known in MODELS.items() if known.rows]
ROWS = [
    *((model, name, extra) for model in OTHERS for name in FROZEN for extra in ("", "linear")),
    *((model, name, "low_shot") for model in OTHERS for name in SETS),
]
"""Model, data set, and what else of Tables 5, 6, 7, 12 and 13; the paper has some of these."""


@pytest.mark.parametrize(("model", "name", "extra"), ROWS)
def test_the_models_of_the_comparison_fit_every_data_set(model: str, name: str, extra: str) -> None:
    """Size, frames and tubelets, and the head over the token map, on the meta device."""
    files = [name, *([extra] if extra else []), model]
    config, alone = load_config(ProbeConfig, files, recipes="probe"), _load(name)
    sizes, known = MODELS[model].encoder, MODELS[model]
    assert config.encoder.path is not None
    assert str(config.encoder.path) == model
    clip, view = config.data.clip, config.data.view
    assert clip is not None
    assert view is not None
    assert view.crop_size == sizes.image_size
    assert (clip.num_frames, clip.stride) == (16, 4)
    assert sizes.is_image_model or clip.num_frames == sizes.num_frames
    assert alone.data.view is not None
    assert view.num_segments == alone.data.view.num_segments
    assert view.num_views == alone.data.view.num_views
    assert config.data.augment == alone.data.augment
    assert config.probe.kind == ("linear" if extra == "linear" else "attentive")
    if extra == "low_shot":
        assert (config.data.label_fraction, config.data.num_splits) == (0.05, 3)
    _, height, width = sizes.grid
    tokens = clip.num_frames // sizes.tubelet_size * height * width
    with torch.device("meta"):
        head = build_head(config.probe, sizes.width, sizes.heads, 400)
        inputs = torch.empty(1, view.num_segments * tokens, sizes.width)
        assert head(inputs).shape == (1, 400)
    text = recipe_path("probe", model).read_text()
    assert known.paper in text
    assert ("CC BY-NC 4.0" in text) == ("CC BY-NC 4.0" in known.licence)


def test_every_known_model_of_the_tables_has_a_recipe() -> None:
    assert {name for name, known in MODELS.items() if known.rows} <= set(recipe_names("probe"))
