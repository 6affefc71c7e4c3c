from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from vjepa.models.attention import attend
from vjepa.models.packing import Packing


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention written out: [n, heads, head_dim]."""
    logits = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v)


def test_dense_attention_is_the_formula() -> None:
    q, k, v = torch.randn(3, 2, 7, 3, 4).unbind(0)
    out = attend(q, k, v)
    assert out.shape == (2, 7, 3, 4)
    for b in range(2):
        assert_close(out[b], _plain(q[b], k[b], v[b]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("lengths", [[4, 1, 6], [5], [3, 0, 2], [0, 4]])
def test_packed_attention_stays_within_each_clip(
    lengths: list[int], dtype: torch.dtype, atol: float
) -> None:
    total = sum(lengths)
    qkv = torch.randn(3, total, 3, 4).to(dtype).float().requires_grad_()
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    packing = Packing.of(offsets, total, max_length=16)
    assert packing.clip_index.tolist() == [b for b, n in enumerate(lengths) for _ in range(n)]
    out = attend(*qkv.to(dtype).unbind(0), packing).float()
    parts = [part for part in qkv.split(lengths, dim=1) if part.shape[1]]
    wanted = torch.cat([_plain(*part.unbind(0)) for part in parts])
    assert_close(out, wanted, atol=atol, rtol=0)
    weights = torch.randn_like(out)
    (ours,) = torch.autograd.grad((out * weights).sum(), qkv, retain_graph=True)
    (plain,) = torch.autograd.grad((wanted * weights).sum(), qkv)
    assert_close(ours, plain, atol=5 * atol, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_attention_on_a_gpu_is_the_formula(dtype: torch.dtype) -> None:
    """The kernel for variable lengths, and the fall-back that pads to a bound."""
    lengths = [40, 1, 65]
    total = sum(lengths)
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(3, total, 4, 32, device="cuda", generator=generator).to(dtype)
    qkv.requires_grad_()
    offsets = torch.tensor([0, *lengths], device="cuda").cumsum(0)
    out = attend(*qkv.unbind(0), Packing.of(offsets, total, max_length=128))
    exact = qkv.detach().float().requires_grad_()
    wanted = torch.cat([_plain(*part.unbind(0)) for part in exact.split(lengths, dim=1)])
    assert_close(out.float(), wanted, atol=2e-2, rtol=2e-2)
    (ours,) = torch.autograd.grad(out.float().square().sum(), qkv)
    (plain,) = torch.autograd.grad(wanted.square().sum(), exact)
    assert_close(ours.float(), plain, atol=5e-2, rtol=5e-2)
