"""Which tokens of a batch the context encoder sees and which the predictor must fill in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenMasks:
    """Context and target tokens of a batch under one mask kind.

    Tokens are numbered time-major: index = (time step * h + row) * w + column. Indices of a clip
    ascend. Either every clip has the same counts (no offsets), or the clips' lists stand one after
    the other and clip b owns entries ``offsets[b]:offsets[b + 1]``.
    """

    context: Tensor
    """int64 [B, K], or packed [S]."""
    target: Tensor
    """int64 [B, M], or packed [U]."""
    context_offsets: Tensor | None = None
    """int64 [B + 1], packed only."""
    target_offsets: Tensor | None = None
    """int64 [B + 1], packed only."""

    @property
    def is_packed(self) -> bool:
        """Whether clips have lists of different length, told apart by offsets."""
        return self.context_offsets is not None

    @property
    def batch_size(self) -> int:
        """Number of clips B."""
        if self.context_offsets is not None:
            return self.context_offsets.shape[0] - 1
        return self.context.shape[0]

    @property
    def num_context_mean(self) -> float:
        """Context tokens a clip, on average; read from shapes, so free on any device."""
        return self.context.numel() / self.batch_size

    @property
    def num_target_mean(self) -> float:
        """Target tokens a clip, on average."""
        return self.target.numel() / self.batch_size

    def target_rows(self) -> Tensor:
        """The clip of every entry of `target`: int64 [B, 1], or packed [U]."""
        rows = torch.arange(self.batch_size, device=self.target.device)
        if self.target_offsets is None:
            return rows[:, None]
        # output_size spares the device a synchronisation to learn the sum of the lengths.
        return rows.repeat_interleave(self.target_offsets.diff(), output_size=self.target.shape[0])

    def gather_target(self, tokens: Tensor) -> Tensor:
        """The target tokens [B, M, D], or packed [U, D], out of all tokens [B, N, D]."""
        return tokens[self.target_rows(), self.target]

    def sample(self, clip: int) -> TokenMasks:
        """The masks of one clip, [1, K] and [1, M] in every count mode; for tensors on the CPU."""
        part = self.slice(clip, clip + 1)
        if not part.is_packed:
            return part
        return TokenMasks(context=part.context[None], target=part.target[None])

    def slice(self, start: int, stop: int) -> TokenMasks:
        """The masks of clips ``start:stop``. Slice before moving: offsets are read on the CPU."""
        if not 0 <= start < stop <= self.batch_size:
            raise IndexError(f"clips {start}:{stop} of a batch of {self.batch_size}")
        if self.context_offsets is None or self.target_offsets is None:
            return TokenMasks(context=self.context[start:stop], target=self.target[start:stop])
        context_offsets = self.context_offsets[start : stop + 1]
        target_offsets = self.target_offsets[start : stop + 1]
        return TokenMasks(
            context=self.context[int(context_offsets[0]) : int(context_offsets[-1])],
            target=self.target[int(target_offsets[0]) : int(target_offsets[-1])],
            context_offsets=context_offsets - context_offsets[0],
            target_offsets=target_offsets - target_offsets[0],
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenMasks:
        """The masks that `function` makes of each tensor, such as one that moves it."""
        context_offsets, target_offsets = self.context_offsets, self.target_offsets
        return TokenMasks(
            context=function(self.context),
            target=function(self.target),
            context_offsets=None if context_offsets is None else function(context_offsets),
            target_offsets=None if target_offsets is None else function(target_offsets),
        )

    def to(self, device: torch.device | str) -> TokenMasks:
        """The same masks on another device."""
        return self.map(lambda indices: indices.to(device))
