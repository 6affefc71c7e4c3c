"""One way in: a path to a model, whatever wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vjepa.errors import UserError
from vjepa.interop.folders import (
    WEIGHTS_FILE,
    find_checkpoint,
    load_folder_encoder,
    load_folder_model,
    read_config,
)
from vjepa.interop.released import Which, load_released_encoder, load_released_model
from vjepa.interop.report import LoadReport
from vjepa.models import VJEPA, Encoder


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
