"""A synthetic labelled video set: real handwritten digits that move over textured backgrounds.

Two independent labels stand on every clip: `motion` (what object A does) and `appearance` (which
digit A is). It is made by a simulator and says so: never report it as a set of camera footage.
"""

from vjepa.demo.synthetic import (
    APPEARANCE_CLASSES,
    MOTION_CLASSES,
    SPLITS,
    SyntheticClip,
    SyntheticConfig,
    clip_labels,
    render_clip,
)
from vjepa.demo.synthetic_files import clip_path, write_synthetic_set

__all__ = [
    "APPEARANCE_CLASSES",
    "MOTION_CLASSES",
    "SPLITS",
    "SyntheticClip",
    "SyntheticConfig",
    "clip_labels",
    "clip_path",
    "render_clip",
    "write_synthetic_set",
]
