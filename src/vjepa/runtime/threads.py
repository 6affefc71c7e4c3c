"""CPU threads, and the OpenMP spinning trap. Imports torch only when a number of threads is set."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping

_LOGGER = logging.getLogger(__name__)


def prevent_openmp_spinning(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Make idle OpenMP threads sleep instead of spin; call before torch is imported.

    Idle threads of torch's pool spin by default and take the cores away from video decoding in the
    same process: measured on 2 cores, 6 clips/s instead of 30. A value that the user has set stays.

    Args:
        environment: The process environment, or a substitute.

    Returns:
        Whether the setting is in force: False when torch was imported before it was made.
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
    """Set torch's intra-operation threads.

    Results on a CPU are reproduced bit for bit only with an equal number of threads.

    Args:
        num_threads: How many; None keeps torch's own choice.

    Returns:
        The number in force.
    """
    import torch

    if num_threads is not None:
        if num_threads > usable_cpus():
            _LOGGER.warning(
                "num_threads %d is more than the %d cores of this process; it will be slower",
                num_threads,
                usable_cpus(),
            )
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()
