"""Between the authors' checkpoint layout and ours, both ways."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.checkpoint.folder import (
    WEIGHTS_FILE,
    find_checkpoint,
    load_folder_encoder,
    load_folder_model,
    read_config,
    require_absent,
    save_model,
    write_aside,
)
from vjepa.checkpoint.released import (
    POSITION_NAMES,
    Which,
    is_decayed,
    load_released_encoder,
    load_released_model,
    released_step,
)
from vjepa.checkpoint.strict import LoadReport
from vjepa.errors import UserError
from vjepa.models import VJEPA, Encoder

SHIPPED = "demo"
"""Name of the only model so far, and of its folder."""


def shipped_weights() -> Path:
    """The checkpoint folder that comes with the package; `README.md` in it is the model card.

    It is a folder like any other of ours: :func:`vjepa.checkpoint.load_encoder` reads it.

    Raises:
        UserError: The installation lacks it.
    """
    return find_checkpoint(Path(str(resources.files("vjepa") / "weights" / SHIPPED)))


@dataclass(frozen=True)
class LoadedModel:
    """A model and how it was loaded.

    Attributes:
        model: float32, on the CPU, in evaluation mode.
        report: What matched.
    """

    model: VJEPA
    report: LoadReport


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and how it was loaded.

    Attributes:
        encoder: float32, on the CPU, in evaluation mode.
        report: What matched.
    """

    encoder: Encoder
    report: LoadReport


def read_model(path: str | Path, num_heads: int | None = None) -> LoadedModel:
    """Load encoder, target encoder and predictor, strictly.

    Args:
        path: A checkpoint folder of ours, a run folder (its latest checkpoint), or the authors'
            ``.pth.tar`` file.
        num_heads: For an authors' file whose size is no preset.

    Returns:
        The model with its report.

    Raises:
        UserError: Nothing there, damaged, foreign, or of another shape.
    """
    path = Path(path)
    if _is_ours(path):
        model, report = load_folder_model(find_checkpoint(path), num_heads)
    else:
        model, report = load_released_model(path, num_heads)
    return LoadedModel(model.eval(), report)


def read_encoder(
    path: str | Path, which: Which = "target", num_heads: int | None = None
) -> LoadedEncoder:
    """Load one encoder, strictly; the rest of the file is not needed and not read.

    Args:
        path: As in :func:`read_model`. A pixel-prediction checkpoint has one encoder, which is
            returned for either `which`.
        which: "target" (the moving average, which the paper evaluates) or "context". There is no
            falling back from one to the other.
        num_heads: For an authors' file whose size is no preset.

    Returns:
        The encoder with its report.

    Raises:
        UserError: As :func:`read_model`, or there is no such encoder.
    """
    path = Path(path)
    if which not in ("target", "context"):
        raise UserError(f"which: {which!r} must be 'target' or 'context'")
    if _is_ours(path):
        encoder, report = load_folder_encoder(find_checkpoint(path), which, num_heads)
    else:
        encoder, report = load_released_encoder(path, which, num_heads)
    return LoadedEncoder(encoder.eval(), report)


def load_model(path: str | Path, num_heads: int | None = None) -> VJEPA:
    """The model of :func:`read_model`."""
    return read_model(path, num_heads).model


def load_encoder(
    path: str | Path, which: Which = "target", num_heads: int | None = None
) -> Encoder:
    """The encoder of :func:`read_encoder`."""
    return read_encoder(path, which, num_heads).encoder


def updates_done(path: str | Path) -> int:
    """Updates that a checkpoint folder or run folder of ours has behind it."""
    return read_config(find_checkpoint(Path(path))).step


def _is_ours(path: Path) -> bool:
    """Whether to read a path as a folder of ours; otherwise it is a file of torch."""
    if path.is_dir() or path.name == WEIGHTS_FILE:
        return True
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path}: weights without their configuration; give the folder that holds "
            f"{WEIGHTS_FILE} and config.json"
        )
    return False


_PREFIX = "module.backbone."
_RELEASED_SUFFIXES = (".tar", ".pth", ".pt")


def convert(src: str | Path, dst: str | Path, num_heads: int | None = None) -> LoadReport:
    """Read a model in one layout and write it in the other.

    Args:
        src: Anything that :func:`vjepa.checkpoint.read_model` reads.
        dst: Ending in .tar, .pth or .pt: the authors' layout; otherwise a checkpoint folder of
            ours. Must not exist.
        num_heads: For an authors' file whose size is no preset.

    Returns:
        The report of reading `src`.

    Raises:
        UserError: `src` cannot be read, or `dst` exists or cannot be written.
    """
    src, dst = Path(src), Path(dst)
    require_absent(dst)
    loaded = read_model(src, num_heads)
    if dst.suffix in _RELEASED_SUFFIXES:
        write_aside(dst, lambda aside: torch.save(released_layout(loaded.model), aside))
    else:
        step = released_step(src) if src.is_file() else updates_done(src)
        save_model(dst, loaded.model, step=step)
    return loaded.report


def released_layout(model: VJEPA) -> dict[str, Any]:
    """A model as the dict that the authors' training writes.

    Names carry their wrappers' prefixes and position codes are stored. The optimiser is there with
    its four groups and no state, the epoch is 0: their loop starts from these weights, it does not
    resume. The number of heads has no place in this layout.

    Args:
        model: The model.

    Returns:
        The dict, ready for ``torch.save``.
    """
    parts = {part: _with_code(model, part) for part in POSITION_NAMES}
    return {
        "encoder": parts["encoder"],
        "predictor": parts["predictor"],
        "opt": _fresh_optimizer(parts["encoder"], parts["predictor"]),
        "scaler": None,
        "target_encoder": parts["target_encoder"],
        "epoch": 0,
        "loss": 0.0,
        "batch_size": 0,
        "world_size": 1,
        "lr": 0.0,
    }


def _with_code(model: VJEPA, part: str) -> OrderedDict[str, Tensor]:
    """One part's tensors, its position code first, names prefixed."""
    module: nn.Module = model.get_submodule(part)
    name = POSITION_NAMES[part]
    tensors = {name: module.get_buffer(name), **module.state_dict()}
    return OrderedDict((_PREFIX + k, v.detach().cpu().contiguous()) for k, v in tensors.items())


def _fresh_optimizer(
    encoder: OrderedDict[str, Tensor], predictor: OrderedDict[str, Tensor]
) -> dict[str, Any]:
    """State dict of an AdamW that has not stepped, over the authors' four groups."""
    groups = []
    for decayed in (True, False):
        for state in (encoder, predictor):
            members = [v for k, v in state.items() if is_decayed(k, v) == decayed]
            extra = {} if decayed else {"WD_exclude": True, "weight_decay": 0}
            groups.append({"params": members, **extra})
    return torch.optim.AdamW(groups).state_dict()
