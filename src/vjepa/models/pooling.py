"""Reading tokens out: attentive pooling and the classifiers of frozen evaluation."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vjepa.models.attention import INIT_STD, Block, CrossAttention, Mlp, init_layer
from vjepa.models.linear import shrink_by_depth

PoolerVariant = Literal["paper", "released", "released_2"]
"""The paper's text, or what the authors' released code computes; that of V-JEPA 2."""

PROBE_NORM_EPS = 1e-5


class CrossAttentionBlock(nn.Module):
    """q += attention(q, norm1(tokens)), then q += mlp(norm2(q)); the queries are not normalised."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, output_projection: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=PROBE_NORM_EPS)
        self.xattn = CrossAttention(width, heads, output_projection=output_projection)
        self.norm2 = nn.LayerNorm(width, eps=PROBE_NORM_EPS)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Read tokens [B, N, D] with queries [B, Q, D] to [B, Q, D]."""
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Learnt queries that read all tokens by cross-attention (paper, section 4 and appendix).

    "released" is what the authors' code computes: no projection after the cross-attention, no
    LayerNorm at the end. "paper" is their text: both are there. Depth 1 is the cross-attention
    block alone; each one more adds an ordinary block over the queries, or in "released_2", which is
    "released" otherwise, over all tokens before they are read. The authors take as many heads as
    the encoder has, and 16 in V-JEPA 2.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        variant: PoolerVariant = "released",
        num_queries: int = 1,
    ) -> None:
        super().__init__()
        if min(width, heads, depth, num_queries) < 1 or width % heads:
            raise ValueError(
                f"heads: width {width}, heads {heads}, depth {depth}, queries {num_queries} must "
                "be above 0 and the width a multiple of the heads"
            )
        if variant not in (known := get_args(PoolerVariant)):
            raise ValueError(f"variant: {variant!r} must be one of {', '.join(known)}")
        self.width, self.heads, self.depth, self.variant = width, heads, depth, variant
        hidden = 4 * width
        self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, width))
        self.cross_attention_block = CrossAttentionBlock(
            width, heads, hidden, output_projection=variant == "paper"
        )
        self.blocks = nn.Sequential(
            *(Block(width, heads, hidden, PROBE_NORM_EPS) for _ in range(depth - 1))
        )
        self.norm = nn.LayerNorm(width, eps=PROBE_NORM_EPS) if variant == "paper" else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew.

        As in pretraining, and the layers that write into the residual stream are scaled by
        1/sqrt(2 l) in the l-th block (in the authors' probes this rescale survives).
        """
        self.apply(init_layer)
        if not self.query_tokens.is_meta:
            nn.init.normal_(self.query_tokens, std=INIT_STD)
        cross = self.cross_attention_block
        for layer in (cross.mlp.fc2, cross.xattn.proj):
            if layer is not None:
                layer.weight.div_(math.sqrt(2))
        shrink_by_depth(self.blocks, first=2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens float [B, N, D] to [B, D] for one query, [B, Q, D] for several."""
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        queries = self.cross_attention_block(queries, self._before_reading(tokens))
        if self.variant != "released_2":
            queries = self.blocks(queries)
        queries = self.norm(queries)
        return queries[:, 0] if queries.shape[1] == 1 else queries

    def _before_reading(self, tokens: Tensor) -> Tensor:
        return self.blocks(tokens) if self.variant == "released_2" else tokens

    def attention(self, tokens: Tensor) -> Tensor:
        """Where the queries look: tokens [B, N, D] to shares [B, heads, Q, N] of sum 1 over N.

        The values that are read with these shares are not in them, nor what follows.
        """
        block = self.cross_attention_block
        keys, _ = block.xattn.kv(block.norm1(self._before_reading(tokens))).chunk(2, dim=-1)
        keys = keys.unflatten(-1, (self.heads, -1))
        queries = block.xattn.q(self.query_tokens[0]).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("qhd,bnhd->bhqn", queries, keys)
        return (scores / math.sqrt(keys.shape[-1])).softmax(dim=-1)


class AttentiveClassifier(nn.Module):
    """Attentive pooling, then a linear layer: the paper's probe."""

    def __init__(
        self,
        width: int,
        heads: int,
        num_classes: int,
        depth: int = 1,
        variant: PoolerVariant = "released",
    ) -> None:
        super().__init__()
        self.pooler = AttentivePooler(width, heads, depth, variant=variant)
        self.linear = nn.Linear(width, num_classes)
        init_layer(self.linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify clips: tokens float [B, N, D] to logits [B, num_classes]."""
        return self.linear(self.pooler(tokens))


class LinearClassifier(nn.Module):
    """Mean over tokens, optionally LayerNorm, then a linear layer: the average-pool probe."""

    def __init__(
        self, width: int, num_classes: int, *, norm: bool = False, norm_eps: float = PROBE_NORM_EPS
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps) if norm else nn.Identity()
        self.linear = nn.Linear(width, num_classes)
        init_layer(self.linear)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        """Classify clips: tokens float [B, N, D] to logits [B, num_classes].

        `scale` [B, D] are factors of what enters the linear layer, for dropout.
        """
        pooled = self.norm(tokens.mean(dim=1))
        return self.linear(pooled if scale is None else scale * pooled)
