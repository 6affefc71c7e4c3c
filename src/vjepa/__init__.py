"""V-JEPA (arXiv 2404.08471): learning from video by predicting features.

The names below are loaded on first use, so that ``import vjepa`` costs nothing.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from typing import TYPE_CHECKING

from vjepa.version import __version__

if TYPE_CHECKING:
    from vjepa.data.clips.dataset import load_clip
    from vjepa.evaluation.preprocess import load_encoder, load_model
    from vjepa.evaluation.video_features import extract_features
    from vjepa.jobs.features import load_features
    from vjepa.jobs.pretrain import run as pretrain
    from vjepa.jobs.probe.predict import load_probe

__all__ = [
    "__version__",
    "extract_features",
    "load_clip",
    "load_encoder",
    "load_features",
    "load_model",
    "load_probe",
    "pretrain",
]

_HOMES = {
    "extract_features": "vjepa.evaluation.video_features:extract_features",
    "load_clip": "vjepa.data.clips.dataset:load_clip",
    "load_encoder": "vjepa.evaluation.preprocess:load_encoder",
    "load_features": "vjepa.jobs.features:load_features",
    "load_model": "vjepa.evaluation.preprocess:load_model",
    "load_probe": "vjepa.jobs.probe.predict:load_probe",
    "pretrain": "vjepa.jobs.pretrain:run",
}


def __getattr__(name: str) -> object:
    """Import a public name, or a room (`vjepa.config`), when it is first asked for."""
    if name in _HOMES:
        return pkgutil.resolve_name(_HOMES[name])
    if name.startswith("_") or importlib.util.find_spec(f"vjepa.{name}") is None:
        raise AttributeError(f"module 'vjepa' has no attribute {name!r}")
    return importlib.import_module(f"vjepa.{name}")


def __dir__() -> list[str]:
    """Public names, for completion in a shell."""
    return sorted(__all__)
