"""Every recipe that ships loads, says what it is, and builds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.config import (
    dump_yaml,
    from_dict,
    load_config,
    recipe_names,
    recipe_path,
    settings,
    to_dict,
)
from vjepa.data.prepare.config import PrepareConfig
from vjepa.jobs.decode import DecodeConfig, build_task
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.masking import MaskSampler
from vjepa.models import PRESETS, VJEPA, EncoderConfig
from vjepa.strict_yaml import parse_yaml
from vjepa.training.schedules import ema_momentum, learning_rate, weight_decay

PAPER = ("vitl16_224", "vith16_224", "vith16_384")
OURS = ("vitt16_224", "vits16_224", "vitb16_224")


def _load(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, [name], recipes="pretrain")


def test_these_recipes_ship() -> None:
    assert set(recipe_names("pretrain")) >= {*PAPER, *OURS}


@pytest.mark.parametrize("name", recipe_names("pretrain"))
def test_loads_round_trips_and_builds_on_the_meta_device(name: str) -> None:
    config = _load(name)
    assert from_dict(PretrainConfig, parse_yaml(dump_yaml(config), "dump")) == config
    with torch.device("meta"):
        model = VJEPA(config.model)
    if name not in PAPER + OURS:
        return
    said = " ".join(recipe_path("pretrain", name).read_text().split())
    for part in ("encoder", "predictor"):
        parameters = model.get_submodule(part).parameters()
        millions = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
        assert f"{part} {millions:.1f} M" in said


@pytest.mark.parametrize("name", recipe_names("prepare"))
def test_recipes_of_data_prepare_load(name: str) -> None:
    config = load_config(PrepareConfig, [name], recipes="prepare")
    assert config.deduplicate
    assert config.match.duplicate_names, "the Kinetics sets share clips"
    assert config.transcode.fps is None, "the paper's stride counts the files' frames"


@pytest.mark.parametrize("name", recipe_names("decode"))
def test_recipes_of_decode_build_on_the_meta_device(name: str) -> None:
    config, pretraining = load_config(DecodeConfig, [name], recipes="decode"), _load(name)
    with torch.device("meta"):
        task = build_task(config, VJEPA(pretraining.model), pretraining)
    count = sum(p.numel() for p in task.decoder.parameters()) / 1e6
    assert f"ecoder {count:.1f} M parameters" in recipe_path("decode", name).read_text()


@pytest.mark.parametrize("name", PAPER + OURS)
def test_states_source_cost_and_command(name: str) -> None:
    head = recipe_path("pretrain", name).read_text().partition("\nseed:")[0]
    for word in ("# Cost:", f"# Command: vjepa pretrain --config {name}", "Table 8"):
        assert word in head


@pytest.mark.parametrize("name", PAPER + OURS)
def test_writes_out_everything_that_decides_what_is_learnt(name: str) -> None:
    """A later change of a default must not silently change a recipe."""
    written = set(_dotted(parse_yaml(recipe_path("pretrain", name).read_text(), name)))
    silent = (
        "training.",
        "distributed.",
        "online_probe",
        "continue_from",
        "data.loader",
        "masking.masks.N",
    )
    silent += ("data.clip.", "data.sources.N", "model.encoder.input.", "objective.levjepa.")
    silent += ("data.images.",)  # none: nothing of it counts
    expected = {s.path for s in settings(PretrainConfig) if not s.path.startswith(silent)}
    assert expected - written <= {"model.encoder.channels"}


def _dotted(data: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in data.items():
        names += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return names


def test_table_8() -> None:
    """The values of the paper's Table 8, one by one."""
    for name, size, batch, preset in (
        ("vitl16_224", 224, 3072, "vitl16"),
        ("vith16_224", 224, 3072, "vith16"),
        ("vith16_384", 384, 2400, "vith16"),
    ):
        config = _load(name)
        encoder, clip, transform = config.model.encoder, config.data.clip, config.data.transform
        assert to_dict(encoder) == to_dict(PRESETS[preset]) | {"image_size": size}
        assert (config.model.predictor.depth, config.model.predictor.width) == (12, 384)
        assert config.data.batch_size == batch
        assert (clip.num_frames, clip.stride, transform.crop_size) == (16, 4, size)
        assert (transform.crop_scale, transform.crop_aspect) == ((0.3, 1.0), (0.75, 1.35))
        assert transform.horizontal_flip
        short, long = config.masking.masks
        assert (short.num_blocks, short.spatial_scale) == (8, (0.15, 0.15))
        assert (long.num_blocks, long.spatial_scale) == (2, (0.7, 0.7))
        assert short.aspect_ratio == long.aspect_ratio == (0.75, 1.5)
        assert config.objective.loss_exponent == 1.0
        assert config.training.precision == "bfloat16"
        optim = config.optim
        assert (optim.steps, optim.warmup_steps) == (90_000, 12_000)
        assert learning_rate(12_000, optim) == pytest.approx(6.25e-4)
        assert learning_rate(90_000, optim) == pytest.approx(7.504e-5, rel=1e-3)
        assert weight_decay(90_000, optim) == pytest.approx(0.36562, abs=1e-5)
        assert ema_momentum(1, config.ema, optim) == 0.998
        assert ema_momentum(90_000, config.ema, optim) == pytest.approx(0.9996, abs=1e-6)
        assert (optim.clip_norm, optim.clip_from_step) == (10.0, 12_301)


@pytest.mark.parametrize("name", OURS)
def test_small_recipes_differ_only_where_they_say(name: str) -> None:
    small, large = _load(name), _load("vitl16_224")
    preset = {"t": "vitt16", "s": "vits16", "b": "vitb16"}[name[3]]
    assert (
        small.model.encoder
        == PRESETS[preset]
        == EncoderConfig(width=small.model.encoder.width, depth=12, heads=small.model.encoder.heads)
    )
    assert small.masking == large.masking
    assert small.model.predictor == large.model.predictor
    assert to_dict(small.optim) | {"accumulation_steps": 128} == to_dict(large.optim)
    half_life = [
        config.data.batch_size * np.log(0.5) / np.log(config.ema.start_momentum)
        for config in (small, large)
    ]
    assert half_life[0] == pytest.approx(half_life[1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("vitl16_224", ((0.2335, 0.4805), (0.0669, 0.7002))),
        ("vith16_384", ((0.2814, 0.5020), (0.0906, 0.7228))),
    ],
)
def test_masks_keep_as_many_tokens_as_the_authors_code(name: str, shares: tuple) -> None:
    config = _load(name)
    encoder = config.model.encoder
    sampler = MaskSampler(config.masking, encoder.grid, encoder.tubelet_size, config.seed)
    for kind, (context, target) in zip(sampler.sample(np.arange(2), 0), shares, strict=True):
        assert kind.context.shape[1] / encoder.num_tokens == pytest.approx(context, abs=0.001)
        assert kind.target.shape[1] / encoder.num_tokens == pytest.approx(target, abs=0.001)


def test_probe_recipe_of_table_9() -> None:
    config = load_config(ProbeConfig, ["attentive"], recipes="probe")
    assert (config.probe.kind, config.probe.depth) == ("attentive", 1)
    optim = config.optim
    assert (optim.epochs, optim.batch_size) == (20.0, 256)
    assert (optim.learning_rates, optim.weight_decays) == ((1e-3,), (0.01,))
