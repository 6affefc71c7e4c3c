"""A pool of worker processes that survives workers which hang or die.

Each worker has a pipe of its own (a killed process cannot leave a shared lock behind), is started
from a clean server process ('forkserver': safe with CUDA and threads), uses one thread and ends
with its parent, however that ends. The parent sees a job that takes too long, kills that worker and
starts another; a job whose worker died is given to another worker once. Workers that are killed
while they start are replaced, a few times, and so are all workers when the server was killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from multiprocessing import connection, forkserver, resource_tracker, spawn
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from vjepa.errors import UserError

_LOGGER = logging.getLogger(__name__)

START_SECONDS = 300.0
"""A worker that is not ready after this long (importing from a slow disk) is given up."""

WORKER_GIGABYTES = 16.0
"""Address space that a worker may take beyond what it starts with, unless said otherwise."""

LOADER_MODULES = ("torch", "av", "vjepa.data.loader.reading", "vjepa.data.video.decode")
"""What cutting clips needs."""
INSPECT_MODULES = tuple(f"vjepa.data.video.{n}" for n in ("inspect", "container", "frame_index"))
"""What looking into files needs."""

_Payload = TypeVar("_Payload")

# A job of at most this size is sent to a busy worker: it fits in any pipe's buffer.
_AHEAD_BYTES = 4096
_JOBS_PER_WORKER = 2
_WITHOUT_MAIN = "vjepa-worker"
_READY, _FAILED, _GOING_ON, _NO_MEMORY = -1, -2, -3, -4  # in place of a ticket

# Ctrl-C, a terminal that closes, and a scheduler's warning to all processes of a job.
_PARENTS_SIGNALS = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}

_SECONDS_BETWEEN_SIGNS = 1.0
_MOST_STARTS = 3  # of each worker in a row that are killed before one is ready
_SECONDS_BETWEEN_STARTS = 1.0
_SERVER_LOST = 255  # what multiprocessing takes for the exit code where the server cannot tell it
_LONGEST_JOB = 200  # characters of a job in a message


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    ticket: int  # as :meth:`WorkerPool.submit` gave it
    kind: Literal["done", "hang", "crash"]
    """``hang``: it took too long; ``crash``: two workers died of it, or one lacked the memory."""
    value: Any = None  # what the task returned, if done
    reason: str = ""  # why not, in words, if not done
    exit_code: int | None = None
    """Of the last worker that died of it, if it crashed: minus the signal's number."""


@dataclass
class _Job:
    ticket: int
    payload: object
    deaths: int = 0

    def __str__(self) -> str:
        """What it is at, for a message: not the arrays of a whole batch."""
        text = " ".join(str(self.payload).split())
        return text if len(text) <= _LONGEST_JOB else f"{text[:_LONGEST_JOB]} ..."


@dataclass(eq=False)
class _Worker:
    process: ForkServerProcess
    pipe: Connection
    started: float
    is_ready: bool = False
    jobs: deque[_Job] = field(default_factory=deque)


def _serve(pipe: Connection, task: Callable[[Any], Any], memory_gigabytes: float) -> None:
    """A worker's life: read a job, run the task, answer; end with the pipe or the parent."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # counts where torch is not loaded yet
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    limit_memory(memory_gigabytes)  # a file that wants more is a bad file, not the machine's end
    _SIGNS.pipe = pipe
    try:
        pipe.send((_READY, None))
        while True:
            ticket, payload = pipe.recv()
            try:
                answer = ForkingPickler.dumps((ticket, task(payload)))
            except MemoryError:
                answer = ForkingPickler.dumps((_NO_MEMORY, None))
            except Exception as error:
                pipe.send((_FAILED, "".join(traceback.format_exception(error))))
                raise SystemExit(1) from error
            pipe.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


@dataclass
class _Signs:
    """Where a worker tells that it goes on, and when it last did."""

    pipe: Connection | None = None
    latest: float = 0.0


_SIGNS = _Signs()


def going_on() -> None:
    """Say in a worker that its job makes progress: the time allowed for it begins anew.

    For work that grows with a file, from a loop whose end is certain. Does nothing elsewhere.
    """
    now = time.monotonic()
    if _SIGNS.pipe is not None and now > _SIGNS.latest + _SECONDS_BETWEEN_SIGNS:
        _SIGNS.latest = now
        _SIGNS.pipe.send((_GOING_ON, None))


def is_worker() -> bool:
    """Whether this is a pool's worker: what a signal to all means is its parent's to say."""
    return _SIGNS.pipe is not None


def _end_with(sentinel: int) -> None:
    """Leave when the parent is gone, even from inside a decoder that does not come back."""
    connection.wait([sentinel])
    os._exit(1)


def start_server(preload: Sequence[str]) -> None:
    """Start the process that workers are forked from, if it does not run yet.

    It imports the modules, which cannot be changed later, while this process goes on: a command
    that is going to need workers calls this first, and so waits for one of the two only. It shares
    the terminal, and is a process of the job: a signal that only its parent handles would end it.

    Raises:
        OSError: It cannot be started.
    """
    # A program that has torch loaded will cut clips sooner or later.
    modules = LOADER_MODULES if "torch" in sys.modules else preload
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # lets the signal through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _stop_server() -> None:
    """End the server at its start, which may take seconds; the next worker starts another."""
    # The standard library has no other name for it.
    server = getattr(forkserver, "_forkserver", None)
    if number := getattr(server, "_forkserver_pid", None):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@cache
def _leave_out_main() -> None:
    """Let processes of this name start without importing the main file, once for all."""
    prepare = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        data: dict[str, Any] = dict(prepare(name))
        if name == _WITHOUT_MAIN:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = cast("Any", prepared)


def limit_memory(gigabytes: float) -> None:
    """Let this process take so much more address space (GB, 1e9 bytes) than it has now, no more.

    What would pass the limit fails with ``MemoryError`` instead of taking the machine's memory. It
    holds for this process until its end and cannot be raised again. Address space is what the
    system can limit: it is never less than the memory in use. Only Linux keeps to it; elsewhere
    nothing is done.
    """
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + int(gigabytes * 1e9)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


class WorkerPool:
    """Workers that run one task on many jobs. Used by one thread at a time, :meth:`wake` by any."""

    def __init__(
        self,
        task: Callable[[Any], Any],
        num_workers: int,
        timeout_seconds: float,
        memory_gigabytes: float = WORKER_GIGABYTES,
        preload: Sequence[str] = LOADER_MODULES,
    ) -> None:
        """Describe the pool; processes start with the first job.

        Args:
            task: Picklable; called in the workers with a job, its answer is sent back. It must turn
                every failure that it expects into an answer: an exception ends the run. It does
                not stand in the program's main file, which workers leave out: any script may use
                them, also one from stdin.
            num_workers: Processes; 0 only with :meth:`map`, which then works here, without a limit
                of time or memory.
            timeout_seconds: Longest time for one job, or since it last said :func:`going_on`.
            memory_gigabytes: Address space that a worker may take beyond what it starts with, in
                GB; what asks for more gets a MemoryError. Linux only.
            preload: Modules that workers find loaded. The first pool of a program decides: the
                server that workers are forked from starts once. Where torch is loaded it is always
                `LOADER_MODULES`.
        """
        self._memory = memory_gigabytes
        self._preload = preload
        self._task = task
        self._num_workers = num_workers
        self._timeout = timeout_seconds
        self._context = multiprocessing.get_context("forkserver")
        self._workers: list[_Worker] = []
        self._backlog: deque[_Job] = deque()
        self._tickets = self._killed_starts = 0
        self._is_closed = self._is_starting = False
        self._wake_receiver, self._wake_sender = self._context.Pipe(duplex=False)

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def describe(self) -> str:
        """How many workers run, and which job takes longest: words for people who wait."""
        starting = sum(not worker.is_ready for worker in self._workers)
        words = f"{len(self._workers)} worker processes"
        words += f", {starting} of them starting" if starting else ""
        busy = [worker for worker in self._workers if worker.is_ready and worker.jobs]
        if busy:
            slowest = min(busy, key=lambda worker: worker.started)
            seconds = time.monotonic() - slowest.started
            words += f"; the slowest is at {slowest.jobs[0]} for {seconds:.0f} s"
        return words

    def submit(self, payload: object, *, first: bool = False) -> int:
        """Hand in a picklable job; gives the number that its outcome will carry.

        `first`: before all jobs that wait, for one that others wait for.
        """
        job = _Job(self._tickets, payload)
        self._tickets += 1
        if first:
            self._backlog.appendleft(job)
        else:
            self._backlog.append(job)
        return job.ticket

    def wait(self, seconds: float) -> list[Outcome]:
        """Keep the workers busy until something ends, :meth:`wake` is called or time is up.

        Gives the jobs that ended, in the order in which they did; possibly none.

        Raises:
            UserError: Workers cannot start.
            RuntimeError: The task raised an exception; its traceback is in the message.
        """
        self._start_missing()
        self._feed()
        deadline = min(map(self._deadline, self._workers), default=float("inf"))
        seconds = max(0.0, min(seconds, deadline - time.monotonic()))
        watched: list[Any] = [self._wake_receiver]
        for worker in self._workers:
            watched += [worker.pipe, worker.process.sentinel]
        for ready in connection.wait(watched, seconds):
            if ready is self._wake_receiver:
                self._wake_receiver.recv_bytes()
        outcomes: list[Outcome] = []
        for worker in list(self._workers):
            self._read(worker, outcomes)
            if not worker.process.is_alive():
                self._read(worker, outcomes)  # what it sent before it died
                self._on_death(worker, outcomes)
            elif time.monotonic() > self._deadline(worker):
                self._on_timeout(worker, outcomes)
        self._feed()
        return outcomes

    def map(
        self, payloads: Iterable[_Payload], ahead: int, in_order: bool = True
    ) -> Generator[tuple[_Payload, Outcome]]:
        """Do many jobs; gives each payload with how it went. No other jobs beside it.

        Args:
            payloads: Read lazily, may be endless.
            ahead: Most jobs handed out and not yet given, at least 1.
            in_order: Give them in the order of the payloads; else as they end.

        Raises:
            UserError, RuntimeError: As :meth:`wait`.
        """
        source = iter(payloads)
        if self._num_workers == 0:
            for number, payload in enumerate(source):
                yield payload, Outcome(number, "done", self._task(payload))
            return
        waiting: dict[int, _Payload] = {}
        ended: dict[int, Outcome] = {}
        try:
            while True:
                for payload in islice(source, ahead - len(waiting)):
                    waiting[self.submit(payload)] = payload
                if not waiting:
                    return
                following = next(iter(waiting if in_order else ended), None)
                is_ready = following in ended
                # Also where nothing must be waited for: the workers get their next jobs there.
                for outcome in self.wait(0.0 if is_ready else 60.0):
                    if outcome.ticket in waiting:  # and not left over from a map that was left
                        ended[outcome.ticket] = outcome
                if following is not None and is_ready:
                    yield waiting.pop(following), ended.pop(following)
        finally:
            self._backlog = deque(job for job in self._backlog if job.ticket not in waiting)

    def wake(self) -> None:
        """End a :meth:`wait` that is going on in another thread."""
        self._wake_sender.send_bytes(b"!")

    def cancel(self) -> None:
        """Forget all jobs; workers that are at one are killed, so nothing is written any more."""
        for worker in [worker for worker in self._workers if worker.jobs]:
            self._stop(worker)
        self._backlog.clear()

    def close(self) -> None:
        """End all workers and wait for them. The pool can be used no more."""
        self._is_closed = True
        if self._is_starting:
            _stop_server()
        for worker in self._workers:
            worker.pipe.close()
        for worker in list(self._workers):
            if worker.is_ready and not worker.jobs:
                worker.process.join(timeout=2)
            self._stop(worker)
        self._backlog.clear()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _deadline(self, worker: _Worker) -> float:
        """When it is given up: none while it is ready and idle."""
        limit = self._timeout if worker.is_ready else START_SECONDS
        return worker.started + limit if worker.jobs or not worker.is_ready else float("inf")

    def _start_missing(self) -> None:
        wanted = min(self._num_workers, len(self._workers) + len(self._backlog))
        while len(self._workers) < wanted:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve,
                args=(theirs, self._task, self._memory),
                daemon=True,
                name=_WITHOUT_MAIN,
            )
            self._is_starting = True
            try:
                start_server(self._preload)
                _leave_out_main()
                process.start()
            except (ConnectionError, EOFError) as error:
                if not self._is_closed:  # which ends the server, too
                    self._on_killed_start("the server of the worker processes ended")
                    time.sleep(_SECONDS_BETWEEN_STARTS)  # the system may call it alive for a moment
                if self._is_closed:
                    raise UserError("the pool was closed while a worker started") from error
                continue
            except OSError as error:
                raise UserError(
                    f"worker processes cannot start ({error}): mend that, or let this process "
                    "read itself with num_workers 0"
                ) from error
            self._is_starting = False
            theirs.close()
            self._workers.append(_Worker(process, ours, time.monotonic()))
            if self._is_closed:  # meanwhile, by another thread: a start may take seconds
                self._stop(self._workers[-1])
                raise UserError("the pool was closed while a worker started")

    def _feed(self) -> None:
        """Send waiting jobs: to idle workers, and small ones one ahead to busy workers."""
        for most in range(_JOBS_PER_WORKER):
            for worker in self._workers:
                if self._backlog and worker.is_ready and len(worker.jobs) <= most:
                    self._send(worker, self._backlog[0])

    def _send(self, worker: _Worker, job: _Job) -> None:
        message = ForkingPickler.dumps((job.ticket, job.payload))
        if worker.jobs and len(message) > _AHEAD_BYTES:
            return  # its worker does not read now; sending could block for as long as it hangs
        if not worker.jobs:
            worker.started = time.monotonic()
        try:
            worker.pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it died while idle: its sentinel says so next
        worker.jobs.append(self._backlog.popleft())

    def _read(self, worker: _Worker, outcomes: list[Outcome]) -> None:
        try:
            while worker.pipe.poll():
                ticket, value = worker.pipe.recv()
                worker.started = time.monotonic()
                if ticket == _FAILED:
                    job = worker.jobs[0]
                    raise RuntimeError(f"a worker process failed at {job}:\n{value}")
                if ticket == _READY:
                    worker.is_ready, self._killed_starts = True, 0
                if ticket in (_READY, _GOING_ON):
                    continue
                job = worker.jobs.popleft()
                if ticket == _NO_MEMORY:
                    reason = f"it takes more than the {self._memory:g} GB of a worker process"
                    outcomes.append(Outcome(job.ticket, "crash", reason=reason))
                else:
                    outcomes.append(Outcome(ticket, "done", value))
        except (EOFError, OSError):  # its process is ending, perhaps in the middle of an answer
            if worker.pipe.closed:  # by us
                raise

    def _on_death(self, worker: _Worker, outcomes: list[Outcome]) -> None:
        """A worker died by itself: judge the job that it was at, pass the others on."""
        code = worker.process.exitcode
        if code is not None and 0 <= code != _SERVER_LOST:
            if worker.is_ready:
                raise RuntimeError(f"a worker process left with exit code {code}")
            raise UserError(
                f"a worker process could not start (exit code {code}, its message stands above): "
                "with num_workers 0 this process reads itself"
            )
        reason = f"the worker process {worker.process.pid} was killed by {_signal_name(code)}"
        if not worker.is_ready:
            self._stop(worker)
            self._on_killed_start(reason)
            return
        if code == _SERVER_LOST and not _has_ended(worker):
            # Only the server went; nobody can tell any more how this one ends, so another goes on.
            _LOGGER.warning("the server of the worker processes ended; both are replaced")
            self._stop(worker)
            return
        job = worker.jobs.popleft() if worker.jobs else None
        _LOGGER.warning(
            "%s while at job %s; it is replaced", reason, "none" if job is None else job
        )
        self._stop(worker)
        if job is not None and job.deaths:
            reason = f"{reason}, as one before it"
            outcomes.append(Outcome(job.ticket, "crash", reason=reason, exit_code=code))
        elif job is not None:
            job.deaths += 1
            self._backlog.appendleft(job)

    def _on_killed_start(self, reason: str) -> None:
        """Let another one be started, unless too many were killed with none ready in between."""
        self._killed_starts += 1
        if self._killed_starts >= _MOST_STARTS * self._num_workers:
            raise UserError(
                f"worker processes cannot start ({reason}, {self._killed_starts} in a row): mend "
                "that, or let this process read itself with num_workers 0"
            )
        _LOGGER.warning("%s while it started; it is replaced", reason)

    def _on_timeout(self, worker: _Worker, outcomes: list[Outcome]) -> None:
        """A worker does not come back: kill it, and blame the job that it is at."""
        if not worker.is_ready:
            self._stop(worker)
            raise UserError(
                f"a worker process was not ready after {START_SECONDS:g} s; for a loader, set "
                "loader.num_workers to 0 to see where it stops"
            )
        job = worker.jobs.popleft()
        reason = f"reading it did not end within {self._timeout:g} s"
        _LOGGER.warning("worker process %s killed: %s; job %s", worker.process.pid, reason, job)
        self._stop(worker)
        outcomes.append(Outcome(job.ticket, "hang", reason=reason))

    def _stop(self, worker: _Worker) -> None:
        """Kill a worker and put the jobs that it had not reached back in front."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join(timeout=5)  # not for ever: a process waiting for a dead disk cannot die
        if worker.process.exitcode == _SERVER_LOST:
            _end_without_server(worker)
        worker.pipe.close()
        self._backlog.extendleft(reversed(worker.jobs))
        worker.jobs.clear()


def _has_ended(worker: _Worker, seconds: float = 0.0) -> bool:
    """Whether a worker's process is gone, by its end of the pipe; what it has sent is dropped."""
    try:
        while worker.pipe.poll(seconds):
            worker.pipe.recv_bytes()
    except (EOFError, OSError):
        return True
    return False


def _end_without_server(worker: _Worker) -> None:
    """Kill a worker that multiprocessing takes for dead, and wait until it writes no more."""
    if worker.process.pid is not None and not _has_ended(worker):
        with suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGKILL)
        _has_ended(worker, seconds=5.0)


def _signal_name(code: int | None) -> str:
    if code is None or code >= 0:
        return "an unknown signal"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hints = {"SIGKILL": " (out of memory?)", "SIGBUS": " (shared memory full?)"}
    return name + hints.get(name, "")
