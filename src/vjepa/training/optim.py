"""The optimiser, gradient clipping, and the target encoder's moving average (section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.state import is_sharded, parameter_groups, whole
from vjepa.errors import UserError
from vjepa.training.schedules import OptimConfig, learning_rate, weight_decay

_MUON_MOMENTUM = 0.95
_MUON_ROUNDS, _MUON_POLYNOMIAL = 5, (3.4445, -4.7750, 2.0315)
_MUON_RMS = 0.2


class GuardedAdamW(torch.optim.AdamW):
    """Fused AdamW that skips an update on the device when it is told to.

    ``found_inf`` is the channel that torch's loss scaler uses: a 0-d float32 tensor; at 1 the fused
    kernel leaves weights, moments and step count as they are, without a host synchronisation.

    The matrices of a group that is marked ``muon`` are moved by Muon instead: along the momentum of
    their gradient with all singular values brought near 1, so that every direction learns at the
    same pace, and as far as AdamW would on average (arXiv 2502.16982, section 2.2). ``exp_avg`` is
    that momentum. (torch's own Muon computes in bfloat16, and cannot skip an update.)
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all groups; the gradients of Muon's matrices are taken away."""
        for group in self.param_groups:
            if group["muon"]:
                matrices = [p for p in group["params"] if p.grad is not None]
                # Those of one shape together: fewer and larger products.
                matrices.sort(key=lambda p: p.shape)
                for shape, same in groupby(matrices, key=lambda p: p.shape):
                    self._move(list(same), group, _MUON_RMS * math.sqrt(max(shape)))
        return super().step(closure)

    def _move(self, matrices: list[nn.Parameter], group: dict[str, Any], length: float) -> None:
        skipped = matrices[0].new_zeros(()) if self.found_inf is None else self.found_inf
        done = 1 - skipped
        gradients = torch.stack([p.grad for p in matrices if p.grad is not None])
        gradients = torch.where(skipped > 0, 0.0, gradients)
        for p in matrices:
            if not self.state[p]:
                self.state[p] = {"step": p.new_zeros(()), "exp_avg": torch.zeros_like(p)}
        states = [self.state[p] for p in matrices]
        momenta = torch.stack([state["exp_avg"] for state in states])
        momenta.lerp_(gradients, (1 - _MUON_MOMENTUM) * done)
        moves = orthogonal(gradients.lerp(momenta, _MUON_MOMENTUM))
        moves *= group["lr"] * length * done
        for p, state, momentum, move in zip(matrices, states, momenta, moves, strict=True):
            state["exp_avg"].copy_(momentum)
            state["step"].add_(done)
            p.mul_(1 - group["lr"] * group["weight_decay"] * done).sub_(move)
            p.grad = None


def orthogonal(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T of [n, a, b], nearly: singular values of about 0.7 to 1.2.

    By a Newton-Schulz iteration, in matrix products alone, with Muon's published coefficients.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    first, third, fifth = _MUON_POLYNOMIAL
    for _ in range(_MUON_ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(square, square, square, beta=third, alpha=fifth), x, beta=first
        )
    return x.mT if is_tall else x


def build_optimizer(
    modules: Mapping[str, nn.Module],
    config: OptimConfig,
    lr_scale: Callable[[str], float] = lambda _name: 1.0,
) -> GuardedAdamW:
    """The fused AdamW of the trained modules; groups also carry ``decayed`` and ``module`` (name).

    Learning rate and weight decay are those of update 1 until :func:`set_schedules` is called.
    `lr_scale` gives the factor of a parameter's rate by its full name (layer-wise rates).
    """
    by_muon: set[Tensor] = set()
    if config.optimizer == "muon":
        layers = [m for module in modules.values() for m in module.modules()]
        by_muon = {layer.weight for layer in layers if isinstance(layer, nn.Linear)}
        if any(is_sharded(weight) for weight in by_muon):
            raise UserError(
                "optim.optimizer: muon works on whole matrices, and FSDP shards them; use adamw, "
                "or distributed.strategy ddp"
            )
    groups = []
    for g in parameter_groups(modules):
        kinds: dict[tuple[float, bool], list[nn.Parameter]] = {}
        if not g.parameters:
            kinds[1.0, False] = []
        for name, parameter in g.parameters.items():
            kinds.setdefault((lr_scale(name), parameter in by_muon), []).append(parameter)
        groups += [
            {
                "params": params,
                "decayed": g.decayed,
                "module": g.module,
                "lr_scale": scale,
                "muon": muon,
            }
            for (scale, muon), params in kinds.items()
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
