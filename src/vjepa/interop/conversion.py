"""Between the authors' checkpoint layout and ours, both ways."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.interop.folders import require_absent, save_model, write_aside
from vjepa.interop.loading import read_model, updates_done
from vjepa.interop.released import POSITION_NAMES
from vjepa.interop.released_training import is_decayed, released_step
from vjepa.interop.report import LoadReport
from vjepa.models import VJEPA

_PREFIX = "module.backbone."
_RELEASED_SUFFIXES = (".tar", ".pth", ".pt")


def convert(src: str | Path, dst: str | Path, num_heads: int | None = None) -> LoadReport:
    """Read a model in one layout and write it in the other.

    Args:
        src: Anything that :func:`vjepa.interop.read_model` reads.
        dst: Ending in .tar, .pth or .pt: the authors' layout; otherwise a checkpoint folder of
            ours. Must not exist.
        num_heads: For an authors' file whose size is no preset.

    Returns:
        The report of reading `src`.

    Raises:
        UserError: `src` cannot be read, or `dst` exists or cannot be written.
    """
    src, dst = Path(src), Path(dst)
    require_absent(dst)
    loaded = read_model(src, num_heads)
    if dst.suffix in _RELEASED_SUFFIXES:
        write_aside(dst, lambda aside: torch.save(released_layout(loaded.model), aside))
    else:
        step = released_step(src) if src.is_file() else updates_done(src)
        save_model(dst, loaded.model, step=step)
    return loaded.report


def released_layout(model: VJEPA) -> dict[str, Any]:
    """A model as the dict that the authors' training writes.

    Names carry their wrappers' prefixes and position codes are stored. The optimiser is there with
    its four groups and no state, the epoch is 0: their loop starts from these weights, it does not
    resume. The number of heads has no place in this layout.

    Args:
        model: The model.

    Returns:
        The dict, ready for ``torch.save``.
    """
    parts = {part: _with_code(model, part) for part in POSITION_NAMES}
    return {
        "encoder": parts["encoder"],
        "predictor": parts["predictor"],
        "opt": _fresh_optimizer(parts["encoder"], parts["predictor"]),
        "scaler": None,
        "target_encoder": parts["target_encoder"],
        "epoch": 0,
        "loss": 0.0,
        "batch_size": 0,
        "world_size": 1,
        "lr": 0.0,
    }


def _with_code(model: VJEPA, part: str) -> OrderedDict[str, Tensor]:
    """One part's tensors, its position code first, names prefixed."""
    module: nn.Module = model.get_submodule(part)
    name = POSITION_NAMES[part]
    tensors = {name: module.get_buffer(name), **module.state_dict()}
    return OrderedDict((_PREFIX + k, v.detach().cpu().contiguous()) for k, v in tensors.items())


def _fresh_optimizer(
    encoder: OrderedDict[str, Tensor], predictor: OrderedDict[str, Tensor]
) -> dict[str, Any]:
    """State dict of an AdamW that has not stepped, over the authors' four groups."""
    groups = []
    for decayed in (True, False):
        for state in (encoder, predictor):
            members = [v for k, v in state.items() if is_decayed(k, v) == decayed]
            extra = {} if decayed else {"WD_exclude": True, "weight_decay": 0}
            groups.append({"params": members, **extra})
    return torch.optim.AdamW(groups).state_dict()
