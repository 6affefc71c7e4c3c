"""Data: manifests of videos, exact decoding, clip sampling, transforms, sampler and loader.

The names below are imported on first use (PEP 562), so that ``import vjepa.data`` needs neither
PyAV nor Arrow: models, masks and the optimiser step run where neither is installed.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Manifest": "manifest.manifest",
    "LabelCodes": "manifest.manifest",
    "IndexConfig": "manifest.index",
    "index_sources": "manifest.index",
    "LimitsConfig": "video.info",
    "VideoInfo": "video.info",
    "DecodeError": "video.info",
    "DecodedClip": "video.decode",
    "decode_clip": "video.decode",
    "decode_frames": "video.decode",
    "inspect_file": "video.inspect",
    "CheckReport": "manifest.check",
    "check_manifest": "manifest.check",
    "ClipConfig": "clips.plan",
    "clip_indices": "clips.plan",
    "TransformConfig": "clips.crops",
    "ViewConfig": "clips.views",
    "ClipPlan": "clips.plan",
    "plan_training": "clips.plan",
    "plan_views": "clips.views",
    "cut": "clips.cut",
    "centre_view": "clips.load",
    "SampleOrder": "loader.sampler",
    "LoaderConfig": "loader.loader",
    "ClipBatch": "loader.loader",
    "ClipLoader": "loader.loader",
    "Clip": "clips.load",
    "load_clip": "clips.load",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` and hand the name over."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
