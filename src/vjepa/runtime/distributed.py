"""Which process of how many this is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vjepa.errors import UserError


@dataclass(frozen=True)
class World:
    """Place of this process among all that train together; one process needs no process group."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Read RANK and WORLD_SIZE, as launchers such as torchrun set them.

    Args:
        environment: The process environment, or a substitute.

    Returns:
        The place; rank 0 of 1 when the variables are not set.

    Raises:
        UserError: They are no numbers, or the rank is not below the size.
    """
    text = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        found = World(int(text[0]), int(text[1]))
    except ValueError:
        raise UserError(f"RANK={text[0]!r} and WORLD_SIZE={text[1]!r} must be integers") from None
    if not 0 <= found.rank < found.size:
        raise UserError(f"RANK={found.rank} must be at least 0 and below WORLD_SIZE={found.size}")
    return found
