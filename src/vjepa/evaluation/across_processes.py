"""Adding up what several processes measured.

Each process measures its own part of the data; counts and sums are added, so that every process
ends with the figures of the whole set. Without a process group there is nothing to add.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from vjepa.evaluation.features import BadVideo


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
