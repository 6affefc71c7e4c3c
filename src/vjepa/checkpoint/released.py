"""The authors' released probes: attentive pooler and linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vjepa.checkpoint.inference import (
    check_position_code,
    count_blocks,
    describe,
    infer_encoder,
    infer_model,
    match_grid,
    probe_heads,
    shape_of,
)
from vjepa.checkpoint.strict import LoadReport, compare, fill
from vjepa.checkpoint.torch_files import read_torch_file, tensors_of
from vjepa.errors import UserError
from vjepa.models import VJEPA, AttentiveClassifier, Encoder, ModelConfig

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


_GROUPS = (("encoder", True), ("predictor", True), ("encoder", False), ("predictor", False))
"""(part, decayed) of each group, in order."""
_OPTIONS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ReleasedTrainingState:
    """Where a released training run stood.

    Attributes:
        optimizer: State dict of an AdamW with our four groups (the same four in the same order),
            each group's parameters in the order of ``named_parameters()`` of our module. Options
            that choose an implementation (`foreach`, `fused`) are left out.
        step: Updates that the optimiser made. With a loss scaler, updates that it skipped are not
            counted here, though the authors' schedules went on.
        epoch: Finished epochs of the authors' loop (300 updates each in the paper's recipe).
    """

    optimizer: dict[str, Any]
    step: int
    epoch: int


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies to a parameter: more than one axis and no "bias" in its name."""
    return parameter.ndim != 1 and "bias" not in name


def released_training_state(path: str | Path) -> ReleasedTrainingState:
    """Read optimiser state and progress of the authors' pretraining checkpoint.

    The loss scaler's entry is ignored, whatever it is: None, {} or a dict.

    Args:
        path: The ``.pth.tar`` file.

    Returns:
        The state; its tensors are copies.

    Raises:
        UserError: The file cannot be read, is something else, or its optimiser does not fit its
            model.
    """
    path = Path(path)
    content = read_released(path)
    stored = {part: tensors_of(content, part, path) for part in ("encoder", "predictor")}
    groups, states = _optimizer_of(content, path)
    # Heads do not change the parameters: any number will do to build the skeleton.
    config, _ = infer_model(stored["encoder"], stored["predictor"], 1, str(path))
    with torch.device("meta"):
        model = VJEPA(config)
    state: dict[int, dict[str, Tensor]] = {}
    new_groups = []
    for number, (group, (part, decayed)) in enumerate(zip(groups, _GROUPS, strict=True)):
        names = [k for k, v in stored[part].items() if is_decayed(k, v) == decayed]
        members = group.get("params")
        if not isinstance(members, list) or len(members) != len(names):
            raise UserError(
                f"{path}: group {number} of its optimiser does not have the {len(names)} parameters"
                f" of the {part}; it was saved for another model"
            )
        index_of = dict(zip(names, members, strict=True))
        ours = [
            (k, p)
            for k, p in model.get_submodule(part).named_parameters()
            if is_decayed(k, p) == decayed
        ]
        first = sum(len(other["params"]) for other in new_groups)
        for place, (name, parameter) in enumerate(ours, start=first):
            entry = states.get(index_of.get(name))
            if entry is not None:
                state[place] = _checked_entry(entry, parameter, f"{path}: {part}.{name}")
        options = {key: group[key] for key in _OPTIONS if key in group}
        new_groups.append({**options, "params": list(range(first, first + len(ours)))})
    epoch = content.get("epoch")
    steps = [int(entry["step"]) for entry in state.values()]
    return ReleasedTrainingState(
        optimizer={"state": state, "param_groups": new_groups},
        step=max(steps, default=0),
        epoch=epoch if isinstance(epoch, int) else 0,
    )


def released_step(path: Path) -> int:
    """Updates that the optimiser in an authors' checkpoint made; 0 when it holds none.

    Raises:
        UserError: The file cannot be read or is something else.
    """
    optimizer = read_released(path).get("opt")
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    entries = states.values() if isinstance(states, dict) else ()
    return max((int(entry["step"]) for entry in entries if "step" in entry), default=0)


def _optimizer_of(
    content: Mapping[str, Any], path: Path
) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """Groups and states of the stored optimiser."""
    optimizer = content.get("opt")
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise UserError(f"{path}: holds no optimiser state; start training from its weights only")
    if len(groups) != len(_GROUPS):
        raise UserError(f"{path}: its optimiser has {len(groups)} groups, not {len(_GROUPS)}")
    return groups, states


def _checked_entry(entry: Mapping[str, Any], parameter: Tensor, source: str) -> dict[str, Tensor]:
    """One parameter's moments and step count, copied."""
    if not all(isinstance(entry.get(key), Tensor) for key in _STATE):
        raise UserError(f"{source}: its optimiser state is not AdamW's")
    if any(entry[key].shape != parameter.shape for key in _STATE[1:]):
        shape = list(entry["exp_avg"].shape)
        raise UserError(
            f"{source}: its optimiser state has shape {shape}, the parameter "
            f"{list(parameter.shape)}; it was saved for another model"
        )
    return {key: entry[key].detach().float().clone() for key in _STATE}


_UNUSED = "pooler.cross_attention_block.xattn.proj."
"""Stored by the authors; their code never applies it, it has no gradient and no optimiser state."""


@dataclass(frozen=True)
class LoadedProbe:
    """A released probe.

    Attributes:
        classifier: Tokens [B, N, D] to logits [B, classes].
        report: What was loaded.
        epoch: Epochs it was trained for.
    """

    classifier: AttentiveClassifier
    report: LoadReport
    epoch: int


def read_probe(path: str | Path, num_heads: int | None = None) -> LoadedProbe:
    """Read a released probe file, of one layer or more.

    Args:
        path: The ``.pth.tar`` file. It holds no class names: their order is the authors' own.
        num_heads: Heads, where no preset encoder has this width.

    Returns:
        The probe, float32 on the CPU, with its report.

    Raises:
        UserError: The file cannot be read, is something else, or does not fit.
    """
    path = Path(path)
    content = read_torch_file(path)
    if "classifiers" in content:
        raise UserError(f"{path}: a list of V-JEPA 2 probes; only V-JEPA 1 probes can be read")
    if "classifier" not in content:
        held = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        raise UserError(f"{path}: not a probe: it has no entry 'classifier'; it holds {held}")
    state = tensors_of(content, "classifier", path)
    classes, width = shape_of(state, "linear.weight", (2,), str(path))
    heads = probe_heads(width, num_heads, str(path))
    depth = count_blocks(state, "pooler.blocks") + 1
    try:
        with torch.device("meta"):
            classifier = AttentiveClassifier(width, heads, classes, depth, variant="released")
    except ValueError as error:
        raise UserError(f"{path}: no probe can be built from it: {error}") from error
    stored = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    report = compare(
        str(path),
        "the authors' probe",
        stored,
        classifier.state_dict(),
        dropped=[name for name in state if name.startswith(_UNUSED)],
        notes=[f"inferred    width {width}, depth {depth}, heads {heads}, {classes} classes"],
    )
    fill(classifier, stored, report)
    epoch = content.get("epoch")
    return LoadedProbe(classifier, report, epoch if isinstance(epoch, int) else 0)


def load_probe(path: str | Path, num_heads: int | None = None) -> AttentiveClassifier:
    """The classifier of :func:`read_probe`."""
    return read_probe(path, num_heads).classifier
