"""The transformer block and how weights begin."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.models.attention import Attention, Packing

INIT_STD = 0.02
"""Standard deviation of fresh weights (the authors cut at +-2.0, 100 deviations: never)."""


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm block: x += attention(norm1(x)), then x += mlp(norm2(x)).

    LayerNorm's eps is 1e-6 in encoder and predictor, 1e-5 in probes.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        """Transform tokens [B, n, D], or packed [S, D] with `packing`."""
        tokens = tokens + self.attn(self.norm1(tokens), packing)
        return tokens + self.mlp(self.norm2(tokens))


def init_layer(module: nn.Module) -> None:
    """Start one layer: weights normal with deviation 0.02, biases 0, LayerNorm 1 and 0.

    For ``nn.Module.apply``; works on the meta device. The paper gives no initialisation; these are
    the values that the authors' pretraining ends up with (a depth rescale of theirs is overwritten
    before training).
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
