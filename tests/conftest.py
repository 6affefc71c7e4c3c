"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One torch thread: decoding beside a spinning thread pool is several times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference implementation's recorded numbers."""
    candidates = [os.environ.get("VJEPA_GOLDEN"), _ROOT.parent / "shared" / "golden"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "pretrain_forward.safetensors").is_file():
            return Path(candidate).resolve()
    pytest.skip("golden numbers not found: set VJEPA_GOLDEN to their folder")
