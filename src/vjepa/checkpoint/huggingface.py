"""V-JEPA 2 in folders of Hugging Face's `transformers`: read and written, base or with a probe.

Such a folder has one encoder, which serves as target and as context encoder. transformers computes
some things otherwise than the authors and we do, which no folder changes: it reads positions by the
config's resolution instead of the input's, gives the predictor context features that have seen the
whole clip, and runs the probes of g with 22 heads, for which they were not trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa.checkpoint.folder import (
    CONFIG_FILE,
    MODEL_TYPE,
    WEIGHTS_FILE,
    Asked,
    Held,
    read_json,
    read_weights,
    require_unasked,
    write_json,
)
from vjepa.checkpoint.inference import SECOND_FPS_NOTE, buildable
from vjepa.errors import UserError
from vjepa.models import VJEPA, EncoderConfig, InputConfig, PredictorConfig
from vjepa.runtime.files import save_tensors

INDEX_FILE = "model.safetensors.index.json"
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
_ENCODER = {
    "image_size": ("crop_size", 256),
    "num_frames": ("frames_per_clip", 64),
    "width": ("hidden_size", 1024),
    "heads": ("num_attention_heads", 16),
    "depth": ("num_hidden_layers", 24),
    "patch_size": ("patch_size", 16),
    "tubelet_size": ("tubelet_size", 2),
    "channels": ("in_chans", 3),
}
_PREDICTOR = {
    "width": ("pred_hidden_size", 384),
    "heads": ("pred_num_attention_heads", 12),
    "depth": ("pred_num_hidden_layers", 12),
    "num_mask_tokens": ("pred_num_mask_tokens", 10),
}
"""Our sizes: their names in the config, and what is meant where one is missing: those of L."""
_BILINEAR = 2
"""Pillow's number of it, which processors write."""
_FIXED = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6}
_NAMES = (
    ("encoder.embeddings.patch_embeddings.proj.", "encoder.patch_embed.proj."),
    ("encoder.layernorm.", "encoder.norm."),
    ("encoder.layer.#.attention.proj.", "encoder.blocks.#.attn.proj."),
    ("encoder.layer.#.", "encoder.blocks.#."),
    ("predictor.embeddings.predictor_embeddings.", "predictor.predictor_embed."),
    ("predictor.layernorm.", "predictor.predictor_norm."),
    ("predictor.proj.", "predictor.predictor_proj."),
    ("predictor.layer.#.attention.proj.", "predictor.predictor_blocks.#.attn.proj."),
    ("predictor.layer.#.", "predictor.predictor_blocks.#."),
    ("pooler.self_attention_layers.#.layer_norm", "pooler.blocks.#.norm"),
    ("pooler.self_attention_layers.#.self_attn.out_proj.", "pooler.blocks.#.attn.proj."),
    ("pooler.self_attention_layers.#.", "pooler.blocks.#."),
    ("pooler.cross_attention_layer.layer_norm", "pooler.cross_attention_block.norm"),
    ("pooler.cross_attention_layer.cross_attn.q_proj.", "pooler.cross_attention_block.xattn.q."),
    ("pooler.cross_attention_layer.", "pooler.cross_attention_block."),
    ("classifier.", "linear."),
)
"""How names begin there and here; # is a block's number. The first that fits counts."""
_JOINED = (
    (
        r"((?:encoder|predictor)\.layer\.\d+)\.attention\.query\.(\w+)",
        ("query", "key", "value"),
        "attn.qkv",
    ),
    (
        r"(pooler\.self_attention_layers\.\d+)\.self_attn\.q_proj\.(\w+)",
        ("q_proj", "k_proj", "v_proj"),
        "attn.qkv",
    ),
    (
        r"(pooler\.cross_attention_layer)\.cross_attn\.k_proj\.(\w+)",
        ("k_proj", "v_proj"),
        "xattn.kv",
    ),
)
"""Products that are apart there and one here."""
_MASK_TOKENS = "predictor.embeddings.mask_tokens"


def read_hub_config(folder: Path) -> dict[str, Any]:
    """The sizes of a folder's config, and ``id2label`` where it names classes.

    Raises:
        UserError: There is none, or it describes what we do not compute.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: {CONFIG_FILE} is missing: download the whole Hugging Face folder"
        )
    content = read_json(path)
    known = (*_ENCODER.values(), *_PREDICTOR.values())
    sizes = {name: content.get(name, usual) for name, usual in known}
    for name, value in sizes.items():
        if not isinstance(value, int) or not 0 < value < 1 << 20:
            raise UserError(f"{path}: {name} {value!r} cannot be; download it again")
    for name in ("mlp_ratio", "pred_mlp_ratio"):
        sizes[name] = float(content.get(name, 4.0))
    for name, wanted in _FIXED.items():
        if content.get(name, wanted) != wanted:
            raise UserError(
                f"{path}: {name} {content[name]!r}: only {wanted!r} is computed here, as in all "
                "released models"
            )
    return {**sizes, "id2label": content.get("id2label")}


def open_hub(folder: Path, asked: Asked) -> Held:
    """What a folder holds of a model, or of its one encoder, whichever is asked for."""
    sizes = read_hub_config(folder)
    source, heads = str(folder), sizes["num_attention_heads"]
    require_unasked(asked, folder, "tokens")
    if asked.num_heads not in (None, heads):
        raise UserError(f"{source}: has {heads} heads, not {asked.num_heads}; leave num_heads out")
    tensors = hub_tensors(folder)
    sizes["crop_size"] = asked.image_size or read_framing(folder).crop_size or sizes["crop_size"]
    sizes["frames_per_clip"] = asked.num_frames or sizes["frames_per_clip"]
    with buildable("model", source):
        encoder = EncoderConfig(
            **{name: sizes[theirs] for name, (theirs, _) in _ENCODER.items()},
            mlp_ratio=int(sizes["hidden_size"] * sizes["mlp_ratio"]) / sizes["hidden_size"],
            position="rotary",
            input=_input(folder),
        )
        width = sizes["pred_hidden_size"]
        predictor = PredictorConfig(
            **{name: sizes[theirs] for name, (theirs, _) in _PREDICTOR.items()},
            mlp_ratio=int(width * sizes["pred_mlp_ratio"]) / width,
            shared_mask_token=0,
        )
    kind = "a Hugging Face folder of V-JEPA 2"
    probe = tuple(n for n in tensors if n.startswith(("pooler.", "linear.")))
    dropped = (f"{len(probe)} tensors of its probe (vjepa.checkpoint.read_probe)",) if probe else ()
    notes = ("one encoder  serves as target and as context encoder", SECOND_FPS_NOTE)
    model = {n: t for n, t in tensors.items() if n not in probe}
    encoders = {n: t for n, t in model.items() if n.startswith("encoder.")}
    if asked.which is not None:
        rest = {n: t for n, t in model.items() if not n.startswith(("encoder.", "predictor."))}
        only = {n.removeprefix("encoder."): t for n, t in encoders.items()} | rest
        return Held(source, f"{kind}, its encoder", encoder, None, only, dropped, notes)
    both = model | {f"target_{name}": tensor for name, tensor in encoders.items()}
    return Held(source, kind, encoder, predictor, both, dropped, notes)


def hub_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, of one file or of several, by our names."""
    tensors: dict[str, Tensor] = {}
    names = {WEIGHTS_FILE}
    if (folder / INDEX_FILE).is_file():
        table = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(n, str) for n in table.values()):
            raise UserError(f"{folder / INDEX_FILE}: has no table weight_map; download it again")
        names = {Path(name).name for name in table.values()}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; download the whole folder again")
        tensors |= read_weights(folder / name)
    return _our_tensors({name.removeprefix("vjepa2."): t for name, t in tensors.items()})


@dataclass(frozen=True)
class Framing:
    """What a folder's video processor shows of a frame, in pixels; None where it does not say."""

    file: Path | None = None
    crop_size: int | None = None
    """Of the centre that is cut out, both sides."""
    short_side: int | None = None
    """What the frame's short side is brought to before."""
    other: tuple[str, ...] = ()
    """Settings that ask for another way than this one, as they stand in the file."""


def read_framing(folder: Path) -> Framing:
    """The framing of a folder as its file says it.

    transformers itself reads 256/224 of the crop for whatever stands there as `size`, which is what
    it writes; only a development version of it took, and wrote, others.
    """
    file, content = _processor(folder)
    size, crop = content.get("size"), content.get("crop_size")
    sides = {crop.get("height"), crop.get("width")} if isinstance(crop, dict) else {crop}
    side = sides.pop() if len(sides) == 1 else None
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    crop_size, short_side = (x if isinstance(x, int) and x > 0 else None for x in (side, short))
    strange = {
        "do_resize": content.get("do_resize") is False,
        "do_center_crop": content.get("do_center_crop") is False,
        "resample": content.get("resample") not in (None, _BILINEAR),
        "crop_size": crop is not None and crop_size is None,
        "size": size is not None and (short_side is None or short_side < (crop_size or 0)),
    }
    other = tuple(f"{name} {json.dumps(content[name])}" for name, is_so in strange.items() if is_so)
    return Framing(file, crop_size, None if strange["size"] else short_side, other)


def _processor(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The file of the folder's video processor and what it says, if there is one."""
    found = next((folder / n for n in PROCESSOR_FILES if (folder / n).is_file()), None)
    return found, {} if found is None else read_json(found)


def _input(folder: Path) -> InputConfig:
    """How the folder's video processor normalises, if it has one."""
    found, content = _processor(folder)
    if content.get("do_rescale") is False or content.get("do_normalize") is False:
        raise UserError(
            f"{found}: do_rescale or do_normalize is false, but pixels here are 0 to 255 and are "
            "rescaled and normalised: a development version of transformers wrote it; set both to "
            "true if the weights are the released ones"
        )
    mean, deviation = (content.get(name) for name in ("image_mean", "image_std"))
    usual = InputConfig().mean_and_deviation
    if not mean or not deviation or (tuple(mean), tuple(deviation)) == usual:
        return InputConfig()
    return InputConfig(mean=tuple(mean), deviation=tuple(deviation))


def _our_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A folder's tensors under our names; a name that is not theirs stays, to be refused."""
    rest, joined = dict(stored), dict[str, Tensor]()
    for pattern, kinds, into in _JOINED:
        for name in stored:
            found = re.fullmatch(pattern, name)
            parts = [name.replace(kinds[0], kind) for kind in kinds] if found else []
            if found and all(part in rest for part in parts):
                whole = torch.cat([rest.pop(part) for part in parts])
                joined[f"{found[1]}.{into}.{found[2]}"] = whole
    if _MASK_TOKENS in rest:
        for index, token in enumerate(rest.pop(_MASK_TOKENS)):
            rest[f"predictor.mask_tokens.{index}"] = token
    return {_renamed(name): tensor for name, tensor in (rest | joined).items()}


def _renamed(name: str, *, back: bool = False) -> str:
    """A tensor's name here of that there; or `back`."""
    for pair in _NAMES:
        old, new = reversed(pair) if back else pair
        found = re.match(re.escape(old).replace(r"\#", r"(\d+)"), name)
        if found:
            return found.expand(new.replace("#", r"\1")) + name[found.end() :]
    return name


def require_hub_model(folder: Path, model: VJEPA) -> None:
    """Refuse a model for which transformers has none that computes it."""
    encoder, predictor = model.config.encoder, model.config.predictor
    lacking = {
        "levels or modalities (V-JEPA 2.1)": bool(encoder.levels) or encoder.modalities,
        f"positions {encoder.position}": encoder.position != "rotary",
        "another input than pixels (model.encoder.input)": encoder.input.content != "rgb",
        "a [cls] token or block-causal attention": encoder.cls or encoder.attention != "full",
        "mask tokens of 1 kind": predictor.num_mask_tokens < 2,
    }
    for what, is_so in lacking.items():
        if is_so:
            raise UserError(f"{folder}: transformers has no V-JEPA 2 with {what}")


def write_hub(folder: Path, model: VJEPA, which: str) -> None:
    """Write a model of V-JEPA 2 as such a folder, into one that nobody reads yet.

    `which` of its encoders: ``target_encoder`` or ``encoder``.
    """
    encoder, predictor = model.config.encoder, model.config.predictor
    mean, deviation = encoder.input.mean_and_deviation
    stored = _their_tensors(model.get_submodule(which).state_dict(prefix="encoder."))
    stored |= _their_tensors(model.predictor.state_dict(prefix="predictor."))
    tokens = [stored.pop(f"predictor.mask_tokens.{i}") for i in range(predictor.num_mask_tokens)]
    stored[_MASK_TOKENS] = torch.stack(tokens)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}
    save_tensors(folder / WEIGHTS_FILE, plain, {"format": "pt"})
    config = {
        "architectures": ["VJEPA2Model"],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(encoder, name) for name, (theirs, _) in _ENCODER.items()},
        "mlp_ratio": _ratio(encoder.width, encoder.mlp_width),
        **_FIXED,
        **{theirs: getattr(predictor, name) for name, (theirs, _) in _PREDICTOR.items()},
        "pred_num_attention_heads": predictor.heads or encoder.heads,
        "pred_mlp_ratio": _ratio(predictor.width, predictor.mlp_width),
        "dtype": "float32",
    }
    write_json(folder / CONFIG_FILE, config)
    size = encoder.image_size
    processor = {
        "video_processor_type": "VJEPA2VideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size * 256 // 224},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(deviation),
    }
    write_json(folder / PROCESSOR_FILES[0], processor)


def _ratio(width: int, hidden: int) -> float:
    """The ratio whose product with the width, cut to a whole number, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _their_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an encoder or a predictor under their names."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(.*)\.attn\.qkv\.(\w+)", name)
        if found is None:
            stored[_renamed(name, back=True)] = tensor
            continue
        for kind, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            stored[_renamed(f"{found[1]}.attention.{kind}.{found[2]}", back=True)] = third
    return stored
