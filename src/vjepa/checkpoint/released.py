"""The authors' files: models, training state and probes read; models written.

All their quirks live here, in ``inference`` and in ``torch_files``. Probes may also come from
folders of Hugging Face.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.folder import ENCODER_KEYS, Asked, Held, require_unasked
from vjepa.checkpoint.huggingface import hub_tensors, read_hub_config
from vjepa.checkpoint.inference import (
    LEVELS,
    buildable,
    check_position_code,
    count_blocks,
    generation,
    heads_of,
    infer_encoder,
    infer_predictor,
    open_second,
    our_name,
    shape_of,
    their_name,
)
from vjepa.checkpoint.state import Moments, is_decayed
from vjepa.checkpoint.strict import LoadReport, load_strictly, plain_name
from vjepa.checkpoint.torch_files import entries_of, read_torch_file, tensors_of
from vjepa.errors import UserError
from vjepa.models import VJEPA, AttentiveClassifier
from vjepa.models.anticipation import AnticipationClassifier
from vjepa.models.pooling import PoolerVariant

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
    predictor, more = infer_predictor(parts["predictor"], encoder, source)
    for part, name in POSITION_NAMES.items():
        width = predictor.width if part == "predictor" else encoder.width
        check_position_code(parts[part].pop(name, None), name, encoder, width, f"{path} ({part})")
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


_UNUSED = "pooler.cross_attention_block.xattn.proj."
"""Stored in probes of V-JEPA 1; their code never applies it, it has no gradient."""
_SECOND_HEADS = 16
"""Of the probes of V-JEPA 2, whatever the encoder's."""
_HUB_NORM_EPS = 1e-6


def read_probe(
    path: str | Path, num_heads: int | None = None, index: int = 0, *, as_transformers: bool = False
) -> tuple[AttentiveClassifier, LoadReport]:
    """Read a released probe (tokens [B, N, D] to logits [B, classes]), float32 on the CPU.

    Args:
        path: The authors' file of V-JEPA 1 (``.pth.tar``) or 2 (``.pt``), neither of which holds
            class names: their order is the authors' own; or a Hugging Face folder with a
            classifier, whose class names :func:`hub_classes` gives.
        num_heads: Attention heads. None: those of the encoder of its width, and 16 in V-JEPA 2,
            with which all of its probes were trained.
        index: Which of the probes that a file of V-JEPA 2 holds, one for each setting tried.
        as_transformers: Of a folder: compute what transformers does, with as many heads as the
            encoder has and another epsilon; for g these are not the heads of the training.

    Raises:
        UserError: The file cannot be read, is something else, or does not fit.
    """
    state, kind, variant, notes = _stored(Path(path), index)
    if any(name.startswith("action_classifier.") for name in state):
        raise UserError(
            f"{path}: a probe that anticipates actions: say which of its answers (--question "
            "action); in Python read it with vjepa.checkpoint.read_anticipation_probe"
        )
    if as_transformers and not Path(path).is_dir():
        raise UserError(f"{path}: as_transformers is for a Hugging Face folder; leave it out")
    classes, width = shape_of(state, "linear.weight", (2,), str(path))
    heads = num_heads
    if as_transformers and num_heads is None:
        heads = int(read_hub_config(Path(path))["num_attention_heads"])
    heads = _heads(width, heads, variant, str(path))
    depth = count_blocks(state, "pooler.blocks") + 1
    with buildable("probe", str(path)), torch.device("meta"):
        probe = AttentiveClassifier(width, heads, classes, depth, variant=variant)
    if as_transformers:
        for module in probe.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = _HUB_NORM_EPS
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    inferred = f"inferred    width {width}, depth {depth}, heads {heads}, {classes} classes"
    report = load_strictly(
        probe,
        kept,
        str(path),
        kind,
        dropped=[name for name in state if name not in kept],
        notes=[inferred, *notes],
        remedy="nothing was loaded, use the file of this kind of probe as it was published",
    )
    return probe, report


def read_anticipation_probe(
    path: str | Path, num_heads: int | None = None, index: int = 0
) -> tuple[AnticipationClassifier, LoadReport]:
    """Read a probe of V-JEPA 2 that says what will be done (EPIC-KITCHENS-100).

    Arguments and errors are those of :func:`read_probe`. Which numbers its classes have follows
    from the file of annotations that it was trained on, as the authors enumerate it.
    """
    state, kind, variant, notes = _stored(Path(path), index)
    named = [(re.fullmatch(r"(\w+)_classifier\.weight", n), t) for n, t in state.items()]
    classes = {found[1]: tensor.shape[0] for found, tensor in named if found}
    if "action" not in classes or variant != "released_2":
        raise UserError(
            f"{path}: not a probe that anticipates actions; leave question out (read_probe)"
        )
    width = shape_of(state, "action_classifier.weight", (2,), str(path))[1]
    heads = _heads(width, num_heads, variant, str(path))
    depth = count_blocks(state, "pooler.blocks") + 1
    with buildable("probe", str(path)), torch.device("meta"):
        probe = AnticipationClassifier(width, heads, classes, depth)
    counts = ", ".join(f"{count} of {name}" for name, count in classes.items())
    inferred = f"inferred    width {width}, depth {depth}, heads {heads}; classes: {counts}"
    return probe, load_strictly(probe, state, str(path), kind, notes=[inferred, *notes])


def hub_classes(folder: str | Path) -> tuple[str, ...]:
    """Class names of a Hugging Face folder with a classifier, in the order of its outputs."""
    labels = read_hub_config(Path(folder))["id2label"]
    try:
        return tuple(str(labels[str(number)]) for number in range(len(labels)))
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder}: config.json names no classes; add id2label to it") from error


def _stored(path: Path, index: int) -> tuple[dict[str, Tensor], str, PoolerVariant, list[str]]:
    """A probe's tensors by our names, what it is, its kind of pooler, and notes for the report."""
    if path.is_dir():
        tensors = hub_tensors(path)
        state = {n: t for n, t in tensors.items() if n.startswith(("pooler.", "linear."))}
        if not state:
            raise UserError(f"{path}: holds no classifier; give a folder of a probe")
        return state, "the probe of a Hugging Face folder", "released_2", []
    content = read_torch_file(path)
    notes = [f"trained     {content.get('epoch', 'unknown number of')} epochs"]
    if "classifiers" in content:
        several = content["classifiers"]
        if not isinstance(several, list) or not 0 <= index < len(several):
            count = len(several) if isinstance(several, list) else 0
            raise UserError(
                f"{path}: holds {count} probes; there is no number {index}; choose another"
            )
        state = tensors_of({"classifiers": several[index]}, "classifiers", path)
        kind = f"a V-JEPA 2 probe by its authors, number {index} of {len(several)}"
        return state, kind, "released_2", notes
    if "classifier" not in content:
        raise UserError(
            f"{path}: not a probe: it has no 'classifier' but {entries_of(content)}; give a "
            "probe's file"
        )
    return tensors_of(content, "classifier", path), "the authors' probe", "released", notes


def _heads(width: int, num_heads: int | None, variant: PoolerVariant, source: str) -> int:
    if num_heads is None and variant == "released_2" and width % _SECOND_HEADS == 0:
        return _SECOND_HEADS
    return heads_of("a probe", width, None, num_heads, source)
