"""Fixtures of the jobs' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.jobs.probe.tiny_probe import write_checkpoint


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of 24 train, 9 validation and 11 test videos with two labels."""
    # Imported here: it needs a video decoder, which a machine for GPU tests may lack.
    from tests.evaluation.tiny_videos import make_set

    folder = tmp_path_factory.mktemp("probe_videos")
    return make_set(folder, {"train": 24, "validation": 9, "test": 11})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("run"))
