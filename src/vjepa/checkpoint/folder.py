"""Our own checkpoints: a folder with ``model.safetensors`` and ``config.json``.

Tensors are named ``encoder.*``, ``target_encoder.*``, ``predictor.*``; position codes are computed,
never stored. ``config.json`` holds `format`, `version`, `step`, `objective`, `model` and `run`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vjepa.checkpoint.released import ENCODER_KEYS, Which
from vjepa.checkpoint.strict import LoadReport, compare, fill
from vjepa.config import from_dict, to_dict
from vjepa.errors import UserError
from vjepa.models import VJEPA, Encoder, ModelConfig
from vjepa.version import __version__

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
KIND = "a vjepa checkpoint"
_MAX_CONFIG_BYTES = 1 << 24
_MAX_SIZE = 1 << 20
"""No width, depth or grid of a model comes near this."""
_MAX_RATIO = 1000
_SIZES = (
    "width",
    "depth",
    "heads",
    "image_size",
    "num_frames",
    "channels",
    "num_mask_tokens",
    "mlp_ratio",
)
_STEP_FOLDER = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class CheckpointConfig:
    """What ``config.json`` says.

    Attributes:
        step: Updates done.
        objective: "vjepa" (feature prediction) or "pixel" (pixel prediction).
        model: Sizes of the model.
        run: The resolved configuration of the run that wrote it; empty when there was none.
    """

    step: int
    objective: str
    model: ModelConfig
    run: dict[str, Any]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path means.

    Args:
        path: A checkpoint folder, its ``model.safetensors``, or a run folder, whose latest
            checkpoint is taken.

    Returns:
        A folder with both files.

    Raises:
        UserError: There is none.
    """
    folder = path.parent if path.name == WEIGHTS_FILE else path
    if (folder / "checkpoints").is_dir() and not (folder / CONFIG_FILE).exists():
        steps = {
            int(hit.group(1)): entry
            for entry in (folder / "checkpoints").iterdir()
            if (hit := _STEP_FOLDER.fullmatch(entry.name)) and (entry / WEIGHTS_FILE).is_file()
        }
        if not steps:
            raise UserError(f"{path}: the run has no checkpoint yet")
        folder = steps[max(steps)]
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{path}: not a checkpoint folder: {name} is missing; give a folder with "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}, or a run folder"
            )
    return folder


def read_config(folder: Path) -> CheckpointConfig:
    """Read ``config.json`` of a checkpoint folder.

    Raises:
        UserError: It is not JSON, not ours, or holds a value that cannot be.
    """
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise UserError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes; no config of ours is")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != "vjepa":
        _refuse_foreign(path, content)
    if not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: has no group 'model' with the sizes of the model")
    model = from_dict(ModelConfig, content["model"], source=f"{path} (model)")
    step, objective, run = content.get("step", 0), content.get("objective"), content.get("run")
    if not isinstance(step, int) or objective not in ("vjepa", "pixel"):
        raise UserError(f"{path}: step {step!r} or objective {objective!r} cannot be")
    return CheckpointConfig(step, objective, model, run if isinstance(run, dict) else {})


def _refuse_foreign(path: Path, content: object) -> None:
    """Say what a foreign ``config.json`` belongs to."""
    kind = content.get("model_type", "") if isinstance(content, dict) else ""
    if isinstance(kind, str) and kind.startswith("vjepa2"):
        raise UserError(
            f"{path}: a Hugging Face folder of V-JEPA 2; its rotary position codes are not "
            "supported, use a V-JEPA 1 checkpoint"
        )
    said = f" (model_type {kind})" if kind else ""
    raise UserError(f"{path}: not written by vjepa{said}; give a checkpoint or run folder of ours")


def load_folder_model(folder: Path, num_heads: int | None = None) -> tuple[VJEPA, LoadReport]:
    """Load the whole model of a checkpoint folder.

    Args:
        folder: As :func:`find_checkpoint` returns it.
        num_heads: If given, must be what the folder says.

    Returns:
        The model, float32 on the CPU, and the report.

    Raises:
        UserError: Not a feature-prediction checkpoint, damaged, or of another shape.
    """
    config = _checked_config(folder, num_heads)
    if config.objective != "vjepa":
        raise UserError(
            f"{folder}: a pixel-prediction checkpoint has no target encoder; use load_encoder"
        )
    _require_plausible(config.model, folder / WEIGHTS_FILE)
    with torch.device("meta"):
        model = VJEPA(config.model)
    stored = _read_tensors(folder / WEIGHTS_FILE)
    report = compare(str(folder), _kind(config), stored, model.state_dict())
    fill(model, stored, report)
    model.reset_position_codes()
    return model, report


def load_folder_encoder(
    folder: Path, which: Which, num_heads: int | None = None
) -> tuple[Encoder, LoadReport]:
    """Load one encoder of a checkpoint folder; the rest is not read.

    A pixel-prediction checkpoint has one encoder, which is returned for either `which`.

    Args:
        folder: As :func:`find_checkpoint` returns it.
        which: Which encoder.
        num_heads: If given, must be what the folder says.

    Returns:
        The encoder, float32 on the CPU, and the report.

    Raises:
        UserError: Damaged, or of another shape.
    """
    config = _checked_config(folder, num_heads)
    key = "encoder" if config.objective == "pixel" else ENCODER_KEYS[which]
    _require_plausible(config.model, folder / WEIGHTS_FILE)
    with torch.device("meta"):
        encoder = Encoder(config.model.encoder)
    stored = _read_tensors(folder / WEIGHTS_FILE, prefix=f"{key}.")
    kind = f"{_kind(config)}, its {key.replace('_', ' ')}"
    report = compare(str(folder), kind, stored, encoder.state_dict())
    fill(encoder, stored, report)
    encoder.reset_position_code()
    return encoder, report


def save_model(
    folder: str | Path,
    model: VJEPA,
    *,
    step: int = 0,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a checkpoint folder: weights and configuration, loadable by anyone.

    Written aside, flushed to the disk and renamed: whoever sees the folder sees all of it.

    Args:
        folder: Where; must not exist.
        model: The model; its dtype is kept.
        step: Updates done.
        run: The resolved configuration of the run, plain values.

    Returns:
        The folder.

    Raises:
        UserError: The folder exists, or cannot be written (full disk, no permission).
    """
    folder = Path(folder)
    content = {
        "format": "vjepa",
        "version": __version__,
        "step": step,
        "objective": "vjepa",
        "model": to_dict(model.config),
        "run": dict(run or {}),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}

    def write(aside: Path) -> None:
        aside.mkdir()
        save_file(tensors, aside / WEIGHTS_FILE, metadata={"format": "pt"})
        (aside / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    write_aside(folder, write)
    return folder


def require_absent(destination: Path) -> None:
    """Refuse to write where something is.

    Raises:
        UserError: The destination exists.
    """
    if destination.exists():
        raise UserError(f"{destination}: exists already; give another name or remove it")


def write_aside(destination: Path, write: Callable[[Path], None]) -> None:
    """Write a new file or folder so that it appears complete or not at all.

    Args:
        destination: Must not exist; missing parents are made.
        write: Writes everything to the path that it is given, beside the destination.

    Raises:
        UserError: The destination exists, or the disk refuses.
    """
    require_absent(destination)
    aside = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        for file in sorted(aside.iterdir()) if aside.is_dir() else [aside]:
            _flush(file)
        if aside.is_dir():
            _flush(aside)
        aside.rename(destination)
        _flush(destination.parent)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{destination}: cannot be written ({error})") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.unlink()


def _flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked_config(folder: Path, num_heads: int | None) -> CheckpointConfig:
    config = read_config(folder)
    heads = config.model.encoder.heads
    if num_heads is not None and num_heads != heads:
        raise UserError(f"{folder}: has {heads} heads, not {num_heads}; leave num_heads out")
    return config


def _require_plausible(model: ModelConfig, weights: Path) -> None:
    """Refuse sizes that the weights cannot have, before a model of such sizes is built.

    Raises:
        UserError: A size beyond all models, or more blocks than the file has tensors.
    """
    for part in (model.encoder, model.predictor):
        for name in _SIZES:
            value = getattr(part, name, 0) or 0
            if value > (_MAX_RATIO if name == "mlp_ratio" else _MAX_SIZE):
                raise UserError(f"{weights.parent / CONFIG_FILE}: {name} {value} cannot be")
    try:
        with safe_open(weights, framework="pt") as file:
            num_tensors = len(file.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{weights}: truncated or not a safetensors file ({error}); copy it again"
        ) from error
    depth = max(model.encoder.depth, model.predictor.depth)
    if depth > num_tensors:
        raise UserError(
            f"{weights.parent / CONFIG_FILE}: depth {depth}, but {weights.name} holds "
            f"{num_tensors} tensors"
        )


def _kind(config: CheckpointConfig) -> str:
    pixel = " of pixel prediction" if config.objective == "pixel" else ""
    return f"{KIND}{pixel}, step {config.step}"


def _read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors whose name begins with `prefix`, without it."""
    try:
        with safe_open(path, framework="pt") as file:
            return {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - the handle is not iterable
                if name.startswith(prefix)
            }
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path}: truncated or not a safetensors file ({error}); copy it again"
        ) from error
