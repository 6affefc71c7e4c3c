"""Probes by the authors, of V-JEPA 1 and 2, and those in Hugging Face folders."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from vjepa.checkpoint.huggingface import hub_tensors, read_hub_config
from vjepa.checkpoint.inference import buildable, count_blocks, heads_of, shape_of
from vjepa.checkpoint.strict import LoadReport, load_strictly
from vjepa.checkpoint.torch_files import entries_of, read_torch_file, tensors_of
from vjepa.errors import UserError
from vjepa.models import AttentiveClassifier
from vjepa.models.anticipation import AnticipationClassifier
from vjepa.models.pooling import PoolerVariant

_UNUSED = "pooler.cross_attention_block.xattn.proj."
"""Stored in probes of V-JEPA 1; their code never applies it, it has no gradient."""
_SECOND_HEADS = 16
"""Of the probes of V-JEPA 2, whatever the encoder's."""
_HUB_NORM_EPS = 1e-6


def read_probe(
    path: str | Path, num_heads: int | None = None, index: int = 0, *, as_transformers: bool = False
) -> tuple[AttentiveClassifier, LoadReport]:
    """Read a released probe (tokens [B, N, D] to logits [B, classes]), float32 on the CPU.

    Args:
        path: The authors' file of V-JEPA 1 (``.pth.tar``) or 2 (``.pt``), neither of which holds
            class names: their order is the authors' own; or a Hugging Face folder with a
            classifier, whose class names :func:`hub_classes` gives.
        num_heads: Attention heads. None: those of the encoder of its width, and 16 in V-JEPA 2,
            with which all of its probes were trained.
        index: Which of the probes that a file of V-JEPA 2 holds, one for each setting tried.
        as_transformers: Of a folder: compute what transformers does, with as many heads as the
            encoder has and another epsilon; for g these are not the heads of the training.

    Raises:
        UserError: The file cannot be read, is something else, or does not fit.
    """
    state, kind, variant, notes = _stored(Path(path), index)
    if any(name.startswith("action_classifier.") for name in state):
        raise UserError(
            f"{path}: a probe that anticipates actions: say which of its answers (--question "
            "action); in Python read it with vjepa.checkpoint.read_anticipation_probe"
        )
    if as_transformers and not Path(path).is_dir():
        raise UserError(f"{path}: as_transformers is for a Hugging Face folder; leave it out")
    classes, width = shape_of(state, "linear.weight", (2,), str(path))
    heads = num_heads
    if as_transformers and num_heads is None:
        heads = int(read_hub_config(Path(path))["num_attention_heads"])
    heads = _heads(width, heads, variant, str(path))
    depth = count_blocks(state, "pooler.blocks") + 1
    with buildable("probe", str(path)), torch.device("meta"):
        probe = AttentiveClassifier(width, heads, classes, depth, variant=variant)
    if as_transformers:
        for module in probe.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = _HUB_NORM_EPS
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    inferred = f"inferred    width {width}, depth {depth}, heads {heads}, {classes} classes"
    report = load_strictly(
        probe,
        kept,
        str(path),
        kind,
        dropped=[name for name in state if name not in kept],
        notes=[inferred, *notes],
        remedy="nothing was loaded, use the file of this kind of probe as it was published",
    )
    return probe, report


def read_anticipation_probe(
    path: str | Path, num_heads: int | None = None, index: int = 0
) -> tuple[AnticipationClassifier, LoadReport]:
    """Read a probe of V-JEPA 2 that says what will be done (EPIC-KITCHENS-100).

    Arguments and errors are those of :func:`read_probe`. Which numbers its classes have follows
    from the file of annotations that it was trained on, as the authors enumerate it.
    """
    state, kind, variant, notes = _stored(Path(path), index)
    named = [(re.fullmatch(r"(\w+)_classifier\.weight", n), t) for n, t in state.items()]
    classes = {found[1]: tensor.shape[0] for found, tensor in named if found}
    if "action" not in classes or variant != "released_2":
        raise UserError(
            f"{path}: not a probe that anticipates actions; leave question out (read_probe)"
        )
    width = shape_of(state, "action_classifier.weight", (2,), str(path))[1]
    heads = _heads(width, num_heads, variant, str(path))
    depth = count_blocks(state, "pooler.blocks") + 1
    with buildable("probe", str(path)), torch.device("meta"):
        probe = AnticipationClassifier(width, heads, classes, depth)
    counts = ", ".join(f"{count} of {name}" for name, count in classes.items())
    inferred = f"inferred    width {width}, depth {depth}, heads {heads}; classes: {counts}"
    return probe, load_strictly(probe, state, str(path), kind, notes=[inferred, *notes])


def hub_classes(folder: str | Path) -> tuple[str, ...]:
    """Class names of a Hugging Face folder with a classifier, in the order of its outputs."""
    labels = read_hub_config(Path(folder))["id2label"]
    try:
        return tuple(str(labels[str(number)]) for number in range(len(labels)))
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder}: config.json names no classes; add id2label to it") from error


def _stored(path: Path, index: int) -> tuple[dict[str, Tensor], str, PoolerVariant, list[str]]:
    """A probe's tensors by our names, what it is, its kind of pooler, and notes for the report."""
    if path.is_dir():
        tensors = hub_tensors(path)
        state = {n: t for n, t in tensors.items() if n.startswith(("pooler.", "linear."))}
        if not state:
            raise UserError(f"{path}: holds no classifier; give a folder of a probe")
        return state, "the probe of a Hugging Face folder", "released_2", []
    content = read_torch_file(path)
    notes = [f"trained     {content.get('epoch', 'unknown number of')} epochs"]
    if "classifiers" in content:
        several = content["classifiers"]
        if not isinstance(several, list) or not 0 <= index < len(several):
            count = len(several) if isinstance(several, list) else 0
            raise UserError(
                f"{path}: holds {count} probes; there is no number {index}; choose another"
            )
        state = tensors_of({"classifiers": several[index]}, "classifiers", path)
        kind = f"a V-JEPA 2 probe by its authors, number {index} of {len(several)}"
        return state, kind, "released_2", notes
    if "classifier" not in content:
        raise UserError(
            f"{path}: not a probe: it has no 'classifier' but {entries_of(content)}; give a "
            "probe's file"
        )
    return tensors_of(content, "classifier", path), "the authors' probe", "released", notes


def _heads(width: int, num_heads: int | None, variant: PoolerVariant, source: str) -> int:
    if num_heads is None and variant == "released_2" and width % _SECOND_HEADS == 0:
        return _SECOND_HEADS
    return heads_of("a probe", width, None, num_heads, source)
