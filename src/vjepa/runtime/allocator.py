"""The C library's memory allocator, as computation on a CPU wants it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_BLOCK = 1 << 30


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process use freed memory again instead of giving it back to the system.

    By default glibc maps every block above 32 MB anew and gives free memory at its end back, so
    each update, and each attention over a long clip, faults the same pages in again. Kept, they are
    faulted in once, as torch does on a GPU; the process then holds its peak of memory until it
    ends. Results do not change.

    Args:
        environment: The process environment, or a substitute; a user's own ``MALLOC_...`` setting
            of either threshold stays.

    Returns:
        Whether the setting is in force: False without glibc, or where the user has set another.
    """
    if not sys.platform.startswith("linux"):
        return False
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & environment.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both are tried, whatever the first one answers; 1 is success.
    answers = [
        mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(_NEVER)),
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_LARGEST_BLOCK)),
    ]
    return answers == [1, 1]
