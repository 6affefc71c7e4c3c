"""The recorded checkpoints of the authors' layout, read by the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.golden.golden_files import (
    FEATURES,
    TINY,
    plain_names,
    tensors,
    tiny_checkpoint,
    tiny_model,
)
from torch import nn
from torch.testing import assert_close

from vjepa import load_encoder
from vjepa.checkpoint import (
    convert,
    read_config,
    read_model,
    read_probe,
    released_layout,
    released_training_state,
)
from vjepa.checkpoint.state import load_optimizer_state
from vjepa.evaluation.preprocess import load_model

NAME = "pretrain_tiny.pth.tar"


def test_model_is_inferred_and_loaded(golden_dir: Path) -> None:
    model, report = read_model(golden_dir / NAME, num_heads=3)
    assert model.config == TINY
    assert len(report.matched) == 40 + 40 + 32
    assert len(report.dropped) == 3
    wanted = tiny_model(golden_dir).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_encoders_give_the_recorded_features(golden_dir: Path) -> None:
    recorded = tensors(golden_dir, "pretrain_forward")
    with torch.no_grad():
        target = load_encoder(golden_dir / NAME, num_heads=3)(recorded["input/clip"])
        context = load_encoder(golden_dir / NAME, which="context", num_heads=3)
        short = context(recorded["input/clip"], recorded["masks/short/context"])
    assert_close(target, recorded["target/output"], **FEATURES)
    assert_close(short, recorded["encoder/short"], **FEATURES)


def test_conversion_there_and_back_gives_the_recorded_layout(
    golden_dir: Path, tmp_path: Path
) -> None:
    convert(golden_dir / NAME, tmp_path / "ours", num_heads=3)
    assert read_config(tmp_path / "ours").step == 4
    convert(tmp_path / "ours", tmp_path / "theirs.pth.tar")
    theirs = torch.load(tmp_path / "theirs.pth.tar", weights_only=True)
    original = tiny_checkpoint(golden_dir)
    assert list(theirs) == list(original)
    for part in ("encoder", "predictor", "target_encoder"):
        assert list(theirs[part]) == list(original[part])
        for name, tensor in theirs[part].items():
            if name.endswith("pos_embed"):
                assert_close(tensor, original[part][name], atol=1e-6, rtol=0)
            else:
                assert torch.equal(tensor, original[part][name]), name
    for ours, wanted in zip(
        theirs["opt"]["param_groups"], original["opt"]["param_groups"], strict=True
    ):
        assert ours["params"] == wanted["params"]
        assert set(ours) == set(wanted)


def test_layout_matches_the_recorded_names_and_shapes(golden_dir: Path) -> None:
    layout = json.loads((golden_dir / "checkpoint_layout.json").read_text())
    ours = released_layout(tiny_model(golden_dir))
    assert list(ours) == list(layout["top_level"])
    for part in ("encoder", "predictor"):
        shapes = {name: list(tensor.shape) for name, tensor in ours[part].items()}
        assert shapes == layout[part]
        assert list(shapes) == list(layout[part])


def test_optimiser_state_lands_on_the_recorded_parameters(golden_dir: Path) -> None:
    layout = json.loads((golden_dir / "checkpoint_layout.json").read_text())
    state = released_training_state(golden_dir / NAME)
    assert (state.step, state.epoch) == (4, 1)
    original = tiny_checkpoint(golden_dir)["opt"]["state"]
    named = [entry for entry in layout["opt_parameters"] if entry["has_state"]]
    # Without the two position codes the recorded order is ours.
    assert [entry["name"].replace("/", ".") for entry in named] == list(state.moments)
    assert len(named) == 72
    for entry in named:
        moments = state.moments[entry["name"].replace("/", ".")]
        assert list(moments["exp_avg"].shape) == entry["shape"]
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(moments[key], original[entry["index"]][key]), entry["name"]
    ours = _names_in_group_order(load_model(golden_dir / NAME, num_heads=3))
    assert ours == [entry["name"] for entry in named]


def _decayed(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim > 1 and "bias" not in name


def _names_in_group_order(model: nn.Module) -> list[str]:
    return [
        f"{part}/{name}"
        for decayed in (True, False)
        for part in ("encoder", "predictor")
        for name, parameter in model.get_submodule(part).named_parameters()
        if _decayed(name, parameter) == decayed
    ]


def test_next_update_is_the_one_the_recorded_optimiser_would_make(golden_dir: Path) -> None:
    checkpoint = tiny_checkpoint(golden_dir)
    recorded = tensors(golden_dir, "pretrain_forward")
    theirs = {
        part: {k: nn.Parameter(v) for k, v in plain_names(checkpoint[part]).items()}
        for part in ("encoder", "predictor")
    }
    model = load_model(golden_dir / NAME, num_heads=3)
    ours = {part: dict(model.get_submodule(part).named_parameters()) for part in theirs}
    optimizers = {}
    for key, parts in (("theirs", theirs), ("ours", ours)):
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in parts[part].items() if _decayed(n, p) == decayed]}
            for decayed in (True, False)
            for part in ("encoder", "predictor")
        ]
        optimizers[key] = torch.optim.AdamW(groups)
        for part, named in parts.items():
            for name, parameter in named.items():
                gradient = recorded.get(f"grad/{part}/{name}")
                assert (gradient is None) == name.endswith("pos_embed")
                parameter.grad = gradient
    optimizers["theirs"].load_state_dict(checkpoint["opt"])
    state = released_training_state(golden_dir / NAME)
    modules = {part: model.get_submodule(part) for part in theirs}
    load_optimizer_state(optimizers["ours"], modules, state.moments, "recorded")
    for ours_group, group in zip(
        optimizers["ours"].param_groups, optimizers["theirs"].param_groups, strict=True
    ):
        ours_group |= {key: value for key, value in group.items() if key != "params"}
    for optimizer in optimizers.values():
        optimizer.step()
    for part, named in ours.items():
        for name, parameter in named.items():
            assert torch.equal(parameter, theirs[part][name]), f"{part}.{name}"


def test_probe_files(golden_dir: Path) -> None:
    for name, depth in (("attentive_probe_tiny", 1), ("attentive_probe_tiny_depth2", 2)):
        probe, report = read_probe(golden_dir / f"{name}.pth.tar", num_heads=3)
        assert probe.pooler.depth == depth
        assert report.is_complete
        assert report.dropped == (
            "pooler.cross_attention_block.xattn.proj.weight",
            "pooler.cross_attention_block.xattn.proj.bias",
        )
