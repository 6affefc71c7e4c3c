"""A probe on disk: everything that is needed to use it on any video, and to refuse misuse.

A folder with ``probe.safetensors`` (weights of the chosen head, named as in the model) and
``probe.json`` (class names, the encoder's hash and config, how clips are cut, the head's form, how
it was chosen, and its metrics). The encoder itself is not in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vjepa.config import config_dataclass, from_dict, to_dict
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import weights_hash
from vjepa.evaluation.heads import (
    HeadConfig,
    NearestNeighbours,
    ProbeHead,
    build_head,
    build_lookup,
)
from vjepa.models import EncoderConfig
from vjepa.runtime.device import Precision
from vjepa.version import __version__

WEIGHTS_FILE = "probe.safetensors"
CONFIG_FILE = "probe.json"
_FORMAT = "vjepa-probe-1"


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """Which encoder a probe reads.

    Attributes:
        weights_hash: SHA-256 of its weights; the probe works with no other.
        config: Its sizes.
        path: Where it was found, for the reader of the file; None for random weights.
        which: ``target``, ``context`` or ``random`` weights.
        seed: Of random weights; None otherwise.
        timm: Name of the model in timm, for image models of that library; None for ours. `path` is
            then the file of its weights.
    """

    weights_hash: str
    config: EncoderConfig
    path: str | None
    which: str
    seed: int | None = None
    timm: str | None = None


@config_dataclass
class FeatureSettings:
    """How features are computed; what the same number needs besides the same clips.

    Attributes:
        precision: Of the encoder's computation.
        storage: In which features are kept.
        batch_size: Clips per forward call.
        shard_clips: About how many clips are dealt with together.
        compile: Whether the encoder is compiled, which may change the last bits.
    """

    precision: Precision = "float32"
    storage: Precision = "float32"
    batch_size: int = 32
    shard_clips: int = 512
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class ProbeFile:
    """A trained probe.

    Attributes:
        label: Name of the label that it tells.
        classes: Class names in the order of the outputs.
        encoder: The encoder that it reads.
        clip, view: Which frames, which segments and which part of them.
        features: How the encoder is run.
        form: The head's form.
        head: The weights: tokens [B, N, D] -> logits [B, classes].
        multi_label: Whether a video may have several classes at once.
        training: How it was trained and chosen, and its metrics: plain values, for the reader.
    """

    label: str
    classes: tuple[str, ...]
    encoder: EncoderIdentity
    clip: ClipConfig
    view: ViewConfig
    features: FeatureSettings
    form: HeadConfig
    head: ProbeHead
    training: dict[str, Any]
    multi_label: bool = False

    def save(self, folder: Path) -> None:
        """Write both files; the folder must exist."""
        state = {name: t.detach().cpu().contiguous() for name, t in self.head.state_dict().items()}
        description = {
            "format": _FORMAT,
            "version": __version__,
            "label": self.label,
            "classes": list(self.classes),
            "encoder": {**asdict(self.encoder), "config": to_dict(self.encoder.config)},
            "clip": to_dict(self.clip),
            "view": to_dict(self.view),
            "features": asdict(self.features),
            "form": to_dict(self.form),
            "multi_label": self.multi_label,
            "training": self.training,
        }
        save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(description, indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def check_encoder(self, encoder: nn.Module, source: str) -> None:
        """Refuse any other encoder than the one that the probe was trained on.

        Args:
            encoder: The encoder at hand.
            source: Where it comes from, for the message.

        Raises:
            UserError: Its weights are others.
        """
        found = weights_hash(encoder)
        if found != self.encoder.weights_hash:
            raise UserError(
                f"{source}: the probe was trained for another encoder (weights "
                f"{self.encoder.weights_hash[:12]}..., found {found[:12]}...); give the checkpoint "
                f"it was trained on ({self.encoder.path or 'random weights'}) or train a new probe"
            )


def load_probe_file(folder: Path) -> ProbeFile:
    """Read a probe; everything must fit.

    Args:
        folder: What :meth:`ProbeFile.save` wrote into.

    Returns:
        The probe, its head in evaluation mode on the CPU.

    Raises:
        UserError: A file is missing, truncated or foreign, or weights do not fit the description
            (for example another number of classes).
    """
    described = _read_description(folder / CONFIG_FILE)
    source = str(folder / CONFIG_FILE)
    try:
        encoder_fields: dict[str, Any] = dict(described["encoder"])
        encoder_fields["config"] = from_dict(EncoderConfig, encoder_fields["config"], source)
        encoder = EncoderIdentity(**encoder_fields)
        form = from_dict(HeadConfig, described["form"], source)
        clip = from_dict(ClipConfig, described["clip"], source)
        view = from_dict(ViewConfig, described["view"], source)
        features = from_dict(FeatureSettings, described["features"], source)
        classes = tuple(described["classes"])
        label, training = described["label"], described["training"]
        multi_label = bool(described.get("multi_label", False))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a complete probe description ({error!r})") from error
    head = _load_head(form, encoder.config, folder / WEIGHTS_FILE, classes)
    return ProbeFile(
        label=label,
        classes=classes,
        encoder=encoder,
        clip=clip,
        view=view,
        features=features,
        form=form,
        head=head.eval(),
        training=training,
        multi_label=multi_label,
    )


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
    found = described.get("format") if isinstance(described, dict) else None
    if found != _FORMAT:
        raise UserError(f"{path}: format {found!r}, expected {_FORMAT!r}")
    return described


def _load_head(
    form: HeadConfig, encoder: EncoderConfig, path: Path, classes: tuple[str, ...]
) -> ProbeHead:
    """The head with its stored weights, every one of which must fit."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: truncated or missing ({error}); copy the probe again") from error
    head: ProbeHead
    if form.is_trained:
        head = build_head(form, encoder.width, encoder.heads, len(classes))
    else:
        remembered = stored.get("bank", torch.empty(0)).shape[0]
        head = build_lookup(form, encoder.width, len(classes), remembered)
    wanted = {name: tensor.shape for name, tensor in head.state_dict().items()}
    found = {name: tensor.shape for name, tensor in stored.items()}
    if found != wanted:
        outputs = stored.get("linear.bias", stored.get("means", torch.empty(0))).shape[0]
        if outputs != len(classes):
            raise UserError(
                f"{path}: weights for {outputs} classes, but {CONFIG_FILE} names {len(classes)}; "
                "the two files do not belong together"
            )
        differing = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise UserError(f"{path}: tensor {differing!r} does not fit the form in {CONFIG_FILE}")
    head.load_state_dict(stored)
    if isinstance(head, NearestNeighbours) and bool((head.bank_labels >= len(classes)).any()):
        raise UserError(
            f"{path}: remembers more classes than the {len(classes)} that {CONFIG_FILE} names; "
            "the two files do not belong together"
        )
    return head
