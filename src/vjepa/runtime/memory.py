"""How much memory a process holds, and a limit to what it may take in addition."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_GIGABYTE = 1e9


def resident_bytes(pid: int | None = None) -> int:
    """Memory that a process holds in RAM now, in bytes (Linux); 0 where that cannot be known.

    Args:
        pid: The process; None: this one.
    """
    return _statm(pid, 1)


def limit_memory(gigabytes: float) -> None:
    """Let this process take so much more address space than it has now, and no more.

    What would pass the limit fails with ``MemoryError`` instead of taking the machine's memory. It
    holds for this process until its end and cannot be raised again. Address space is what the
    system can limit: it is never less than the memory in use. Only Linux keeps to it; elsewhere
    nothing is done.

    Args:
        gigabytes: How much more, in GB (1e9 bytes).
    """
    if sys.platform != "linux":
        return
    import resource

    wanted = _statm(None, 0) + int(gigabytes * _GIGABYTE)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


def _statm(pid: int | None, place: int) -> int:
    """One of the page counts of ``/proc/<pid>/statm`` (0: address space, 1: resident), in bytes."""
    file = Path("/proc", "self" if pid is None else str(pid), "statm")
    try:
        pages = int(file.read_text(encoding="ascii").split()[place])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
