"""Rank and size from the environment."""

from __future__ import annotations

import pytest

from vjepa.errors import UserError
from vjepa.runtime.distributed import World, world


def test_one_process_without_a_launcher() -> None:
    assert world({}) == World(0, 1)
    assert world({}).is_main


def test_launcher_variables() -> None:
    place = world({"RANK": "3", "WORLD_SIZE": "4"})
    assert (place.rank, place.size, place.is_main) == (3, 4, False)


@pytest.mark.parametrize(
    ("rank", "size"), [("x", "2"), ("0", ""), ("2", "2"), ("-1", "2"), ("0", "0")]
)
def test_nonsense_is_refused(rank: str, size: str) -> None:
    with pytest.raises(UserError, match=r"RANK=.*WORLD_SIZE="):
        world({"RANK": rank, "WORLD_SIZE": size})
