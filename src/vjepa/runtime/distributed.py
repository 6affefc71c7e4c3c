"""The processes that train together: who is who, and what they tell each other on the host.

A launcher (torchrun, or a scheduler that sets the same variables) starts equal processes and tells
each its rank. What is said here is about the host only: who writes, who stops, what went wrong;
gradients and shards are the business of :mod:`vjepa.training.parallel`. Without a launcher there is
one process, no process group, and everything below does nothing.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from vjepa.errors import LostProcessError, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store, Work

T = TypeVar("T")

_SECONDS_TO_ANSWER = 3.0
_TEAMS = itertools.count()
_CONNECTION_LOST = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|timed out waiting|store", re.IGNORECASE
)


@dataclass(frozen=True)
class World:
    """Place of this process among all that train together; one process needs no process group."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place among the processes of this machine: the number of its GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Read RANK, WORLD_SIZE and LOCAL_RANK, as launchers such as torchrun set them.

    Args:
        environment: The process environment, or a substitute.

    Returns:
        The place; rank 0 of 1 when the variables are not set.

    Raises:
        UserError: They are no numbers, or the rank is not below the size.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    text = [environment.get(name, default) for name, default in zip(names, "010", strict=True)]
    try:
        found = World(*map(int, text))
    except ValueError:
        said = ", ".join(f"{name}={value!r}" for name, value in zip(names, text, strict=True))
        raise UserError(f"{said} must be integers") from None
    if not 0 <= found.rank < found.size:
        raise UserError(f"RANK={found.rank} must be at least 0 and below WORLD_SIZE={found.size}")
    return found


@dataclass(frozen=True)
class Team:
    """What the processes of a job say to each other; without arguments: one process, alone.

    Every method but :meth:`blame` must be called by all processes in the same order.
    """

    place: World = field(default_factory=World)
    """This process."""
    host_group: ProcessGroup | None = None
    """For talk between the hosts (gloo), in the training thread."""
    save_group: ProcessGroup | None = None
    """The same for the thread that writes checkpoints."""
    store: Store | None = None
    """The launcher's key-value store, for finding out who is gone."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.place.size

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.place.is_main

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process only; all get its result, or its UserError.

        Args:
            work: Called without arguments; its result must be picklable.
        """
        if self.size == 1:
            return work()
        import torch.distributed as dist

        outcome: list[tuple[T | None, UserError | None] | None] = [None]
        if self.is_main:
            try:
                outcome = [(work(), None)]
            except UserError as error:
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

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over all processes, on its device; the host does not wait."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def send_(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """Replace a tensor in all processes by that of one of them, on its device."""
        if self.size > 1:
            import torch.distributed as dist

            dist.broadcast(values, src=source)
        return values

    def agree(self, reasons: list[str]) -> None:
        """Go on only if no process has a reason not to.

        Args:
            reasons: Why this process cannot go on; empty: it can.

        Raises:
            UserError: The first reason of all, in every process.
        """
        said = [reason for own in self.gather(reasons) for reason in own]
        if said:
            raise UserError(said[0])

    def blame(self) -> str:
        """Who does not answer any more, in words; called by those who are still there."""
        if self.store is None:
            return "another process"
        # A store that died with the main process answers with one of torch's network errors.
        with suppress(RuntimeError):
            self.store.set(f"here/{self.rank}", "yes")
            deadline = time.monotonic() + _SECONDS_TO_ANSWER
            while True:
                ranks = range(self.size)
                silent = [rank for rank in ranks if not self.store.check([f"here/{rank}"])]
                if not silent or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            if silent:
                noun = "process" if len(silent) == 1 else "processes"
                return f"{noun} {', '.join(map(str, silent))}"
        return "another process"


class Agreement:
    """Requests that any process may make and that all follow after the same step.

    What is asked at one call is answered at the next, so that nobody waits for the network; alone,
    at once.
    """

    def __init__(self, team: Team) -> None:
        self._team = team
        self._asked: torch.Tensor | None = None
        self._work: Work | None = None

    def exchange(self, request: int) -> int:
        """Tell this process's request; learn the largest one of the call before.

        Args:
            request: 0: none.
        """
        if self._team.size == 1:
            return request
        import torch
        import torch.distributed as dist

        answer = self.finish()
        self._asked = torch.tensor(request)
        self._work = dist.all_reduce(
            self._asked, dist.ReduceOp.MAX, group=self._team.host_group, async_op=True
        )
        return answer

    def finish(self) -> int:
        """The answer to the last call; nothing is under way after this."""
        if self._work is None or self._asked is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._asked)


@contextmanager
def open_team(device_type: str, timeout_minutes: float) -> Generator[Team]:
    """Join the process group for the time of a job, if a launcher has started several processes.

    Args:
        device_type: ``cpu`` (gloo) or ``cuda`` (NCCL for tensors on GPUs, gloo for the host).
        timeout_minutes: A process that leaves the others waiting longer has hung.

    Yields:
        The team; one process alone needs no group.

    Raises:
        UserError: The launcher's variables are incomplete.
        LostProcessError: Another process ended or hung; the message says which, as far as known.
    """
    place = world()
    if place.size == 1:
        yield Team()
        return
    import torch.distributed as dist

    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE={place.size}, but {' and '.join(missing)} is not set: start the processes "
            "with torchrun, or set it as torchrun does"
        )
    timeout = timedelta(minutes=timeout_minutes)
    found, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # Neither a second job of the same processes nor a restart by torchrun, whose store outlives the
    # processes, may read what was left in the store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}, team {next(_TEAMS)}", found)
    dist.init_process_group(
        "gloo" if device_type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore("training", store),
        rank=rank,
        world_size=size,
        # The host's own timeout comes first: its message names the process, NCCL's does not.
        timeout=timeout if device_type == "cpu" else 1.5 * timeout,
    )
    host, saving = (
        cast("ProcessGroup", dist.new_group(backend="gloo", timeout=timeout)) for _ in range(2)
    )
    team = Team(place, host, saving, dist.PrefixStore("roll call", store))
    try:
        yield team
    except RuntimeError as error:
        _record(error)
        if not isinstance(error, dist.DistError) and not _CONNECTION_LOST.search(str(error)):
            raise
        raise LostProcessError(
            f"process {place.rank}: {team.blame()} of {size} ended or did not answer for "
            f"{timeout_minutes:g} minutes; its own message says why; the same command resumes "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    except Exception as error:
        _record(error)
        raise
    # Not in a `finally`: closing a group that another process has left may wait for ever.
    dist.destroy_process_group()


def _record(error: Exception) -> None:
    """Leave the reason where torchrun looks for it, so that its report names the first failure."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
