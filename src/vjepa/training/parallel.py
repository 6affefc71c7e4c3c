"""One task on several processes: torch's own DDP or FSDP2, or neither.

The batch is cut over the processes. Every process computes what its part contributes to the batch's
loss, gradients are added up, and every process makes the same update. So the number of processes
changes the speed and, up to rounding, nothing else.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

from vjepa.config import config_dataclass
from vjepa.errors import UserError
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks import Task
from vjepa.training.schedules import Count, Positive

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

_LOGGER = logging.getLogger(__name__)

# Per trained parameter: weight, gradient and two moments in float32; per averaged one: the weight.
_BYTES_TRAINED, _BYTES_AVERAGED = 16, 4
_LARGEST_SHARE_OF_GPU = 0.5


@config_dataclass
class DistributedConfig:
    """How several processes train together; without a launcher none of it is used."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """`ddp`: every process holds all weights and moments; `fsdp`: each holds a part (FSDP2); auto:
    fsdp where they would fill more than half of a GPU, else ddp."""
    shard_size: Count | None = None
    """FSDP: so many processes share one copy of the weights, and copies are kept equal as in DDP
    (HSDP), for example the GPUs of one machine; null: all share one."""
    timeout_minutes: Positive = 15.0
    """A process that leaves the others waiting longer has hung, and the run stops and names it; it
    must be longer than a checkpoint or an evaluation takes."""

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.strategy != "fsdp":
            raise ValueError(f"shard_size: is used by strategy fsdp only, not {self.strategy}")


def parallelise(
    task: Task, group: ProcessGroup, config: DistributedConfig, setup: DeviceSetup
) -> DistributedDataParallel | None:
    """Make a task, on its device and with equal weights everywhere, ready for several processes.

    Under FSDP its trained and averaged modules are sharded in place, each block and the rest; under
    DDP it gives the wrapper to call in place of the task.
    """
    if group.size == 1:
        return None
    if choose_strategy(task, config, setup.device) == "fsdp":
        shard_size = config.shard_size or group.size
        _shard(task, group.size, shard_size, setup)
        copies = group.size // shard_size
        said = "one copy of the weights" if copies == 1 else f"{copies} copies of the weights"
        _LOGGER.info("%d processes: FSDP2, %s", group.size, said)
        return None
    from torch.nn.parallel import DistributedDataParallel

    _LOGGER.info("%d processes: DDP", group.size)
    with warnings.catch_warnings():
        # torch 2.14 calls the argument by another name, which older ones do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            task,
            device_ids=[setup.device] if setup.device.type == "cuda" else None,
            broadcast_buffers=False,  # they are fixed
            gradient_as_bucket_view=True,
            find_unused_parameters=task.has_unused,
        )


def choose_strategy(
    task: Task, config: DistributedConfig, device: torch.device
) -> Literal["ddp", "fsdp"]:
    """What ``strategy: auto`` means for this task on this device."""
    if config.strategy != "auto":
        return config.strategy
    numbers = [(p.numel(), p.requires_grad) for m in _modules(task) for p in m.parameters()]
    needed = sum(n * (_BYTES_TRAINED if trained else _BYTES_AVERAGED) for n, trained in numbers)
    return "fsdp" if num_shards(config, 2, device, needed) > 1 else "ddp"


def num_shards(
    config: DistributedConfig, size: int, device: torch.device, state_bytes: float
) -> int:
    """Into how many parts `size` processes cut weights and moments of so many bytes."""
    if size == 1:
        return 1
    is_cut = config.strategy == "fsdp"
    if config.strategy == "auto" and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        is_cut = state_bytes > _LARGEST_SHARE_OF_GPU * memory
    return (config.shard_size or size) if is_cut else 1


def _modules(task: Task) -> list[nn.Module]:
    """The trained modules, then the averaged ones."""
    return [*task.trainable().values(), *(target for _, target in task.ema_pairs())]


def _shard(task: Task, size: int, shard_size: int, setup: DeviceSetup) -> None:
    """FSDP2 over every block and over the rest of every module, moving averages included."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if size % shard_size:
        raise UserError(
            f"distributed.shard_size: {shard_size} does not divide the {size} processes; "
            "use a divisor, for example the number of GPUs of one machine"
        )
    # Nobody changes what the modules return in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    kind = setup.device.type
    if shard_size == size:
        mesh = init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    else:
        shape = (size // shard_size, shard_size)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("copy", "shard"))
    policy = MixedPrecisionPolicy(
        # Autocast decides in which type each operation runs; this halves what is sent.
        param_dtype=torch.bfloat16 if setup.precision == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for module in _modules(task):
        for part in module.modules():
            if isinstance(part, nn.LayerNorm) and setup.precision == "bfloat16":
                part.forward = partial(_layer_norm, part)
        lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
        for part in (*(block for blocks in lists for block in blocks), module):
            # Resharded after each forward: moving averages and checkpoints meet shards only.
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def _layer_norm(norm: nn.LayerNorm, input: torch.Tensor) -> torch.Tensor:
    """A layer norm whose weights were gathered in bfloat16, in float32: [..., D] -> [..., D].

    On a GPU autocast does the same; on a CPU it leaves norms alone, and they refuse such weights.
    """
    weight, bias = (None if x is None else x.float() for x in (norm.weight, norm.bias))
    return functional.layer_norm(input.float(), norm.normalized_shape, weight, bias, norm.eps)
