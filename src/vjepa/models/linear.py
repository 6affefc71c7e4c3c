"""The linear layers of transformer blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """As torch's, but on a CPU in float32 the bias of a wide result is added after the product.

    torch fills the result with the bias first and lets the product add to it, which takes 1.15 to
    1.4 times as long (docs/benchmarks.md) and gives the same bits.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map float [..., in] to [..., out]."""
        is_plain = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        is_wide = self.bias is not None and self.out_features >= self.in_features
        if input.device.type != "cpu" or input.ndim < 2 or not (is_plain and is_wide):
            return super().forward(input)
        rows = torch.mm(input.flatten(0, -2), self.weight.t()).add_(self.bias)
        return rows.view(*input.shape[:-1], self.out_features)


def shrink_by_depth(blocks: Iterable[nn.Module], first: int = 1) -> None:
    """Divide fresh weights of what attention and MLP add in block l, from `first`, by sqrt(2 l).

    The authors' rule. It survives in V-JEPA 2, whose positions rotate, and in probes; V-JEPA's
    pretraining draws all weights anew afterwards.
    """
    for level, block in enumerate(blocks, start=first):
        for name in ("attn.proj.weight", "mlp.fc2.weight"):
            block.get_parameter(name).detach().div_(math.sqrt(2 * level))
