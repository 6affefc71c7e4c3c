"""Attention by matrix products on the CPU equals torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from vjepa.models import cpu_attention
from vjepa.models.attention import Attention, Block
from vjepa.models.cpu_attention import cpu_self_attention, self_attention

SHAPES = [(3, 17, 2, 8), (1, 5, 3, 4), (2, 1, 1, 8)]
"""Clips, tokens, heads, head width."""


def _qkv(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    batch, length, heads, width = shape
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, length, 3, heads, width, generator=generator).to(dtype)


def _plain(qkv: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _with_gradient(function: object, qkv: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.clone().requires_grad_()
    out = function(qkv)  # ty: ignore[call-non-callable]
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
    (gradient,) = torch.autograd.grad((out * weights).sum(), qkv)
    return out.detach(), gradient


@pytest.mark.parametrize("most_kept", [0, 600, 1 << 20])
@pytest.mark.parametrize("most_scores", [1, 400, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_attention(
    shape: tuple[int, ...], most_scores: int, most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many heads and clips are computed at a time, and whatever is kept."""
    monkeypatch.setattr(cpu_attention, "_MOST_SCORES", most_scores)
    monkeypatch.setattr(cpu_attention, "MOST_KEPT", most_kept)
    qkv = _qkv(shape, torch.float32)
    for ours, theirs in zip(
        _with_gradient(self_attention, qkv), _with_gradient(_plain, qkv), strict=True
    ):
        assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("most_kept", [0, 600, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_as_near_to_float32_as_rounding_allows(
    shape: tuple[int, ...], most_kept: int, has_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever kernel computes the heads that are not kept."""
    monkeypatch.setattr(cpu_attention, "_HAS_AMX", has_amx)
    monkeypatch.setattr(cpu_attention, "MOST_KEPT", most_kept)
    rough = _qkv(shape, torch.bfloat16)
    exact = _with_gradient(_plain, rough.float())
    for ours, wanted in zip(_with_gradient(self_attention, rough), exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - wanted).norm() <= 0.01 * wanted.norm() + 1e-3


@pytest.mark.parametrize("most_scores", [1, 290, 2 * 290, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kept_and_recomputed_probabilities_give_the_same_bits(
    dtype: torch.dtype, most_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So how much is kept decides about time and memory only (with AMX: in the backward pass)."""
    monkeypatch.setattr(cpu_attention, "_HAS_AMX", False)
    monkeypatch.setattr(cpu_attention, "_MOST_SCORES", most_scores)
    qkv = _qkv((3, 17, 3, 8), dtype)
    results = []
    for most_kept in (0, 4 * 17 * 17, 1 << 20):
        monkeypatch.setattr(cpu_attention, "MOST_KEPT", most_kept)
        results.append(_with_gradient(self_attention, qkv))
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


def test_what_is_kept_stays_below_its_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is kept where no backward pass can follow."""
    scores = 17 * 17
    counts = []
    for most_scores in (1, 2 * scores, 3 * scores, 6 * scores, 1 << 20):
        for heads_kept in range(11):
            monkeypatch.setattr(cpu_attention, "_MOST_SCORES", most_scores)
            monkeypatch.setattr(cpu_attention, "MOST_KEPT", heads_kept * scores + 1)
            _, kept = cpu_self_attention(_qkv((3, 17, 3, 8), torch.float32), True)
            assert kept.shape[0] <= heads_kept
            counts.append(kept.shape[0])
    assert set(counts) >= {0, 1, 2, 3, 6, 9}
    assert cpu_self_attention(_qkv((3, 17, 3, 8), torch.float32), False)[1].numel() == 0
    calls = []
    monkeypatch.setattr(
        cpu_attention,
        "cpu_self_attention",
        lambda qkv, keep: calls.append(keep) or cpu_self_attention(qkv, keep),
    )
    self_attention(_qkv(SHAPES[0], torch.float32))
    with torch.no_grad():
        self_attention(_qkv(SHAPES[0], torch.float32).requires_grad_())
    self_attention(_qkv(SHAPES[0], torch.float32).requires_grad_())
    assert calls == [False, False, True]


def test_gradcheck() -> None:
    qkv = _qkv((2, 3, 2, 2), torch.float64).requires_grad_()
    torch.autograd.gradcheck(self_attention, qkv)


def test_it_is_a_well_behaved_operation() -> None:
    """Its shapes are known without running it, as compilers need."""
    qkv = _qkv((2, 3, 2, 4), torch.float32).requires_grad_()
    for keep in (False, True):
        torch.library.opcheck(cpu_self_attention, (qkv, keep))


def test_only_bfloat16_takes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_HAS_AMX", False)
    calls = []
    monkeypatch.setattr(
        cpu_attention, "self_attention", lambda qkv: calls.append(1) or self_attention(qkv)
    )
    attention, tokens = Attention(8, 2), torch.randn(2, 5, 8)
    exact = attention(tokens)
    assert not calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = attention(tokens)
    assert calls
    assert_close(rough.float(), exact, atol=0.02, rtol=0.02)
    monkeypatch.setattr(cpu_attention, "_HAS_AMX", True)
    calls.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(tokens)
        assert calls, "the backward pass of torch's own kernel is the slow one"
        with torch.no_grad():
            attention(tokens)
    assert len(calls) == 1, "with AMX torch's own kernel is the fast one forward"


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_block_is_in_one_piece(
    precision: torch.dtype, has_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "_HAS_AMX", has_amx)
    block, tokens = Block(16, 2, 32), torch.randn(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = torch._dynamo.explain(block)(tokens)
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1
