"""Threads, the OpenMP spinning trap, and memory of a process."""

from __future__ import annotations

import logging
import mmap
import os
import platform
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from vjepa.errors import StoppedBySystem
from vjepa.runtime import process
from vjepa.runtime.process import (
    available_bytes,
    keep_freed_memory,
    prevent_openmp_spinning,
    resident_bytes,
    set_num_threads,
    stopping_at_signals,
    usable_cpus,
)
from vjepa.training.guards import StopSignals


def test_spinning_is_prevented_in_a_fresh_process_without_importing_torch() -> None:
    code = (
        "import os, sys\n"
        "os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "from vjepa.runtime.process import prevent_openmp_spinning\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'numpy' not in sys.modules\n"
        "assert prevent_openmp_spinning()\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("chosen", "value", "in_force"),
    [(None, "passive", False), ("active", "active", False), ("PASSIVE", "PASSIVE", True)],
    ids=["too late", "the user's choice", "as we would"],
)
def test_the_users_choice_stays(chosen: str | None, value: str, in_force: bool) -> None:
    environment = {} if chosen is None else {"OMP_WAIT_POLICY": chosen}
    assert prevent_openmp_spinning(environment) == in_force
    assert environment == {"OMP_WAIT_POLICY": value}


_STARTER = """
import subprocess, sys, time
from vjepa.runtime.process import stop_with_parent
child = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(600)"]
subprocess.Popen(child, start_new_session=True, preexec_fn=stop_with_parent)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux sends the signal")
def test_what_was_started_stops_when_its_starter_is_killed() -> None:
    starter = subprocess.Popen([sys.executable, "-c", _STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "on\n"
    starter.kill()
    # The end of the pipe comes when the child, which holds it, too, is gone.
    assert starter.communicate(timeout=600)[0] == ""


_IN_A_TERMINAL = """
import signal, sys, time
from vjepa.runtime.process import REQUEUE_SIGNALS, handled
found = []
with handled(REQUEUE_SIGNALS, lambda number, _: found.append(number)):
    print("on", flush=True)
    while not found:
        time.sleep(0.01)
    try:
        print("finishing", file=sys.stderr)
    except OSError:
        pass  # as logging and the progress display do
print("stopped, resume with ...")
print("the same", file=sys.stderr)
sys.exit(75)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells of a closed terminal")
def test_a_terminal_that_closes_does_not_cost_the_exit_code() -> None:
    """The last lines fail there, at the latest when Python flushes them: its own code is 120."""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", _IN_A_TERMINAL])
    assert os.read(terminal, 2) == b"on"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75


@pytest.mark.parametrize("how", [stopping_at_signals, StopSignals])
def test_a_signal_in_the_midst_of_an_import_waits_for_its_end(how: Callable) -> None:
    """Python swallows what is raised there in a callback, and keeps the lock of all imports."""
    reached: list[str] = []
    text = "signal.raise_signal(signal.SIGUSR1); reached.append('the end of the import')"
    code = compile(text, "<frozen importlib._bootstrap>", "exec")

    def work() -> None:
        exec(code, {"signal": signal, "reached": reached})
        time.sleep(30)
        reached.append("the end")

    with suppress(StoppedBySystem), how() as signals:
        work() if signals is None else signals.wait_for(work)
    assert reached == ["the end of the import"]


def test_number_of_threads(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_num_threads()
    assert set_num_threads(None) == before
    assert usable_cpus() >= 1
    with caplog.at_level(logging.WARNING, logger="vjepa"):
        assert set_num_threads(1) == 1
        assert not caplog.records
        set_num_threads(usable_cpus() + 1)
        assert "more than" in caplog.text
    torch.set_num_threads(before)


_COUNT_FAULTS = """
import resource, sys, torch
from vjepa.runtime.process import keep_freed_memory
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
    return int(subprocess.check_output([sys.executable, "-c", _COUNT_FAULTS, how], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_not_faulted_in_again() -> None:
    """Page faults are counted in processes of their own; they do not depend on load."""
    assert _faults("keep") < 0.5 * _faults("default")


def test_the_users_setting_and_other_systems_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "131072"})
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory({})


_TAKE_TOO_MUCH = """
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
    command = [sys.executable, "-c", _TAKE_TOO_MUCH]
    assert subprocess.check_output(command, text=True) == "refused\n"


def test_free_memory_is_less_than_all_of_it() -> None:
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = available_bytes()
    assert available is not None
    assert 0 < available <= everything


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch) -> None:
    """What files hold in memory is free; a group without a limit says nothing."""
    files = {"memory.max": "900000", "memory.current": "700000", "memory.stat": "anon 1"}
    files["memory.stat"] += "\ninactive_file 300000\n"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(process, "_CGROUPS", tmp_path)
    assert available_bytes() == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 10**7
