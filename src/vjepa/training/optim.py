"""The optimiser, gradient clipping, and the target encoder's moving average (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.state import parameter_groups, whole
from vjepa.errors import UserError
from vjepa.training.muon import linear_weights, move_matrices
from vjepa.training.schedules import OptimConfig, learning_rate, weight_decay


class GuardedAdamW(torch.optim.AdamW):
    """Fused AdamW that skips an update on the device when it is told to.

    ``found_inf`` is the channel that torch's loss scaler uses: a 0-d float32 tensor; at 1 the fused
    kernel leaves weights, moments and step count as they are, without a host synchronisation.
    Groups that are marked ``muon`` are moved by it instead (:mod:`vjepa.training.muon`).
    """

    found_inf: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        """One update of all groups."""
        for group in self.param_groups:
            if group["muon"]:
                move_matrices(group, self.state, self.found_inf)
        return super().step(closure)


def build_optimizer(
    modules: Mapping[str, nn.Module],
    config: OptimConfig,
    lr_scale: Callable[[str], float] = lambda _name: 1.0,
) -> GuardedAdamW:
    """The fused AdamW of the trained modules; groups also carry ``decayed`` and ``module`` (name).

    Learning rate and weight decay are those of update 1 until :func:`set_schedules` is called.
    `lr_scale` gives the factor of a parameter's rate by its full name (layer-wise rates).
    """
    by_muon = linear_weights(modules) if config.optimizer == "muon" else set()
    groups, first = [], dict[nn.Parameter, str]()
    for g in parameter_groups(modules):
        kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
        if not g.parameters:
            kinds[1.0, False] = []
        for name, parameter in g.parameters.items():
            if (other := first.setdefault(parameter, name)) != name:
                raise UserError(f"{name}: is {other} too; let one submodule hold all that share it")
            kinds.setdefault((lr_scale(name), parameter in by_muon), []).append(parameter)
        groups += [
            {"decayed": g.decayed, "module": g.module, "lr_scale": scale, "muon": muon, "params": p}
            for (scale, muon), p in kinds.items()
        ]
    if not any(group["params"] for group in groups):
        raise UserError(f"nothing to train: no parameter of {', '.join(modules)} takes a gradient")
    optimizer = GuardedAdamW(
        groups,
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
    """Set learning rate and weight decay of all groups for the update that follows (from 1).

    A group may carry factors of its own, ``lr_scale`` and ``weight_decay_scale``: probe heads of
    different settings are trained side by side that way.
    """
    rate, decay = learning_rate(update, config), weight_decay(update, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
        scale = group.get("weight_decay_scale", 1.0) if group["decayed"] else 0.0
        group["weight_decay"] = decay * scale


def clip_gradients(
    modules: Mapping[str, nn.Module], update: int, config: OptimConfig
) -> dict[str, Tensor]:
    """Clip each module's gradient on its own; its L2 norm before that, 0-d and not synchronised.

    Updates before `config.clip_from_step` are measured but not clipped.
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


@dataclass(frozen=True)
class EmaPairs:
    """Parameters and their moving averages, of equal length, order and shapes.

    Zipped lists, made once and before any wrapping: an average keyed by name would silently miss
    parameters that a compiler or a sharding wrapper has renamed.
    """

    online: tuple[Tensor, ...]
    target: tuple[Tensor, ...]

    @classmethod
    def of(cls, modules: Sequence[tuple[nn.Module, nn.Module]]) -> EmaPairs:
        """Zip the parameters of (online, target) modules."""
        online = [p for module, _ in modules for p in module.parameters()]
        target = [p for _, module in modules for p in module.parameters()]
        if [p.shape for p in online] != [p.shape for p in target]:
            raise ValueError("online and target modules differ in their parameters")
        if any(p.requires_grad for p in target):
            raise ValueError("a target module of a moving average must not take gradients")
        return cls(tuple(online), tuple(target))


@torch.no_grad()
def update_ema(pairs: EmaPairs, momentum: float) -> None:
    """Move each target towards its online parameter: ``t <- m t + (1 - m) o``.

    Once after each optimiser step. Weights should be float32: in bfloat16 a step of 1 - m = 0.002
    is below the resolution and the target would stand still.
    """
    if pairs.target:
        torch._foreach_lerp_(pairs.target, pairs.online, 1.0 - momentum)
