"""The authors' files: models, training state and probes read; models written.

All their quirks live here, in ``inference`` and in ``torch_files``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa.checkpoint.folder import ENCODER_KEYS, Asked, Held, require_unasked
from vjepa.checkpoint.inference import (
    check_position_code,
    count_blocks,
    infer_encoder,
    infer_predictor,
)
from vjepa.checkpoint.state import Moments, is_decayed
from vjepa.checkpoint.strict import plain_name
from vjepa.checkpoint.torch_files import entries_of, read_torch_file, tensors_of
from vjepa.checkpoint.vjepa2 import LEVELS, generation, open_second, our_name, their_name
from vjepa.errors import UserError
from vjepa.models import VJEPA

KIND = "the authors' pretraining checkpoint"
POSITION_NAMES = {
    "encoder": "pos_embed",
    "target_encoder": "pos_embed",
    "predictor": "predictor_pos_embed",
}
"""The fixed position code's name in each part; stored by the authors as a parameter."""
_GROUPS = (("encoder", True), ("predictor", True), ("encoder", False), ("predictor", False))
"""(part, decayed) of each group of their optimiser, in order."""
_PREFIX = "module.backbone."
_BARE = "; a state_dict does not say its sizes: write models with vjepa.checkpoint.save_model"


def read_released(path: Path) -> dict[str, Any]:
    """Read a file and make sure that it is a pretraining checkpoint of V-JEPA, 2 or 2.1."""
    content = read_torch_file(path)
    if "classifier" in content or "classifiers" in content:
        raise UserError(
            f"{path}: this is a probe, not a model; `vjepa probe predict` and `eval` take it (in "
            "Python vjepa.load_probe)"
        )
    if not {"encoder", "target_encoder", "ema_encoder"} & content.keys():
        inner = (state for state in content.values() if isinstance(state, dict))
        names = (plain_name(str(name)) for state in (content, *inner) for name in state)
        bare = any(name.startswith(("encoder.", "patch_embed.")) for name in names)
        raise UserError(
            f"{path}: not a V-JEPA checkpoint: it has no encoder or target_encoder; nor a file of "
            f"another known model (docs/models.md); it holds {entries_of(content)}"
            f"{_BARE if bare else ''}"
        )
    return content


def open_released(path: Path, asked: Asked) -> Held:
    """What a file holds of a model, or of one encoder, beside which it need not hold more."""
    content, source = read_released(path), str(path)
    of = generation(content, path)
    if of != "1":
        return open_second(content, path, asked, of)
    which, num_heads = asked.which, asked.num_heads
    require_unasked(asked, path)
    if which is not None:
        state = tensors_of(content, ENCODER_KEYS[which], path)
        encoder, note = infer_encoder(state, num_heads, source)
        del state["pos_embed"]
        kind = f"{KIND}, its {which} encoder"
        return Held(source, kind, encoder, None, state, ("pos_embed",), (note,))
    parts = {part: tensors_of(content, part, path) for part in POSITION_NAMES}
    encoder, note = infer_encoder(parts["encoder"], num_heads, source)
    predictor = infer_predictor(parts["predictor"], source)
    for part, name in POSITION_NAMES.items():
        width = predictor.width if part == "predictor" else encoder.width
        check_position_code(parts[part].pop(name, None), name, encoder, width, f"{path} ({part})")
    more = (
        f"inferred    predictor width {predictor.width}, depth {predictor.depth}, heads "
        f"{encoder.heads} (the encoder's), {predictor.num_mask_tokens} mask tokens"
    )
    tensors = {f"{part}.{name}": t for part, state in parts.items() for name, t in state.items()}
    dropped = tuple(f"{part}.{name}" for part, name in POSITION_NAMES.items())
    return Held(source, KIND, encoder, predictor, tensors, dropped, (note, more))


@dataclass(frozen=True)
class ReleasedTrainingState:
    """Where a released training run stood."""

    moments: Moments
    """AdamW's moments by full parameter name, in the order in which our optimiser numbers them."""
    step: int
    """Updates that the optimiser made. With a loss scaler, updates that it skipped are not counted
    here, though the authors' schedules went on."""
    epoch: int
    """Finished epochs of the authors' loop (300 updates each in the paper's recipe)."""


def released_training_state(path: str | Path) -> ReleasedTrainingState:
    """Read optimiser state and progress of the authors' pretraining checkpoint.

    The loss scaler's entry is ignored, whatever it is: None, {} or a dict. Tensors are copies.

    Raises:
        UserError: The file cannot be read, is something else, or its optimiser does not fit its
            model.
    """
    path = Path(path)
    content = read_released(path)
    stored = {part: tensors_of(content, part, path) for part in ("encoder", "predictor")}
    levels: tuple[int, ...] = ()
    if generation(content, path) == "2.1":
        levels = LEVELS.get(count_blocks(stored["encoder"], "blocks"), ())
    optimizer = content.get("opt")
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise UserError(f"{path}: holds no optimiser state; start with keep_optimizer false")
    if len(groups) != len(_GROUPS):
        raise UserError(
            f"{path}: its optimiser has {len(groups)} groups, not {len(_GROUPS)}; "
            "use keep_optimizer false"
        )
    moments: Moments = {}
    for number, (part, decayed) in enumerate(_GROUPS):
        names = [name for name, t in stored[part].items() if is_decayed(name, t) == decayed]
        members = groups[number].get("params")
        if not isinstance(members, list) or len(members) != len(names):
            raise UserError(
                f"{path}: group {number} of its optimiser does not have the {len(names)} parameters"
                f" of the {part}; use keep_optimizer false"
            )
        for name, index in zip(names, members, strict=True):
            if index in states and name != POSITION_NAMES[part]:
                source = f"{path}: {part}.{name}"
                own = f"{part}.{our_name(name, part, levels)}"
                moments[own] = _moments(states[index], stored[part][name], source)
    epoch = content.get("epoch")
    return ReleasedTrainingState(
        moments,
        step=max((int(entry["step"]) for entry in moments.values()), default=0),
        epoch=epoch if isinstance(epoch, int) else 0,
    )


def _moments(entry: Mapping[str, Any], parameter: Tensor, source: str) -> dict[str, Tensor]:
    """One parameter's moments and step count, copied."""
    keys = ("exp_avg", "exp_avg_sq", "step")
    if not all(isinstance(entry.get(key), Tensor) for key in keys):
        raise UserError(f"{source}: its optimiser state is not AdamW's; use keep_optimizer false")
    if any(entry[key].shape != parameter.shape for key in keys[:2]):
        raise UserError(
            f"{source}: its optimiser state has shape {list(entry['exp_avg'].shape)}, the parameter"
            f" {list(parameter.shape)}; it was saved for another model"
        )
    return {key: entry[key].detach().float().clone() for key in keys}


def released_step(path: Path) -> int:
    """Updates that the optimiser in an authors' checkpoint made; 0 when it holds none."""
    states = (read_released(path).get("opt") or {}).get("state") or {}
    return max((int(entry["step"]) for entry in states.values() if "step" in entry), default=0)


def released_layout(model: VJEPA) -> dict[str, Any]:
    """A model as the dict that the authors' training writes, ready for ``torch.save``.

    Names carry their wrappers' prefixes and fixed position codes are stored. The optimiser is there
    with its four groups and no state, the epoch is 0: their loop starts from these weights, it does
    not resume. The number of heads has no place in this layout.
    """
    parts: dict[str, OrderedDict[str, Tensor]] = {}
    levels = model.config.encoder.levels
    for part, code in POSITION_NAMES.items():
        module = model.get_submodule(part)
        tensors = {their_name(n, part, levels): t for n, t in module.state_dict().items()}
        if model.config.encoder.position == "sincos":
            tensors = {code: module.get_buffer(code), **tensors}
        parts[part] = OrderedDict(
            (_PREFIX + name, tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()
        )
    groups = []
    for part, decayed in _GROUPS:
        members = [t for name, t in parts[part].items() if is_decayed(name, t) == decayed]
        extra = {} if decayed else {"WD_exclude": True, "weight_decay": 0}
        groups.append({"params": members, **extra})
    return {
        "encoder": parts["encoder"],
        "predictor": parts["predictor"],
        "opt": torch.optim.AdamW(groups).state_dict(),
        "scaler": None,
        "target_encoder": parts["target_encoder"],
        "epoch": 0,
        "loss": 0.0,
        "batch_size": 0,
        "world_size": 1,
        "lr": 0.0,
    }
