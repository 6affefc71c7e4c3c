"""Freed memory is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from vjepa.runtime.device import keep_freed_memory

_COUNT_FAULTS = """
import resource, sys, torch
from vjepa.runtime.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use_memory():
    kept = [torch.ones(megabytes << 18) for megabytes in (4, 9, 33, 40, 50, 64)]
for _ in range(3):
    use_memory()
before = faults()
for _ in range(4):
    use_memory()
print(faults() - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, how], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_not_faulted_in_again() -> None:
    """Page faults are counted in processes of their own; they do not depend on load."""
    assert _faults("keep") < 0.5 * _faults("default")


def test_the_users_setting_stays() -> None:
    assert not keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "131072"})


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory({})
