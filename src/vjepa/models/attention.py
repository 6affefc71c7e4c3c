"""Attention over whole batches and over packed sequences, and the transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.models import cpu_attention
from vjepa.models.linear import Linear
from vjepa.models.packing import Packing, attend_padded, not_later
from vjepa.models.rotary import Rotation, rotate


def attend(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing | None = None, steps: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, fused; logits are scaled by head_dim^-1/2.

    `q` is [B, n, heads, head_dim], `k` and `v` are [B, m, heads, head_dim]; or with `packing` all
    are [S, heads, head_dim], and tokens attend only within their own clip. With `steps`, int64 [n]
    of every clip, [B, n], or packed [S], a token attends to those of its own step and of lower
    ones.
    """
    if packing is None:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        mask = None if steps is None else not_later(steps)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    half = q.dtype in (torch.bfloat16, torch.float16)
    if steps is None and q.is_cuda and half and q.shape[-1] % 8 == 0:  # what the kernel takes
        # Imported here: it takes torch's compiler along, which costs seconds at every start.
        from torch.nn.attention.varlen import varlen_attn

        offsets = packing.offsets.to(torch.int32)
        out = varlen_attn(q, k, v, offsets, offsets, packing.max_length, packing.max_length)
        assert isinstance(out, Tensor)  # a pair only when log-sum-exps are asked for
        return out
    return attend_padded(q, k, v, packing, steps)


class Attention(nn.Module):
    """Multi-head self-attention: one product for q, k and v (in that order), then a projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        tokens: Tensor,
        packing: Packing | None = None,
        rotation: Rotation | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Attend among the tokens of each clip: [B, n, D], or packed [S, D] with `packing`."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))
        if rotation is not None:
            qkv = rotate(qkv, rotation, in_place=not torch.is_grad_enabled())
        if packing is None and steps is None and cpu_attention.suits(qkv):
            return self.proj(cpu_attention.self_attention(qkv).flatten(-2))
        q, k, v = qkv.unbind(-3)
        return self.proj(attend(q, k, v, packing, steps).flatten(-2))


class CrossAttention(nn.Module):
    """Attention of queries over tokens, for pooling.

    Without output projection it is as in the authors' released probes, which do not apply theirs.
    """

    def __init__(self, width: int, heads: int, *, output_projection: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width) if output_projection else None

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Read tokens [B, N, D] with queries [B, Q, D] to [B, Q, D]."""
        q = self.q(queries).unflatten(-1, (self.heads, -1))
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        out = attend(q, k, v).flatten(-2)
        return out if self.proj is None else self.proj(out)


INIT_STD = 0.02
"""Standard deviation of fresh weights (the authors cut at +-2.0, 100 deviations: never)."""


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

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

    def forward(
        self,
        tokens: Tensor,
        packing: Packing | None = None,
        rotation: Rotation | None = None,
        scale: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Transform tokens [B, n, D], or packed [S, D] with `packing`.

        `scale` are factors of what attention and MLP add: [2, B, 1, 1], or packed [2, S, 1];
        `steps` forbid looking ahead, as for :func:`attend`.
        """
        attended = self.attn(self.norm1(tokens), packing, rotation, steps)
        tokens = tokens + (attended if scale is None else scale[0] * attended)
        mapped = self.mlp(self.norm2(tokens))
        return tokens + (mapped if scale is None else scale[1] * mapped)


def init_layer(module: nn.Module, std: float = INIT_STD) -> None:
    """Start one layer: weights normal with deviation `std`, biases 0, LayerNorm 1 and 0.

    For ``nn.Module.apply``. On the meta device nothing is drawn: PyTorch would import its compiler
    for that, 1.3 s of every command that opens a model. The paper gives no initialisation; these
    are what the authors' pretraining ends up with (a depth rescale is overwritten before training).
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        if not module.weight.is_meta:
            nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
