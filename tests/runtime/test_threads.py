"""Threads and the OpenMP spinning trap."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from vjepa.runtime.threads import prevent_openmp_spinning, set_num_threads, usable_cpus


def test_spinning_is_prevented_in_a_fresh_process_without_importing_torch() -> None:
    code = (
        "import os, sys\n"
        "os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "from vjepa.runtime.threads import prevent_openmp_spinning\n"
        "assert 'torch' not in sys.modules\n"
        "assert prevent_openmp_spinning()\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_too_late_is_reported() -> None:
    environment: dict[str, str] = {}
    assert not prevent_openmp_spinning(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(("value", "in_force"), [("active", False), ("PASSIVE", True)])
def test_the_users_choice_stays(value: str, in_force: bool) -> None:
    environment = {"OMP_WAIT_POLICY": value}
    assert prevent_openmp_spinning(environment) == in_force
    assert environment["OMP_WAIT_POLICY"] == value


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
