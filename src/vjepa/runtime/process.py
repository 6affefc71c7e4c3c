"""What a process takes of its machine: threads of the CPU, and memory.

Workers that decode need this and no torch, which is imported only where a number of threads is set.
"""

from __future__ import annotations

import _thread
import ctypes
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vjepa.errors import StoppedBySystem, UserError

_LOGGER = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_BLOCK = 1 << 30
_PR_SET_PDEATHSIG = 1
_CGROUPS = Path("/sys/fs/cgroup")
_IMPORTING, _MOMENT, _LONGEST_IMPORT = "<frozen importlib._bootstrap>", 0.05, 15.0
_PUT_OFF: dict[int, float] = {}
"""Since when a signal is put off."""


def prevent_openmp_spinning(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Make idle OpenMP threads sleep instead of spin; call before torch is imported.

    Idle threads of torch's pool spin by default and take the cores away from video decoding in the
    same process: measured on 2 cores, 6 clips/s instead of 30. A value that the user has set stays.
    False when the setting is not in force: torch was imported before it was made.
    """
    if "OMP_WAIT_POLICY" in environment:
        return environment["OMP_WAIT_POLICY"].lower() == "passive"
    environment["OMP_WAIT_POLICY"] = "passive"
    return "torch" not in sys.modules


def usable_cpus() -> int:
    """Number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_num_threads(num_threads: int | None) -> int:
    """Set torch's intra-operation threads (None keeps torch's choice); the number in force.

    Results on a CPU are reproduced bit for bit only with an equal number of threads.
    """
    import torch

    if num_threads is not None:
        if not isinstance(num_threads, int) or num_threads < 1:
            raise UserError(f"num_threads: must be 1 or more, a whole number, got {num_threads!r}")
        if num_threads > usable_cpus():
            _LOGGER.warning(
                "num_threads %d is more than the %d cores of this process; it will be slower",
                num_threads,
                usable_cpus(),
            )
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process use freed memory again instead of giving it back to the system.

    By default glibc maps every block above 32 MB anew and gives free memory at its end back, so
    each update, and each attention over a long clip, faults the same pages in again. Kept, they are
    faulted in once, as torch does on a GPU; the process then holds its peak of memory until it
    ends. Results do not change. False when that is not in force: without glibc, or where the user's
    own ``MALLOC_...`` variable sets either threshold.
    """
    if not sys.platform.startswith("linux"):
        return False
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & environment.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both are tried, whatever the first one answers; 1 is success.
    pairs = ((_M_TRIM_THRESHOLD, _NEVER), (_M_MMAP_THRESHOLD, _LARGEST_BLOCK))
    return [mallopt(*map(ctypes.c_int, pair)) for pair in pairs] == [1, 1]


REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Not Ctrl-C, but sent by systems, or by a terminal that closes: start the job again."""


@contextmanager
def handled(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Generator[None]:
    """Let a handler take signals meanwhile.

    Not SIGHUP in a job of ``nohup``, to which it means nothing, and none outside the main thread,
    where Python allows no handlers. Of a terminal that was closed meanwhile it lets go: the last
    lines are written nowhere, where they would fail and cost the job its exit code.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        for stream in (1, 2) if before else ():
            state = select.poll()
            state.register(stream, 0)
            if any(found & select.POLLHUP for _, found in state.poll(0)):
                with Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), stream)


def is_put_off(number: int, frame: FrameType | None) -> bool:
    """Whether a signal came in the midst of an import; it is sent again a moment later.

    A handler's exception there may be swallowed, and leave the lock of all imports taken: threads
    that import something wait for it for ever. A program that runs in an import is not waited for.
    """
    while frame is not None and frame.f_code.co_filename != _IMPORTING:
        frame = frame.f_back
    since = _PUT_OFF.setdefault(number, time.monotonic())
    if frame is None or time.monotonic() > since + _LONGEST_IMPORT:
        del _PUT_OFF[number]
        return False
    # Not by `threading`, whose locks this may have interrupted.
    _thread.start_new_thread(_send_again, (number,))
    return True


def _send_again(number: int) -> None:
    time.sleep(_MOMENT)
    os.kill(os.getpid(), number)


@contextmanager
def stopping_at_signals() -> Generator[None]:
    """Let the system's request for an end stop this as Ctrl-C does, unless others handle it.

    Raises:
        StoppedBySystem: It was asked for. Further requests, of which launchers send several, change
            nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if is_put_off(number, frame):
            return
        for one in taken:
            signal.signal(one, signal.SIG_IGN)
        raise StoppedBySystem

    taken = [one for one in REQUEUE_SIGNALS if signal.getsignal(one) == signal.SIG_DFL]
    with handled(taken, stop):
        yield


def stop_with_parent() -> None:
    """As the ``preexec_fn`` of a process: SIGTERM when what started it is gone, a kill too (Linux).

    Elsewhere it does nothing, and a process whose starter was killed goes on.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start_command(
    words: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start ``vjepa WORDS`` as a process whose output is added to `log`.

    `environment` is laid over this process's own. A Ctrl-C at the terminal does not reach it but
    through us: a second signal would make it stop without a checkpoint. Where we are killed, it is
    asked to stop (Linux).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "vjepa", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=stop_with_parent,
        )


def resident_bytes(pid: int | None = None) -> int:
    """Memory that a process (None: this one) holds in RAM now (Linux); 0 where nobody knows."""
    file = Path("/proc", "self" if pid is None else str(pid), "statm")
    try:
        pages = int(file.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int | None:
    """Memory that this process could take without swapping (Linux, containers included), or None.

    Pages that hold files count as available: the system gives them up when asked.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = 1024 * int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None
    # Of the second and the first version of control groups.
    v2 = (_CGROUPS, "memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder, limit, used, files in (v2, (_CGROUPS / "memory", *v1)):
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").open())
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
            free += int(stat[files])
        except (OSError, ValueError, KeyError):  # no such group, or none with a limit ("max")
            continue
        available = min(available, max(0, free))
    return available
