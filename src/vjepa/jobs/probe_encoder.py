"""The frozen encoder of a probe: found, loaded, and known by the hash of its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vjepa.config import from_dict
from vjepa.data.clip_sampling import ClipConfig
from vjepa.errors import UserError
from vjepa.evaluation.clip_reading import ViewConfig
from vjepa.evaluation.fingerprints import weights_hash
from vjepa.evaluation.probe_file import EncoderIdentity
from vjepa.interop import find_checkpoint, read_config, read_encoder
from vjepa.jobs.probe_config import EncoderSourceConfig
from vjepa.models import Encoder, EncoderConfig
from vjepa.runtime.seeds import seed_torch


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is only looked through.

    Attributes:
        encoder: In evaluation mode, without gradients, on the CPU.
        identity: Its hash, sizes and origin.
        source: What to call it in messages.
    """

    encoder: Encoder
    identity: EncoderIdentity
    source: str


def open_encoder(config: EncoderSourceConfig) -> FrozenEncoder:
    """Load the encoder of a probe, or make the random one of the same architecture.

    Raises:
        UserError: No path is given, or nothing can be loaded from it.
    """
    if config.path is None:
        raise UserError(
            "encoder.path: not set; give a run folder, a checkpoint or a released .pth.tar file"
        )
    which = "context" if config.which == "context" else "target"
    encoder = read_encoder(config.path, which, config.num_heads).encoder
    if config.which == "random":
        return random_encoder(encoder.config, config.seed, str(config.path))
    return _frozen(
        encoder,
        EncoderIdentity(
            weights_hash=weights_hash(encoder),
            config=encoder.config,
            path=str(config.path),
            which=config.which,
        ),
    )


def random_encoder(config: EncoderConfig, seed: int, path: str | None = None) -> FrozenEncoder:
    """An encoder that has learnt nothing: the baseline beside which every number must stand.

    Args:
        config: Its sizes.
        seed: Of its weights; torch's own generator is left as it was.
        path: The checkpoint whose architecture it has, for the reader of the result.
    """
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, "random encoder")
        encoder = Encoder(config)
    identity = EncoderIdentity(
        weights_hash=weights_hash(encoder), config=config, path=path, which="random", seed=seed
    )
    return _frozen(encoder, identity)


def reopen_encoder(identity: EncoderIdentity, path: Path | None = None) -> FrozenEncoder:
    """The encoder that a probe was trained on.

    Args:
        identity: From the probe file.
        path: Where it lies now, if not where it lay then.

    Returns:
        The encoder; whether its weights are the right ones is for
        :meth:`vjepa.evaluation.probe_file.ProbeFile.check_encoder` to say.

    Raises:
        UserError: Nothing can be loaded from the path.
    """
    if path is None and identity.which == "random":
        return random_encoder(identity.config, identity.seed or 0, identity.path)
    found = Path(identity.path or "") if path is None else path
    if not found.exists():
        raise UserError(
            f"{found}: the probe's encoder is not there any more; say where it is (--encoder)"
        )
    which = "context" if identity.which == "context" else "target"
    loaded = read_encoder(found, which, identity.config.heads).encoder
    return _frozen(loaded, replace(identity, path=str(found)))


def pretraining_clip(config: EncoderSourceConfig, encoder: EncoderConfig) -> ClipConfig:
    """How clips were taken in the encoder's pretraining; the paper's way where a file does not say.

    Raises:
        UserError: The checkpoint's record of its run cannot be read.
    """
    if config.path is not None and config.path.is_dir():
        folder = find_checkpoint(config.path)
        data: Any = read_config(folder).run.get("data")
        if isinstance(data, dict) and isinstance(data.get("clip"), dict):
            clip = from_dict(ClipConfig, data["clip"], f"{folder}: data.clip")
            return replace(clip, clips_per_video=1)
    return ClipConfig(num_frames=encoder.num_frames)


def centre_view(encoder: EncoderConfig) -> ViewConfig:
    """The centre crop of the encoder's image size."""
    return ViewConfig(crop_size=encoder.image_size)


def _frozen(encoder: Encoder, identity: EncoderIdentity) -> FrozenEncoder:
    origin = identity.path or "random weights"
    return FrozenEncoder(encoder.eval().requires_grad_(False), identity, origin)
