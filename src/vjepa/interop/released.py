"""The authors' pretraining checkpoints (``.pth.tar``): to our modules, strictly.

A file is a dict with `encoder`, `predictor`, `opt`, `scaler`, `target_encoder`, `epoch`, `loss`,
`batch_size`, `world_size`, `lr`. It holds no configuration; see :mod:`vjepa.interop.inference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vjepa.errors import UserError
from vjepa.interop.inference import (
    check_position_code,
    describe,
    infer_encoder,
    infer_model,
    match_grid,
)
from vjepa.interop.report import LoadReport, compare, fill
from vjepa.interop.torch_files import read_torch_file, tensors_of
from vjepa.models import VJEPA, Encoder, ModelConfig

Which = Literal["target", "context"]
"""The two encoders of a model: the moving average, which is evaluated, and the trained one."""

KIND = "the authors' pretraining checkpoint"
ENCODER_KEYS: dict[Which, str] = {"target": "target_encoder", "context": "encoder"}
POSITION_NAMES = {
    "encoder": "pos_embed",
    "target_encoder": "pos_embed",
    "predictor": "predictor_pos_embed",
}
"""The fixed position code's name in each part; stored by the authors as a parameter."""
_VJEPA2_MASK_TOKENS = (8, 10)


def read_released(path: Path) -> dict[str, Any]:
    """Read a file and make sure that it is a V-JEPA pretraining checkpoint.

    Raises:
        UserError: It cannot be read, or it is something else.
    """
    content = read_torch_file(path)
    if "classifier" in content:
        raise UserError(f"{path}: this is a probe, not a model; read it with load_probe")
    if "encoder" not in content and "target_encoder" not in content:
        held = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        raise UserError(
            f"{path}: not a V-JEPA checkpoint: it has no encoder or target_encoder; it holds {held}"
        )
    refuse_rotary(content, path)
    return content


def refuse_rotary(content: Mapping[str, Any], path: Path) -> None:
    """Refuse V-JEPA 2 and 2.1 files: same tensors, but another model computes with them.

    They rotate queries and keys by position instead of adding a code, yet some of their files still
    hold a code, so the shapes alone would load and give wrong features. Their marks: `ema_encoder`;
    or no code; or 8 or 10 mask tokens beside a code that V-JEPA 1 was not released with.

    Raises:
        UserError: It is one.
    """
    reason = None
    key = "target_encoder" if "target_encoder" in content else "encoder"
    state = tensors_of(content, key, path)
    if "ema_encoder" in content:
        reason = "it has an entry 'ema_encoder'"
    elif "patch_embed.proj.weight" in state and "pos_embed" not in state:
        reason = "its encoder stores no position code"
    elif "predictor" in content:
        names = tensors_of(content, "predictor", path)
        tokens = sum(name.startswith("mask_tokens.") for name in names)
        if tokens in _VJEPA2_MASK_TOKENS and not _has_uniform_code(state):
            reason = f"its predictor has {tokens} mask tokens"
    if reason is not None:
        raise UserError(
            f"{path}: looks like V-JEPA 2 ({reason}); its rotary position codes are not supported,"
            " use a V-JEPA 1 checkpoint"
        )


def _has_uniform_code(state: Mapping[str, Tensor]) -> bool:
    """Whether the stored code is the released V-JEPA 1 kind."""
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 5:
        return False
    try:
        match = match_grid(state, "pos_embed", kernel.shape[0], is_image=False, source="")
    except UserError:
        return False
    return match.split == "uniform"


def load_released_model(path: Path, num_heads: int | None = None) -> tuple[VJEPA, LoadReport]:
    """Build the model that a file holds and load all three parts.

    Args:
        path: The file.
        num_heads: Heads, where the size is no preset.

    Returns:
        The model, float32 on the CPU, and the report.

    Raises:
        UserError: The file cannot be read, is something else, or does not fit.
    """
    content = read_released(path)
    parts = {part: tensors_of(content, part, path) for part in POSITION_NAMES}
    config, match = infer_model(parts["encoder"], parts["predictor"], num_heads, str(path))
    for part, name in POSITION_NAMES.items():
        width = config.predictor.width if part == "predictor" else config.encoder.width
        check_position_code(parts[part], name, config.encoder, width, f"{path} ({part})")
    stored = {
        f"{part}.{name}": tensor
        for part, state in parts.items()
        for name, tensor in state.items()
        if name != POSITION_NAMES[part]
    }
    with torch.device("meta"):
        model = VJEPA(config)
    report = compare(
        str(path),
        KIND,
        stored,
        model.state_dict(),
        dropped=[f"{part}.{name}" for part, name in POSITION_NAMES.items()],
        notes=[describe(config.encoder, match), _predictor_note(config)],
    )
    fill(model, stored, report)
    model.reset_position_codes()
    return model, report


def load_released_encoder(
    path: Path, which: Which, num_heads: int | None = None
) -> tuple[Encoder, LoadReport]:
    """Build and load one encoder of a file.

    Args:
        path: The file; it need not hold the other parts.
        which: Which encoder.
        num_heads: Heads, where the size is no preset.

    Returns:
        The encoder, float32 on the CPU, and the report.

    Raises:
        UserError: The file cannot be read, lacks this encoder, or does not fit.
    """
    content = read_released(path)
    state = tensors_of(content, ENCODER_KEYS[which], path)
    config, match = infer_encoder(state, num_heads, str(path))
    stored = {name: tensor for name, tensor in state.items() if name != "pos_embed"}
    with torch.device("meta"):
        encoder = Encoder(config)
    report = compare(
        str(path),
        f"{KIND}, its {which} encoder",
        stored,
        encoder.state_dict(),
        dropped=["pos_embed"],
        notes=[describe(config, match)],
    )
    fill(encoder, stored, report)
    encoder.reset_position_code()
    return encoder, report


def _predictor_note(config: ModelConfig) -> str:
    predictor = config.predictor
    return (
        f"inferred    predictor width {predictor.width}, depth {predictor.depth}, heads "
        f"{config.encoder.heads} (the encoder's), {predictor.num_mask_tokens} mask tokens"
    )
