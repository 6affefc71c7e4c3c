"""Published files of the eight models that the paper compares with, recognised and read safely.

A file is recognised by the names of its tensors, whatever it is called; every name and shape must
find its place, but for those that a model's pretraining needs and an encoder has not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa.checkpoint.catalogue import Family
from vjepa.checkpoint.folder import (
    ENCODER_KEYS,
    Asked,
    Held,
    hub_config,
    opened_weights,
    read_weights,
)
from vjepa.checkpoint.foreign_models import HELD, TABLE_TOLERANCE, ForeignFile
from vjepa.checkpoint.strict import plain_names
from vjepa.checkpoint.torch_files import read_torch_file
from vjepa.errors import UserError
from vjepa.models.embedding import sincos_2d

_WRAPPINGS = ("model_state", "model", "module", "state_dict")
_HUB_FILES = {
    "videomae": ("model.safetensors", "pytorch_model.bin"),
    "clip": ("open_clip_pytorch_model.bin",),
}
_OTHER_HUB_KINDS = ("ijepa", "dinov2", "dinov2_with_registers", "hiera")
_MARKS: tuple[tuple[Family, str], ...] = (
    ("hiera", r"pos_embed_(spatial|temporal)$"),
    ("openclip", r"visual\.(conv1|class_embedding|positional_embedding|transformer)\b"),
    ("omnimae", r"trunk\.(patch_embed\.proj\.1|pos_embed|blocks)\b"),
    ("videomae", r"(encoder\.blocks\.\d+\.attn\.(q|v)_bias|videomae\..*)$"),
    ("mvd", r"(mask_token|pos_embed|down|decoder)_(img|vid)\b"),
    ("dinov2", r"blocks\.\d+\.ls[12]\.gamma$"),
)
"""A name that only this family's files have, in the order in which they are looked for."""
_DROPPED: dict[Family, str] = {
    "videomae": r"(decoder|encoder_to_decoder)\.|mask_token$",
    "mvd": r"(mask_token|pos_embed|down|decoder)_(img|vid)\b",
    "omnimae": r"trunk\.(mask_token$|decoder\.)|head\.",
    "hiera": r"mask_token$|decoder_|encoder_norm\.|multi_scale_fusion_heads\.|norm\.|head\.",
    "ijepa": r"$^",
    "dinov2": r"mask_token$",
    "openclip": r"(?!visual\.)|visual\.proj$",
}
"""Tensors that an encoder has not: of the pretraining, of heads, of a tower for text."""


def open_foreign(path: Path, asked: Asked) -> Held | None:
    """What a file or Hugging Face folder holds of one of the eight; None: it is none of them.

    Raises:
        UserError: It is one, but half, fine-tuned with labels, of a size that cannot be, or asked
            for something that it has not.
    """
    is_hub = path.is_dir() or (path.is_file() and path.suffix in (".safetensors", ".bin"))
    described = hub_config(path) if is_hub else {}
    kind = described.get("model_type")
    if path.is_dir() and kind in _OTHER_HUB_KINDS:
        raise UserError(
            f"{path}: a Hugging Face folder of {kind}, whose names are not known here; give the "
            "authors' own file (docs/models.md says where it is published)"
        )
    if path.is_dir():
        if kind not in _HUB_FILES:
            return None
        found = [path / name for name in _HUB_FILES[kind] if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: holds no {' or '.join(_HUB_FILES[kind])}; download it again")
        path = found[0]
    if not path.is_file():
        return None
    content: Mapping[str, Any]
    if path.suffix == ".safetensors":
        with opened_weights(path) as opened:
            names = [name.removeprefix("model.") for name in opened.keys()]  # noqa: SIM118
        if not any(re.match(mark, name) for _, mark in _MARKS for name in names):
            return None
        content = read_weights(path)
    else:
        content = read_torch_file(path)
    return recognise(content, path, asked, described)


def recognise(
    content: Mapping[str, Any], path: Path, asked: Asked, described: Mapping[str, Any] | None = None
) -> Held | None:
    """As :func:`open_foreign` of a file's content; `described` is the ``config.json`` beside it."""
    wrapped = (content[key] for key in _WRAPPINGS if isinstance(content.get(key), dict))
    inner: Mapping[str, Any] = next(wrapped, content)
    family: Family | None = "ijepa" if _is_ijepa(content) else None
    if family is not None:
        key = ENCODER_KEYS[asked.which or "target"]
        inner = content.get(key) or {}
        if not inner:
            raise UserError(
                f"{path}: I-JEPA without an entry '{key}'; take the other (encoder.which, --which)"
            )
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    plain = plain_names(tensors, str(path))
    if all(name.startswith("model.") for name in plain):
        plain = {name.removeprefix("model."): stored for name, stored in plain.items()}
    state = {name: tensors[stored] for name, stored in plain.items()}
    for candidate, mark in _MARKS:
        if family is None and any(re.match(mark, name) for name in state):
            family = candidate
    is_tuned = bool({"fc_norm.weight", "head.weight"} & state.keys())
    if family is None and is_tuned and any(name.endswith("attn.q_bias") for name in state):
        raise UserError(
            f"{path}: VideoMAE or MVD fine-tuned with labels (fc_norm, head); the paper compares "
            "the pretrained encoders: give the pretraining's file"
        )
    if family is None:
        return None
    if any("register_token" in name for name in state):
        raise UserError(
            f"{path}: DINOv2 with registers, whose positions are stretched by another rule; give "
            "the file without (dinov2_vitg14_pretrain.pth)"
        )
    dropped = tuple(name for name in state if re.match(_DROPPED[family], name))
    kept = {name: state[name] for name in state if name not in dropped}
    file = ForeignFile(str(path), family, kept, asked, dropped, described=described or {})
    return HELD[family](file)


def _is_ijepa(content: Mapping[str, Any]) -> bool:
    """I-JEPA's files have V-JEPA's entries, with a square image's code, columns before rows."""
    for key in ("target_encoder", "encoder"):
        state = content.get(key)
        if isinstance(state, dict):
            names = {str(name).rpartition("module.")[2]: state[name] for name in state}
            code, kernel = names.get("pos_embed"), names.get("patch_embed.proj.weight")
            if isinstance(code, Tensor) and isinstance(kernel, Tensor) and kernel.ndim == 4:
                side = math.isqrt(code.shape[1]) if code.ndim == 3 else 0
                if not side or side * side != code.shape[1] or code.shape[2] % 4:
                    return False
                rows, columns = sincos_2d((side, side), code.shape[2]).chunk(2, dim=1)
                wanted = torch.cat([columns, rows], dim=1)
                return float((code[0].double() - wanted).abs().max()) <= TABLE_TOLERANCE
    return False
