"""Rank and size from the environment."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vjepa.errors import LostProcessError, UserError
from vjepa.runtime.distributed import (
    ProcessGroup,
    World,
    is_connection_loss,
    meet,
    open_process_group,
    world,
)


def test_the_launchers_variables_say_who_is_who() -> None:
    assert world({}) == World(0, 1)
    assert world({}).is_main
    place = world({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (place.rank, place.size, place.local_rank, place.is_main) == (3, 4, 1, False)


@pytest.mark.parametrize(
    ("rank", "size"), [("x", "2"), ("0", ""), ("2", "2"), ("-1", "2"), ("0", "0")]
)
def test_nonsense_is_refused(rank: str, size: str) -> None:
    with pytest.raises(UserError, match=r"RANK=.*WORLD_SIZE="):
        world({"RANK": rank, "WORLD_SIZE": size})


SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
PMI = {"PMI_RANK": "5", "PMI_SIZE": "6", "MPI_LOCALRANKID": "2"}
ADDRESS = {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("said", "place"), [(SRUN, (3, 8, 1)), (MPIRUN, (1, 2, 0)), (PMI, (5, 6, 2))]
)
def test_srun_and_mpirun_are_used_or_refused(said: dict, place: tuple[int, int, int]) -> None:
    """Processes that cannot meet must not each train a run of their own."""
    assert world(said | ADDRESS) == World(*place)
    rank, size, _ = place
    for known in (said, said | {"MASTER_ADDR": "first"}):
        with pytest.raises(UserError, match=rf"run as process {rank} of {size}.*use torchrun"):
            world(known)
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert world(said | torchrun) == World(0, 2, 0)


@pytest.mark.parametrize(
    "alone",
    [
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"},  # inside salloc
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script
        SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_SIZE": "4"},
    ],
)
def test_one_process_of_a_launcher_is_not_bothered(alone: dict) -> None:
    assert world(alone) == World(0, 1)


def test_a_left_over_size_is_named() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE=4, but RANK is not set: `unset WORLD_SIZE`"):
        world({"WORLD_SIZE": "4"})


def test_alone_everything_is_as_if_nobody_else_could_be_there() -> None:
    group = ProcessGroup()
    assert group.on_main(lambda: 3) == 3
    assert group.gather("x") == ["x"]
    numbers = torch.tensor([1.0, 2.0])
    assert group.sum_(numbers) is numbers
    assert group.send_(numbers, 0) is numbers
    group.agree([])
    with pytest.raises(UserError, match="no more"):
        group.agree(["no more"])
    assert group.largest(15) == 15


def test_without_a_launcher_there_is_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with open_process_group("cpu", 1.0) as group:
        assert group == ProcessGroup()
        assert not torch.distributed.is_initialized()


def test_an_incomplete_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with (
        pytest.raises(UserError, match=r"WORLD_SIZE=2, but MASTER_ADDR is not set"),
        open_process_group("cpu", 1.0),
    ):
        pass


def _meet_all(store: torch.distributed.Store, size: int, *, slow: int = -1) -> set[str]:
    """What every process of a group of `size` takes for the group's name; one may come late."""

    def come(rank: int) -> str:
        if rank == slow:
            time.sleep(0.3)
        return meet(store, World(rank, size), 0.2)

    with ThreadPoolExecutor(size) as processes:
        return set(processes.map(come, range(size)))


def test_teams_meet_whatever_earlier_ones_have_left_in_the_store() -> None:
    """The store outlives a restart; its old keys name neither the group nor its members."""
    store = torch.distributed.HashStore()
    names = _meet_all(store, 3)
    # A whole group was here: its answer and its words stand when a process comes before all others.
    names |= _meet_all(store, 3, slow=0) | _meet_all(store, 3, slow=1)
    # Of the next group only one process came before all were ended; then a smaller one.
    for rank in (0, 2):
        with pytest.raises(LostProcessError, match=r"did not come within 0.005 minutes"):
            meet(store, World(rank, 3), 0.005)
    assert len(names | _meet_all(store, 3, slow=2) | _meet_all(store, 2)) == 5


def test_who_did_not_come_is_named() -> None:
    store = torch.distributed.HashStore()
    store.set("vjepa/word/1", "left by a process that is gone")
    with pytest.raises(LostProcessError, match=r"^process 0: processes 1, 2 of 3 did not come"):
        meet(store, World(0, 3), 0.005)


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("[/x/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer", True),
        ("a loader worker failed at /store/gloomy/nccl.mp4:\nConnection reset by peer", False),
        ("the thread that writes checkpoints died; its traceback is above; restore", False),
    ],
)
def test_only_the_network_says_that_a_process_is_lost(message: str, *, is_lost: bool) -> None:
    """A defect of this process keeps its traceback, whatever words its message quotes."""
    assert is_connection_loss(RuntimeError(message)) == is_lost
