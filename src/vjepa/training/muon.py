"""Muon (K. Jordan, 2024): weights of linear layers learn in all directions at the same pace.

Each is moved along the momentum of its gradient with all singular values brought near 1, and as far
as AdamW would move it on average, so that one learning rate serves both (arXiv 2502.16982, section
2.2). torch has a Muon, too, but it computes in bfloat16 and cannot skip an update on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.state import is_sharded
from vjepa.errors import UserError

_MOMENTUM = 0.95
_ROUNDS, _POLYNOMIAL = 5, (3.4445, -4.7750, 2.0315)
_RMS = 0.2


def linear_weights(modules: Mapping[str, nn.Module]) -> set[Tensor]:
    """The weights that Muon moves; UserError: they are sharded."""
    layers = [layer for module in modules.values() for layer in module.modules()]
    weights: set[Tensor] = {layer.weight for layer in layers if isinstance(layer, nn.Linear)}
    if any(is_sharded(weight) for weight in weights):
        raise UserError(
            "optim.optimizer: muon works on whole matrices, and FSDP shards them; use adamw, or "
            "distributed.strategy ddp"
        )
    return weights


@torch.no_grad()
def move_matrices(
    group: Mapping[str, Any], state: MutableMapping[Tensor, Any], found_inf: Tensor | None
) -> None:
    """One update of a group's matrices; their gradients are taken away.

    The `state` of each is ``step`` and ``exp_avg``, the momentum. Nothing is changed where
    `found_inf` (0-d, on the device) is 1.
    """
    matrices = [p for p in group["params"] if p.grad is not None]
    for p in matrices:
        if not state[p]:
            state[p] = {"step": p.new_zeros(()), "exp_avg": torch.zeros_like(p)}
    # Those of one shape together: fewer and larger products.
    for shape, same in groupby(sorted(matrices, key=lambda p: p.shape), key=lambda p: p.shape):
        parts = list(same)
        gradients = torch.stack([p.grad for p in parts])
        done = gradients.new_ones(())
        if found_inf is not None:
            gradients, done = torch.where(found_inf > 0, 0.0, gradients), 1 - found_inf
        momenta = torch.stack([state[p]["exp_avg"] for p in parts])
        momenta.lerp_(gradients, (1 - _MOMENTUM) * done)
        moves = orthogonal(gradients.lerp(momenta, _MOMENTUM))
        moves *= group["lr"] * _RMS * math.sqrt(max(shape)) * done
        for p, momentum, move in zip(parts, momenta, moves, strict=True):
            state[p]["exp_avg"].copy_(momentum)
            state[p]["step"].add_(done)
            p.mul_(1 - group["lr"] * group["weight_decay"] * done).sub_(move)
            p.grad = None


def orthogonal(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T of [n, a, b], nearly: singular values of about 0.7 to 1.2.

    By a Newton-Schulz iteration, in matrix products alone, with Muon's published coefficients. Each
    round multiplies from the left by a polynomial of X X^T; all rounds are multiplied first, of the
    short side alone. That is a third fewer operations for a block of a ViT, and exact enough in
    float32 only: what rounding makes of eigenvalues near 0 grows by 11.9 a round.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    square = x @ x.mT
    together = step = _polynomial(square)
    for _ in range(_ROUNDS - 1):
        square = step @ (step @ square)
        step = _polynomial(square)
        together = step @ together
    x = together @ x
    return x.mT if is_tall else x


def _polynomial(square: Tensor) -> Tensor:
    first, third, fifth = _POLYNOMIAL
    found = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
    found.diagonal(dim1=-2, dim2=-1).add_(first)
    return found
