"""Data: manifests of videos, exact decoding, clip sampling, transforms, sampler and loader.

The names below are imported on first use (PEP 562), so that ``import vjepa.data`` needs neither
PyAV nor Arrow: models, masks and the optimiser step run where neither is installed.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Manifest": "manifest",
    "LabelCodes": "manifest",
    "IndexConfig": "index",
    "index_sources": "index",
    "LimitsConfig": "video_info",
    "VideoInfo": "video_info",
    "DecodeError": "video_info",
    "DecodedClip": "decode",
    "decode_all": "decode",
    "decode_clip": "decode",
    "decode_frames": "decode",
    "probe": "probe_file",
    "CheckReport": "check",
    "check_manifest": "check",
    "RealClips": "real_clips",
    "find_real_clips": "real_clips",
    "fetch_real_clips": "real_clips",
    "ClipConfig": "clip_sampling",
    "clip_indices": "clip_sampling",
    "TransformConfig": "transforms",
    "training_crop": "transforms",
    "center_crop_clip": "transforms",
    "SampleOrder": "sampler",
    "LoaderConfig": "loader",
    "ClipBatch": "loader",
    "ClipLoader": "loader",
    "Clip": "clips",
    "load_clip": "clips",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` and hand the name over."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
