"""Conversion of checkpoints between the authors' layout and ours, verified by reading back."""

from __future__ import annotations

from pathlib import Path

import torch

from vjepa.checkpoint import LoadReport, convert, read_model
from vjepa.errors import UserError


def run(src: Path, dst: Path, num_heads: int | None = None) -> LoadReport:
    """Convert a model and compare what was written with what was read, bit for bit.

    Args:
        src: The authors' file, a checkpoint folder or a run folder.
        dst: A file in the authors' layout (.tar, .pth, .pt) or a folder of ours; must not exist.
        num_heads: For an authors' file whose size is no preset.

    Returns:
        The report of reading `src`.

    Raises:
        UserError: `src` cannot be read, `dst` cannot be written, or they differ.
    """
    report = convert(src, dst, num_heads)
    before = read_model(src, num_heads).model
    after = read_model(dst, before.config.encoder.heads).model
    written = after.state_dict()
    for name, tensor in before.state_dict().items():
        if not torch.equal(tensor, written[name]):
            raise UserError(f"{dst}: {name} differs from {src} after writing; the disk may be bad")
    return report
