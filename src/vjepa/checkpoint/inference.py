"""Everything about a released model that its tensors tell: sizes, grid, split of the code.

The authors' files hold no configuration. Shapes give all but the number of heads, which comes from
a table of the customary sizes or from the caller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vjepa.errors import UserError
from vjepa.models import (
    PRESETS,
    EncoderConfig,
    ModelConfig,
    PredictorConfig,
    position_code,
    sincos_2d,
    sincos_3d,
)

_HEADS = {(preset.width, preset.depth): preset.heads for preset in PRESETS.values()}
_HEADS_BY_WIDTH = {preset.width: preset.heads for preset in PRESETS.values()}
_SPLITS: tuple[Literal["uniform", "half"], ...] = ("uniform", "half")


@dataclass(frozen=True)
class GridMatch:
    """The grid whose sin-cos code a file stores.

    Attributes:
        grid: (t, h, w).
        split: How the columns are shared out.
        deviation: Largest difference between stored and computed code.
    """

    grid: tuple[int, int, int]
    split: Literal["uniform", "half"]
    deviation: float


def encoder_heads(width: int, depth: int, num_heads: int | None, source: str) -> int:
    """Heads of an encoder: the caller's number, or that of the preset of this size.

    Raises:
        UserError: The size is no preset and no number was given.
    """
    heads = num_heads or _HEADS.get((width, depth))
    if heads is None:
        raise UserError(
            f"{source}: the number of heads of an encoder of width {width} and depth {depth} cannot"
            " be told from its file; give it (--num-heads, or num_heads=)"
        )
    return heads


def probe_heads(width: int, num_heads: int | None, source: str) -> int:
    """Heads of a probe: the caller's number, or that of the preset encoder of this width.

    Raises:
        UserError: No preset has this width and no number was given.
    """
    heads = num_heads or _HEADS_BY_WIDTH.get(width)
    if heads is None:
        raise UserError(
            f"{source}: the number of heads of a probe of width {width} cannot be told from its "
            "file; give it (--num-heads, or num_heads=); the authors take the encoder's"
        )
    return heads


def infer_encoder(
    state: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[EncoderConfig, GridMatch]:
    """Configuration of an encoder from its tensors.

    Args:
        state: Plain names -> tensors, with `pos_embed`.
        num_heads: Heads, where no preset has this size.
        source: The file, for messages.

    Returns:
        The configuration, and how its stored position code was recognised.

    Raises:
        UserError: A needed tensor is missing or has an impossible shape, the stored code is no
            sin-cos code, or the heads cannot be told.
    """
    kernel = shape_of(state, "patch_embed.proj.weight", (4, 5), source)
    width, channels, patch = kernel[0], kernel[1], kernel[-1]
    tubelet = kernel[2] if len(kernel) == 5 else 1
    if kernel[-2] != patch:
        raise UserError(f"{source}: patches of {kernel[-2]} x {patch} pixels are not square")
    depth = count_blocks(state, "blocks")
    hidden = shape_of(state, "blocks.0.mlp.fc1.weight", (2,), source)[0]
    match = match_grid(state, "pos_embed", width, is_image=len(kernel) == 4, source=source)
    try:
        config = EncoderConfig(
            width=width,
            depth=depth,
            heads=encoder_heads(width, depth, num_heads, source),
            mlp_ratio=hidden / width,
            image_size=match.grid[1] * patch,
            num_frames=match.grid[0] * tubelet,
            patch_size=patch,
            tubelet_size=tubelet,
            position_split=match.split,
            channels=channels,
        )
    except ValueError as error:
        raise UserError(f"{source}: no model can be built from it: {error}") from error
    return config, match


def infer_model(
    encoder: Mapping[str, Tensor],
    predictor: Mapping[str, Tensor],
    num_heads: int | None,
    source: str,
) -> tuple[ModelConfig, GridMatch]:
    """Configuration of encoder and predictor from their tensors.

    The predictor has as many heads as the encoder: so the authors train it.

    Args:
        encoder: Plain names -> tensors of an encoder.
        predictor: The same of the predictor.
        num_heads: Heads, where no preset has this size.
        source: The file, for messages.

    Returns:
        The configuration, and how the encoder's stored position code was recognised.

    Raises:
        UserError: As :func:`infer_encoder`.
    """
    encoder_config, match = infer_encoder(encoder, num_heads, source)
    width = shape_of(predictor, "predictor_embed.weight", (2,), source)[0]
    hidden = shape_of(predictor, "predictor_blocks.0.mlp.fc1.weight", (2,), source)[0]
    tokens = sum(name.startswith("mask_tokens.") for name in predictor)
    try:
        predictor_config = PredictorConfig(
            width=width,
            depth=count_blocks(predictor, "predictor_blocks"),
            mlp_ratio=hidden / width,
            num_mask_tokens=tokens,
        )
        config = ModelConfig(encoder=encoder_config, predictor=predictor_config)
    except ValueError as error:
        raise UserError(f"{source}: no model can be built from it: {error}") from error
    return config, match


def check_position_code(
    state: Mapping[str, Tensor], name: str, config: EncoderConfig, width: int, source: str
) -> float:
    """Compare a stored position code with the computed one.

    Args:
        state: Plain names -> tensors.
        name: The code's name.
        config: Gives grid and split.
        width: Columns wanted.
        source: The file, for messages.

    Returns:
        The largest difference.

    Raises:
        UserError: The code is missing, has another shape, or differs by more than rounding.
    """
    stored = _code_of(state, name, source)
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
    return deviation


def match_grid(
    state: Mapping[str, Tensor], name: str, width: int, *, is_image: bool, source: str
) -> GridMatch:
    """Find the grid (square in space) and the split that give a stored position code.

    Args:
        state: Plain names -> tensors.
        name: The code's name.
        width: Columns wanted.
        is_image: Whether it is a 2-D code.
        source: The file, for messages.

    Returns:
        The match.

    Raises:
        UserError: The code is missing or matches none.
    """
    stored = _code_of(state, name, source)
    if stored.shape[0] != 1 or stored.shape[2] != width:
        raise UserError(f"{source}: {name} has shape {list(stored.shape)}, wanted [1, N, {width}]")
    code, tolerance = stored[0].double(), _tolerance(stored)
    for grid in _square_grids(code.shape[0], is_image=is_image):
        for split in _SPLITS[:1] if is_image else _SPLITS:
            if (width % 4 and is_image) or (width % 8 and split == "half"):
                continue
            wanted = sincos_2d(grid[1:], width) if is_image else sincos_3d(grid, width, split)
            deviation = float((code - wanted).abs().max())
            if deviation <= tolerance:
                return GridMatch(grid, split, deviation)
    raise UserError(
        f"{source}: {name} with {code.shape[0]} tokens is not the sin-cos code of any square grid; "
        "learnt, rotary or oblong position codes are not V-JEPA's"
    )


def shape_of(
    state: Mapping[str, Tensor], name: str, axes: tuple[int, ...], source: str
) -> tuple[int, ...]:
    """The shape of a tensor that must be there with so many axes.

    Raises:
        UserError: It is not there, or has another number of axes, or is empty.
    """
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


def describe(config: EncoderConfig, match: GridMatch) -> str:
    """A report's line on what was inferred about an encoder."""
    return (
        f"inferred    width {config.width}, depth {config.depth}, heads {config.heads}, "
        f"{config.num_frames} frames of {config.image_size} px, patch {config.patch_size}, tubelet "
        f"{config.tubelet_size}; grid {_grid_text(match.grid)}, position split {match.split} "
        f"(stored code agrees to {match.deviation:.1e})"
    )


def _grid_text(grid: tuple[int, int, int]) -> str:
    return " x ".join(map(str, grid))


def _code_of(state: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    code = state.get(name)
    if code is None:
        raise UserError(
            f"{source}: no position code {name} is stored; models with rotary positions (V-JEPA 2)"
            " are not supported"
        )
    if code.ndim != 3:
        raise UserError(f"{source}: {name} has the impossible shape {list(code.shape)}")
    return code


def _tolerance(code: Tensor) -> float:
    """How far a stored code may be off: rounding, which the moving average accumulates."""
    return 1e-3 if code.dtype in (torch.float32, torch.float64) else 1e-2


def _square_grids(num_tokens: int, *, is_image: bool) -> list[tuple[int, int, int]]:
    """Grids (t, h, h) of so many tokens, one time step for an image model."""
    grids = []
    for side in range(1, math.isqrt(num_tokens) + 1):
        if num_tokens % (side * side) == 0:
            grids.append((num_tokens // (side * side), side, side))
    return [grid for grid in grids if not is_image or grid[0] == 1]
