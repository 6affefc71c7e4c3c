"""Self-attention in bfloat16 on a CPU, as matrix products.

The fused attention that torch has for the CPU multiplies small tiles, which in bfloat16 without
matrix instructions (AMX) reaches a third of the rate of a large matrix product, and in the backward
pass of short sequences a twentieth. Here the products are whole matrices, some heads at a time, so
that the scores of no more than those are in cache. The backward pass uses the probabilities of as
many heads as fit into a fixed allowance, and computes those of the others again.

With AMX the fused kernel is the faster one forward, and by far the slower one backward, at every
shape that was measured (docs/benchmarks.md): it does what has no backward pass, and the forward
pass of those heads whose probabilities are not kept. Which heads those are follows from the shape
alone, so the same update gives the same bits.

Scores and probabilities are bfloat16, so results differ from float32 by about 0.5 % (torch's fused
kernel, which keeps the scores in float32: 0.25 %); sums are float32 inside the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Scores held at a time for each thread: a few megabytes, which a CPU's cache holds.
_MOST_SCORES = 1 << 22
# Probabilities that one attention keeps for its backward pass: 64 MiB in bfloat16. A predictor of
# 12 blocks and two masks so keeps at most 1.5 GiB, as much as one clip of 1568 tokens has.
MOST_KEPT = 1 << 25
# Asked once: a question to the processor inside a block would cut a compiled block in two. Where
# torch was told to do without AVX-512 (ATEN_CPU_CAPABILITY), its fused attention stops with an
# error on a processor that has AMX.
_HAS_AMX: bool = (
    torch.cpu._is_amx_tile_supported() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def suits(qkv: Tensor) -> bool:
    """Whether this is the fastest attention here: bfloat16 on a CPU, with AMX in training only."""
    on_cpu = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
    return on_cpu and (not _HAS_AMX or _needs_gradient(qkv))


def _needs_gradient(qkv: Tensor) -> bool:
    return torch.is_grad_enabled() and qkv.requires_grad


@dataclass(frozen=True)
class _Part:
    """Some heads of some clips: q, k and v are [heads, n, head_dim] and contiguous."""

    clips: slice
    heads: slice
    rows: slice
    """Their places among all heads of all clips, clip by clip."""
    q: Tensor
    k: Tensor
    v: Tensor

    def of(self, tokens: Tensor) -> Tensor:
        """This part of [B, n, heads, head_dim], as q is laid out."""
        return tokens[self.clips, :, self.heads].transpose(1, 2).flatten(0, 1).contiguous()


def _parts(qkv: Tensor) -> Iterator[_Part]:
    """Cut [B, n, 3, heads, head_dim] into parts with few enough scores."""
    batch, length, _, heads, width = qkv.shape
    clips_at_once, heads_at_once = _at_once(length, heads)
    for clip in range(0, batch, clips_at_once):
        for head in range(0, heads, heads_at_once):
            clips = slice(clip, min(batch, clip + clips_at_once))
            part = slice(head, min(heads, head + heads_at_once))
            q, k, v = qkv[clips, :, :, part].permute(2, 0, 3, 1, 4).reshape(3, -1, length, width)
            first = clip * heads + head
            yield _Part(clips, part, slice(first, first + q.shape[0]), q, k, v)


def _at_once(length: int, heads: int) -> tuple[int, int]:
    """Clips, and heads of each, that are computed together."""
    at_once = max(1, torch.get_num_threads() * _MOST_SCORES // (length * length))
    return max(1, at_once // heads), min(heads, at_once)


def _scratch(qkv: Tensor) -> Tensor:
    """Working memory for scores and probabilities of the largest part, [2, heads, n, n].

    One for all parts, since large blocks are mapped and faulted in anew each time by default.
    """
    batch, length, _, heads, _ = qkv.shape
    clips_at_once, heads_at_once = _at_once(length, heads)
    return qkv.new_empty(2, min(batch, clips_at_once) * heads_at_once, length, length)


def _num_kept(qkv: Tensor) -> int:
    """Heads, counted over all clips, whose probabilities are kept: whole parts, the first ones."""
    batch, length, _, heads, _ = qkv.shape
    clips, part = _at_once(length, heads)
    most = MOST_KEPT // (length * length)
    if part == heads:
        return min(batch, most // (clips * heads) * clips) * heads
    # A clip's heads come in several parts, of which the last may be smaller.
    whole, rest = divmod(min(most, batch * heads), heads)
    return whole * heads + rest // part * part


def _probabilities(part: _Part, scores: Tensor, result: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) into `result`; `scores` is working memory of its shape."""
    scale = part.q.shape[-1] ** -0.5
    torch.baddbmm(scores, part.q, part.k.mT, beta=0, alpha=scale, out=scores)
    return torch.softmax(scores, dim=-1, out=result)


def self_attention(qkv: Tensor) -> Tensor:
    """Attend in [B, n, 3, heads, head_dim], bfloat16 or float32: [B, n, heads, head_dim]."""
    return cpu_self_attention(qkv, _needs_gradient(qkv))[0]


@torch.library.custom_op("vjepa::cpu_self_attention", mutates_args=())
def cpu_self_attention(qkv: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """The same as one operation, also for a compiler.

    The result is contiguous; beside it come the probabilities of the first heads, [K, n, n], that
    are kept for a backward pass.
    """
    batch, length, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, length, heads, width)
    kept = qkv.new_empty(_num_kept(qkv) if keep else 0, length, length)
    fused = _HAS_AMX and qkv.dtype == torch.bfloat16
    with torch.autocast("cpu", enabled=False):
        scratch = _scratch(qkv)
        for part in _parts(qkv):
            scores, weights = scratch[:, : part.q.shape[0]]
            is_kept = part.rows.stop <= kept.shape[0]
            if fused and not is_kept:
                result = F.scaled_dot_product_attention(part.q[None], part.k[None], part.v[None])[0]
            else:
                weights = kept[part.rows] if is_kept else weights
                result = torch.bmm(_probabilities(part, scores, weights), part.v)
            result = result.unflatten(0, (-1, part.heads.stop - part.heads.start))
            out[part.clips, :, part.heads] = result.transpose(1, 2)
    return out, kept


@torch.library.custom_op("vjepa::cpu_self_attention_backward", mutates_args=())
def _backward(qkv: Tensor, kept: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of qkv, in its shape, from that of the result, [B, n, heads, head_dim]."""
    scale = qkv.shape[4] ** -0.5
    result = torch.empty_like(qkv)
    with torch.autocast("cpu", enabled=False):
        scratch = _scratch(qkv)
        for part in _parts(qkv):
            scores, weights = scratch[:, : part.q.shape[0]]
            if part.rows.stop <= kept.shape[0]:
                weights = kept[part.rows]
            else:
                _probabilities(part, scores, weights)
            upstream = part.of(gradient)
            grads = qkv.new_empty(3, *part.q.shape)
            torch.bmm(weights.mT, upstream, out=grads[2])
            torch.bmm(upstream, part.v.mT, out=scores)
            torch._softmax_backward_data(scores, weights, -1, qkv.dtype, grad_input=scores)
            torch.baddbmm(grads[0], scores, part.k, beta=0, alpha=scale, out=grads[0])
            torch.baddbmm(grads[1], scores.mT, part.q, beta=0, alpha=scale, out=grads[1])
            grads = grads.unflatten(1, (-1, part.heads.stop - part.heads.start))
            result[part.clips, :, :, part.heads] = grads.permute(1, 3, 0, 2, 4)
    return result


@cpu_self_attention.register_fake
def _(qkv: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    kept = qkv.new_empty(_num_kept(qkv) if keep else 0, length, length)
    return qkv.new_empty(batch, length, heads, width), kept


@_backward.register_fake
def _(qkv: Tensor, kept: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG001 (the operation's own signature)
    return torch.empty_like(qkv)


def _keep(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, bool],
    output: tuple[Tensor, Tensor],
) -> None:
    ctx.mark_non_differentiable(output[1])
    # Otherwise the backward pass is handed zeros of the size of all kept probabilities.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], output[1])


def _differentiate(
    ctx: torch.autograd.function.BackwardCFunction, gradient: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, None]:
    if gradient is None:
        return None, None
    qkv, kept = ctx.saved_tensors  # ty: ignore[invalid-assignment]  (torch declares one tensor)
    return _backward(qkv, kept, gradient), None


cpu_self_attention.register_autograd(_differentiate, setup_context=_keep)
