"""A uint8 array that several processes write to, without a name that could be left behind."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor

from vjepa.errors import UserError


class SharedArray:
    """uint8 array in anonymous shared memory.

    The memory belongs to an open file without a name: when the last process that holds it ends,
    however it ends, the memory is free. It can be handed to a process only while that one is being
    started.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Get the memory.

        Args:
            shape: Its shape.

        Raises:
            UserError: There is not so much memory.
        """
        self.shape = shape
        self._file = _anonymous_file()
        try:
            _reserve(self._file, self._size)
        except OSError as error:
            os.close(self._file)
            raise UserError(
                f"loader: no {self._size / 1e9:.1f} GB of shared memory for batches "
                f"({error.strerror or error}): lower loader.prefetch_batches or the batch size"
            ) from error
        self._map()

    @property
    def _size(self) -> int:
        return max(1, math.prod(self.shape))

    def _map(self) -> None:
        self.tensor: Tensor = torch.frombuffer(
            mmap.mmap(self._file, self._size), dtype=torch.uint8, count=self._size
        )[: math.prod(self.shape)].view(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (reduction.DupFd(self._file), self.shape)

    def close(self) -> None:
        """Let go of the memory; tensors made from it stay valid until they are gone."""
        self.tensor = torch.empty(0, dtype=torch.uint8)
        os.close(self._file)


def _attach(handle: Any, shape: tuple[int, ...]) -> SharedArray:
    array = SharedArray.__new__(SharedArray)
    array.shape = shape
    array._file = handle.detach()
    array._map()
    return array


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):  # Linux; not bounded by the size of /dev/shm in a container
        return os.memfd_create("vjepa-batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _reserve(file: int, size: int) -> None:
    """Grow the file; where possible take the memory now rather than die of SIGBUS later."""
    os.ftruncate(file, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
