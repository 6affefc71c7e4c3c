"""Everything about a released model that its tensors tell: sizes, grid, split of the code.

The authors' files hold no configuration. Shapes give all but the number of heads, which comes from
a table of the customary sizes or from the caller. State dicts here have plain names; `source` is
the file, for messages. What is missing or cannot be is refused with a UserError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from vjepa.errors import UserError
from vjepa.models import PRESETS, EncoderConfig, PredictorConfig, position_code
from vjepa.models.embedding import sincos_2d, sincos_3d

Split = Literal["uniform", "half"]


@contextmanager
def buildable(what: str, source: str) -> Generator[None]:
    """Around the building from inferred sizes: those that cannot be become one line for people."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{source}: no {what} can be built from it: {error}") from error


def heads_of(
    what: str,
    width: int,
    depth: int | None,
    num_heads: int | None,
    source: str,
    known: Iterable[EncoderConfig] = (),
) -> int:
    """The caller's number of heads, or that of the `known` encoder of this width (and depth).

    Known are the presets of V-JEPA 1 unless others are given.
    """
    if num_heads:
        return num_heads
    for preset in known or [preset for preset in PRESETS.values() if not preset.is_rotary]:
        if preset.width == width and depth in (None, preset.depth):
            return preset.heads
    size = f"width {width}" + ("" if depth is None else f" and depth {depth}")
    where = "--num-heads; as a setting, encoder.num_heads or continue_from.num_heads; in Python "
    # Only Python reads the authors' probes.
    how = f"{where}num_heads=)" if what == "an encoder" else "num_heads=); it is the encoder's"
    raise UserError(
        f"{source}: the number of heads of {what} of {size} cannot be told from its file; give it"
        f" ({how}"
    )


def infer_encoder(
    state: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[EncoderConfig, str]:
    """Configuration of an encoder from its tensors, and a line that says what was inferred."""
    kernel = shape_of(state, "patch_embed.proj.weight", (4, 5), source)
    width, channels, patch = kernel[0], kernel[1], kernel[-1]
    tubelet = kernel[2] if len(kernel) == 5 else 1
    if kernel[-2] != patch:
        raise UserError(f"{source}: patches of {kernel[-2]} x {patch} pixels are not square")
    depth = count_blocks(state, "blocks")
    hidden = shape_of(state, "blocks.0.mlp.fc1.weight", (2,), source)[0]
    is_image = len(kernel) == 4
    grid, split, deviation = _match_grid(state.get("pos_embed"), width, is_image, source)
    with buildable("model", source):
        config = EncoderConfig(
            width=width,
            depth=depth,
            heads=heads_of("an encoder", width, depth, num_heads, source),
            mlp_ratio=hidden / width,
            image_size=grid[1] * patch,
            num_frames=grid[0] * tubelet,
            patch_size=patch,
            tubelet_size=tubelet,
            position_split=split,
            channels=channels,
        )
    note = (
        f"inferred    width {width}, depth {depth}, heads {config.heads}, {config.num_frames} "
        f"frames of {config.image_size} px, patch {patch}, tubelet {tubelet}; grid "
        f"{_grid_text(grid)}, position split {split} (stored code agrees to {deviation:.1e})"
    )
    return config, note


def infer_predictor(state: Mapping[str, Tensor], source: str) -> PredictorConfig:
    """Configuration of a predictor from its tensors; the authors give it the encoder's heads."""
    width = shape_of(state, "predictor_embed.weight", (2,), source)[0]
    hidden = shape_of(state, "predictor_blocks.0.mlp.fc1.weight", (2,), source)[0]
    with buildable("model", source):
        return PredictorConfig(
            width=width,
            depth=count_blocks(state, "predictor_blocks"),
            mlp_ratio=hidden / width,
            num_mask_tokens=sum(name.startswith("mask_tokens.") for name in state),
        )


def check_position_code(
    stored: Tensor | None, name: str, config: EncoderConfig, width: int, source: str
) -> None:
    """Refuse a stored position code that differs from the computed one by more than rounding."""
    stored = _code(stored, name, source)
    wanted = position_code(config, width, torch.device("cpu"))
    if stored.shape != wanted.shape:
        raise UserError(
            f"{source}: {name} has shape {list(stored.shape)}, the model's is {list(wanted.shape)}"
        )
    deviation = float((stored.float() - wanted).abs().max())
    if not deviation <= _tolerance(stored):
        raise UserError(
            f"{source}: {name} differs by {deviation:.2g} from the sin-cos code of grid "
            f"{_grid_text(config.grid)}; this model was not trained with it"
        )


def is_uniform_code(state: Mapping[str, Tensor]) -> bool:
    """Whether an encoder's stored code is the released V-JEPA 1 kind."""
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 5:
        return False
    code = state.get("pos_embed")
    try:
        return _match_grid(code, kernel.shape[0], is_image=False, source="")[1] == "uniform"
    except UserError:
        return False


def _match_grid(
    stored: Tensor | None, width: int, is_image: bool, source: str
) -> tuple[tuple[int, int, int], Split, float]:
    """The grid (square in space) and split that give a code, and the largest difference."""
    stored = _code(stored, "pos_embed", source)
    if stored.shape[0] != 1 or stored.shape[2] != width:
        shape = list(stored.shape)
        raise UserError(f"{source}: pos_embed has shape {shape}, wanted [1, N, {width}]")
    code, tolerance = stored[0].double(), _tolerance(stored)
    tokens = code.shape[0]
    splits: tuple[Split, ...] = ("uniform",) if is_image else ("uniform", "half")
    for side in range(1, math.isqrt(tokens) + 1):
        grid = (tokens // (side * side), side, side)
        if tokens % (side * side) or (is_image and grid[0] != 1):
            continue
        for split in splits:
            if (width % 4 and is_image) or (width % 8 and split == "half"):
                continue
            wanted = sincos_2d(grid[1:], width) if is_image else sincos_3d(grid, width, split)
            deviation = float((code - wanted).abs().max())
            if deviation <= tolerance:
                return grid, split, deviation
    raise UserError(
        f"{source}: pos_embed with {tokens} tokens is not the sin-cos code of any square grid; "
        "learnt, rotary or oblong position codes are not V-JEPA's"
    )


def _code(stored: Tensor | None, name: str, source: str) -> Tensor:
    if stored is None:
        raise UserError(
            f"{source}: no position code {name} is stored, though another part of the file has one:"
            " the file is incomplete; download it again"
        )
    if stored.ndim != 3:
        raise UserError(f"{source}: {name} has the impossible shape {list(stored.shape)}")
    return stored


def _tolerance(code: Tensor) -> float:
    """How far a stored code may be off: rounding, which the moving average accumulates."""
    return 1e-3 if code.dtype in (torch.float32, torch.float64) else 1e-2


def _grid_text(grid: tuple[int, int, int]) -> str:
    return " x ".join(map(str, grid))


def shape_of(
    state: Mapping[str, Tensor], name: str, axes: tuple[int, ...], source: str
) -> tuple[int, ...]:
    """The shape of a tensor that must be there with so many axes."""
    tensor = state.get(name)
    if tensor is None:
        raise UserError(f"{source}: the tensor {name} is missing; this is not a V-JEPA model")
    if tensor.ndim not in axes or tensor.numel() == 0:
        raise UserError(f"{source}: {name} has the impossible shape {list(tensor.shape)}")
    return tuple(tensor.shape)


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many indices i stand in names ``<prefix>.i.*``; a gap shows later, as missing blocks."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({int(hit.group(1)) for name in names if (hit := pattern.match(name))})
