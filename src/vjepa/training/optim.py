"""AdamW with the reference's parameter groups, gradient clipping, and its state by name.

Groups stand in the order of the authors' released checkpoints, so that their optimiser states can
be loaded: the decayed parameters of each module, then the not decayed ones of each module. With
``{"encoder": ..., "predictor": ...}`` that makes four groups, with one probe two. Not decayed are
1-D parameters and those whose name contains ``bias``; mask tokens and probe queries are decayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.errors import UserError
from vjepa.training.schedules import OptimConfig, learning_rate, weight_decay
from vjepa.training.sharding import part_like, whole


class GuardedAdamW(torch.optim.AdamW):
    """Fused AdamW that skips an update on the device when it is told to.

    ``found_inf`` is the channel that torch's loss scaler uses: a 0-d float32 tensor; at 1 the fused
    kernel leaves weights, moments and step count as they are, without a host synchronisation.
    """

    found_inf: Tensor | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take numbered moments, for example those of a released checkpoint.

        Args:
            state_dict: As ``torch.optim.AdamW.state_dict()`` gives it, for the same groups. Only
                moments and step counts are taken over: the options stay this run's own.
        """
        options = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        groups = [
            {**own, "params": group["params"]}
            for own, group in zip(options, state_dict["param_groups"], strict=True)
        ]
        super().load_state_dict({"state": state_dict["state"], "param_groups": groups})


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


def build_optimizer(modules: Mapping[str, nn.Module], config: OptimConfig) -> GuardedAdamW:
    """Build the fused AdamW of a run.

    Args:
        modules: The trained modules by name, for example ``{"encoder": ..., "predictor": ...}``.
        config: Gives betas and eps; learning rate and weight decay are those of update 1 until
            :func:`set_schedules` is called.

    Returns:
        AdamW whose groups also carry ``decayed`` (bool) and ``module`` (name).

    Raises:
        UserError: Nothing to train.
    """
    groups = parameter_groups(modules)
    if not any(group.members for group in groups):
        raise UserError(f"nothing to train: no parameter of {', '.join(modules)} takes a gradient")
    optimizer = GuardedAdamW(
        [
            {
                "params": [member.parameter for member in group.members],
                "decayed": group.decayed,
                "module": group.module,
            }
            for group in groups
        ],
        lr=learning_rate(1, config),
        betas=config.betas,
        eps=config.eps,
        weight_decay=0.0,
        # One kernel for all parameters, and the only one that knows `found_inf`.
        fused=True,
    )
    set_schedules(optimizer, 1, config)
    return optimizer


def set_schedules(optimizer: torch.optim.Optimizer, update: int, config: OptimConfig) -> None:
    """Set the learning rate of all groups and the weight decay of the decayed ones.

    A group may carry factors of its own, ``lr_scale`` and ``weight_decay_scale``: probe heads of
    different settings are trained side by side that way.

    Args:
        optimizer: From :func:`build_optimizer`.
        update: Number of the update that follows, from 1.
        config: The schedules.
    """
    rate, decay = learning_rate(update, config), weight_decay(update, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
        scale = group.get("weight_decay_scale", 1.0) if group["decayed"] else 0.0
        group["weight_decay"] = decay * scale


def clip_gradients(
    modules: Mapping[str, nn.Module], update: int, config: OptimConfig
) -> dict[str, Tensor]:
    """Measure the gradient norm of each module and clip each on its own.

    Args:
        modules: The trained modules by name.
        update: Number of the update, from 1; those before `config.clip_from_step` are measured
            but not clipped.
        config: Gives `clip_norm` and `clip_from_step`.

    Returns:
        The L2 norm before clipping of each module: 0-d tensors on the device, not synchronised.
    """
    norms = {}
    for name, module in modules.items():
        parameters = [p for p in module.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if config.clip_norm is not None and update >= config.clip_from_step:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
        norms[name] = whole(norm)
    return norms


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
