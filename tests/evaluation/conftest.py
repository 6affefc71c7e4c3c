"""Fixtures of the evaluation tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of 24 train, 9 validation and 11 test videos with two labels."""
    # Imported here: it needs a video decoder, which a machine for GPU tests may lack.
    from tests.evaluation.tiny_videos import make_set

    folder = tmp_path_factory.mktemp("tiny_set")
    return make_set(folder, {"train": 24, "validation": 9, "test": 11})
