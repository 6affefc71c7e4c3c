"""Training state: the optimiser's moments by parameter name, whole or in shards, and their files.

Under FSDP2 every process holds a part of each parameter and its moments, as a DTensor.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from vjepa.checkpoint.strict import LoadReport, compare, plain_name, require_finite, shapes
from vjepa.errors import UserError
from vjepa.runtime.distributed import ProcessGroup

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_MOMENTS = ("exp_avg", "exp_avg_sq")
Moments = dict[str, dict[str, Tensor]]
"""By full parameter name: ``step`` (0-d float32), ``exp_avg`` and ``exp_avg_sq`` (its shape), the
last not for Muon's matrices."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one module that are all decayed or all not decayed."""

    module: str
    decayed: bool
    parameters: dict[str, nn.Parameter]
    """By full name, for example ``encoder.blocks.0.norm1.bias``, in the module's own order."""


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: at least 2-D, and no ``bias`` in the name."""
    return parameter.ndim > 1 and "bias" not in name


def parameter_groups(modules: Mapping[str, nn.Module]) -> list[ParameterGroup]:
    """The trained parameters in the reference's order: decayed of all modules, then not decayed.

    An empty group stays, so that a group's place is always the same.
    """
    groups = []
    for decayed in (True, False):
        for module_name, module in modules.items():
            members = {
                f"{module_name}.{plain_name(name)}": parameter
                for name, parameter in module.named_parameters()
                if parameter.requires_grad and is_decayed(name, parameter) == decayed
            }
            groups.append(ParameterGroup(module_name, decayed, members))
    return groups


def named_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trained parameters by full name, in the order in which the optimiser numbers them."""
    named: dict[str, nn.Parameter] = {}
    for group in parameter_groups(modules):
        named |= group.parameters
    return named


def optimizer_state(optimizer: torch.optim.Optimizer, modules: Mapping[str, nn.Module]) -> Moments:
    """The moments of each parameter that has been updated at least once; not copied."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in named_parameters(modules).items()
        if optimizer.state.get(parameter)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    modules: Mapping[str, nn.Module],
    state: Mapping[str, Mapping[str, Tensor]],
    source: str,
) -> None:
    """Put a state by parameter name into the optimiser; every name and shape must fit.

    Parameters that the state does not name start afresh, as they do in the reference (those that
    never get a gradient have no state).

    Raises:
        UserError: A name that is no trained parameter, or a moment of another shape.
    """
    parameters = named_parameters(modules)
    state = {plain_name(name): moments for name, moments in state.items()}
    by_muon = {p for group in optimizer.param_groups if group.get("muon") for p in group["params"]}
    for name, moments in state.items():
        if name not in parameters:
            raise UserError(
                f"{source}: optimiser state of {name!r}, which is no trained parameter of this "
                "model; build the model of that run, or start without its optimiser state"
            )
        wanted = _MOMENTS[:1] if parameters[name] in by_muon else _MOMENTS
        if moments.keys() - {"step"} != set(wanted):
            raise UserError(
                f"{source}: optimiser state of {name!r} is of another optimiser "
                f"({', '.join(sorted(moments))}); set optim.optimizer as that run has it, or start "
                "without its optimiser state"
            )
        for key in wanted:
            found, expected = tuple(moments[key].shape), tuple(parameters[name].shape)
            if found != expected:
                raise UserError(
                    f"{source}: optimiser state {key} of {name!r} has shape {found}, "
                    f"the model's parameter {expected}; build the model of that run"
                )
    optimizer.state.clear()
    for name, moments in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            # The fused kernel wants the count beside the parameter and in float32; old files hold
            # a plain number.
            "step": torch.tensor(
                float(moments["step"]), dtype=torch.float32, device=parameter.device
            ),
            **{key: part_like(moments[key], parameter) for key in _MOMENTS if key in moments},
        }


def is_sharded(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, without loading what makes them: that takes a second."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; of a sharded one it is gathered, so all processes must ask together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A fresh copy, held as another tensor of its shape is: on its device, in its type and shards.

    `tensor` is the same whole one in every process, or sharded like `like` already; nothing is
    sent.
    """
    if not is_sharded(like) or is_sharded(tensor):
        return tensor.to(like, copy=True)
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(device=like.to_local().device, dtype=like.dtype, copy=True)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def load_whole(
    modules: Mapping[str, nn.Module],
    weights: Mapping[str, Tensor],
    source: str,
    remedy: str,
    dropped: Sequence[str] = (),
) -> LoadReport:
    """Load whole weights, the same in every process, into modules that may be sharded.

    Raises:
        UserError: Something is missing, unexpected, of another shape or not finite; nothing was
            loaded.
    """
    state = nn.ModuleDict(modules).state_dict()
    targets = {plain_name(name): target for name, target in state.items()}
    report = compare(source, "weights", shapes(weights), shapes(targets), dropped)
    report.require_complete(remedy)
    require_finite(source, weights)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(part_like(weights[name], target))
    return report


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


def write_state(
    folder: Path, state: Mapping[str, Mapping[str, Tensor]], group: ProcessGroup
) -> None:
    """Write moments through torch.distributed.checkpoint, each process its part."""
    import torch.distributed.checkpoint as dcp

    flat = {f"{name}/{key}": value for name, keys in state.items() for key, value in keys.items()}
    writer = dcp.FileSystemWriter(folder)
    with _quiet():
        dcp.save(
            flat, storage_writer=writer, process_group=group.host_group, no_dist=group.size == 1
        )


def read_state(folder: Path, parameters: Mapping[str, Tensor], group: ProcessGroup) -> Moments:
    """Read what :func:`write_state` wrote, by however many processes.

    DCP's index file is a pickle: training state is only read from folders that the user trusts,
    after their integrity has been checked. Weights alone never need it. Moments of those
    `parameters` that are sharded come sharded in the same way, all others whole and on the CPU.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(folder)
    flat: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            like = parameters.get(plain_name(name.rpartition("/")[0]))
            if is_sharded(like) and like.shape == entry.size:
                flat[name] = torch.empty_like(like, requires_grad=False)
            else:
                flat[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with _quiet():
        dcp.load(
            flat, storage_reader=reader, process_group=group.host_group, no_dist=group.size == 1
        )
    state: Moments = {}
    for name, value in flat.items():
        parameter, key = name.rsplit("/", 1)
        state.setdefault(parameter, {})[key] = value
    return state


@contextmanager
def _quiet() -> Generator[None]:
    """Without the warning that no process group exists: alone, that is meant so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
