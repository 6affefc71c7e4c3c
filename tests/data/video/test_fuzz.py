"""A small fuzz run: damaged media, lists, manifests, configs and checkpoints, some tens of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests import warm


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes and descriptors in /proc")
def test_damaged_inputs_are_read_or_refused(tmp_path: Path) -> None:
    code = "import runpy; runpy.run_path('benchmarks/fuzz_inputs.py', run_name='__main__')"
    options = ("--inputs", 60, "--out", tmp_path / "out")
    result = warm.script(code, *options, log=tmp_path / "log")
    assert result.wait() == 0, result.said[-4000:]
    counts = json.loads(result.said.splitlines()[-1])
    assert counts["inputs"] == 60
    assert counts["findings"] == []
    outcomes = counts["outcomes"]
    assert outcomes["index: refused"] > 0
    assert outcomes["index: usable"] > 0
