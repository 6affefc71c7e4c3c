"""A probe on disk: everything that is needed to use it on any video, and to refuse misuse.

A folder with ``probe.safetensors`` (weights of the chosen head, named as in the model) and
``probe.json`` (class names, the encoder's hash and config, how clips are cut, the head's form, how
it was chosen, and its metrics). The encoder itself is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vjepa.checkpoint.folder import explained_version, read_weights
from vjepa.checkpoint.strict import load_strictly
from vjepa.config import diff, from_dict, to_dict
from vjepa.errors import UserError
from vjepa.evaluation.frozen import ClipSettings, EncoderIdentity, weights_hash
from vjepa.evaluation.heads import HeadConfig, NearestNeighbours, ProbeHead, build_head
from vjepa.evaluation.labels import file_kind
from vjepa.models import EncoderConfig
from vjepa.runtime.files import atomic_path, atomic_write, read_json, save_tensors
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

    @property
    def kind(self) -> str | None:
        """What it was trained on: ``video`` or ``image``; None: a probe of before does not say."""
        kind = self.training.get("kind")
        return kind and file_kind(kind)

    def save(self, folder: Path) -> None:
        """Write both files; the description, without which there is no probe, comes last."""
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
        write_head(self.head, folder / WEIGHTS_FILE, folder / CONFIG_FILE, description)


def check_encoder(wanted: EncoderIdentity, encoder: nn.Module, source: str, what: str) -> None:
    """Refuse any other encoder than the `wanted` one of a `what`; it comes from `source`."""
    config = encoder.config
    assert isinstance(config, EncoderConfig)
    apart, found = "for another encoder", weights_hash(encoder)
    if config.input != wanted.config.input:
        apart = f"on another input ({'; '.join(diff(wanted.config.input, config.input))})"
    elif config.heads != wanted.config.heads:  # which no tensor tells
        apart += f" ({wanted.config.heads} attention heads, found {config.heads})"
    elif found != wanted.weights_hash:
        apart += f" (weights {wanted.weights_hash[:12]}..., found {found[:12]}...)"
    else:
        return
    raise UserError(
        f"{source}: the {what} was trained {apart}; give the checkpoint it was trained on "
        f"({wanted.path or 'random weights'}) or train a new {what}"
    )


def write_head(
    head: nn.Module, weights: Path, config: Path, description: Mapping[str, Any]
) -> None:
    """Write weights, and then the description without which they are nothing."""
    state = {name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}
    with atomic_path(weights) as aside:
        save_tensors(aside, state, {"format": "pt"})
    atomic_write(config, json.dumps(description, indent=1) + "\n")


@contextmanager
def read_description(path: Path, what: str, form: str, job: str) -> Generator[dict[str, Any]]:
    """What stands in the description of a `what` (a probe, a detector), to be made into one.

    UserError: it is missing, no JSON, of another format than `form`, or lacks something.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent}: not a {what}: {path.name} is missing; give the folder that "
            f"`vjepa {job}` wrote"
        )
    values = read_json(path, f"copy the {what} again")
    found = values.get("format")
    with explained_version(str(path), values.get("version")):
        if found != form:
            remedy = f"expected {form!r}; train the {what} again"
            raise UserError(f"{path}: format {found!r}, {remedy}")
        try:
            yield values
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: not a complete {what} description ({error!r}); copy the {what} again"
            ) from error


def refuse_draws(folder: Path) -> None:
    """Refuse a folder that holds a probe for each draw of the labels, where one is wanted."""
    draws = sorted(folder.glob(f"split_*/{CONFIG_FILE}"))
    if draws:
        several = f"{len(draws)} probes, each on its own draw of the labels"
        raise UserError(f"{folder}: holds {several}; give one, such as {draws[0].parent}")


def load_saved_probe(folder: Path) -> SavedProbe:
    """Read a probe; everything must fit. Its head is in evaluation mode on the CPU."""
    refuse_draws(folder)
    path = folder / CONFIG_FILE
    source = str(path)
    with read_description(path, "probe", _FORMAT, "probe train") as described:
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
