"""Anonymous shared memory: several processes see it, nobody has to remove it."""

from __future__ import annotations

import os

import pytest
import torch

from vjepa.data.loader.prefetch import SharedArray
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool


class _Write:
    def __init__(self, array: SharedArray) -> None:
        self.array = array

    def __call__(self, value: int) -> None:
        self.array.tensor[value] = value


def test_workers_write_into_it() -> None:
    array = SharedArray((3, 4))
    assert array.tensor.tolist() == [[0] * 4] * 3
    pool = WorkerPool(_Write(array), 2, timeout_seconds=60.0)
    try:
        left = {pool.submit(value) for value in (1, 2)}
        while left:
            left -= {outcome.ticket for outcome in pool.wait(5.0)}
    finally:
        pool.close()
    assert array.tensor.tolist() == [[0] * 4, [1] * 4, [2] * 4]
    kept = array.tensor[2]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    array.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208
    assert kept.tolist() == [2] * 4
    assert array.tensor.numel() == 0


def test_too_little_memory_is_a_user_error(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"shared memory.*No space left.*prefetch_batches"):
        SharedArray((1 << 20,))


def test_an_empty_shape_is_possible() -> None:
    array = SharedArray((0, 3))
    assert array.tensor.shape == (0, 3)
    assert array.tensor.dtype == torch.uint8
    array.close()
