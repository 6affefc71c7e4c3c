"""What a benchmark found: in words for people, in values for programs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of one of the ``vjepa bench`` commands."""

    lines: tuple[str, ...]
    """For people."""
    values: dict[str, Any]
    """For programs: plain values that JSON can hold, with ``benchmark`` and ``machine``."""


def machine_name() -> str:
    """The processor as the system names it, for the record beside a measured number."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
