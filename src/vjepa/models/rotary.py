"""Positions by rotation: queries and keys are turned by angles of where their tokens are.

Nothing is added to the tokens. Of the d columns of a head, p = 2 * floor(floor(d / 3) / 2) belong
to time, as many to rows and to columns of the grid, and the rest stays as it is. At position x of
an axis, in tokens, column m of its p columns has an angle A[m], made of a_j = x * 10000^(-2 j / p),
and becomes

    u[m] cos(A[m]) + c[m] sin(A[m]),    c[2 i] = -u[2 i + 1],  c[2 i + 1] = u[2 i].

`rotary_pairs` (V-JEPA 2.1) has A[m] = a_(m // 2): each pair of neighbours is rotated. `rotary`
(V-JEPA 2) has A[m] = a_(m mod p/2): the two of a pair get different angles, so lengths change. That
is a slip of the authors' code, with which all weights of V-JEPA 2 were trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vjepa.models.config import EncoderConfig, PredictorConfig

_PIECE = 2**18
"""Numbers that are rotated at a time on a CPU: 1 MB in float32, what a core's cache holds."""


class Rotation(NamedTuple):
    """cos(A) and sin(A) of each token, [.., n, 1, 1, d]; 1 and 0 where nothing is rotated.

    Made once a forward pass for all blocks. Float32 under any precision of the products: in
    bfloat16 an angle of 31 would be off by 0.06.
    """

    cos: Tensor
    sin: Tensor


def rotation(
    encoder: EncoderConfig,
    grid: tuple[int, int, int],
    token_indices: Tensor | None,
    like: Tensor,
    predictor: PredictorConfig | None = None,
) -> Rotation | None:
    """The rotation of all tokens of a grid (t, h, w), or of those that are named.

    None where the encoder's positions are not rotary.

    Args:
        encoder: Says how positions are counted, and the width of a head.
        grid: What the indices count, time-major.
        token_indices: int64 [B, K], or packed [S]; None: all, in order.
        like: Gives the device; float64 makes a table of float64.
        predictor: Given, the rotation is that of its heads.
    """
    if not encoder.is_rotary:
        return None
    head_width, reference = encoder.width // encoder.heads, encoder.position_reference
    if predictor is not None:
        head_width = predictor.width // (predictor.heads or encoder.heads)
        reference = reference if predictor.stretch_positions else None
    part = head_width // 3 // 2 * 2
    device, double = like.device, torch.float64
    exponents = -2.0 * torch.arange(part // 2, dtype=double, device=device) / part
    angles = torch.zeros(*grid, head_width, dtype=double, device=device)
    for axis, count in enumerate(grid):
        places = torch.arange(count, dtype=double, device=device)
        if reference is not None and axis > 0 and count > 1:
            places = places * ((reference - 1) / (count - 1))
        table = places[:, None] * 10000.0**exponents
        is_slip = encoder.position == "rotary"
        table = torch.cat([table, table], 1) if is_slip else table.repeat_interleave(2, 1)
        shape = [1, 1, 1, part]
        shape[axis] = count
        angles[..., axis * part : (axis + 1) * part] = table.view(shape)
    angles = angles.flatten(0, 2)[:, None, None]
    dtype = double if like.dtype == double else torch.float32
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    if token_indices is not None:
        cos, sin = cos[token_indices], sin[token_indices]
    return Rotation(cos, sin)


def rotate(qkv: Tensor, by: Rotation, *, in_place: bool = False) -> Tensor:
    """Rotate queries and keys of [.., n, 3, heads, d], any float type; values stay as they are."""
    if torch.compiler.is_compiling():  # makes one pass of this, and knows no complex numbers
        qk = qkv[..., :2, :, :]
        first, second = qk.unflatten(-1, (-1, 2)).unbind(-1)
        companion = torch.stack([-second, first], -1).flatten(-2)
        turned = (qk * by.cos + companion * by.sin).to(qkv.dtype)
        return torch.cat([turned, qkv[..., 2:, :, :]], -3)
    if in_place:
        return _turn(qkv, *by, into=qkv)
    rotated = _Rotate.apply(qkv, *by)
    assert isinstance(rotated, Tensor)
    return rotated


class _Rotate(torch.autograd.Function):
    """The formula without what autograd would keep of it: nothing but the table."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(qkv, cos, sin, into=torch.empty_like(qkv))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (cos, sin) = gradients, ctx.saved_tensors
        across = -sin.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        # With this table the same formula goes the way back.
        return _turn(gradient, cos, across, into=torch.empty_like(gradient)), None, None


def _turn(qkv: Tensor, cos: Tensor, sin: Tensor, *, into: Tensor) -> Tensor:
    """In the table's precision; on a CPU some tokens at a time, which stay in its cache."""
    tokens = qkv.shape[-4]
    rows = max(1, _PIECE * tokens // max(1, qkv.numel())) if qkv.device.type == "cpu" else tokens
    pieces = (x.split(rows, -4) for x in (into, qkv, cos, sin))
    for to, piece, cos_here, sin_here in zip(*pieces, strict=True):
        qk = piece[..., :2, :, :].to(cos.dtype)
        to[..., :2, :, :] = (qk * cos_here).addcmul_(_companion(qk), sin_here)
        if into is not qkv:
            to[..., 2:, :, :] = piece[..., 2:, :, :]
    return into


def _companion(u: Tensor) -> Tensor:
    """C of the module's formula: pairs as complex numbers times i, the fastest way on a CPU."""
    pairs = torch.view_as_complex(u.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * 1j).flatten(-2)
