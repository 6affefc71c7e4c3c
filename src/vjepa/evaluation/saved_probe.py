"""A probe on disk: everything that is needed to use it on any video, and to refuse misuse.

A folder with ``probe.safetensors`` (weights of the chosen head, named as in the model) and
``probe.json`` (class names, the encoder's hash and config, how clips are cut, the head's form, how
it was chosen, and its metrics). The encoder itself is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vjepa.checkpoint.folder import explained_version, read_weights
from vjepa.checkpoint.strict import load_strictly
from vjepa.config import diff, from_dict, to_dict
from vjepa.errors import UserError
from vjepa.evaluation.frozen import ClipSettings, EncoderIdentity, weights_hash
from vjepa.evaluation.heads import HeadConfig, NearestNeighbours, ProbeHead, build_head
from vjepa.models import EncoderConfig
from vjepa.runtime.files import atomic_path, atomic_write
from vjepa.version import __version__

WEIGHTS_FILE = "probe.safetensors"
CONFIG_FILE = "probe.json"
_FORMAT = "vjepa-probe-1"


@dataclass(frozen=True, kw_only=True)
class SavedProbe:
    """A trained probe without its encoder.

    Attributes:
        classes: Class names in the order of the outputs.
        settings: What is seen of each video and how it is encoded.
        head: The weights: tokens [B, N, D] -> logits [B, classes].
        training: How it was trained and chosen, and its metrics: plain values, for the reader.
        multi_label: Whether a video may have several classes at once.
    """

    label: str
    classes: tuple[str, ...]
    encoder: EncoderIdentity
    settings: ClipSettings
    form: HeadConfig
    head: nn.Module
    training: dict[str, Any]
    multi_label: bool = False

    def save(self, folder: Path) -> None:
        """Write both files; the description, without which there is no probe, comes last."""
        state = {name: t.detach().cpu().contiguous() for name, t in self.head.state_dict().items()}
        description = {
            "format": _FORMAT,
            "version": __version__,
            "label": self.label,
            "classes": list(self.classes),
            "encoder": to_dict(self.encoder),
            **to_dict(self.settings),
            "form": to_dict(self.form),
            "multi_label": self.multi_label,
            "training": self.training,
        }
        with atomic_path(folder / WEIGHTS_FILE) as aside:
            save_file(state, aside, metadata={"format": "pt"})
        atomic_write(folder / CONFIG_FILE, json.dumps(description, indent=1) + "\n")

    def check_encoder(self, encoder: nn.Module, source: str) -> None:
        """Refuse any other encoder than the probe's; `source` says where it comes from."""
        config = encoder.config
        assert isinstance(config, EncoderConfig)
        if config.input != self.encoder.config.input:
            raise UserError(
                f"{source}: the probe was trained on another input "
                f"({'; '.join(diff(self.encoder.config.input, config.input))}); give the "
                "checkpoint it was trained on or train a new probe"
            )
        found = weights_hash(encoder)
        if found != self.encoder.weights_hash:
            raise UserError(
                f"{source}: the probe was trained for another encoder (weights "
                f"{self.encoder.weights_hash[:12]}..., found {found[:12]}...); give the checkpoint "
                f"it was trained on ({self.encoder.path or 'random weights'}) or train a new probe"
            )


def load_saved_probe(folder: Path) -> SavedProbe:
    """Read a probe; everything must fit. Its head is in evaluation mode on the CPU."""
    source = str(folder / CONFIG_FILE)
    described = _read_description(folder / CONFIG_FILE)
    with explained_version(source, described.get("version")):
        return _probe_of(described, folder, source)


def _probe_of(described: Mapping[str, Any], folder: Path, source: str) -> SavedProbe:
    try:
        encoder = from_dict(EncoderIdentity, described["encoder"], source)
        parts = {name: described[name] for name in ("clip", "view", "features")}
        form = from_dict(HeadConfig, described["form"], source)
        classes = tuple(described["classes"])
        return SavedProbe(
            label=described["label"],
            classes=classes,
            encoder=encoder,
            settings=from_dict(ClipSettings, parts, source),
            form=form,
            head=_load_head(form, encoder.config, folder / WEIGHTS_FILE, classes),
            training=described["training"],
            multi_label=bool(described.get("multi_label", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: not a complete probe description ({error!r}); copy the probe again"
        ) from error


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path.parent}: not a probe: {path.name} is missing; give the folder that "
            "`vjepa probe train` wrote"
        )
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); copy the probe again") from error
    values = described if isinstance(described, dict) else {}
    found = values.get("format")
    with explained_version(str(path), values.get("version")):
        if found != _FORMAT:
            remedy = f"expected {_FORMAT!r}; train the probe again"
            raise UserError(f"{path}: format {found!r}, {remedy}")
    return values


def _load_head(
    form: HeadConfig, encoder: EncoderConfig, path: Path, classes: tuple[str, ...]
) -> ProbeHead:
    """The head with its stored weights, every one of which must fit."""
    stored = read_weights(path)
    remembered = stored.get("bank", torch.empty(0)).shape[0]
    if form.kind == "ridge":
        remembered = stored.get("mean", torch.empty(0)).shape[0] // encoder.width
    head = build_head(form, encoder.width, encoder.heads, len(classes), remembered)
    apart = f"{path.name} and {CONFIG_FILE} do not belong together; copy the probe again"
    outputs = stored.get("linear.bias", stored.get("means", stored.get("bias")))
    if outputs is not None and outputs.shape[0] != len(classes):
        raise UserError(
            f"{path}: weights for {outputs.shape[0]} classes, but {CONFIG_FILE} names "
            f"{len(classes)}; {apart}"
        )
    load_strictly(head, stored, str(path), "the head of a probe", remedy=apart)
    if isinstance(head, NearestNeighbours) and bool((head.bank_labels >= len(classes)).any()):
        raise UserError(
            f"{path}: remembers more classes than the {len(classes)} that {CONFIG_FILE} names; "
            f"{apart}"
        )
    return head.eval()
