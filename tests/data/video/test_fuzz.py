"""A small fuzz run: damaged media, lists, manifests, configs and checkpoints, some tens of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes and descriptors in /proc")
def test_damaged_inputs_are_read_or_refused(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks/fuzz_inputs.py", "--inputs", "60", "--out", str(tmp_path)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["inputs"] == 60
    assert counts["findings"] == []
    outcomes = counts["outcomes"]
    assert outcomes["index: refused"] > 0
    assert outcomes["index: usable"] > 0
