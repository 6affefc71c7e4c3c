"""The files of each of the eight models that the paper compares with: names, sizes, positions.

:mod:`vjepa.checkpoint.foreign` recognises them. What a file does not hold (the number of heads, for
some the size of the input) comes from the catalogue or from the caller, and is then assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vjepa.checkpoint.catalogue import CLIP_INPUT, HIERA_INPUT, MODELS, Family, KnownModel
from vjepa.checkpoint.folder import Asked, Held, Tokens
from vjepa.checkpoint.inference import buildable, count_blocks, shape_of
from vjepa.checkpoint.timm_models import TimmHiera, TimmVit, VitForm
from vjepa.errors import UserError
from vjepa.models import PRESETS, EncoderConfig
from vjepa.models.embedding import sincos_1d

TABLE_TOLERANCE = 1e-3
"""How far a stored table may be off: rounding, which a moving average accumulates."""
_USUAL_FRAMES, _USUAL_SIZE = 16, 224


@dataclass
class ForeignFile:
    """A recognised file on its way to :class:`Held`: tensors, renamed step by step."""

    source: str
    family: Family
    state: dict[str, Tensor]
    asked: Asked
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    described: Mapping[str, Any] = field(default_factory=dict)

    def number(self, key: str) -> int | None:
        """A size that the ``config.json`` beside the file says."""
        found = self.described.get(key)
        return found if isinstance(found, int) and found > 0 else None

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there with so many axes."""
        return shape_of(self.state, name, (axes,), self.source, TITLES[self.family])


TITLES: dict[Family, str] = {
    "videomae": "VideoMAE",
    "mvd": "MVD",
    "omnimae": "OmniMAE",
    "hiera": "Hiera",
    "ijepa": "I-JEPA",
    "dinov2": "DINOv2",
    "openclip": "OpenCLIP",
}


def flat_table(tokens: int, width: int) -> Tensor:
    """The table of VideoMAE and OmniMAE, one running number over all tokens: float64 [N, width]."""
    sines, cosines = sincos_1d(torch.arange(tokens), width).chunk(2, dim=1)
    return torch.stack([sines, cosines], dim=-1).flatten(1)


def mvd_table(grid: tuple[int, int, int], width: int) -> Tensor:
    """The table of MVD: a quarter for time, then width, then height; float64 [t*h*w, width]."""
    t, h, w = grid
    time = sincos_1d(torch.arange(t), width // 4)
    rows, columns = (sincos_1d(torch.arange(n), 3 * width // 8) for n in (h, w))
    parts = [
        time[:, None, None].expand(t, h, w, -1),
        columns[None, None, :].expand(t, h, w, -1),
        rows[None, :, None].expand(t, h, w, -1),
    ]
    return torch.cat(parts, dim=-1).flatten(0, 2)


def _join_bias(file: ForeignFile) -> None:
    """One bias of q, k and v from those of q and v beside it: the key has none."""
    state = file.state
    for name in [name for name in state if name.endswith(".q_bias")]:
        front = name.removesuffix("q_bias")
        q, v = state[name], state.get(f"{front}v_bias")
        if v is not None and v.shape == q.shape:
            del state[name], state[f"{front}v_bias"]
            state[f"{front}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])


def _rename(file: ForeignFile, *rules: tuple[str, str]) -> None:
    """Every name by all rules, one after the other."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in file.state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        if name in renamed:
            raise UserError(f"{file.source}: holds {name} twice; it is no file of its authors")
        renamed[name] = tensor
    file.state = renamed


def _known(family: Family, **sizes: int) -> KnownModel | None:
    """The published model of these sizes."""
    for model in MODELS.values():
        config = model.encoder
        if model.family == family and all(getattr(config, k) == v for k, v in sizes.items()):
            return model
    return None


def _heads(file: ForeignFile, width: int, depth: int, customary: int | None = None) -> int:
    """The number of heads; a width that is published with more blocks makes half a file."""
    given = file.asked.num_heads
    same = [m for m in MODELS.values() if (m.family, m.encoder.width) == (file.family, width)]
    for model in same:
        if model.encoder.depth == depth:
            heads = model.encoder.heads
            if given not in (None, heads):
                raise UserError(
                    f"{file.source}: has {heads} heads, not {given}; leave num_heads out"
                )
            return heads
    if given:
        return given
    if same:
        raise UserError(
            f"{file.source}: {depth} blocks of width {width}, but {same[0].title} has "
            f"{same[0].encoder.depth}: half a file, or another model; download it again, or say "
            "how many heads it has (encoder.num_heads) to read it as it is"
        )
    if customary is not None:
        return customary
    for preset in PRESETS.values():
        if (preset.width, preset.depth) == (width, depth):
            return preset.heads
    raise UserError(
        f"{file.source}: how many heads {TITLES[file.family]} of width {width}, depth {depth} has "
        "cannot be told from its file; give it (encoder.num_heads, or --num-heads)"
    )


def _refuse_tokens(file: ForeignFile, *possible: Tokens) -> None:
    asked = file.asked.tokens
    if asked is not None and asked not in possible:
        has = f"it has {' and '.join(possible)}" if possible else "it has one token map"
        raise UserError(
            f"{file.source}: encoder.tokens: {asked} is not {TITLES[file.family]}'s: {has};"
            " leave it out"
        )


def _require_images(file: ForeignFile) -> None:
    if (file.asked.num_frames or 1) != 1:
        raise UserError(
            f"{file.source}: encoder.num_frames {file.asked.num_frames}: {TITLES[file.family]} is "
            "an image model, which has no tubelets and sees single frames; leave it out (clips "
            "have as many frames as data.clip.num_frames or window.num_frames says)"
        )


def _config(file: ForeignFile, **sizes: Any) -> EncoderConfig:
    """The config of sizes; those that cannot be become one line."""
    patch, image_size = sizes["patch_size"], sizes["image_size"]
    if image_size % patch:
        raise UserError(
            f"{file.source}: {image_size} pixels are not whole patches of {patch}; take "
            f"encoder.image_size {image_size // patch * patch or patch}"
        )
    with buildable("model", file.source):
        return EncoderConfig(position="given", **sizes)


def _finish(
    file: ForeignFile,
    config: EncoderConfig,
    build: Callable[[EncoderConfig], nn.Module] | None = None,
) -> Held:
    """All that was found out."""
    sizes = {"width": config.width, "depth": config.depth}
    sizes |= {"patch_size": config.patch_size} if file.family != "hiera" else {}
    known = _known(file.family, **sizes)
    own = f"{TITLES[file.family]} of width {config.width}, depth {config.depth}"
    title = known.title if known else own
    grid = " x ".join(map(str, config.grid))
    frames = "" if config.is_image_model else f"{config.num_frames} frames of "
    found = (
        f"inferred    width {config.width}, depth {config.depth}, heads {config.heads}, {frames}"
        f"{config.image_size} px, patch {config.patch_size}, tubelet {config.tubelet_size}; tokens "
        f"{grid}"
    )
    mean, deviation = config.input.mean_and_deviation
    shown = (
        f"normalised  mean {', '.join(f'{m:.3f}' for m in mean)}, deviation "
        f"{', '.join(f'{d:.3f}' for d in deviation)}"
    )
    return Held(
        source=file.source,
        kind=title,
        encoder=config,
        predictor=None,
        tensors=file.state,
        dropped=file.dropped,
        notes=(found, shown, *file.notes),
        assumed=file.assumed,
        build=build,
        title=title,
    )


def _square(file: ForeignFile, tokens: int, what: str) -> int:
    side = math.isqrt(tokens)
    if not side or side * side != tokens:
        raise UserError(f"{file.source}: {what} has {tokens} places, which make no square grid")
    return side


def _hold_video(
    file: ForeignFile, table: Tensor | None, known_table: Literal["flat", "mvd"] = "flat"
) -> Held:
    """A plain ViT over tubelets; without a stored table its grid is what the caller says.

    `known_table` is the table that is computed, or that the stored one must equal.
    """
    _refuse_tokens(file)
    kernel = file.shape("patch_embed.proj.weight", 5)
    width, tubelet, patch = kernel[0], kernel[2], kernel[-1]
    depth = count_blocks(file.state, "blocks")
    hidden = file.shape("blocks.0.mlp.fc1.weight", 2)[0]
    asked, assumed = file.asked, []
    frames = asked.num_frames or file.number("num_frames")
    size = asked.image_size or file.number("image_size")
    if frames is None:
        frames = _USUAL_FRAMES
        assumed.append(f"{frames} frames (encoder.num_frames)")
    if frames % tubelet:
        raise UserError(
            f"{file.source}: encoder.num_frames {frames} is not whole tubelets; "
            f"give a multiple of {tubelet}"
        )
    if table is not None:
        shape = tuple(table.shape)
        if len(shape) != 3 or shape[::2] != (1, width) or shape[1] % (frames // tubelet):
            raise UserError(
                f"{file.source}: pos_embed has shape {list(shape)}, wanted [1, N, {width}] with N "
                f"a multiple of the {frames // tubelet} time steps of {frames} frames"
            )
        side = _square(file, shape[1] // (frames // tubelet), "a time step of pos_embed")
        if size not in (None, side * patch):
            raise UserError(
                f"{file.source}: encoder.image_size {size}: its table of positions is for "
                f"{side * patch} pixels and cannot be stretched; leave it out"
            )
        size = side * patch
    elif size is None:
        size = _USUAL_SIZE
        assumed.append(f"{size} pixels (encoder.image_size)")
    # MVD's stored table tells the frames from the pixels: it is compared below.
    file.assumed = () if known_table == "mvd" else tuple(assumed)
    config = _config(
        file,
        width=width,
        depth=depth,
        heads=file.number("num_attention_heads") or _heads(file, width, depth),
        mlp_ratio=hidden / width,
        image_size=size,
        num_frames=frames,
        patch_size=patch,
        tubelet_size=tubelet,
    )
    if known_table == "mvd" and width % 16:
        raise UserError(f"{file.source}: width {width} is no multiple of 16, as MVD's table needs")
    with buildable("table of positions", file.source):
        computed = (
            mvd_table(config.grid, width)
            if known_table == "mvd"
            else flat_table(config.num_tokens, width)
        )
    if table is None:
        file.state["pos_embed"] = computed[None].float()
        file.notes += ("positions   computed: the file has no table of them",)
        return _finish(file, config)
    deviation = float((table[0].double() - computed).abs().max())
    if not deviation <= TABLE_TOLERANCE:
        raise UserError(
            f"{file.source}: pos_embed differs by {deviation:.2g} from {TITLES[file.family]}'s "
            f"table for {frames} frames of {size} px; say how many frames it is for "
            "(encoder.num_frames), or it is of another model"
        )
    file.state["pos_embed"] = table
    file.notes += (f"positions   the stored table (agrees with the formula to {deviation:.1e})",)
    return _finish(file, config)


def _hold_videomae(file: ForeignFile) -> Held:
    if any(name.startswith("videomae.") for name in file.state):
        block = r"blocks.\1."
        _rename(
            file,
            (r"^videomae\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.(\d+)\.", block),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.attention\.attention\.", ".attn."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"^layernorm\.", "norm."),
        )
        state = file.state
        for name in [name for name in state if name.endswith(".attn.query.weight")]:
            front = name.removesuffix("query.weight")
            three = [f"{front}{part}.weight" for part in ("query", "key", "value")]
            if all(part in state for part in three):
                joined = torch.cat([state.pop(part) for part in three])
                state[f"{front}qkv.weight"] = joined
    _rename(file, (r"^encoder\.", ""))
    _join_bias(file)
    return _hold_video(file, None)


def _hold_mvd(file: ForeignFile) -> Held:
    _join_bias(file)
    file.shape("pos_embed", 3)
    return _hold_video(file, file.state.pop("pos_embed"), "mvd")


def _hold_omnimae(file: ForeignFile) -> Held:
    # Entry 0 of their list of projections repeats an image as two frames and has no weights.
    _rename(file, (r"^trunk\.", ""), (r"^patch_embed\.proj\.1\.", "patch_embed.proj."))
    file.shape("pos_embed", 3)
    return _hold_video(file, file.state.pop("pos_embed"))


def _hold_ijepa(file: ForeignFile) -> Held:
    _refuse_tokens(file)
    _require_images(file)
    width, _, _, patch = file.shape("patch_embed.proj.weight", 4)
    depth = count_blocks(file.state, "blocks")
    size = _square(file, file.shape("pos_embed", 3)[1], "pos_embed") * patch
    if file.asked.image_size not in (None, size):
        raise UserError(
            f"{file.source}: encoder.image_size {file.asked.image_size}: its table is for {size} "
            "pixels; leave it out: clips of another size (data.view.crop_size, framing.size) "
            "stretch the table, bicubically"
        )
    config = _config(
        file,
        width=width,
        depth=depth,
        mlp_ratio=file.shape("blocks.0.mlp.fc1.weight", 2)[0] / width,
        heads=_heads(file, width, depth),
        image_size=size,
        patch_size=patch,
        num_frames=1,
        tubelet_size=1,
    )
    which = file.asked.which or "target"
    file.notes += (f"encoder     its {which} encoder", "positions   the stored table")
    return _finish(file, config)


def _image_sizes(file: ForeignFile) -> tuple[dict[str, Any], int]:
    """What the tensors tell for the config, and places on a side of the table of positions."""
    _refuse_tokens(file, "before_norm")
    _require_images(file)
    width, _, _, patch = file.shape("patch_embed.proj.weight", 4)
    hidden = file.shape("blocks.0.mlp.fc2.weight", 2)[1]
    # OpenCLIP stores class token and table without an axis for the batch.
    for name in ("cls_token", "pos_embed"):
        if name in file.state and file.state[name].numel() % width == 0:
            file.state[name] = file.state[name].reshape(1, -1, width)
    side = _square(file, file.shape("pos_embed", 3)[1] - 1, "pos_embed without the class token")
    sizes = {"width": width, "depth": count_blocks(file.state, "blocks"), "patch_size": patch}
    return sizes | {"mlp_ratio": hidden / width, "num_frames": 1, "tubelet_size": 1}, side


def _hold_dinov2(file: ForeignFile) -> Held:
    gated = "blocks.0.mlp.w12.weight" in file.state
    _rename(file, (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."))
    sizes, side = _image_sizes(file)
    width, patch = sizes["width"], sizes["patch_size"]
    heads = _heads(file, width, sizes["depth"], None if width % 64 else width // 64)
    config = _config(file, **sizes, heads=heads, image_size=file.asked.image_size or _USUAL_SIZE)
    # Clips of any size decide the grid; the size here is only what they have if nothing is said.
    file.notes += (
        f"positions   the table for {side * patch} px, stretched to clips by the authors' rule",
    )
    form = VitForm(
        table_side=side,
        final_norm=file.asked.tokens is None,
        stretches=True,
        gated=gated,
        layer_scale=True,
    )
    return _hold_vit(file, config, form)


def _hold_openclip(file: ForeignFile) -> Held:
    _rename(
        file,
        (r"^visual\.", ""),
        (r"^class_embedding$", "cls_token"),
        (r"^positional_embedding$", "pos_embed"),
        (r"^conv1\.", "patch_embed.proj."),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^transformer\.resblocks\.", "blocks."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    )
    sizes, side = _image_sizes(file)
    width, depth, size = sizes["width"], sizes["depth"], side * sizes["patch_size"]
    if file.asked.image_size not in (None, size):
        raise UserError(
            f"{file.source}: encoder.image_size {file.asked.image_size}: OpenCLIP's table of "
            f"positions is for {size} pixels and is not stretched; leave it out"
        )
    heads = _heads(file, width, depth)
    config = _config(file, **sizes, heads=heads, image_size=size, input=CLIP_INPUT)
    if _known("openclip", width=width, depth=depth) is None:
        file.assumed = ("the exact GELU, which not every CLIP has",)
    form = VitForm(table_side=side, final_norm=file.asked.tokens is None, input_norm=True, eps=1e-5)
    return _hold_vit(file, config, form)


def _hold_vit(file: ForeignFile, config: EncoderConfig, form: VitForm) -> Held:
    """A ViT of timm; the module has it under `model`."""
    where = "after" if form.final_norm else "before"
    file.notes += (f"tokens      patches {where} the last norm",)
    file.state = {f"model.{name}": tensor for name, tensor in file.state.items()}
    return _finish(file, config, lambda config: TimmVit(config, form))


def _hold_hiera(file: ForeignFile) -> Held:
    _refuse_tokens(file, "two_poolings")
    first, _, *kernel = file.shape("patch_embed.proj.weight", 5)
    if kernel != [3, 7, 7]:
        raise UserError(
            f"{file.source}: a Hiera whose first kernel is {kernel}; only its video models "
            "(3 x 7 x 7) can be read"
        )
    depth = count_blocks(file.state, "blocks")
    outs = [file.shape(f"blocks.{i}.attn.qkv.weight", 2)[0] // 3 for i in range(depth)]
    stages = tuple(outs.count(first * 2**stage) for stage in range(4))
    if sum(stages) != depth or not all(stages):
        raise UserError(
            f"{file.source}: blocks of widths {sorted(set(outs))}, wanted {first} and its doubles "
            "four times: half a file, or another Hiera; download it again"
        )
    time = file.shape("pos_embed_temporal", 3)[1]
    side = _square(file, file.shape("pos_embed_spatial", 3)[1], "pos_embed_spatial")
    frames, size, width = 2 * time, 4 * side, 8 * first
    if side % 8:
        raise UserError(
            f"{file.source}: pos_embed_spatial has {side} x {side} places, which are not whole "
            "squares of 8 x 8, in which Hiera attends: not a file of its authors"
        )
    for name, asked, own in (
        ("image_size", file.asked.image_size, size),
        ("num_frames", file.asked.num_frames, frames),
    ):
        if asked not in (None, own):
            raise UserError(
                f"{file.source}: encoder.{name} {asked}: Hiera's table of positions is for "
                f"{frames} frames of {size} pixels and is not stretched; leave it out"
            )
    poolings = 3 if file.asked.tokens is None else 2
    heads = _heads(file, width, depth)
    if heads % 8 or width % heads:
        raise UserError(
            f"{file.source}: {heads} heads: the last stage of a Hiera has 8 times those of the "
            f"first, and its width of {width} is a multiple of them; set encoder.num_heads so"
        )
    config = _config(
        file,
        width=width,
        depth=depth,
        heads=heads,
        image_size=size,
        num_frames=frames,
        patch_size=4 * 2**poolings,
        tubelet_size=2,
        input=HIERA_INPUT,
    )
    file.notes += (f"tokens      the last stage after {poolings} poolings, without a norm",)
    file.state = {f"model.{name}": tensor for name, tensor in file.state.items()}
    return _finish(file, config, lambda config: TimmHiera(config, stages, poolings))


HELD: dict[Family, Callable[[ForeignFile], Held]] = {
    "videomae": _hold_videomae,
    "mvd": _hold_mvd,
    "omnimae": _hold_omnimae,
    "hiera": _hold_hiera,
    "ijepa": _hold_ijepa,
    "dinov2": _hold_dinov2,
    "openclip": _hold_openclip,
}


def require_named(held: Held, name: str) -> None:
    """Refuse a file that was asked for by the name of another model than it is."""
    known = MODELS[name]
    if held.title != known.title:
        raise UserError(
            f"{held.source}: is {held.title} ({held.encoder.width} wide, {held.encoder.depth} "
            f"blocks, patch {held.encoder.patch_size}), not {known.title}; download {name} again"
        )


def require_sizes(held: Held, name: str) -> None:
    """Refuse a file of V-JEPA that was asked for by the name of one of another size or version."""
    own, known = held.encoder, MODELS[name]
    wanted = known.encoder
    if (own.width, own.depth, own.position) != (wanted.width, wanted.depth, wanted.position):
        raise UserError(
            f"{held.source}: is {own.width} wide, {own.depth} blocks, positions {own.position}, "
            f"and {known.title} is {wanted.width} wide, {wanted.depth} blocks, positions "
            f"{wanted.position}; download {name} again, or give the file's path"
        )
