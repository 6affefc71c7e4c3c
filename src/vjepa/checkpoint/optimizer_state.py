"""The trained parameters in the optimiser's order, and its moments by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vjepa.errors import UserError
from vjepa.runtime.sharding import part_like


@dataclass(frozen=True)
class NamedParameter:
    """A trained parameter with its full name, for example ``encoder.blocks.0.norm1.bias``."""

    name: str
    parameter: nn.Parameter


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one module that are all decayed or all not decayed."""

    module: str
    decayed: bool
    members: tuple[NamedParameter, ...]


def parameter_groups(modules: Mapping[str, nn.Module]) -> list[ParameterGroup]:
    """Group the trained parameters in the reference's order.

    Args:
        modules: The trained modules by name, in order.

    Returns:
        Decayed groups of all modules, then not decayed groups of all modules; parameters in the
        module's own order; parameters without gradient left out. An empty group stays, so that a
        group's place is always the same.
    """
    groups = []
    for decayed in (True, False):
        for module_name, module in modules.items():
            members = tuple(
                NamedParameter(f"{module_name}.{name}", parameter)
                for name, parameter in module.named_parameters()
                if parameter.requires_grad and is_decayed(name, parameter) == decayed
            )
            groups.append(ParameterGroup(module_name, decayed, members))
    return groups


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: at least 2-D, and no ``bias`` in the name."""
    return parameter.ndim > 1 and "bias" not in name


def parameter_names(modules: Mapping[str, nn.Module]) -> list[str]:
    """Full names of the trained parameters in the order in which the optimiser numbers them."""
    return [member.name for group in parameter_groups(modules) for member in group.members]


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trained parameters by full name."""
    return {m.name: m.parameter for group in parameter_groups(modules) for m in group.members}


def optimizer_state(
    optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by parameter name.

    Args:
        optimizer: From :func:`build_optimizer` with the same modules.
        modules: The trained modules by name.

    Returns:
        For each parameter that has been updated at least once: ``step`` (0-d float32), ``exp_avg``
        and ``exp_avg_sq`` (the parameter's shape), not copied.
    """
    return {
        member.name: dict(optimizer.state[member.parameter])
        for group in parameter_groups(modules)
        for member in group.members
        if optimizer.state.get(member.parameter)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Mapping[str, Tensor]],
    source: str,
) -> None:
    """Put a state by parameter name into the optimiser; every name and shape must fit.

    Args:
        optimizer: From :func:`build_optimizer` with the same modules.
        modules: The trained modules by name.
        state: As :func:`optimizer_state` returns it. Parameters that it does not name start
            afresh, as they do in the reference (those that never get a gradient have no state).
        source: Where the state comes from, for messages.

    Raises:
        UserError: A name that is no trained parameter, or a moment of another shape.
    """
    parameters = named_parameters(modules)
    for name, moments in state.items():
        if name not in parameters:
            raise UserError(
                f"{source}: optimiser state of {name!r}, which is no trained parameter of this "
                "model; build the model of that run, or start without its optimiser state"
            )
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = tuple(moments[key].shape), tuple(parameters[name].shape)
            if found != expected:
                raise UserError(
                    f"{source}: optimiser state {key} of {name!r} has shape {found}, "
                    f"the model's parameter {expected}; build the model of that run"
                )
    optimizer.state.clear()
    for name, moments in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # The fused kernel wants the count beside the parameter and in float32.
            "step": _count(moments["step"]).to(parameter.device),
            "exp_avg": part_like(moments["exp_avg"], parameter),
            "exp_avg_sq": part_like(moments["exp_avg_sq"], parameter),
        }


def _count(step: Tensor | float) -> Tensor:
    """The number of updates as a fresh 0-d float32 tensor (old files hold a plain number)."""
    return torch.tensor(float(step), dtype=torch.float32)
