"""Work shared out over the machines of a Ray cluster, or over a Ray started on this one."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

from vjepa.errors import UserError, needs_extra
from vjepa.runtime.process import handled
from vjepa.runtime.workers import Outcome

EngineName = Literal["local", "ray"]

_Payload = TypeVar("_Payload")
_START_SECONDS = 300
_WAIT_SECONDS = 60.0  # for a first worker, before that is said

_LOGGER = logging.getLogger(__name__)


@contextmanager
def ray_cluster() -> Generator[Any]:
    """Ray: the one that is running, else one that is started here and ends with the block.

    Raises:
        UserError: Ray is not installed or cannot be reached.
    """
    # Ray reports its use over the network unless told not to before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A busy machine takes longer than Ray's own limits. (Ray spells the name in small letters.)
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(_START_SECONDS))
    with needs_extra("engine ray", "ray", ", or use --engine local"):
        ray: Any = importlib.import_module("ray")
    is_ours = not ray.is_initialized()
    if is_ours:
        stop: Any = signal.getsignal(signal.SIGTERM)
        try:
            # It sets a handler of its own, which ends with 15, and leaves it there.
            with handled((signal.SIGTERM,), stop):
                ray.init(
                    include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
                )
        except Exception as error:  # Ray raises bare ones, also when a machine is too busy
            raise UserError(
                f"engine ray: cannot be started ({error}); use --engine local"
            ) from error
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


class _Actor:
    """One Ray worker; what goes wrong while its task is made is the first job's error."""

    def __init__(self, make_task: Callable[[int], Callable[[Any], Any]], number: int) -> None:
        self._make_task = make_task
        self._number = number
        self._task: Callable[[Any], Any] | None = None

    def is_there(self) -> None:
        """Answers when the cluster has found a place for this worker."""

    def run(self, payload: Any) -> Any:
        if self._task is None:
            self._task = self._make_task(self._number)
        return self._task(payload)


def ray_map(
    make_task: Callable[[int], Callable[[Any], Any]],
    payloads: Iterable[_Payload],
    num_workers: int,
    use_gpus: bool = False,
) -> Generator[tuple[_Payload, Outcome]]:
    """Do many jobs on Ray; gives each payload with how it went, as they end.

    A job that loses its worker (the process or the whole machine) is given to another one once; if
    that is lost, too, it counts as a crash. An exception of the task is raised here.

    Args:
        make_task: Picklable; makes the task in a worker, given a number that no other worker has.
        payloads: Read lazily, at most one ahead for each worker.
        num_workers: Most Ray workers, each of one core; fewer do where the cluster has no room.
        use_gpus: Give each a GPU if the cluster has any.

    Raises:
        UserError: Ray is not installed or cannot be reached.
    """
    with ray_cluster() as ray:
        num_gpus = int(use_gpus and ray.cluster_resources().get("GPU", 0) > 0)
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0)(_Actor)
        errors = ray.exceptions
        lost = (
            *(errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError),
            *(errors.OutOfMemoryError, errors.ObjectLostError),
        )
        source = ((payload, 0) for payload in payloads)
        waiting: list[tuple[_Payload, int]] = []  # jobs, and how many workers died of each
        idle: list[Any] = []
        running: dict[Any, tuple[Any, tuple[_Payload, int] | None]] = {}  # no job: not there yet
        num_started = 0
        try:
            while True:
                waiting += islice(source, max(0, num_workers - len(waiting)))
                while idle and waiting:
                    actor, job = idle.pop(), waiting.pop(0)
                    running[actor.run.remote(job[0])] = (actor, job)
                # Only a worker that is there gets a job: a cluster may have room for fewer.
                num_coming = sum(job is None for _, job in running.values())
                while num_coming < len(waiting) and len(running) < num_workers:
                    actor = remote.remote(make_task, num_started)
                    running[actor.is_there.remote()] = (actor, None)
                    num_started, num_coming = num_started + 1, num_coming + 1
                if len(running) == num_coming and not waiting:
                    return
                ended, _ = ray.wait(list(running), timeout=_WAIT_SECONDS)
                if not ended and len(running) == num_coming:
                    _LOGGER.warning(
                        "waiting for Ray: it has no room for a worker of 1 core%s yet",
                        " and 1 GPU" if num_gpus else "",
                    )
                for reference in ended:
                    actor, job = running.pop(reference)
                    try:
                        value = ray.get(reference)
                    except lost as error:
                        said = (str(error).strip() or type(error).__name__).splitlines()[0]
                        _LOGGER.warning("a Ray worker was lost: %s", said)
                        if job is None and not waiting:
                            continue
                        payload, num_losses = job or waiting.pop(0)
                        if num_losses:
                            yield payload, Outcome(0, "crash", reason="two Ray workers died of it")
                        else:
                            waiting.append((payload, 1))
                    else:
                        idle.append(actor)
                        if job is not None:
                            yield job[0], Outcome(0, "done", value)
        finally:
            for actor in [*idle, *(entry[0] for entry in running.values())]:
                ray.kill(actor)
