"""How much memory a process holds, and a limit to what it may take in addition."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import environ
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vjepa.errors import UserError
from vjepa.runtime.distributed import world

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceSetup:
    """A device and the precision of the computation on it; weights are always float32."""

    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which matrix products run in `precision`.

        bfloat16 has the exponent range of float32, so no loss scaling goes with it.
        """
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def set_up_device(name: DeviceName = "auto", precision: Precision = "float32") -> DeviceSetup:
    """Choose the device; of several processes on a machine each takes its own GPU.

    On a CPU the process keeps memory that it frees (:func:`keep_freed_memory`): encoding and
    training otherwise fault the same activations in again and again.

    Args:
        name: ``auto`` takes a GPU when there is one.
        precision: Of matrix products and attention.

    Returns:
        The device and precision.

    Raises:
        UserError: A GPU is asked for and there is none (for this process), or it cannot compute in
            bfloat16.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError(
            "device: cuda was asked for, but torch finds no usable GPU; "
            "use --training.device cpu or auto, or see `vjepa doctor`"
        )
    device = torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
    place = world()
    if device.type == "cuda" and place.size > 1:
        if place.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK={place.local_rank}: this machine shows {torch.cuda.device_count()} "
                "GPUs; start one process for each GPU (--nproc-per-node)"
            )
        device = torch.device("cuda", place.local_rank)
        torch.cuda.set_device(device)
    if device.type == "cuda" and precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise UserError(
            f"precision: {torch.cuda.get_device_name()} does not compute in bfloat16; use float32"
        )
    if device.type == "cpu":
        keep_freed_memory()
    return DeviceSetup(device, precision)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`, without waiting for the work that a GPU still has to do.

    A copy from ordinary memory makes the host wait until the GPU has come to it, so that the GPU
    idles while the next kernels are launched. From page-locked memory it is queued like a kernel;
    torch keeps that memory until the copy is done. `tensor` itself is read before this returns, so
    a loader may use its memory again.

    Args:
        tensor: Of any shape and dtype.
        device: Where to.

    Returns:
        The same numbers; `tensor` itself if it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def compile_blocks(modules: Sequence[nn.Module]) -> int:
    """Compile the transformer blocks of modules in place; names and weights stay as they are.

    Each member of a ``ModuleList`` directly below a module is compiled on its own: one compilation
    serves all blocks of equal shape, and what surrounds them (gathering of tokens, masks) stays
    plain Python.

    Args:
        modules: For example encoder, target encoder and predictor.

    Returns:
        The number of compiled blocks.

    Raises:
        UserError: No C++ compiler for the CPU.
    """
    on_cpu = any(p.device.type == "cpu" for module in modules for p in module.parameters())
    if on_cpu and not any(map(shutil.which, (environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            "compile: no C++ compiler (g++ or clang++) found, which torch.compile needs on a CPU; "
            "install one, or use --training.compile false"
        )
    blocks = _blocks(modules)
    for block in blocks:
        block.compile()
    _LOGGER.info("compiling %d blocks; the first steps are slow", len(blocks))
    return len(blocks)


def checkpoint_blocks(modules: Iterable[nn.Module]) -> int:
    """Let the transformer blocks of modules keep only their inputs for the backward pass, in place.

    The rest is computed again there: the same numbers, less memory, about a third more work. Call
    it before compiling and before any wrapping.

    Args:
        modules: Trained modules with their blocks in a ``ModuleList`` directly below.

    Returns:
        The number of blocks.
    """
    blocks = _blocks(modules)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)


def _blocks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The members of every ``ModuleList`` directly below the modules."""
    return [
        block
        for module in modules
        for child in module.children()
        if isinstance(child, nn.ModuleList)
        for block in child
    ]


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_BLOCK = 1 << 30


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process use freed memory again instead of giving it back to the system.

    By default glibc maps every block above 32 MB anew and gives free memory at its end back, so
    each update, and each attention over a long clip, faults the same pages in again. Kept, they are
    faulted in once, as torch does on a GPU; the process then holds its peak of memory until it
    ends. Results do not change.

    Args:
        environment: The process environment, or a substitute; a user's own ``MALLOC_...`` setting
            of either threshold stays.

    Returns:
        Whether the setting is in force: False without glibc, or where the user has set another.
    """
    if not sys.platform.startswith("linux"):
        return False
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & environment.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both are tried, whatever the first one answers; 1 is success.
    answers = [
        mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(_NEVER)),
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_LARGEST_BLOCK)),
    ]
    return answers == [1, 1]


_GIGABYTE = 1e9


def resident_bytes(pid: int | None = None) -> int:
    """Memory that a process holds in RAM now, in bytes (Linux); 0 where that cannot be known.

    Args:
        pid: The process; None: this one.
    """
    return _statm(pid, 1)


def _statm(pid: int | None, place: int) -> int:
    """One of the page counts of ``/proc/<pid>/statm`` (0: address space, 1: resident), in bytes."""
    file = Path("/proc", "self" if pid is None else str(pid), "statm")
    try:
        pages = int(file.read_text(encoding="ascii").split()[place])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
