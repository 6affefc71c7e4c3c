"""Where the work is done: in processes of this machine, or on the machines of a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Literal

from vjepa.data.workers import Outcome, WorkerPool
from vjepa.errors import UserError

EngineName = Literal["local", "ray"]

Answers = Iterator[tuple[str, Outcome]]
"""Keys of orders with how each went, in the order in which they ended."""

# Orders handed out for each worker: enough that none waits while answers are written down.
_AHEAD = 4

_RAY_START_SECONDS = 300


def run_orders(
    engine: EngineName,
    task: Callable[[Any], Any],
    orders: Iterable[tuple[str, object]],
    num_workers: int,
    timeout_seconds: float,
) -> Answers:
    """Do all orders, many at once, each in a process that may hang or crash without harm.

    Args:
        engine: Where.
        task: What is done with an order; it answers failures instead of raising them.
        orders: Keys and orders, read lazily.
        num_workers: Processes (local) or actors of one process each (Ray).
        timeout_seconds: Longest time for one order.

    Raises:
        UserError: Workers cannot start; Ray is not installed or cannot be reached.
    """
    if engine == "ray":
        return _run_on_ray(task, iter(orders), num_workers, timeout_seconds)
    return _run_here(task, iter(orders), num_workers, timeout_seconds)


def _run_here(
    task: Callable[[Any], Any],
    orders: Iterator[tuple[str, object]],
    num_workers: int,
    timeout_seconds: float,
) -> Answers:
    with closing(WorkerPool(task, num_workers, timeout_seconds)) as pool:
        keys: dict[int, str] = {}
        while True:
            for key, order in islice(orders, max(0, _AHEAD * num_workers - pool.num_open)):
                keys[pool.submit(order)] = key
            if not keys:
                return
            for outcome in pool.wait(60.0):
                yield keys.pop(outcome.ticket), outcome


class OrderRunner:
    """Does orders one at a time in a process of its own; lives in a Ray actor on some machine.

    So a hanging decoder is killed, and a crash is told from bad luck, by the same rules as on one
    machine.
    """

    def __init__(self, task: Callable[[Any], Any], timeout_seconds: float) -> None:
        """Start no process yet."""
        self._pool = WorkerPool(task, 1, timeout_seconds)

    def run(self, order: object) -> Outcome:
        """Do one order."""
        self._pool.submit(order)
        while True:
            for outcome in self._pool.wait(60.0):
                return outcome


def ray_workers() -> int:
    """Processor cores of the Ray cluster, which is started here if none is running.

    Raises:
        UserError: Ray is not installed or cannot be reached.
    """
    return max(1, int(_connected_ray().cluster_resources().get("CPU", 1)))


def _connected_ray() -> Any:
    # Ray reports its use over the network unless told not to before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A busy machine takes longer than Ray's own limits. (Ray spells the name in small letters.)
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(_RAY_START_SECONDS))
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "engine ray needs Ray: pip install 'open-vjepa[ray]', or use --engine local"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises bare ones, also when a machine is too busy
            raise UserError(f"engine ray: cannot be reached or started ({error})") from error
    return ray


def _run_on_ray(
    task: Callable[[Any], Any],
    orders: Iterator[tuple[str, object]],
    num_workers: int,
    timeout_seconds: float,
) -> Generator[tuple[str, Outcome]]:
    """One actor for each worker, one order at each; an actor whose machine dies is started anew.

    An order that loses its actor is given to another once; if that is lost, too, it counts as
    a crash.
    """
    ray = _connected_ray()
    remote = ray.remote(num_cpus=1, max_restarts=0)(OrderRunner)
    idle = [remote.remote(task, timeout_seconds) for _ in range(num_workers)]
    running: dict[Any, tuple[Any, str, object, int]] = {}
    again: list[tuple[str, object, int]] = []
    try:
        while True:
            while idle:
                following = again.pop() if again else next(((*pair, 0) for pair in orders), None)
                if following is None:
                    break
                actor = idle.pop()
                running[actor.run.remote(following[1])] = (actor, *following)
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                actor, key, order, losses = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayActorError:
                    idle.append(remote.remote(task, timeout_seconds))
                    if losses:
                        yield key, Outcome(0, "crash", reason="two Ray workers died of it")
                    else:
                        again.append((key, order, losses + 1))
                    continue
                idle.append(actor)
                yield key, outcome
    finally:
        for actor in [*idle, *(entry[0] for entry in running.values())]:
            ray.kill(actor)
