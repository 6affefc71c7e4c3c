"""Between whole tensors and the part of them that this process holds (FSDP2's DTensors)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; of a sharded one it is gathered, so all processes must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another one of its shape is held: on its device, in its type and shards.

    Args:
        tensor: The same whole values in every process, or sharded like `like` already.
        like: For example the parameter that shall take them.

    Returns:
        A fresh tensor; nothing is sent.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(like, copy=True)
    moved = tensor.to(device=like.to_local().device, dtype=like.dtype, copy=True)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def load_whole(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a module that may be sharded.

    Args:
        module: Takes them in place.
        weights: Its state dict, the same in every process; every name must be there.
    """
    with torch.no_grad():
        for name, target in module.state_dict().items():
            target.copy_(part_like(weights[name], target))


def cpu_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the CPU's memory, each sharded as the tensor is, for writing in the background."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    plain = StagingOptions(
        use_pinned_memory=False,
        use_shared_memory=False,
        use_async_staging=False,
        use_non_blocking_copy=False,
    )
    stager = DefaultStager(plain)
    try:
        staged = stager.stage(dict(tensors))
    finally:
        stager.close()
    assert isinstance(staged, dict)
    return staged
