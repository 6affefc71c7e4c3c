"""A process cannot take more memory than it was allowed."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vjepa.runtime.device import resident_bytes

_SCRIPT = """
from vjepa.runtime.workers import limit_memory
limit_memory(0.3)
bytearray(100_000_000)
try:
    bytearray(1_000_000_000)
except MemoryError:
    print("refused")
"""


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    # Mapped anew: other tests let this process keep memory that it could hand out otherwise.
    with mmap.mmap(-1, 50_000_000) as held:
        held.write(bytes(50_000_000))
        assert resident_bytes() - before > 40_000_000
    assert resident_bytes(os.getpid()) > 0
    assert resident_bytes(2**22 + 1) == 0, "no such process"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit")
def test_the_limit_holds_for_what_comes_after_it() -> None:
    path = str(Path(__file__).parents[2] / "src")
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "refused\n"
