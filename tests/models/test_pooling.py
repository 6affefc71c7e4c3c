from __future__ import annotations

import math

import pytest
import torch
from tests.models.tiny import shaken
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.models import AttentiveClassifier, AttentivePooler, LinearClassifier


def _by_hand(pooler: AttentivePooler, tokens: torch.Tensor, *, paper: bool) -> torch.Tensor:
    """One clip's pooling written out, one head at a time, depth 1."""
    block = pooler.cross_attention_block
    width, heads = pooler.width, pooler.heads
    normed = F.layer_norm(tokens, (width,), block.norm1.weight, block.norm1.bias, 1e-5)
    query = pooler.query_tokens[0]
    q = block.xattn.q(query)
    k, v = block.xattn.kv(normed).chunk(2, dim=-1)
    parts = []
    for q_h, k_h, v_h in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):
        parts.append((q_h @ k_h.T / math.sqrt(width / heads)).softmax(-1) @ v_h)
    read = torch.cat(parts, dim=-1)
    query = query + (block.xattn.proj(read) if paper else read)
    hidden = F.layer_norm(query, (width,), block.norm2.weight, block.norm2.bias, 1e-5)
    query = query + block.mlp.fc2(F.gelu(block.mlp.fc1(hidden)))
    if paper:
        query = F.layer_norm(query, (width,), pooler.norm.weight, pooler.norm.bias, 1e-5)
    return query


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_pooling_is_the_formula(variant: str) -> None:
    pooler = shaken(AttentivePooler(24, 3, variant=variant))
    tokens = torch.randn(2, 10, 24)
    out = pooler(tokens)
    assert out.shape == (2, 24)
    for b in range(2):
        wanted = _by_hand(pooler, tokens[b], paper=variant == "paper")
        assert_close(out[b : b + 1], wanted, atol=1e-5, rtol=0)


def test_every_parameter_of_both_variants_gets_a_gradient() -> None:
    for variant in ("paper", "released"):
        probe = shaken(AttentiveClassifier(24, 3, 5, depth=2, variant=variant))
        F.cross_entropy(probe(torch.randn(4, 10, 24)), torch.arange(4)).backward()
        assert all(p.grad is not None and p.grad.any() for p in probe.parameters())


def test_several_queries_and_depth() -> None:
    pooler = AttentivePooler(24, 3, depth=3, num_queries=4)
    assert len(pooler.blocks) == 2
    assert pooler(torch.randn(2, 10, 24)).shape == (2, 4, 24)


def test_fresh_weights_are_rescaled_with_depth() -> None:
    torch.manual_seed(0)
    pooler = AttentivePooler(192, 3, depth=3, variant="paper")
    assert pooler.query_tokens.std().item() == pytest.approx(0.02, rel=0.2)
    cross = pooler.cross_attention_block
    for layer in (cross.mlp.fc2, cross.xattn.proj):
        assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.05)
    assert cross.xattn.q.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for level, block in enumerate(pooler.blocks, start=2):
        for layer in (block.attn.proj, block.mlp.fc2):
            wanted = 0.02 / math.sqrt(2 * level)
            assert layer.weight.std().item() == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("arguments", [(24, 5), (24, 3, 0), (0, 3)])
def test_impossible_poolers_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="heads"):
        AttentivePooler(*arguments)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant: 'Paper' must be one of paper, released"):
        AttentiveClassifier(24, 3, 7, variant="Paper")  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [False, True])
def test_average_pool_probe(norm: bool) -> None:
    probe = LinearClassifier(24, 5, norm=norm)
    tokens = 3 + torch.randn(2, 10, 24)
    pooled = tokens.mean(1)
    if norm:
        pooled = F.layer_norm(pooled, (24,))
    wanted = pooled @ probe.linear.weight.T + probe.linear.bias
    assert_close(probe(tokens), wanted, atol=1e-5, rtol=0)
