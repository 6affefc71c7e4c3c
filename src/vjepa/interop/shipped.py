"""The weights that ship with the package: one small model, for the demo and for first steps."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vjepa.interop.folders import find_checkpoint

SHIPPED = "demo"
"""Name of the only model so far, and of its folder."""


def shipped_weights() -> Path:
    """The checkpoint folder that comes with the package; `README.md` in it is the model card.

    It is a folder like any other of ours: :func:`vjepa.interop.load_encoder` reads it.

    Raises:
        UserError: The installation lacks it.
    """
    return find_checkpoint(Path(str(resources.files("vjepa") / "weights" / SHIPPED)))
