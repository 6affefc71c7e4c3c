"""A GPU that is not there: shapes, types and devices are computed, numbers are not.

torch's ``FakeTensorMode`` runs a forward pass on pretended CUDA tensors on any machine. A device
mix-up fails as on a real GPU. What needs a number on the host (``int(x.max())``, ``.item()``,
``nonzero``) raises ``DataDependentOutputException`` or ``DynamicOutputShapeException``: on a real
GPU it would make the host wait for the device. Copies that wait are caught here in addition.

What cannot be rehearsed: the backward pass (autograd's engine asks the driver for the device), the
kernels themselves with what they take and what they compute, memory, speed, and compiled blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vjepa.masking import MaskSampler, TokenMasks

Net = TypeVar("Net", bound=nn.Module)

GPU = torch.device("cuda", 0)


class HostWaitsError(AssertionError):
    """A copy between host and device that makes the host wait for the device."""


class _RefuseWaitingCopies(TorchDispatchMode):
    """A copy to the host waits; one to the device does, unless it says ``non_blocking``."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        source = target = torch.device("cpu")
        may_pass = False
        if func is torch.ops.aten._to_copy.default:
            source = args[0].device
            target = torch.device(kwargs.get("device") or source)
            may_pass = kwargs.get("non_blocking", False)
        elif func is torch.ops.aten.copy_.default:
            source, target = args[1].device, args[0].device
            may_pass = len(args) > 2 and args[2]
        if source.type != target.type and (target.type == "cpu" or not may_pass):
            raise HostWaitsError(f"a copy from {source} to {target} makes the host wait")
        return func(*args, **kwargs)


def _on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of real tensors in the host's memory, which numbers may be read from."""

    @functools.wraps(function)
    def real(*args: object, **kwargs: object) -> object:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return real


@contextmanager
def pretended_gpu(*modules: nn.Module) -> Generator[None]:
    """Modules built on the meta device are on the GPU, with weights, in this block.

    What a process does once is done before it begins: weights and position codes.
    """
    patches = [
        # Otherwise autocast for CUDA turns itself off.
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        # Page-locked memory needs the driver; a fake tensor has no memory to lock.
        mock.patch.object(Tensor, "pin_memory", lambda self: self),
        # Masks are drawn and cut before they go to the device.
        mock.patch.object(MaskSampler, "sample", _on_the_host(MaskSampler.sample)),
        mock.patch.object(TokenMasks, "slice", _on_the_host(TokenMasks.slice)),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        with FakeTensorMode(allow_non_fake_inputs=True):
            for module in modules:
                module.to_empty(device=GPU)
                for part in module.modules():
                    if hasattr(part, "reset_position_code"):
                        part.reset_position_code()
            with _RefuseWaitingCopies():
                yield


def on_meta(build: Callable[[], Net]) -> Net:
    """A module without memory, for :func:`pretended_gpu`."""
    with torch.device("meta"):
        return build()


def is_on_gpu(*tensors: Tensor) -> bool:
    """Whether all tensors are on the pretended GPU."""
    return all(tensor.device == GPU for tensor in tensors)
