"""Data: manifests of videos, exact decoding, clip sampling, transforms, sampler and loader.

The names below are imported on first use (PEP 562), so that ``import vjepa.data`` needs neither
PyAV nor Arrow: models, masks and the optimiser step run where neither is installed.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "manifest.manifest": ("Manifest", "LabelCodes"),
    "manifest.index": ("CheckReport", "IndexConfig", "check_manifest", "index_sources"),
    "video.info": ("LimitsConfig", "VideoInfo", "DecodeError"),
    "video.decode": ("DecodedClip", "decode_clip", "decode_frames"),
    "video.inspect": ("inspect_file",),
    "clips.plan": ("ClipConfig", "ClipPlan", "clip_indices", "plan_training"),
    "clips.crops": ("TransformConfig",),
    "clips.views": ("ViewConfig", "plan_views"),
    "clips.cut": ("cut",),
    "clips.dataset": ("Clip", "load_clip", "centre_view"),
    "loader.sampler": ("SampleOrder",),
    "loader.loader": ("LoaderConfig", "ClipBatch", "ClipLoader"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` and hand the name over."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
