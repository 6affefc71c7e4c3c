"""Rank and size from the environment."""

from __future__ import annotations

import pytest
import torch

from vjepa.errors import UserError
from vjepa.runtime.distributed import Agreement, Team, World, open_team, world


def test_one_process_without_a_launcher() -> None:
    assert world({}) == World(0, 1)
    assert world({}).is_main


def test_launcher_variables() -> None:
    place = world({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (place.rank, place.size, place.local_rank, place.is_main) == (3, 4, 1, False)


@pytest.mark.parametrize(
    ("rank", "size"), [("x", "2"), ("0", ""), ("2", "2"), ("-1", "2"), ("0", "0")]
)
def test_nonsense_is_refused(rank: str, size: str) -> None:
    with pytest.raises(UserError, match=r"RANK=.*WORLD_SIZE="):
        world({"RANK": rank, "WORLD_SIZE": size})


def test_alone_everything_is_as_if_nobody_else_could_be_there() -> None:
    team = Team()
    assert team.on_main(lambda: 3) == 3
    assert team.gather("x") == ["x"]
    numbers = torch.tensor([1.0, 2.0])
    assert team.sum_(numbers) is numbers
    assert team.send_(numbers, 0) is numbers
    team.agree([])
    with pytest.raises(UserError, match="no more"):
        team.agree(["no more"])


def test_alone_a_request_is_answered_at_once() -> None:
    agreement = Agreement(Team())
    assert agreement.exchange(0) == 0
    assert agreement.exchange(15) == 15
    assert agreement.finish() == 0


def test_without_a_launcher_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with open_team("cpu", 1.0) as team:
        assert team == Team()
        assert not torch.distributed.is_initialized()


def test_an_incomplete_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with (
        pytest.raises(UserError, match=r"WORLD_SIZE=2, but MASTER_ADDR is not set"),
        open_team("cpu", 1.0),
    ):
        pass
