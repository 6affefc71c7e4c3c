"""The processes that train together: who is who, and what they tell each other on the host.

A launcher (torchrun, or a scheduler that sets the same variables) starts equal processes and tells
each its rank. What is said here is about the host only: who writes, who stops, what went wrong;
gradients and shards are the business of :mod:`vjepa.training.parallel`. Without a launcher there is
one process, no process group, and everything below does nothing.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from vjepa.errors import LostProcessError, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup as TorchGroup
    from torch.distributed import Store

T = TypeVar("T")

_SECONDS_TO_ANSWER = 3.0
_SECONDS_FOR_THE_STORE = 5.0
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_ALONE = 15.0
_LOGGER = logging.getLogger(__name__)
# What gloo says; only the first line is looked at, because errors of ours may quote anything below.
_CONNECTION_LOST = re.compile(
    r"gloo/transport|nccl (error|communicator)|connection (closed|reset) by|timed out waiting \d",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class World:
    """Place of this process among all that train together; one process needs no process group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # place among the processes of this machine: the number of its GPU

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


_LAUNCHERS = (
    # Its name, then its variables for rank, size and local rank. SLURM's own size is that of the
    # step: a batch script's one process sees SLURM_NTASKS of the whole job.
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID PMI_LOCAL_RANK PALS_LOCAL_RANKID"),
    ("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("mpirun", "MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_SIZE", "MVP_COMM_WORLD_LOCAL_RANK"),
    ("flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    ("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK"),
)
# What launchers set that do not say how many processes there are (PRRTE, Cray).
_RANK_ALONE = ("PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Read RANK, WORLD_SIZE and LOCAL_RANK, as launchers such as torchrun set them; else 0 of 1.

    Without these, the numbers of another launcher are taken, where MASTER_ADDR and MASTER_PORT say
    where the processes meet. A shell or notebook that was opened by one is a process alone.

    Raises:
        UserError: They are no numbers, the rank is missing or not below the size, or a launcher has
            started several processes that cannot know of each other.
    """
    own = ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = _place(own, environment) if own[2] in environment else World()
    if found.size > 1:
        return found
    several = (
        one
        for one in _LAUNCHERS
        if one[1] in environment and environment.get(one[2], "1").strip() != "1"
    )
    launcher = next(several, None)
    name = "RANK" if own[2] not in environment else None
    if launcher is None:
        names = [name, *_RANK_ALONE] if name else _RANK_ALONE
        lonely = next((one for one in names if environment.get(one) not in (None, "", "0")), None)
        if lonely is not None and not _is_by_hand():
            raise UserError(
                f"{lonely}={environment[lonely]}, but how many processes there are is not said: "
                f"`unset {lonely}` if it is left over; else use torchrun, or set RANK, WORLD_SIZE, "
                "LOCAL_RANK, MASTER_ADDR and MASTER_PORT as it does (docs/distributed.md)"
            )
        return found
    place = _place(launcher, environment)
    if name and all(map(environment.get, _ADDRESS)):
        return place
    if _is_by_hand():
        return World()
    if name is None:
        raise UserError(
            f"WORLD_SIZE=1, but {launcher[0]} has started {place.size} processes, each of which "
            f"would train a run of its own: unset WORLD_SIZE and RANK if they are left over, or "
            f"give torchrun --nnodes; for {place.size} runs apart, unset {launcher[2]}"
        )
    raise UserError(
        f"started by {launcher[0]} as process {place.rank} of {place.size}, but MASTER_ADDR and "
        "MASTER_PORT are not set, so the processes do not know of each other: use torchrun "
        "(docs/distributed.md), or set them to the first machine and a free port; for one "
        f"process alone, unset {launcher[2]}"
    )


def check_alone(job: str) -> None:
    """Refuse to run ``vjepa JOB``, which runs in one process, where a launcher started several."""
    if world().size > 1:
        raise UserError(
            f"WORLD_SIZE={world().size}: `vjepa {job}` runs in one process; start it without a "
            "launcher, or `unset WORLD_SIZE RANK` if they are left over"
        )


def _place(launcher: tuple[str, str, str, str], environment: Mapping[str, str]) -> World:
    """What a launcher's variables say, which are there."""
    _, rank, size, local = launcher
    local = next((name for name in local.split() if name in environment), local.split()[0])
    values = {name: environment.get(name, "0") for name in (rank, size, local)}
    try:
        found = World(*map(int, values.values()))
    except ValueError:
        said = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise UserError(f"{said} must be integers; unset them if they are left over") from None
    if not 0 <= found.rank < found.size:
        raise UserError(
            f"{rank}={found.rank} must be at least 0 and below {size}={found.size}; "
            "unset both if they are left over"
        )
    if found.size > 1 and rank not in environment:
        raise UserError(
            f"{size}={found.size}, but {rank} is not set: `unset {size}` if it is left over, "
            "or start the processes with torchrun"
        )
    if found.local_rank < 0:
        raise UserError(f"{local}={found.local_rank} must be at least 0; unset it if left over")
    return found


def _is_by_hand() -> bool:
    """Whether somebody sits at this process: in a notebook, or in a shell of `srun --pty`."""
    can_type = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
    return can_type or "ipykernel" in sys.modules


@dataclass(frozen=True)
class ProcessGroup(World):
    """What the processes of a job say to each other; without arguments: one process, alone.

    Every method but :meth:`name_silent` must be called by all processes in the same order.
    """

    host_group: TorchGroup | None = None
    """For talk between the hosts (gloo), in the training thread."""
    save_group: TorchGroup | None = None  # the same for the thread that writes checkpoints
    store: Store | None = None  # the launcher's key-value store, for finding out who is gone

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process only; all get its result, UserError or OSError.

        The result must be picklable.
        """
        if self.size == 1:
            return work()
        import torch.distributed as dist

        outcome: list[tuple[T | None, UserError | OSError | None] | None] = [None]
        if self.is_main:
            try:
                outcome = [(work(), None)]
            except (UserError, OSError) as error:  # a disk that is full is full for all
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome, src=0, group=self.host_group)
        assert outcome[0] is not None
        result, failure = outcome[0]
        if failure is not None:
            raise failure
        return cast("T", result)

    def gather(self, value: T) -> list[T]:
        """Each process's value, by rank; the values must be picklable."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host_group)
        return cast("list[T]", values)

    def largest(self, value: int) -> int:
        """The largest value of all processes, which wait for each other."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.host_group)
        return int(found)

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over all processes, on its device; the host does not wait."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, whose gradient is that of this process's summand."""
        if self.size == 1:
            return values
        own = values.detach()
        return values + (self.sum_(own.clone()) - own)

    def send_(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """Replace a tensor in all processes by that of one of them, on its device."""
        if self.size > 1:
            import torch.distributed as dist

            dist.broadcast(values, src=source)
        return values

    def agree(self, reasons: list[str]) -> None:
        """Go on only if no process has reasons why it cannot.

        Raises:
            UserError: The first reason of all, in every process.
        """
        said = [reason for own in self.gather(reasons) for reason in own]
        if said:
            raise UserError(said[0])

    def check_same(self, value: object, where: str, what: str) -> None:
        """Go on only if every process has the main one's value of what it read in a file `where`.

        Raises:
            UserError: Some process has another `what` (in the plural), in every process.
        """
        everyone = self.gather(value)
        other = [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]
        if other:
            raise UserError(
                f"{where}: process {other[0]} reads other {what} there than the main process; "
                "give all machines the same file"
            )

    def name_silent(self) -> str:
        """Who does not answer any more, in words; called by those who are still there."""
        if self.store is None:
            return "another process"
        # Asking a store whose process stands still, or whose machine is gone, has no end.
        found: list[str] = []
        asking = threading.Thread(target=self._ask_who_is_here, args=(found,), daemon=True)
        asking.start()
        asking.join(_SECONDS_TO_ANSWER + _SECONDS_FOR_THE_STORE)
        if asking.is_alive():
            return "another process (nothing on the first machine answers)"
        return found[0] if found else "another process"

    def _ask_who_is_here(self, found: list[str]) -> None:
        """Sign up in the store and note who does not, in words."""
        assert self.store is not None
        # A store that died with the main process answers with one of torch's network errors.
        with suppress(RuntimeError):
            self.store.set(f"here/{self.rank}", "yes")
            deadline = time.monotonic() + _SECONDS_TO_ANSWER
            while True:
                ranks = range(self.size)
                silent = [rank for rank in ranks if not self.store.check([f"here/{rank}"])]
                if not silent or time.monotonic() > deadline:
                    break
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            if silent:
                found.append(_named(silent))


@contextmanager
def open_process_group(device_type: str, timeout_minutes: float) -> Generator[ProcessGroup]:
    """Join the process group for the time of a job, if a launcher has started several processes.

    A process that leaves the others waiting for more than `timeout_minutes` has hung.

    Raises:
        UserError: The launcher's variables are incomplete.
        LostProcessError: Another process ended or hung; the message says which, as far as known.
    """
    place = world()
    if place.size == 1:
        yield ProcessGroup()
        return
    import torch.distributed as dist

    missing = [name for name in _ADDRESS if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE={place.size}, but {' and '.join(missing)} is not set: start the processes "
            "with torchrun, or set it as torchrun does; if it is left over, `unset WORLD_SIZE RANK`"
        )
    group = None
    try:
        group = _join(place, device_type, timeout_minutes)
        hosts = group.gather(platform.node())  # torchrun alone says how many share a machine
        os.environ["LOCAL_WORLD_SIZE"] = str(hosts.count(hosts[place.rank]))
        yield group
    except RuntimeError as error:
        _record(error)
        if not is_connection_loss(error):
            raise
        lost = "another process" if group is None else group.name_silent()
        # Without gloo's own source file in front, and its advice behind.
        said = re.sub(r"^\[\S*\] ", "", _first_line(error)).partition(". ")[0]
        raise LostProcessError(
            f"process {place.rank}: {lost} of {place.size} ended or did not answer for "
            f"{timeout_minutes:g} minutes; its own message says why; the same command resumes "
            f"({said})"
        ) from error
    except Exception as error:
        _record(error)
        raise
    # Not in a `finally`: closing a group that another process has left may wait for ever.
    dist.destroy_process_group()


def _join(place: World, device_type: str, timeout_minutes: float) -> ProcessGroup:
    """Meet the other processes and open the groups in which they talk."""
    import torch.distributed as dist

    timeout = timedelta(minutes=timeout_minutes)
    numbers = {"rank": place.rank, "world_size": place.size}
    found, _, _ = next(dist.rendezvous("env://", **numbers, timeout=timeout))
    # torch may put a number of restarts before every key, which may differ between machines.
    while isinstance(found, dist.PrefixStore):
        found = found.underlying_store
    store = dist.PrefixStore(meet(found, place, timeout_minutes), found)
    dist.init_process_group(
        "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore("training", store),
        rank=place.rank,
        world_size=place.size,
        # The host's own timeout comes first: its message names the process, NCCL's does not.
        timeout=timeout if device_type == "cpu" else 1.5 * timeout,
    )
    host, saving = (
        cast("TorchGroup", dist.new_group(backend="gloo", timeout=timeout)) for _ in range(2)
    )
    presence = dist.PrefixStore("presence", store)
    return ProcessGroup(place.rank, place.size, place.local_rank, host, saving, presence)


def meet(store: Store, place: World, timeout_minutes: float) -> str:
    """Agree on a name that no earlier group of this store has had.

    The store may outlive processes: torchrun's does, and each of its agents counts restarts for
    itself, so that no number that a launcher gives tells one group from the next. Here every
    process leaves a random word; process 0 answers with its own and the words that it has seen, as
    often as they change; whoever finds its word in the answer has met the process 0 of its own
    group, and says so. What dead processes have left is overwritten, or not believed. `store` is
    the launcher's, without a prefix.

    Raises:
        LostProcessError: Others did not come.
    """
    word = secrets.token_hex(8)
    deadline = time.monotonic() + 60 * timeout_minutes
    answer_key, others = "vjepa/answer", range(1, place.size)
    if not place.is_main:
        store.set(f"vjepa/word/{place.rank}", word)
        while time.monotonic() < deadline:
            if store.check([answer_key]):
                name, *seen = store.get(answer_key).decode().split()
                if word in seen:
                    store.set(f"vjepa/{name}/met/{place.rank}", word)
                    return name
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        raise LostProcessError(_absent(place, [0], timeout_minutes))
    answered, missing, has_said = "", list(others), False
    began = time.monotonic()
    while time.monotonic() < deadline:
        here = [rank for rank in others if store.check([f"vjepa/word/{rank}"])]
        answer = " ".join([word, *(store.get(f"vjepa/word/{rank}").decode() for rank in here)])
        if answer != answered:
            store.set(answer_key, answer)
            answered = answer
        missing = [rank for rank in missing if not store.check([f"vjepa/{word}/met/{rank}"])]
        if not missing:
            return word
        if not has_said and time.monotonic() > began + _SECONDS_ALONE:
            has_said = True
            _LOGGER.warning(
                "waiting for %s of %d; if none was started, WORLD_SIZE and RANK are left over: "
                "unset them",
                *(_named(missing), place.size),
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    raise LostProcessError(_absent(place, missing, timeout_minutes))


def is_connection_loss(error: RuntimeError) -> bool:
    """Whether torch's network gave up, rather than that this process has a defect."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or bool(_CONNECTION_LOST.search(_first_line(error)))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _absent(place: World, missing: list[int], timeout_minutes: float) -> str:
    return (
        f"process {place.rank}: {_named(missing)} of {place.size} did not come within "
        f"{timeout_minutes:g} minutes; see the log of each machine, and start all again"
    )


def _named(ranks: list[int]) -> str:
    return f"{'process' if len(ranks) == 1 else 'processes'} {', '.join(map(str, ranks))}"


def _record(error: Exception) -> None:
    """Leave the reason where torchrun looks for it, so that its report names the first failure."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
