"""The files of one checkpoint folder: complete or not there, and verified before use.

A folder is written aside in the same place (``….partial``), every file and folder is synced to the
disk, and one rename makes it appear. Its ``manifest.json`` holds size and SHA-256 of every file, so
that a truncated or altered checkpoint is refused instead of half-loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from vjepa.errors import UserError
from vjepa.runtime.distributed import Team
from vjepa.runtime.sharding import part_like

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
STATE_FOLDER = "state"
TRAINER_FILE = f"{STATE_FOLDER}/trainer.json"
MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = "vjepa-checkpoint"
PARTIAL_SUFFIX = ".partial"

NestedTensors = Mapping[str, Mapping[str, Tensor]]


@contextmanager
def explained_failure(folder: Path) -> Generator[None]:
    """Turn what goes wrong while a checkpoint is written into one line for people.

    Args:
        folder: Where it shall stand.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    try:
        yield
    # DCP's exception derives from BaseException and hides the OSError behind it.
    except (OSError, SafetensorError, CheckpointException) as error:
        full = _disk_is_full(folder.parent, error)
        reason = "the disk is full" if full else _first_line(error)
        raise UserError(
            f"{folder}: the checkpoint could not be written: {reason}; earlier checkpoints are "
            "untouched: free some space (or mend the disk) and resume"
        ) from error


def partial_folder(folder: Path) -> Path:
    """Where a folder is written before it gets its name."""
    return folder.with_name(folder.name + PARTIAL_SUFFIX)


def publish(folder: Path) -> None:
    """Give a completely written partial folder its name: every file listed, synced, renamed.

    Args:
        folder: Where it shall stand; must not exist.
    """
    partial = partial_folder(folder)
    _write_manifest(partial)
    _sync_tree(partial)
    partial.rename(folder)
    _sync(folder.parent)


def write_model(path: Path, weights: NestedTensors) -> None:
    """Write the weights of modules as safetensors.

    Args:
        path: The file.
        weights: By module; a tensor ``x`` of module ``encoder`` is stored as ``encoder.x``.
    """
    save_file(
        {
            f"{module}.{name}": tensor.detach().cpu().contiguous()
            for module, tensors in weights.items()
            for name, tensor in tensors.items()
        },
        path,
    )


def read_model(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Read weights into modules, sharded or not; every name and shape must fit.

    Args:
        path: As :func:`write_model` wrote it.
        modules: The modules that shall take them.

    Raises:
        UserError: A tensor is missing, unexpected or of another shape; nothing is loaded then.
    """
    targets = {
        f"{module_name}.{name}": tensor
        for module_name, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    expected = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    with safe_open(path, framework="pt") as file, torch.no_grad():
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _require_equal_shapes(path, found, expected)
        for name, target in targets.items():
            target.copy_(part_like(file.get_tensor(name), target))


def write_state(folder: Path, state: NestedTensors, team: Team) -> None:
    """Write an optimiser's state through torch.distributed.checkpoint; each process its part.

    Args:
        folder: Is made.
        state: Moments by parameter name, sharded or the same in every process.
        team: All processes.
    """
    flat = {f"{name}/{key}": value for name, keys in state.items() for key, value in keys.items()}
    with _quiet():
        dcp.save(
            flat,
            storage_writer=dcp.FileSystemWriter(folder),
            process_group=team.host_group,
            no_dist=team.size == 1,
        )


def read_state(
    folder: Path, parameters: Mapping[str, Tensor], team: Team
) -> dict[str, dict[str, Tensor]]:
    """Read what :func:`write_state` wrote, by however many processes.

    DCP's index file is a pickle: training state is only read from folders that the user trusts,
    after their integrity has been checked. Weights alone never need it.

    Args:
        folder: The state folder of a verified checkpoint.
        parameters: The trained parameters by name; moments of sharded ones come sharded in the same
            way, all others whole and on the CPU.
        team: All processes.

    Returns:
        Moments by parameter name.
    """
    reader = dcp.FileSystemReader(folder)
    flat: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            like = parameters.get(name.rpartition("/")[0])
            if isinstance(like, DTensor) and like.shape == entry.size:
                flat[name] = torch.empty_like(like, requires_grad=False)
            else:
                flat[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with _quiet():
        dcp.load(flat, storage_reader=reader, process_group=team.host_group, no_dist=team.size == 1)
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        parameter, key = name.rsplit("/", 1)
        state.setdefault(parameter, {})[key] = value
    return state


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as readable JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: The file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; this is not a complete checkpoint of ours"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; this is not a checkpoint of ours")
    return content


def verify_checkpoint(folder: Path) -> None:
    """Compare every file with the integrity file.

    Args:
        folder: A checkpoint, for example ``runs/a/checkpoints/step_00001000``.

    Raises:
        UserError: A file is missing, has another size (truncated) or other content, or the folder
            is no checkpoint of ours; the message names the file and the reason.
    """
    manifest = read_json(folder / MANIFEST_FILE)
    files = manifest.get("files")
    if manifest.get("format") != MANIFEST_FORMAT or not isinstance(files, dict):
        raise UserError(f"{folder / MANIFEST_FILE}: is not the integrity file of a checkpoint")
    for name in (MODEL_FILE, CONFIG_FILE, TRAINER_FILE):
        if name not in files:
            raise UserError(f"{folder / MANIFEST_FILE}: does not list {name}; not a checkpoint")
    for name, recorded in files.items():
        path = folder / name
        if not (isinstance(recorded, dict) and {"bytes", "sha256"} <= recorded.keys()):
            raise UserError(f"{folder / MANIFEST_FILE}: its entry of {name} is damaged")
        if not path.is_file():
            raise UserError(f"{path}: is missing from the checkpoint")
        size = path.stat().st_size
        if size != recorded["bytes"]:
            raise UserError(f"{path}: has {size} bytes instead of {recorded['bytes']} (truncated?)")
        if _sha256(path) != recorded["sha256"]:
            raise UserError(f"{path}: content was altered or damaged (SHA-256 differs)")


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": files})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _quiet() -> Generator[None]:
    """Without the warning that no process group exists: alone, that is meant so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _disk_is_full(folder: Path, error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # The libraries below wrap or lose the error number; text and free space are what is left.
    if "No space left" in str(error):
        return True
    return folder.is_dir() and shutil.disk_usage(folder).free < 2**20


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _require_equal_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    reshaped = [n for n in expected if n in found and found[n] != expected[n]]
    problems = []
    if reshaped:
        name = reshaped[0]
        problems.append(
            f"{len(reshaped)} tensors of another shape ({name} is {list(found[name])}, "
            f"the model wants {list(expected[name])})"
        )
    if missing:
        problems.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected (first: {unexpected[0]})")
    if problems:
        raise UserError(
            f"{path}: does not fit the model: {'; '.join(problems)}; "
            "use the model config stored beside it in config.json"
        )
