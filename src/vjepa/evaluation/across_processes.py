"""From the token maps of a video's clips to what a probe reads, and from its answers to one.

The paper (section 4) gives the probe the token maps of all segments together and averages its
probabilities over the spatial views. The released code can also show it each segment alone and
average over segments and views; `golden` tests hold both to recorded numbers.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vjepa.data.clips.views import JoinSegments
from vjepa.evaluation.frozen import BadVideo
from vjepa.evaluation.metrics import probabilities_of


class Mergeable(Protocol):
    """Sums that can take over those of another process."""

    def merge(self, other: Any) -> None:
        """Add `other`, of the same kind."""
        ...


Sums = TypeVar("Sums", bound=Mergeable)


def my_share() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def add_up(sums: Sums, bad: tuple[BadVideo, ...]) -> tuple[Sums, tuple[BadVideo, ...]]:
    """The sums of all processes, and the videos that none of them could read.

    Args:
        sums: Those of this process.
        bad: Its unreadable videos.

    Returns:
        The same on every process: sums added in the order of ranks, videos in row order.
    """
    if my_share()[1] == 1:
        return sums, bad
    gathered: list[Any] = [None] * my_share()[1]
    dist.all_gather_object(gathered, (sums, bad))
    total: Sums = gathered[0][0]
    for own, _ in gathered[1:]:
        total.merge(own)
    videos = sorted((video for _, own in gathered for video in own), key=lambda video: video.row)
    return total, tuple(videos)


def join_clips(tokens: Tensor, num_segments: int, join: JoinSegments) -> Tensor:
    """Arrange the token maps of R = V * S clips, clip r = v * S + s.

    Args:
        tokens: [B, R, N, D].
        num_segments: S.
        join: ``tokens``: the maps of a view's segments one after the other in time; ``average``:
            every clip by itself.

    Returns:
        [B, P, N', D]: P = V inputs of N' = S * N tokens, or P = R of N' = N.
    """
    if join == "average":
        return tokens
    batch, clips, count, width = tokens.shape
    return tokens.reshape(batch, clips // num_segments, num_segments * count, width)


def averaged_probabilities(head: nn.Module, tokens: Tensor, *, multi_label: bool = False) -> Tensor:
    """Probabilities of each video: the mean over its P inputs.

    Args:
        head: [b, N', D] -> logits [b, classes], or [H, b, classes] of several heads.
        tokens: float [B, P, N', D].
        multi_label: Each class by itself (sigmoid) instead of one of all (softmax).

    Returns:
        float64 [B, classes], or [H, B, classes], on the CPU.
    """
    logits = head(tokens.flatten(0, 1)).cpu()
    shares = logits.double().sigmoid() if multi_label else probabilities_of(logits)
    return shares.unflatten(-2, tokens.shape[:2]).mean(dim=-2)


def stacked_for_training(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Every input of a video as a sample with the video's label.

    Args:
        tokens: [B, P, N', D].
        labels: [B, ...].

    Returns:
        [B * P, N', D] and [B * P, ...].
    """
    return tokens.flatten(0, 1), torch.repeat_interleave(labels, tokens.shape[1], dim=0)
