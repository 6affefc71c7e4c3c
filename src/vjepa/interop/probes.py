"""The authors' released probes: attentive pooler and linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vjepa.errors import UserError
from vjepa.interop.inference import count_blocks, probe_heads, shape_of
from vjepa.interop.report import LoadReport, compare, fill
from vjepa.interop.torch_files import read_torch_file, tensors_of
from vjepa.models import AttentiveClassifier

_UNUSED = "pooler.cross_attention_block.xattn.proj."
"""Stored by the authors; their code never applies it, it has no gradient and no optimiser state."""


@dataclass(frozen=True)
class LoadedProbe:
    """A released probe.

    Attributes:
        classifier: Tokens [B, N, D] to logits [B, classes].
        report: What was loaded.
        epoch: Epochs it was trained for.
    """

    classifier: AttentiveClassifier
    report: LoadReport
    epoch: int


def read_probe(path: str | Path, num_heads: int | None = None) -> LoadedProbe:
    """Read a released probe file, of one layer or more.

    Args:
        path: The ``.pth.tar`` file. It holds no class names: their order is the authors' own.
        num_heads: Heads, where no preset encoder has this width.

    Returns:
        The probe, float32 on the CPU, with its report.

    Raises:
        UserError: The file cannot be read, is something else, or does not fit.
    """
    path = Path(path)
    content = read_torch_file(path)
    if "classifiers" in content:
        raise UserError(f"{path}: a list of V-JEPA 2 probes; only V-JEPA 1 probes can be read")
    if "classifier" not in content:
        held = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
        raise UserError(f"{path}: not a probe: it has no entry 'classifier'; it holds {held}")
    state = tensors_of(content, "classifier", path)
    classes, width = shape_of(state, "linear.weight", (2,), str(path))
    heads = probe_heads(width, num_heads, str(path))
    depth = count_blocks(state, "pooler.blocks") + 1
    try:
        with torch.device("meta"):
            classifier = AttentiveClassifier(width, heads, classes, depth, variant="released")
    except ValueError as error:
        raise UserError(f"{path}: no probe can be built from it: {error}") from error
    stored = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    report = compare(
        str(path),
        "the authors' probe",
        stored,
        classifier.state_dict(),
        dropped=[name for name in state if name.startswith(_UNUSED)],
        notes=[f"inferred    width {width}, depth {depth}, heads {heads}, {classes} classes"],
    )
    fill(classifier, stored, report)
    epoch = content.get("epoch")
    return LoadedProbe(classifier, report, epoch if isinstance(epoch, int) else 0)


def load_probe(path: str | Path, num_heads: int | None = None) -> AttentiveClassifier:
    """The classifier of :func:`read_probe`."""
    return read_probe(path, num_heads).classifier
