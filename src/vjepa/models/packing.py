"""Clips of different lengths in one sequence, and context and target tokens in one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vjepa.models.cpu_attention import MOST_KEPT
from vjepa.models.preprocess import may_look
from vjepa.models.rotary import Rotation


@dataclass(frozen=True)
class Packing:
    """How clips of different lengths lie in one sequence of S tokens."""

    offsets: Tensor
    """int64 [B+1], rising from 0 to S: clip b is tokens offsets[b] .. offsets[b+1]-1."""
    clip_index: Tensor
    """int64 [S]: the clip of each token."""
    max_length: int
    """No clip is longer than this (a bound, so that no device has to be asked)."""

    @staticmethod
    def of(offsets: Tensor, num_tokens: int, max_length: int) -> Packing:
        """Describe a packed sequence of S = `num_tokens`; nothing is read from a GPU.

        ValueError: the offsets are no whole numbers; or, on the CPU, do not rise from 0 to S.
        """
        kind = offsets.dtype if isinstance(offsets, Tensor) else type(offsets).__name__
        if kind not in (torch.int64, torch.int32) or offsets.ndim != 1 or not len(offsets):
            shape = [*offsets.shape] if isinstance(offsets, Tensor) else ""
            raise ValueError(f"offsets must be a tensor int64 [B+1], got {kind} {shape}")
        if may_look(offsets) and not (
            offsets[0] == 0 and offsets[-1] == num_tokens and bool((offsets.diff() >= 0).all())
        ):
            raise ValueError(
                f"offsets {offsets.tolist()[:8]} must rise from 0 to the {num_tokens} packed tokens"
            )
        places = torch.arange(num_tokens, device=offsets.device)
        clip_index = torch.searchsorted(offsets, places, right=True) - 1
        return Packing(offsets, clip_index, max_length)


def not_later(steps: Tensor) -> Tensor:
    """Which tokens a token may attend to: int64 [n] -> bool [n, n], or [B, n] -> [B, 1, n, n]."""
    allowed = steps[..., :, None] >= steps[..., None, :]
    return allowed if steps.ndim == 1 else allowed[:, None]


def attend_padded(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, steps: Tensor | None = None
) -> Tensor:
    """The packed case by padding every clip to the longest one and hiding the padding."""
    lengths, clip = packing.offsets.diff(), packing.clip_index
    if lengths.device.type == "cpu":
        longest = int(lengths.max())
    else:  # a bound instead, which costs work but does not make the host wait for the device
        longest = min(packing.max_length, clip.numel())
    places = torch.arange(clip.numel(), device=clip.device) - packing.offsets[clip]
    rows = clip * longest + places
    count = lengths.numel()
    padded = [
        x.new_zeros(count * longest, *x.shape[1:])
        .index_copy_(0, rows, x)
        .unflatten(0, (count, longest))
        .transpose(1, 2)
        for x in (q, k, v)
    ]
    # An empty clip has nothing to attend to: one zero key keeps its rows finite, nobody reads them.
    visible = torch.arange(longest, device=clip.device) < lengths.clamp(min=1)[:, None]
    mask = visible[:, None, None, :]
    if steps is not None:  # padding stands last, so that its own rows, which nobody reads, see some
        last = steps.new_full((count * longest,), torch.iinfo(steps.dtype).max)
        mask = mask & not_later(last.index_copy_(0, rows, steps).view(count, longest))
    q, k, v = padded
    on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if on_cpu and q[..., 0].numel() * longest <= MOST_KEPT:
        # As in cpu_attention.py: the backward pass of torch's fused attention is slow here.
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
        out = scores.softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, rows)


class Joined:
    """Context and target tokens of each clip as one sequence, and apart again.

    Whole batches [B, K], [B, M] become [B, K + M]; packed ones [clip 0: context, targets; clip 1:
    ...].
    """

    def __init__(
        self,
        context: Tensor,
        target: Tensor,
        context_offsets: Tensor | None,
        target_offsets: Tensor | None,
        longest: int,
    ) -> None:
        num_dims = 2 if context_offsets is None else 1
        if context.shape[:-1] != target.shape[:-1] or context.ndim != num_dims:
            raise ValueError(
                f"context_indices {[*context.shape]} and target_indices {[*target.shape]} must be "
                "of the same clips: [B, K] and [B, M], or [S] and [U] together with offsets"
            )
        self.packing: Packing | None = None
        self._num_context = context.shape[-1]
        if context_offsets is None or target_offsets is None:
            return
        if context_offsets.shape != target_offsets.shape:
            raise ValueError("context_offsets and target_offsets must be of the same clips")
        contexts = Packing.of(context_offsets, context.shape[0], longest)
        wanted = Packing.of(target_offsets, target.shape[0], longest)
        device = context.device
        # In the joint sequence a context token comes after all targets of the clips before it, a
        # target token after all context tokens up to its own clip's.
        self._context_places = (
            torch.arange(context.shape[0], device=device) + target_offsets[contexts.clip_index]
        )
        self._target_places = (
            torch.arange(target.shape[0], device=device) + context_offsets[wanted.clip_index + 1]
        )
        length = context.shape[0] + target.shape[0]
        self.packing = Packing.of(context_offsets + target_offsets, length, longest)

    def joined(self, context: Tensor, target: Tensor) -> Tensor:
        """What belongs to context tokens and to target tokens, in the joint order."""
        if self.packing is None:
            return torch.cat([context, target], dim=1)
        both = context.new_empty(context.shape[0] + target.shape[0], *context.shape[1:])
        both.index_copy_(0, self._context_places, context)
        return both.index_copy_(0, self._target_places, target)

    def context(self, tokens: Tensor) -> Tensor:
        """The context tokens of the joint sequence."""
        if self.packing is None:
            return tokens[:, : self._num_context]
        return tokens.index_select(0, self._context_places)

    def targets(self, tokens: Tensor) -> Tensor:
        """The target tokens of the joint sequence."""
        if self.packing is None:
            return tokens[:, self._num_context :]
        return tokens.index_select(0, self._target_places)


def with_first(
    first: Tensor,
    tokens: Tensor,
    packing: Packing | None,
    rotated: Rotation | None,
    steps: Tensor | None,
    last_step: int,
) -> tuple[Joined, Tensor, Packing | None, Rotation | None, Tensor | None]:
    """A token [1, 1, D], such as [cls], before each clip's, and all that belongs to them with it.

    It is not rotated, and its time step is one after the last. Tokens are [B, n, D], or packed.
    """
    offsets = None if packing is None else packing.offsets
    count = len(tokens) if offsets is None else len(offsets) - 1
    first, one_each, longest = first.to(tokens.dtype).expand(count, 1, -1), None, 0
    if packing is not None:
        first = first[:, 0]
        one_each = torch.arange(count + 1, device=tokens.device)
        longest = packing.max_length + 1
    join = Joined(first[..., 0], tokens[..., 0], one_each, offsets, longest)

    def joined(values: Tensor, value: float, trailing: int) -> Tensor:
        """A value for the first before those of the tokens, [.., n, and so many dimensions]."""
        if packing is not None:
            return join.joined(values.new_full((count, *values.shape[1:]), value), values)
        axis = values.ndim - 1 - trailing
        return torch.cat([torch.full_like(values.narrow(axis, 0, 1), value), values], axis)

    if rotated is not None:
        rotated = Rotation(joined(rotated.cos, 1.0, 3), joined(rotated.sin, 0.0, 3))
    steps = None if steps is None else joined(steps, last_step, 0)
    return join, join.joined(first, tokens), join.packing, rotated, steps
