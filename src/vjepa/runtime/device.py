"""Device and precision, compiled and recomputed blocks, seeds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import environ
from typing import Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vjepa.counter_random import derive_seed
from vjepa.errors import UserError
from vjepa.runtime.distributed import world
from vjepa.runtime.process import keep_freed_memory

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
PrecisionName = Literal["auto", "float32", "bfloat16"]

_SHOWN_GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

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


def set_up_device(name: DeviceName = "auto", precision: PrecisionName = "float32") -> DeviceSetup:
    """Choose the device; of several processes on a machine each takes its own GPU.

    `auto` computes in bfloat16 where the device has instructions for it. On a CPU the process keeps
    memory that it frees (:func:`keep_freed_memory`).

    Raises:
        UserError: A GPU is asked for and there is none (for this process), or it cannot compute in
            bfloat16.
    """
    if name not in (known := get_args(DeviceName)):
        raise UserError(f"device: {name!r} must be one of {', '.join(known)}")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError(
            "device: cuda was asked for, but torch finds no usable GPU; "
            "ask for cpu or auto, or see `vjepa doctor`"
        )
    device = torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
    place = world()
    if device.type == "cuda" and place.size > 1:
        count = torch.cuda.device_count()
        # A scheduler may show each process its own GPU alone. NCCL refuses one that is shared.
        number = 0 if count == 1 and any(map(environ.get, _SHOWN_GPUS)) else place.local_rank
        if number >= count:
            raise UserError(
                f"LOCAL_RANK={place.local_rank}: this machine shows {count} "
                "GPUs; start one process for each GPU (--nproc-per-node)"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if device.type == "cuda" and precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise UserError(
            f"precision: {torch.cuda.get_device_name()} does not compute in bfloat16; use float32"
        )
    if device.type == "cpu":
        keep_freed_memory()
    if precision == "auto":
        # Without such instructions bfloat16 is computed, too, but more slowly.
        if device.type == "cuda":
            is_quick = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            known = getattr(torch.cpu, "get_capabilities", dict)()
            is_quick = known.get("amx_bf16") or known.get("avx512_bf16")
        precision = "bfloat16" if is_quick else "float32"
    return DeviceSetup(device, precision)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`, without waiting for the work that a GPU still has to do.

    A copy from ordinary memory makes the host wait until the GPU has come to it, so that the GPU
    idles while the next kernels are launched. From page-locked memory it is queued like a kernel;
    torch keeps that memory until the copy is done. `tensor` itself is read before this returns, so
    a loader may use its memory again; it is returned if it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def compile_blocks(modules: Sequence[nn.Module]) -> int:
    """Compile the transformer blocks of modules in place and count them; names and weights stay.

    Each member of a ``ModuleList`` directly below a module is compiled on its own: one compilation
    serves all blocks of equal shape, and what surrounds them (gathering of tokens, masks) stays
    plain Python.

    Raises:
        UserError: No C++ compiler for the CPU.
    """
    on_cpu = any(p.device.type == "cpu" for module in modules for p in module.parameters())
    if on_cpu and not any(map(shutil.which, (environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            "compile: no C++ compiler (g++ or clang++) found, which torch.compile needs on a CPU; "
            "install one, or leave it out"
        )
    blocks = _blocks(modules)
    for block in blocks:
        block.compile()
    _LOGGER.info("compiling %d blocks; the first steps are slow", len(blocks))
    return len(blocks)


def checkpoint_blocks(modules: Iterable[nn.Module]) -> int:
    """Let the transformer blocks of modules keep only their inputs for the backward pass, in place.

    The rest is computed again there: the same numbers, less memory, about a third more work. Call
    it before compiling and before any wrapping. Returns the number of blocks.
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


def seed_torch(seed: int, purpose: str, ordinal: int = 0) -> None:
    """Seed torch's generators of the CPU and of the GPUs in use, purely by the three arguments.

    A training step seeds with its own number, so that dropout and the like depend on the step
    alone and a resumed run draws what the uninterrupted one would have drawn. `purpose` is what the
    draws are for, for example ``"weights"`` or ``"step"``, `ordinal` the number of the update.
    """
    value = derive_seed(seed, purpose, ordinal)
    torch.default_generator.manual_seed(value)
    # torch.manual_seed would also queue a call, with a formatted stack trace, for each kind of
    # device that is not in use: half a millisecond a step.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
