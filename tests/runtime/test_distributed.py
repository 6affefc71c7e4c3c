"""Rank and size from the environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)


SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
PMI = {"PMI_RANK": "5", "PMI_SIZE": "6", "MPI_LOCALRANKID": "2"}
PALS = {"PALS_RANKID": "5", "PMI_RANK": "5", "PMI_SIZE": "6", "PALS_LOCAL_RANKID": "1"}
JSRUN = {"JSM_NAMESPACE_RANK": "4", "JSM_NAMESPACE_SIZE": "12", "JSM_NAMESPACE_LOCAL_RANK": "4"}
FLUX = {"FLUX_TASK_RANK": "7", "FLUX_JOB_SIZE": "8", "FLUX_TASK_LOCAL_ID": "3"}
HOROVOD = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1"}
ADDRESS = {"MASTER_ADDR": "first", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (SRUN, (3, 8, 1)),
        (SRUN | {"PMIX_RANK": "3", "PMI_RANK": "3", "PMI_SIZE": "8"}, (3, 8, 1)),
        (MPIRUN, (1, 2, 0)),
        (PMI, (5, 6, 2)),
        (PALS, (5, 6, 1)),
        (JSRUN, (4, 12, 4)),
        (FLUX, (7, 8, 3)),
        (HOROVOD, (1, 2, 1)),
    ],
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
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"},
        {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1"},
        {"RANK": "0", "LOCAL_RANK": "5"},  # of a training that is over
        {"RANK": "", "LOCAL_RANK": "none"},
        {"JOB_COMPLETION_INDEX": "2", "OMP_NUM_THREADS": "4"},
    ],
)
def test_one_process_of_a_launcher_is_not_bothered(alone: dict) -> None:
    assert world(alone) == World(0, 1)


def test_torchrun_counts_whatever_a_scheduler_has_left() -> None:
    torchrun = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}
    assert world(SRUN | FLUX | torchrun) == World(9, 16, 1)
    # One process of torchrun for each task of srun, which do not know of each other.
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert world(alone) == World()
    with pytest.raises(UserError, match=r"WORLD_SIZE=1, but srun has started 8.*STEP_NUM_TASKS$"):
        world(SRUN | alone | ADDRESS)


@pytest.mark.parametrize("name", ["RANK", "PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE"])
def test_a_rank_without_a_size_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}=3, but how many .*`unset {name}`"):
        world({name: "3"} | ADDRESS)
    assert world({name: "0"}) == World()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (SRUN | {"SLURM_PROCID": "x"}, "SLURM_PROCID='x', SLURM_STEP_NUM_TASKS='8'"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "8(x2)"}, r"'8\(x2\)'.* must be integers"),
        (FLUX | {"FLUX_TASK_RANK": "8"}, "FLUX_TASK_RANK=8 must be .* below FLUX_JOB_SIZE=8"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 must be at least 0"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": ""}, "LOCAL_RANK='' must be integers"),
    ],
)
def test_nonsense_of_any_launcher_is_named(said: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        world(said | ADDRESS)


@pytest.mark.parametrize("said", [SRUN, SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "3"}])
def test_a_shell_or_a_notebook_of_a_launcher_is_a_process_alone(said, monkeypatch) -> None:
    """`srun --pty bash` with eight tasks sets what eight trainings would have."""
    with pytest.raises(UserError, match="unset"):
        world(said)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ipykernel", sys)
        assert world(said) == World()
    terminal = type("Terminal", (), {"closed": False, "isatty": lambda _: True})()
    monkeypatch.setattr(sys, "stdin", terminal)
    assert world(said) == World()
    if said == SRUN:  # where the processes can meet they do
        assert world(said | ADDRESS) == World(3, 8, 1)


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


_SHARE = """
import os
from vjepa.data.loader import reading
from vjepa.runtime.distributed import open_process_group

class Clips:
    shape = (1, 1, 10, 10)

class Reader(reading.ClipReader):
    replace = finish = None

reading.available_bytes = lambda: 80_000
reader = Reader([], Clips(), reading.ReadingConfig(), prefetch_batches=1000)
with open_process_group("cpu", 1.0):
    print(reader._batches_ahead(10))
"""


@pytest.mark.parametrize("launcher", ["SLURM_PROCID SLURM_STEP_NUM_TASKS", "RANK WORLD_SIZE"])
def test_processes_of_any_launcher_share_the_memory_of_their_machine(launcher: str) -> None:
    """A quarter of what is free for all of them together, batches of 1 000 bytes each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    rank, size = launcher.split()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARE],
            env=os.environ | address | {rank: str(place), size: "2"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in range(2)
    ]
    ahead = [int(process.communicate(timeout=600)[0]) for process in started]
    assert ahead == [80_000 // 4 // 2 // 1000 - 1] * 2


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


def test_of_a_broken_connection_gloo_is_quoted_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)

    def broken(*_: object) -> None:
        raise RuntimeError(
            "[/x/gloo/transport/pair.cc:5] Read error [1.2.3.4]:5: Reset. Good luck!"
        )

    monkeypatch.setattr("vjepa.runtime.distributed._join", broken)
    said = r"the same command resumes \(Read error \[1.2.3.4\]:5: Reset\)$"
    with pytest.raises(LostProcessError, match=said), open_process_group("cpu", 1.0):
        pass


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


class _WithAnother(ProcessGroup):
    """This process is the second one; the first one has read `main`."""

    main: object = None

    def gather(self, value: object) -> list:
        return [self.main, value]


def test_what_only_one_machine_holds_is_refused_by_all() -> None:
    group = _WithAnother(rank=1, size=2)
    group.check_same(None, "m.parquet", "videos")
    with pytest.raises(
        UserError, match=r"^m\.parquet: process 1 reads other videos there than the"
    ):
        group.check_same("mine", "m.parquet", "videos")
