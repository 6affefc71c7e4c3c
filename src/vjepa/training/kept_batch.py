"""A batch at which training stopped, kept for people to look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor


def keep_batch(batch: Any, path: Path) -> bool:
    """Write the arrays of a batch as safetensors.

    Args:
        batch: A dataclass with tensors and arrays, for example a ``ClipBatch``.
        path: The file.

    Returns:
        Whether there was anything to write.
    """
    if not dataclasses.is_dataclass(batch):
        return False
    arrays: dict[str, Tensor] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, Tensor):
            arrays[field.name] = value.detach().cpu().contiguous()
    save_file(arrays, path)
    return bool(arrays)
