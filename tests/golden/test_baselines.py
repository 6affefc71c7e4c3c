"""The eight models that the paper compares with: recorded tokens, and the real files' layouts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vjepa.checkpoint import read_encoder
from vjepa.checkpoint.catalogue import MODELS
from vjepa.checkpoint.folder import Asked
from vjepa.checkpoint.foreign import recognise
from vjepa.checkpoint.foreign_models import flat_table, mvd_table
from vjepa.checkpoint.strict import compare, shapes
from vjepa.checkpoint.timm_models import TimmVit
from vjepa.models import Encoder
from vjepa.models.embedding import sincos_2d

FLOAT32 = {"atol": 2e-5, "rtol": 0.0}
FLOAT64 = {"atol": 1e-10, "rtol": 0.0}
TABLE = {"atol": 1e-6, "rtol": 0.0}
STRETCHED_TABLE = {"atol": 2e-6, "rtol": 0.0}


@pytest.fixture(scope="module")
def folder(golden_dir: Path) -> Path:
    """The recorded numbers of the eight."""
    return golden_dir / "baselines"


def _read(folder: Path, file: str, **asked: Any) -> nn.Module:
    if file.startswith(("hiera", "dinov2", "openclip")):
        pytest.importorskip("timm")
    return read_encoder(folder / file, **asked)[0]


def _input(folder: Path, name: str) -> Tensor:
    found = load_file(folder / "inputs.safetensors")[name]
    return found if found.ndim == 5 else found[:, :, None]


def _recorded(folder: Path, file: str, name: str) -> Tensor:
    found = load_file(folder / f"{file}_tokens.safetensors")[name]
    return found.flatten(1, -2)


@pytest.mark.parametrize(
    ("file", "asked", "given", "recorded", "exact"),
    [
        ("videomae_tiny.pth", {"num_heads": 3, "image_size": 64}, "clip_64", "tokens", "tokens"),
        (
            "videomae_tiny_hf.safetensors",
            {"num_heads": 3, "image_size": 64},
            "clip_64",
            "tokens",
            "tokens",
        ),
        ("videomaev2_tiny.pth", {"num_heads": 4, "image_size": 56}, "clip_56", "tokens", "tokens"),
        ("mvd_tiny.pth", {"num_heads": 3}, "clip_64", "tokens", "tokens"),
        ("omnimae_tiny.torch", {"num_heads": 3}, "clip_64", "tokens", "tokens"),
        ("ijepa_tiny.pth.tar", {"num_heads": 3}, "images_64", "target/tokens", "target/tokens"),
        (
            "ijepa_tiny.pth.tar",
            {"num_heads": 3, "which": "context"},
            "images_64",
            "context/tokens",
            None,
        ),
        (
            "hiera_tiny.pth",
            {"num_heads": 16},
            "clip_64",
            "encoder_q3/stage_3",
            "encoder_q3/stage_3",
        ),
        ("hiera_tiny_hf.safetensors", {"num_heads": 16}, "clip_64", "encoder_q3/stage_3", None),
        (
            "hiera_tiny.pth",
            {"num_heads": 16, "tokens": "two_poolings"},
            "clip_64",
            "encoder_q2/stage_3",
            None,
        ),
        (
            "dinov2_tiny.pth",
            {"num_heads": 3},
            "images_70",
            "native_70/patch_tokens",
            "native_70/patch_tokens",
        ),
        ("dinov2_tiny.pth", {"num_heads": 3}, "images_56", "at_56/patch_tokens", None),
        ("dinov2_tiny.pth", {"num_heads": 3}, "images_84", "at_84/patch_tokens", None),
        ("dinov2_tiny.pth", {"num_heads": 3}, "images_56x84", "at_56x84/patch_tokens", None),
        (
            "openclip_tiny.bin",
            {"num_heads": 3},
            "images_56",
            "tokens_after_ln_post",
            "tokens_after_ln_post",
        ),
        (
            "openclip_tiny.bin",
            {"num_heads": 3, "tokens": "before_norm"},
            "images_56",
            "tokens_before_ln_post",
            "tokens_before_ln_post",
        ),
    ],
)
@torch.no_grad()
def test_tokens_are_the_recorded_ones(
    folder: Path, file: str, asked: dict[str, Any], given: str, recorded: str, exact: str | None
) -> None:
    encoder, family = _read(folder, file, **asked), file.partition("_")[0]
    video = _input(folder, given)
    torch.testing.assert_close(encoder(video), _recorded(folder, family, recorded), **FLOAT32)
    if exact is not None:
        found = encoder.double()(video[:1].double())
        wanted = _recorded(folder, family, f"float64/{exact}")
        torch.testing.assert_close(found, wanted, **FLOAT64)


@torch.no_grad()
def test_an_image_is_two_frames_to_omnimae_with_the_first_rows_of_its_table(folder: Path) -> None:
    encoder = _read(folder, "omnimae_tiny.torch", num_heads=3)
    clip = _input(folder, "images_64").expand(-1, -1, 2, -1, -1)
    wanted = _recorded(folder, "omnimae", "image/tokens")
    torch.testing.assert_close(encoder(clip), wanted, **FLOAT32)
    found = encoder.double()(clip[:1].double())
    wanted = _recorded(folder, "omnimae", "float64/image_tokens")
    torch.testing.assert_close(found, wanted, **FLOAT64)


@pytest.mark.parametrize(
    ("file", "asked", "given"),
    [
        ("videomae_tiny.pth", {"num_heads": 3, "image_size": 64}, "clip_64"),
        ("videomaev2_tiny.pth", {"num_heads": 4, "image_size": 56}, "clip_56"),
    ],
)
@torch.no_grad()
def test_only_some_tokens_are_seen(
    folder: Path, file: str, asked: dict[str, Any], given: str
) -> None:
    recorded = load_file(folder / f"{file.partition('_')[0]}_tokens.safetensors")
    index = recorded["visible_only/index"].expand(2, -1)
    found = _read(folder, file, **asked)(_input(folder, given), index)
    torch.testing.assert_close(found, recorded["visible_only/tokens"], **FLOAT32)


@pytest.mark.parametrize(
    ("file", "width"), [("videomae", 48), ("videomaev2", 44), ("omnimae", 48), ("mvd", 48)]
)
def test_tables_of_positions_follow_their_formula(folder: Path, file: str, width: int) -> None:
    wanted = load_file(folder / f"{file}_tokens.safetensors")["debug/position_code"]
    found = mvd_table((8, 4, 4), width) if file == "mvd" else flat_table(128, width)
    torch.testing.assert_close(found.float(), wanted, **TABLE)


@pytest.mark.parametrize("file", ["dinov2_tiny.pth", "openclip_tiny.bin"])
@torch.no_grad()
def test_any_block_is_asked_for_by_its_number(folder: Path, file: str) -> None:
    encoder, images = _read(folder, file, num_heads=3), _input(folder, "images_56")
    assert isinstance(encoder, TimmVit)
    last, first = encoder(images, layers=(1, 0))
    assert torch.equal(last, encoder(images))
    encoder.model.blocks = encoder.model.blocks[:1]
    assert torch.equal(first, encoder(images))


@pytest.mark.parametrize(("size", "grid"), [("56", (4, 4)), ("84", (6, 6)), ("56x84", (4, 6))])
def test_the_table_of_dinov2_is_stretched_by_its_authors_rule(
    folder: Path, size: str, grid: tuple[int, int]
) -> None:
    encoder = _read(folder, "dinov2_tiny.pth", num_heads=3)
    assert isinstance(encoder, TimmVit)
    wanted = load_file(folder / "dinov2_tokens.safetensors")[f"at_{size}/position_code"]
    torch.testing.assert_close(encoder.positions(*grid)[0], wanted, **STRETCHED_TABLE)


_NAMES = {
    "videomae_vitl": "videomae_vitl16",
    "videomae_vith": "videomae_vith16",
    "videomaev2_vitg": "videomaev2_vitg14",
    "mvd_vitl": "mvd_vitl16",
    "omnimae_vitl": "omnimae_vitl16",
    "omnimae_vith": "omnimae_vith14",
    "hiera_large_16x224.mae_k400": "hiera_l",
    "hiera_large_16x224.mae_k400_ft_k400": "hiera_l",
    "hiera_huge_16x224.mae_k400": "hiera_h",
    "hiera_huge_16x224.mae_k400_ft_k400": "hiera_h",
    "ijepa_vith16_448.target_encoder (encoder alike)": "ijepa_vith16_448",
    "dinov2_vitg14": "dinov2_vitg14",
    "openclip_vitbigG14": "openclip_vitbigg14",
}
"""Every layout that was recorded of a real encoder, and which known model it must be taken for."""


@pytest.mark.parametrize("layout", _NAMES)
def test_every_tensor_of_the_real_file_finds_its_place(folder: Path, layout: str) -> None:
    if layout.startswith(("hiera", "dinov2", "openclip")):
        pytest.importorskip("timm")
    described = json.loads((folder / "real_layouts.json").read_text())
    assert _NAMES.keys() == described.keys() - {"ijepa_vith16_448.predictor"}
    state = _on_meta(described[layout]["names"])
    assert len(state) == described[layout]["tensors"]
    known = MODELS[_NAMES[layout]]
    if known.family in ("mvd", "omnimae", "ijepa"):  # recognised by the values of their tables
        name = next(name for name in state if name.endswith("pos_embed") and "decoder" not in name)
        state[name] = _table(known.family, state[name].shape)
    wrapping = described[layout]["wrapping"].split()[0]
    content = state if wrapping == "none" else {wrapping: state}
    held = recognise(content, Path(layout), Asked(which="target"))
    assert held is not None
    assert held.title == known.title
    assert held.encoder == known.encoder
    with torch.device("meta"):
        module = Encoder(held.encoder) if held.build is None else held.build(held.encoder)
    report = compare(layout, "", shapes(held.tensors), shapes(module.state_dict()))
    report.require_complete("")
    assert all(name in state for name in held.dropped)
    encoders = sum(tensor.numel() for name, tensor in held.tensors.items() if name != "pos_embed")
    assert encoders > 290e6 or known.family == "hiera"


def _on_meta(names: dict[str, dict[str, int]]) -> dict[str, Tensor]:
    """A state dict without numbers from the folded description of a file."""
    found: dict[str, Tensor] = {}
    widening = _first_blocks(names.get("blocks.{i}.attn.qkv.weight", {}))
    for name, counted in names.items():
        listed = [json.loads(shape) for shape, count in counted.items() for _ in range(count)]
        numbers = widening if name.startswith("blocks.{i}.proj.") else range(len(listed))
        for number, shape in zip(numbers, listed, strict=True):
            found[name.replace("{i}", str(number))] = torch.empty(shape, device="meta")
    return found


def _first_blocks(counted: dict[str, int]) -> list[int]:
    """The blocks of Hiera that double the width, from the shapes of their qkv."""
    listed = [json.loads(shape) for shape, count in counted.items() for _ in range(count)]
    return [number for number, (out, width) in enumerate(listed) if out != 3 * width]


def _table(family: str, shape: torch.Size) -> Tensor:
    tokens, width = shape[1:]
    if family == "mvd":
        return mvd_table((8, 14, 14), width)[None].float()
    if family == "omnimae":
        return flat_table(tokens, width)[None].float()
    rows, columns = sincos_2d((28, 28), width).chunk(2, dim=1)
    return torch.cat([columns, rows], dim=1)[None].float()


def test_known_models_are_told_apart_by_their_sizes() -> None:
    for one, other in itertools.combinations(MODELS.values(), 2):
        assert (one.family, one.encoder) != (other.family, other.encoder)
        assert one.title != other.title
