from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.checkpoint.samples import model, released_file, same_outputs, with_encoder
from tests.models.tiny import IMAGE_ENCODER, MODEL, clips

from vjepa.checkpoint import load_encoder, load_model, read_encoder, read_model, released_layout
from vjepa.errors import UserError
from vjepa.models import VJEPA, ModelConfig, PredictorConfig

WIDE = PredictorConfig(width=24, depth=2)


@pytest.mark.parametrize(
    "config",
    [
        MODEL,
        with_encoder(WIDE, position_split="half", width=48, heads=6, image_size=20),
        with_encoder(num_frames=2, tubelet_size=1, channels=1, mlp_ratio=2.5),
        ModelConfig(encoder=IMAGE_ENCODER, predictor=PredictorConfig(width=12, depth=1)),
        replace(MODEL, predictor=PredictorConfig(width=24, depth=3, num_mask_tokens=5)),
        replace(MODEL, predictor=PredictorConfig(width=24, depth=1, num_mask_tokens=1)),
    ],
    ids=["tiny", "half", "tubelet 1", "image", "five masks", "shared mask"],
)
def test_everything_but_the_heads_is_inferred(tmp_path: Path, config: ModelConfig) -> None:
    path = released_file(tmp_path, model(config))
    loaded, report = read_model(path, num_heads=config.encoder.heads)
    assert loaded.config == config
    assert report.is_complete
    assert len(report.matched) == len(loaded.state_dict())


def test_weights_and_outputs_come_back(tmp_path: Path) -> None:
    made = model()
    loaded = load_model(released_file(tmp_path, made), num_heads=3)
    assert same_outputs(loaded, made)
    assert not any(p.requires_grad for p in loaded.target_encoder.parameters())
    assert all(p.requires_grad for p in loaded.encoder.parameters())


def test_the_two_encoders_are_not_mixed_up(tmp_path: Path) -> None:
    made = model()
    path = released_file(tmp_path, made)
    video = clips(1)
    with torch.no_grad():
        target = load_encoder(path, num_heads=3)(video)
        context = load_encoder(path, which="context", num_heads=3)(video)
        assert torch.equal(target, made.target_encoder(video))
        assert torch.equal(context, made.encoder(video))
    assert not torch.equal(target, context)


def test_report_can_be_read(tmp_path: Path) -> None:
    path = released_file(tmp_path)
    text = str(read_model(path, num_heads=3)[1])
    assert str(path) in text
    assert "matched     " in text
    assert "missing     0" in text
    assert "dropped     3: encoder.pos_embed, target_encoder.pos_embed" in text
    assert "width 24, depth 2, heads 3, 4 frames of 16 px, patch 4, tubelet 2" in text
    assert "target encoder" in str(read_encoder(path, num_heads=3)[1])


@pytest.mark.parametrize("scaler", [None, {}, {"scale": 65536.0, "_growth_tracker": 0}])
def test_any_scaler_entry_is_taken(tmp_path: Path, scaler: dict | None) -> None:
    load_model(released_file(tmp_path, scaler=scaler), num_heads=3)


def test_prefixes_are_removed_once_and_only_at_the_front(tmp_path: Path) -> None:
    layout = released_layout(model())
    bare = OrderedDict((k.removeprefix("module."), v) for k, v in layout["encoder"].items())
    load_model(released_file(tmp_path, encoder=bare), num_heads=3)
    deep = OrderedDict((f"module.{k}", v) for k, v in layout["encoder"].items())
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight is missing"):
        load_model(released_file(tmp_path, encoder=deep), num_heads=3)
    inside = OrderedDict((k.replace("blocks.", "blocks.module."), v) for k, v in bare.items())
    with pytest.raises(UserError, match="missing"):
        load_model(released_file(tmp_path, encoder=inside), num_heads=3)


def test_heads_must_be_given_for_an_unknown_size(tmp_path: Path) -> None:
    path = released_file(tmp_path)
    with pytest.raises(UserError, match=r"heads.*width 24 and depth 2.*num-heads"):
        load_model(path)
    with pytest.raises(UserError, match="multiple of heads 5"):
        load_model(path, num_heads=5)


def test_heads_of_a_preset_are_known(tmp_path: Path) -> None:
    config = with_encoder(width=192, depth=12)
    made = VJEPA(config)
    path = released_file(tmp_path, made)
    assert load_model(path).config.encoder.heads == 3
    assert load_encoder(path, num_heads=6).config.heads == 6


def test_missing_unexpected_and_resized_tensors_are_named(tmp_path: Path) -> None:
    layout = released_layout(model())
    target = layout["target_encoder"]
    del target["module.backbone.norm.bias"]
    target["module.backbone.extra"] = torch.zeros(1)
    target["module.backbone.blocks.1.attn.proj.weight"] = torch.zeros(24, 12)
    path = released_file(tmp_path, target_encoder=target)
    with pytest.raises(UserError) as caught:
        load_model(path, num_heads=3)
    message = str(caught.value)
    assert "1 missing (target_encoder.norm.bias)" in message
    assert "1 unexpected (target_encoder.extra)" in message
    assert "target_encoder.blocks.1.attn.proj.weight: file [24, 12], model [24, 24]" in message
    assert "\n" not in message


def test_a_missing_block_is_found(tmp_path: Path) -> None:
    predictor = released_layout(model())["predictor"]
    cut = {k: v for k, v in predictor.items() if "predictor_blocks.0.norm1" not in k}
    with pytest.raises(UserError, match=r"2 missing \(predictor\.predictor_blocks\.0\.norm1"):
        load_model(released_file(tmp_path, predictor=cut), num_heads=3)


def test_a_gap_between_blocks_is_found(tmp_path: Path) -> None:
    encoder = released_layout(model())["encoder"]
    moved = {k.replace("blocks.1.", "blocks.123456789."): v for k, v in encoder.items()}
    with pytest.raises(UserError, match=r"12 missing .*12 unexpected .*blocks\.123456789"):
        load_model(released_file(tmp_path, encoder=moved), num_heads=3)


def test_no_silent_fall_back_between_encoders(tmp_path: Path) -> None:
    path = released_file(tmp_path, target_encoder=None)
    with pytest.raises(UserError, match="no entry 'target_encoder'"):
        load_encoder(path, num_heads=3)
    load_encoder(path, which="context", num_heads=3)
    with pytest.raises(UserError, match="no entry 'target_encoder'"):
        load_model(path, num_heads=3)
    with pytest.raises(UserError, match="which"):
        load_encoder(path, which="ema", num_heads=3)


@pytest.mark.parametrize("part", ["encoder", "target_encoder", "predictor"])
def test_a_foreign_position_code_is_refused(tmp_path: Path, part: str) -> None:
    state = released_layout(model())[part]
    name = next(k for k in state if k.endswith("pos_embed"))
    state[name] = state[name] + 0.1 * torch.randn(state[name].shape)
    with pytest.raises(UserError, match="pos_embed"):
        load_model(released_file(tmp_path, **{part: state}), num_heads=3)


def test_rounding_of_the_moving_average_is_not_foreign(tmp_path: Path) -> None:
    state = released_layout(model())["target_encoder"]
    name = next(k for k in state if k.endswith("pos_embed"))
    state[name] = state[name] + 1e-5
    loaded = load_model(released_file(tmp_path, target_encoder=state), num_heads=3)
    assert torch.equal(loaded.target_encoder.pos_embed, loaded.encoder.pos_embed)


def test_a_code_of_another_grid_in_one_part_is_refused(tmp_path: Path) -> None:
    other = released_layout(model(with_encoder(num_frames=8)))
    with pytest.raises(UserError, match=r"\(predictor\).*shape"):
        load_model(released_file(tmp_path, predictor=other["predictor"]), num_heads=3)


def test_vjepa2_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    ten = PredictorConfig(width=24, depth=1, num_mask_tokens=10)
    halves = with_encoder(ten, position_split="half")
    made = model(halves)
    with pytest.raises(UserError, match=r"looks like V-JEPA 2 .*10 mask tokens"):
        load_encoder(released_file(tmp_path, made), num_heads=3)
    layout = released_layout(model())
    with pytest.raises(UserError, match=r"looks like V-JEPA 2 .*'ema_encoder'"):
        load_model(released_file(tmp_path, ema_encoder=layout["encoder"]), num_heads=3)
    target = {k: v for k, v in layout["target_encoder"].items() if "pos_embed" not in k}
    with pytest.raises(UserError, match=r"looks like V-JEPA 2 .*no position code"):
        load_model(released_file(tmp_path, target_encoder=target), num_heads=3)


def test_ten_mask_tokens_of_a_vjepa1_model_are_fine(tmp_path: Path) -> None:
    config = replace(MODEL, predictor=PredictorConfig(width=12, depth=1, num_mask_tokens=10))
    assert load_model(released_file(tmp_path, model(config)), num_heads=3).config == config


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    layout = released_layout(model().to(torch.bfloat16))
    loaded = load_model(released_file(tmp_path, **layout), num_heads=3)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {b.dtype for b in loaded.buffers()} == {torch.float32}


def test_the_file_can_go_away_after_loading(tmp_path: Path) -> None:
    made = model()
    path = released_file(tmp_path, made)
    loaded = load_model(path, num_heads=3)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same_outputs(loaded, made)
