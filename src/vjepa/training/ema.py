"""The target encoder as an exponential moving average of the encoder (paper section 3.1).

Pairs are zipped parameter lists, made once and before any wrapping: an average keyed by name would
silently miss parameters that a compiler or a sharding wrapper has renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EmaPairs:
    """Parameters and their moving averages, of equal length, order and shapes."""

    online: tuple[Tensor, ...]
    target: tuple[Tensor, ...]

    @classmethod
    def of(cls, modules: Sequence[tuple[nn.Module, nn.Module]]) -> EmaPairs:
        """Zip the parameters of (online, target) modules.

        Args:
            modules: Pairs of modules with the same parameters in the same order.

        Returns:
            The pairs; empty for no modules.

        Raises:
            ValueError: Different numbers or shapes, or a target that takes gradients.
        """
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

    Call it once per optimiser step, after the step. Weights should be float32: in bfloat16 a step
    of 1 - m = 0.002 is below the resolution and the target would stand still.

    Args:
        pairs: From :meth:`EmaPairs.of`; the targets are changed in place.
        momentum: m in [0, 1].
    """
    if pairs.target:
        torch._foreach_lerp_(pairs.target, pairs.online, 1.0 - momentum)
