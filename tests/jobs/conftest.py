"""Fixtures of the jobs' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.jobs.probe.tiny_probe import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("run"))
