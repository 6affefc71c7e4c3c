"""Continuing where the authors' training stopped: their optimiser's state in our order.

Their AdamW has four groups: encoder decayed, predictor decayed, encoder not decayed, predictor not
decayed. Not decayed is what has one axis or "bias" in its name. The two position codes are members
of the decayed groups without state; ours are no parameters at all, so their places are taken out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa.errors import UserError
from vjepa.interop.inference import infer_model
from vjepa.interop.released import read_released
from vjepa.interop.torch_files import tensors_of
from vjepa.models import VJEPA

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
