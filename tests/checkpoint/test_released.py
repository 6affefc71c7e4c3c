"""The authors' files: models and probes read and refused, damaged and harmful files among them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoint.samples import model, released_file, same_outputs, with_encoder
from tests.models.tiny import IMAGE_ENCODER, MODEL, clips, shaken

from vjepa import load_encoder
from vjepa.checkpoint import (
    read_encoder,
    read_model,
    read_probe,
    released_layout,
    released_training_state,
)
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_model
from vjepa.models import VJEPA, AttentiveClassifier, ModelConfig, PredictorConfig

Edit = Callable[[dict], dict]
WIDE = PredictorConfig(width=24, depth=2)
OTHER_GRID = with_encoder(num_frames=8)


@pytest.mark.parametrize(
    "config",
    [
        MODEL,
        with_encoder(WIDE, position_split="half", width=48, heads=6, image_size=20),
        with_encoder(num_frames=2, tubelet_size=1, channels=1, mlp_ratio=2.5),
        ModelConfig(encoder=IMAGE_ENCODER, predictor=PredictorConfig(width=12, depth=1)),
        replace(MODEL, predictor=PredictorConfig(width=24, depth=3, num_mask_tokens=5)),
        replace(MODEL, predictor=PredictorConfig(width=24, depth=1, num_mask_tokens=1)),
        replace(MODEL, predictor=PredictorConfig(width=12, depth=1, num_mask_tokens=10)),
    ],
    ids=["tiny", "half", "tubelet 1", "image", "five masks", "shared mask", "ten masks"],
)
def test_everything_but_the_heads_is_inferred(tmp_path: Path, config: ModelConfig) -> None:
    path = released_file(tmp_path, model(config))
    loaded, report = read_model(path, num_heads=config.encoder.heads)
    assert loaded.config == config
    assert report.is_complete
    assert len(report.matched) == len(loaded.state_dict())


def test_weights_come_back_and_the_two_encoders_are_not_mixed_up(tmp_path: Path) -> None:
    made, video = model(), clips(1)
    path = released_file(tmp_path, made)
    loaded = load_model(path, num_heads=3)
    assert same_outputs(loaded, made)
    assert not any(p.requires_grad for p in loaded.target_encoder.parameters())
    assert all(p.requires_grad for p in loaded.encoder.parameters())
    target, context = (load_encoder(path, which, 3) for which in ("target", "context"))
    with torch.no_grad():
        assert torch.equal(target(video), made.target_encoder(video))
        assert torch.equal(context(video), made.encoder(video))
        assert not torch.equal(target(video), context(video))
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same_outputs(loaded, made), "the file can go away after loading"


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


def _without(word: str) -> Edit:
    return lambda state: {k: v for k, v in state.items() if word not in k}


def _renamed(old: str, new: str) -> Edit:
    return lambda state: {k.replace(old, new): v for k, v in state.items()}


def _infinite(word: str) -> Edit:
    def edit(state: dict) -> dict:
        name = next(k for k in state if k.endswith(word))
        return {**state, name: torch.cat([state[name][1:], torch.tensor([torch.inf])])}

    return edit


def _code_off_by(size: float) -> Edit:
    def edit(state: dict) -> dict:
        name = next(k for k in state if k.endswith("pos_embed"))
        return {**state, name: state[name] + size * torch.randn(state[name].shape)}

    return edit


@pytest.mark.parametrize(
    ("part", "edit", "says"),
    [
        ("encoder", _renamed("module.", "modul."), r"patch_embed\.proj\.weight is missing"),
        ("encoder", _renamed("blocks.", "blocks.backbone."), "missing"),
        ("encoder", lambda state: {**state, "norm.bias": torch.ones(24)}, "both module.*norm.bias"),
        ("predictor", _infinite("norm.bias"), "predictor_norm.bias holds 1 of 12 .* not finite"),
        ("predictor", _without("blocks.0.norm1"), r"2 missing \(predictor\..*blocks\.0\.norm1"),
        ("encoder", _renamed("blocks.1.", "blocks.999999."), "12 missing .*12 unex.*999999"),
        ("encoder", _code_off_by(0.1), "pos_embed"),
        ("target_encoder", _code_off_by(0.1), "pos_embed"),
        ("predictor", _code_off_by(0.1), "pos_embed"),
        ("predictor", lambda _: released_layout(model(OTHER_GRID))["predictor"], r"\(pre.*shape"),
        ("target_encoder", _without("pos_embed"), "no position code pos_embed"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(
    tmp_path: Path, part: str, edit: Edit, says: str
) -> None:
    state = edit(released_layout(model())[part])
    with pytest.raises(UserError, match=says):
        load_model(released_file(tmp_path, **{part: state}), num_heads=3)


@pytest.mark.parametrize("prefix", ["", "module.module.", "_orig_mod.module.", "module._orig_mod."])
def test_any_prefixes_and_rounding_of_the_moving_average_are_fine(
    tmp_path: Path, prefix: str
) -> None:
    made = model()
    layout = released_layout(made)
    other = _renamed("module.", prefix)(layout["encoder"])
    other = _renamed("blocks.0.", "blocks.0._fsdp_wrapped_module.")(other)
    rounded = _code_off_by(1e-5)(layout["target_encoder"])
    path = released_file(tmp_path, made, encoder=other, target_encoder=rounded)
    loaded = load_model(path, num_heads=3)
    assert torch.equal(loaded.target_encoder.pos_embed, loaded.encoder.pos_embed)
    assert same_outputs(loaded, made)


def test_heads_are_those_of_the_preset_or_must_be_given(tmp_path: Path) -> None:
    path = released_file(tmp_path)
    with pytest.raises(UserError, match=r"heads.*width 24 and depth 2.*num-heads"):
        load_model(path)
    with pytest.raises(UserError, match="multiple of heads 5"):
        load_model(path, num_heads=5)
    path = released_file(tmp_path, VJEPA(with_encoder(width=192, depth=12)))
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


def test_no_silent_fall_back_between_encoders(tmp_path: Path) -> None:
    path = released_file(tmp_path, target_encoder=None)
    with pytest.raises(UserError, match="no entry 'target_encoder'"):
        load_encoder(path, num_heads=3)
    load_encoder(path, which="context", num_heads=3)
    with pytest.raises(UserError, match="no entry 'target_encoder'"):
        load_model(path, num_heads=3)
    with pytest.raises(UserError, match="which"):
        load_encoder(path, which="ema", num_heads=3)


def test_a_code_that_vjepa2_stores_and_does_not_use_is_dropped(tmp_path: Path) -> None:
    ten = PredictorConfig(width=24, depth=1, num_mask_tokens=10)
    path = released_file(tmp_path, model(with_encoder(ten, position_split="half")))
    encoder, report = read_encoder(path, num_heads=3)
    assert encoder.config.position == "rotary"
    assert report.dropped == ("pos_embed",)


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    layout = released_layout(model().to(torch.bfloat16))
    loaded = load_model(released_file(tmp_path, **layout), num_heads=3)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {b.dtype for b in loaded.buffers()} == {torch.float32}


@pytest.mark.parametrize("load", [load_model, read_probe])
def test_files_that_are_not_there(tmp_path: Path, load: Callable) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.pth.tar")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused_by_name(tmp_path: Path, share: float) -> None:
    path = released_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"released\.pth\.tar: .*truncated"):
        load_model(path, num_heads=3)


@pytest.mark.parametrize("name", ["released.pth.tar", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page.*fetch it again"),
    ],
)
def test_what_lies_in_place_of_weights_is_named(
    tmp_path: Path, content: bytes, said: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_model(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"hello, this is text\n", b"PK\x05\x06" + b"\0" * 18, bytes(range(256)) * 40]
)
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pth\.tar"):
        load_model(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_either_format_is_read_and_damaged_never_raises_anything_else(
    tmp_path: Path, new_format: bool
) -> None:
    path = released_file(tmp_path)
    whole = torch.load(path, weights_only=True)
    torch.save(whole, path, _use_new_zipfile_serialization=new_format)
    load_model(path, num_heads=3)
    content = path.read_bytes()
    start = content.find(b"encoder") - 40  # the pickled structure, where damage is worst
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(start, start + 600, size=3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            load_model(path, num_heads=3)
        except UserError:
            refused += 1
    assert refused > 20


class _Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth.tar"
    torch.save({"encoder": _Harmful()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="could run code"):
        load_model(path)
    path.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    with pytest.raises(UserError, match=r"model\.pth\.tar"):
        load_model(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"model": {}}, "it holds model"),
        ({"encoder.norm.bias": torch.zeros(2)}, "write models with .*save_model"),
        ({"module.patch_embed.proj.bias": torch.zeros(2)}, "write models with .*save_model"),
        ({"model": {"module.encoder.norm.bias": torch.zeros(2)}}, "a state_dict .*save_model"),
        ({}, "it holds nothing"),
        ({"encoder": {"a": 1}}, "'encoder' is not a dict of tensors"),
        ({"encoder": torch.zeros(2)}, "'encoder' is not a dict of tensors"),
        ({"encoder": {"conv.weight": torch.zeros(2)}, "predictor": {}, "target_encoder": {}}, "V-"),
        ({"classifier": {}}, "this is a probe"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "model.pth.tar"
    torch.save(content, path)
    with pytest.raises(UserError, match=says):
        load_model(path)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(0.5), "numpy.*scalar"),
        (np.zeros(2), "numpy.*_reconstruct"),
        (Path("a"), r"pathlib\.\w*Path"),
        (_Harmful(), "mkdir"),
    ],
)
def test_what_is_no_plain_value_is_named(tmp_path: Path, value: object, named: str) -> None:
    path = released_file(tmp_path, loss=value)
    with pytest.raises(UserError, match=rf"plain values: holds \S*{named}") as caught:
        load_model(path, num_heads=3)
    assert str(caught.value).isprintable()
    assert "weights_only" not in str(caught.value)


def test_weights_without_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="without their configuration"):
        load_model(path)


def _probe(width: int, depth: int) -> AttentiveClassifier:
    torch.manual_seed(0)
    return shaken(AttentiveClassifier(width, 3, 5, depth))


def _released_probe(folder: Path, width: int = 24, depth: int = 1, **changes: object) -> Path:
    probe = _probe(width, depth)
    state = {f"module.{k}": v.detach().clone() for k, v in probe.state_dict().items()}
    unused = "module.pooler.cross_attention_block.xattn.proj"
    state |= {f"{unused}.weight": torch.randn(width, width), f"{unused}.bias": torch.randn(width)}
    path = folder / "probe.pth.tar"
    torch.save({"classifier": state | changes, "opt": {}, "scaler": None, "epoch": 7}, path)
    return path


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_width_and_classes_are_inferred(tmp_path: Path, depth: int) -> None:
    loaded, report = read_probe(_released_probe(tmp_path, depth=depth), num_heads=3)
    assert loaded.pooler.depth == depth
    assert loaded.linear.weight.shape == (5, 24)
    assert report.is_complete
    assert len(report.dropped) == 2
    assert "trained     7 epochs" in str(report)
    wanted = _probe(24, depth)
    tokens = torch.randn(2, 6, 24)
    assert torch.equal(loaded(tokens), wanted(tokens))


def test_heads_come_from_the_preset_of_the_width(tmp_path: Path) -> None:
    assert read_probe(_released_probe(tmp_path, width=192))[0].pooler.heads == 3
    with pytest.raises(UserError, match=r"width 24.*num_heads="):
        read_probe(_released_probe(tmp_path))
    with pytest.raises(UserError, match="no probe can be built"):
        read_probe(_released_probe(tmp_path), num_heads=5)


def test_probes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = _released_probe(tmp_path, **{"module.pooler.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"1 unexpected \(pooler\.extra\)"):
        read_probe(path, num_heads=3)
    path = _released_probe(tmp_path, **{"module.linear.bias": torch.zeros(4)})
    with pytest.raises(UserError, match=r"linear\.bias: file \[4\], model \[5\]"):
        read_probe(path, num_heads=3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"classifiers": []}, "holds 0 probes"),
        ({"encoder": {}}, "not a probe"),
        ({"classifier": {}}, "linear.weight is missing"),
    ],
)
def test_files_that_are_no_probe_are_refused(tmp_path: Path, content: dict, says: str) -> None:
    path = tmp_path / "probe.pth.tar"
    torch.save(content, path)
    with pytest.raises(UserError, match=says):
        read_probe(path)


def test_an_export_has_no_steps(tmp_path: Path) -> None:
    state = released_training_state(released_file(tmp_path))
    assert (state.step, state.epoch, state.moments) == (0, 0, {})


def _entry(**changes: torch.Tensor) -> Edit:
    """Another optimiser entry for the first parameter that has a state."""
    return lambda opt: {**opt, "state": {**opt["state"], 1: {**opt["state"][1], **changes}}}


def _groups(change: Callable[[list], list]) -> Edit:
    return lambda opt: {**opt, "param_groups": change(opt["param_groups"])}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: None, "no optimiser state"),
        (_groups(lambda groups: groups[:2]), "2 groups, not 4"),
        (_groups(lambda gs: [{**g, "params": g["params"][1:]} for g in gs]), "group 0"),
        (_entry(exp_avg=torch.zeros(2)), r"encoder\.patch_embed\.proj\.weight: .*shape \[2\]"),
        (lambda opt: {**opt, "state": {1: {"momentum_buffer": torch.zeros(2)}}}, "not AdamW's"),
    ],
)
def test_optimisers_that_do_not_fit_are_refused(
    tmp_path: Path, golden_dir: Path, change: Edit, says: str
) -> None:
    content = torch.load(golden_dir / "pretrain_tiny.pth.tar", weights_only=True)
    torch.save(content | {"opt": change(content["opt"])}, tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match=says):
        released_training_state(tmp_path / "a.pth.tar")
