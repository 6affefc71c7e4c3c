"""Reading files of ``torch.save`` that come from outside, without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa.checkpoint.strict import plain_names
from vjepa.errors import UserError
from vjepa.runtime.files import stand_in

_OLD_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""How files of torch before 1.6 begin: its magic number, pickled."""
_DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
)
"""What unpickling raises, by Python's documentation and by trial, when bytes were changed."""
_FOUND = re.compile(r"GLOBAL ([\w.]+)|(?:class|global|type) `?<?'?([\w.]+\.\w+)")
"""What torch names in its refusal, among advice that does not fit here."""


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a dict saved by torch; only tensors and plain values are let through.

    An ``argparse.Namespace``, in which others keep the settings of their training, is plain too:
    it holds attributes and runs nothing.

    Tensors are mapped from the file, not read, so that the parts nobody asks for cost nothing: use
    them before the file changes.

    Raises:
        UserError: No such file; truncated; not of torch; holds other objects; holds no dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    is_zip = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        start = file.read(len(_OLD_START))
    if not is_zip and start.startswith(b"PK"):
        raise UserError(f"{path}: the file is truncated; copy or download it again")
    if not is_zip and start != _OLD_START:
        what = stand_in(path) or "truncated or not saved by torch; a checkpoint is expected"
        raise UserError(f"{path}: {what}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        found = _FOUND.search(str(error))
        what = f"holds {found[1] or found[2]}" if found else "the list of its content is damaged"
        raise UserError(
            f"{path}: not a checkpoint of tensors and plain values: {what}; anything else is "
            "refused because loading it could run code: save it without (a NumPy number as float)"
        ) from error
    except _DAMAGED as error:
        raise UserError(
            f"{path}: truncated or not saved by torch ({_first_line(error)}); copy or download it "
            "again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, give a checkpoint, which holds a dict"
        )
    return content


def tensors_of(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Tensor]:
    """The state dict under a key, names without the training wrappers' prefixes.

    ``module.`` comes from the distributed wrapper, ``_orig_mod.`` from compiling, ``backbone.``, at
    the front only, from the multi-mask wrapper.
    """
    state = content.get(key)
    if state is None:
        raise UserError(f"{path}: has no entry '{key}'; it holds {', '.join(map(str, content))}")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: the entry '{key}' is not a dict of tensors")
    plain = plain_names(map(str, state), f"{path} ({key})", front="backbone.")
    return {short: state[name] for short, name in plain.items()}


def entries_of(content: Mapping[str, Any]) -> str:
    """What a file holds, for a message."""
    return ", ".join(map(str, list(content)[:8])) or "nothing"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    shown = "".join(filter(str.isprintable, lines[0])) if lines else type(error).__name__
    return shown.rstrip(".")[:120]
