"""Everything about a released model that its tensors tell: sizes, grid, split of the code.

The authors' files hold no configuration. Shapes give all but the number of heads, which comes from
a table of the customary sizes or from the caller. State dicts here have plain names; `source` is
the file, for messages. What is missing or cannot be is refused with a UserError.

The layout of V-JEPA 2 is that of V-JEPA 1, but for what the models have more or less: no position
codes, and in 2.1 a norm for each level, patches and a vector for images. Neither pixels, frames nor
heads can be seen in such a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vjepa.checkpoint.folder import ENCODER_KEYS, Asked, Held, require_unasked
from vjepa.checkpoint.torch_files import tensors_of
from vjepa.errors import UserError
from vjepa.models import PRESETS, VJEPA2_MODELS, EncoderConfig, PredictorConfig, position_code
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
    ours = "--num_heads; in Python released={'num_heads': ...}, or num_heads= of read_probe); it is"
    how = f"{where}num_heads=)" if what == "an encoder" else f"{ours} the encoder's"
    raise UserError(
        f"{source}: the number of heads of {what} of {size} cannot be told from its file; give it"
        f" ({how}"
    )


def infer_encoder(
    state: Mapping[str, Tensor], num_heads: int | None, source: str
) -> tuple[EncoderConfig, str]:
    """Configuration of an encoder from its tensors, and a line that says what was inferred."""
    told = _told_sizes(state, (4, 5), source)
    width, depth, patch, tubelet = (
        told[name] for name in ("width", "depth", "patch_size", "tubelet_size")
    )
    is_image = state["patch_embed.proj.weight"].ndim == 4
    grid, split, deviation = _match_grid(state.get("pos_embed"), width, is_image, source)
    with buildable("model", source):
        config = EncoderConfig(
            **told,
            heads=heads_of("an encoder", width, depth, num_heads, source),
            image_size=grid[1] * patch,
            num_frames=grid[0] * tubelet,
            position_split=split,
        )
    note = (
        f"inferred    width {width}, depth {depth}, heads {config.heads}, {config.num_frames} "
        f"frames of {config.image_size} px, patch {patch}, tubelet {tubelet}; grid "
        f"{_grid_text(grid)}, position split {split} (stored code agrees to {deviation:.1e})"
    )
    return config, note


def _told_sizes(state: Mapping[str, Tensor], axes: tuple[int, ...], source: str) -> dict[str, Any]:
    """Those sizes of an encoder that the shapes of its tensors tell, whichever V-JEPA it is of."""
    kernel = shape_of(state, "patch_embed.proj.weight", axes, source)
    if kernel[-2] != kernel[-1]:
        raise UserError(f"{source}: patches of {kernel[-2]} x {kernel[-1]} pixels are not square")
    return {
        "width": kernel[0],
        "depth": count_blocks(state, "blocks"),
        "mlp_ratio": shape_of(state, "blocks.0.mlp.fc1.weight", (2,), source)[0] / kernel[0],
        "patch_size": kernel[-1],
        "tubelet_size": kernel[2] if len(kernel) == 5 else 1,
        "channels": kernel[1],
    }


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
    state: Mapping[str, Tensor],
    name: str,
    axes: tuple[int, ...],
    source: str,
    title: str = "V-JEPA",
) -> tuple[int, ...]:
    """The shape of a tensor that must be there with so many axes in a file of the `title`."""
    tensor = state.get(name)
    if tensor is None:
        raise UserError(
            f"{source}: no {title}, as {name} is missing: half a file, or another model with "
            "similar names; download it again"
        )
    if tensor.ndim not in axes or tensor.numel() == 0:
        raise UserError(
            f"{source}: {name} has shape {list(tensor.shape)}, wanted "
            f"{' or '.join(map(str, axes))} axes: not the {title} that can be read"
        )
    return tuple(tensor.shape)


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many indices i stand in names ``<prefix>.i.*``; a gap shows later, as missing blocks."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({int(hit.group(1)) for name in names if (hit := pattern.match(name))})


Generation = Literal["1", "2", "2.1"]
"""Of V-JEPA."""
LEVELS = {model.encoder.depth: model.encoder.levels for model in VJEPA2_MODELS.values()}
"""Which blocks' outputs are levels of 2.1, by the number of blocks."""
_CODES = ("pos_embed", "predictor_pos_embed")
_MASK_TOKENS = (8, 10)
_FRAMES, _PIXELS, _LARGE_PIXELS = 64, 256, 384
SECOND_FPS = 4.0
"""Frames a second of the clips that V-JEPA 2 and 2.1 were trained on, which no file says."""
SECOND_FPS_NOTE = (
    f"assumed     {SECOND_FPS:g} frames a second, where no clip is asked for (data.clip)"
)
_PREDICTOR_HEAD = 32  # columns; 12 heads of the released width 384
_STORED = {
    "encoder": {
        "patch_embed_img.": "patch_embed.image.",
        "img_mod_embed": "patch_embed.image_vector",
        "video_mod_embed": "patch_embed.video_vector",
    },
    "predictor": {
        "img_mod_embed": "modality_vectors.image",
        "video_mod_embed": "modality_vectors.video",
    },
}
"""What the authors call a tensor of 2.1, or how its name begins, and we do."""


def generation(content: Mapping[str, Any], path: Path) -> Generation:
    """Which V-JEPA a file is of, by what it holds.

    Some files of V-JEPA 2 may hold a position code that nobody uses, so shapes alone would load as
    V-JEPA 1 and give wrong features.

    Raises:
        UserError: It is of V-JEPA 2-AC.
    """
    found = [key for key in ("target_encoder", "encoder", "ema_encoder") if key in content]
    states = [tensors_of(content, key, path) for key in found]
    state = states[0] if states else {}
    names = tensors_of(content, "predictor", path) if "predictor" in content else {}
    if any(name.startswith(("action_encoder.", "state_encoder.")) for name in names):
        raise UserError(
            f"{path}: V-JEPA 2-AC, whose predictor takes the actions of a robot: not supported; "
            "its encoder is that of V-JEPA 2 g: give that file (vitg.pt)"
        )
    if any(name.startswith(("norms_block.", "video_mod_embed")) for name in state):
        return "2.1"
    if "patch_embed.proj.weight" in state and not any("pos_embed" in each for each in states):
        return "2"
    tokens = sum(name.startswith("mask_tokens.") for name in names)
    return "2" if tokens in _MASK_TOKENS and not is_uniform_code(state) else "1"


def open_second(content: Mapping[str, Any], path: Path, asked: Asked, of: Generation) -> Held:
    """What a file of V-JEPA 2 or 2.1 holds of a model, or of one encoder.

    Raises:
        UserError: A part is not there, of a size that cannot be, or a name is missing by which
            sizes are told.
    """
    require_unasked(asked, path, "tokens")
    source, kind = str(path), f"the authors' V-JEPA {of} checkpoint"
    distilled = "ema_encoder" in content and "target_encoder" not in content
    wanted = [ENCODER_KEYS[asked.which]] if asked.which else ["encoder", "target_encoder"]
    notes: list[str] = []
    if distilled:
        notes.append("one encoder  ema_encoder serves as target and as context encoder")
    parts: dict[str, dict[str, Tensor]] = {}
    for key in (*wanted, *(() if asked.which else ("predictor",))):
        from_ema = distilled and key != "predictor"
        parts[key] = tensors_of(content, "ema_encoder" if from_ema else key, path)
    dropped = [
        name if asked.which else f"{part}.{name}"
        for part, state in parts.items()
        for name in _CODES
        if state.pop(name, None) is not None
    ]
    encoder, assumed, note = _encoder(parts[wanted[0]], path, asked, of)
    notes += [note, SECOND_FPS_NOTE]
    predictor = None
    if asked.which is None:
        predictor, note = infer_predictor(parts["predictor"], encoder, source)
        notes.append(note)
    tensors = {
        (own if asked.which else f"{key}.{own}"): tensor
        for key, state in parts.items()
        for name, tensor in state.items()
        for own in [our_name(name, key, encoder.levels)]
    }
    if asked.which:
        kind += f", its {asked.which} encoder"
    held = Held(source, kind, encoder, predictor, tensors, tuple(dropped), tuple(notes))
    return replace(held, assumed=tuple(assumed))


def _encoder(
    state: Mapping[str, Tensor], path: Path, asked: Asked, of: Generation
) -> tuple[EncoderConfig, list[str], str]:
    """The sizes of an encoder, what of them is assumed, and a line that says what was inferred."""
    source = str(path)
    told = _told_sizes(state, (5,), source)
    width, depth, levels = told["width"], told["depth"], ()
    if of == "2.1":
        levels = LEVELS.get(depth, ())
        if not levels:
            raise UserError(
                f"{source}: V-JEPA 2.1 with {depth} blocks: which of them are levels is known of "
                f"{', '.join(map(str, sorted(LEVELS)))} only"
            )
    large = of == "2.1" or str(_LARGE_PIXELS) in path.name
    usual = {"image_size": _LARGE_PIXELS if large else _PIXELS, "num_frames": _FRAMES}
    given = {"image_size": asked.image_size, "num_frames": asked.num_frames}
    sizes = {name: given[name] or usual[name] for name in usual}
    words = {"image_size": "pixels", "num_frames": "frames"}
    assumed = [
        f"{usual[name]} {words[name]} (encoder.{name}, --{name.replace('_', '-')})"
        for name in usual
        if given[name] is None
    ]
    with buildable("model", source):
        config = EncoderConfig(
            **told,
            **sizes,
            heads=heads_of("an encoder", width, None, asked.num_heads, source, _ENCODERS),
            position="rotary" if of == "2" else "rotary_pairs",
            position_reference=None if of == "2" else 16,
            levels=levels,
            modalities=of == "2.1",
        )
    note = (
        f"inferred    width {width}, depth {depth}, heads {config.heads}, patch "
        f"{config.patch_size}, tubelet {config.tubelet_size}, positions {config.position}"
    )
    return config, assumed, note


_ENCODERS = [model.encoder for model in VJEPA2_MODELS.values()]


def infer_predictor(
    state: Mapping[str, Tensor], encoder: EncoderConfig, source: str
) -> tuple[PredictorConfig, str]:
    """The sizes of a predictor, and a line that says what was inferred.

    In V-JEPA 1 it has the encoder's heads.
    """
    several = "predictor_embed.0.weight" in state
    name = "predictor_embed.2.weight" if several else "predictor_embed.weight"
    width = shape_of(state, name, (2,), source)[0]
    hidden = shape_of(state, "predictor_blocks.0.mlp.fc1.weight", (2,), source)[0]
    tokens = sum(name.startswith("mask_tokens.") for name in state)
    second: dict[str, Any] = {}
    heads, shared = f"{encoder.heads} (the encoder's)", ""
    if encoder.is_rotary:
        out = shape_of(state, "predictor_proj.weight", (2,), source)[0]
        levels = len(encoder.levels) if several else 1
        heads = width // _PREDICTOR_HEAD if width % _PREDICTOR_HEAD == 0 else 1
        shared = ", of which all masks share the first"
        second = {
            "heads": heads,
            "shared_mask_token": 0,
            "levels": levels,
            "out_width": None if out == levels * encoder.width else out,
            "predicts_context": "predictor_proj_context.weight" in state,
        }
    with buildable("model", source):
        config = PredictorConfig(
            width=width,
            depth=count_blocks(state, "predictor_blocks"),
            mlp_ratio=hidden / width,
            num_mask_tokens=tokens,
            **second,
        )
    note = (
        f"inferred    predictor width {width}, depth {config.depth}, heads {heads}, {tokens} mask"
    )
    return config, f"{note} tokens{shared}"


def our_name(name: str, part: str, levels: tuple[int, ...]) -> str:
    """What we call an authors' tensor of `part`: encoder, target_encoder or predictor."""
    for theirs, ours in _STORED["predictor" if part == "predictor" else "encoder"].items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = re.fullmatch(r"norms_block\.(\d+)\.(\w+)", name)
    if found and int(found[1]) < len(levels):
        level = levels[int(found[1])]
        return f"norm.{found[2]}" if level == levels[-1] else f"level_norms.{level}.{found[2]}"
    return name


def their_name(name: str, part: str, levels: tuple[int, ...]) -> str:
    """The reverse of :func:`our_name`."""
    for theirs, ours in _STORED["predictor" if part == "predictor" else "encoder"].items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    found = re.fullmatch(r"level_norms\.(\d+)\.(\w+)", name)
    if found:
        return f"norms_block.{levels.index(int(found[1]))}.{found[2]}"
    if levels and part != "predictor" and name.startswith("norm."):
        return f"norms_block.{len(levels) - 1}.{name.removeprefix('norm.')}"
    return name
