"""Hashes that say what a number was computed with: weights, and the settings around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's weights, independent of device, file format and key order.

    Args:
        module: Its ``state_dict`` is hashed: names, types, shapes and values.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    state: Mapping[str, Tensor] = module.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu").contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def settings_hash(settings: Mapping[str, object]) -> str:
    """SHA-256 of plain settings (numbers, texts, lists, mappings), independent of key order.

    Returns:
        64 hexadecimal digits.
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
