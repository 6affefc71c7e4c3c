"""The frozen encoder of a probe: found, loaded, and known by the hash of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vjepa.checkpoint import locate, read_encoder
from vjepa.checkpoint.timm_models import load_timm_encoder
from vjepa.errors import UserError
from vjepa.evaluation.frozen import EncoderIdentity, FrozenEncoder, weights_hash
from vjepa.jobs.probe.config import EncoderSourceConfig
from vjepa.models import Encoder, EncoderConfig
from vjepa.models.encoder import FrameEncoder
from vjepa.runtime.device import compile_blocks, seed_torch


def open_encoder(config: EncoderSourceConfig) -> FrozenEncoder:
    """Load the encoder of a probe, or make the random one of the same architecture."""
    if config.timm is not None:
        return _open_timm(config.timm, config.timm_weights, config.seed)
    if config.path is None:
        raise UserError(
            "encoder.path: not set; give a run, a checkpoint, a released .pth.tar file or `demo`"
        )
    which = "context" if config.which == "context" else "target"
    encoder, report = read_encoder(config.path, which, config.num_heads)
    if config.is_random:
        fresh = untrained_encoder(encoder.config, config.seed)
        return _freeze(fresh, str(config.path), "random", config.seed)
    return _freeze(encoder, str(config.path), which, None, file=report.source)


def untrained_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """An encoder that has learnt nothing: the baseline beside which every number must stand.

    Torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, "random encoder")
        return Encoder(config)


def reopen_encoder(identity: EncoderIdentity, path: Path | None = None) -> FrozenEncoder:
    """The encoder that a probe was trained on; `path` says where it lies now, if elsewhere.

    Whether its weights are the right ones is for
    :meth:`vjepa.evaluation.saved_probe.SavedProbe.check_encoder` to say.
    """
    sizes, which = identity.config, identity.which
    if identity.timm is not None:
        weights = path or (Path(identity.path) if identity.path else None)
        return _open_timm(identity.timm, weights, identity.seed or 0)
    if path is None and which == "random":
        seed = identity.seed or 0
        return _freeze(untrained_encoder(sizes, seed), identity.path, which, seed)
    found = Path(identity.path or "") if path is None else path
    if not locate(found).exists():
        raise UserError(
            f"{found}: the probe's encoder is not there any more; say where it is (--encoder)"
        )
    encoder, report = read_encoder(
        found, "context" if which == "context" else "target", sizes.heads
    )
    image_size, num_frames = sizes.image_size, sizes.num_frames
    if replace(encoder.config, image_size=image_size, num_frames=num_frames) == sizes:
        encoder = _rebuilt(encoder, image_size, num_frames)
    return _freeze(encoder, str(found), which, identity.seed, file=report.source)


def fit_to_clips(
    frozen: FrozenEncoder, config: EncoderSourceConfig, num_frames: int, image_size: int
) -> FrozenEncoder:
    """The encoder with the position code that is wanted for clips of a size.

    It stays the same where the code is stretched, or the size is its own, or frames are seen alone.
    """
    sizes = frozen.identity.config
    same = (sizes.num_frames, sizes.image_size) == (num_frames, image_size)
    if config.position_code == "stretched" or same or not isinstance(frozen.encoder, Encoder):
        return frozen
    encoder = _rebuilt(frozen.encoder, image_size, num_frames).eval()
    return replace(
        frozen, encoder=encoder, identity=replace(frozen.identity, config=encoder.config)
    )


def compile_encoder(encoder: nn.Module) -> None:
    """Compile a frozen encoder in place: blocks of ours, the whole of another library's model."""
    ours = [module for module in encoder.modules() if isinstance(module, Encoder)]
    if ours:
        compile_blocks(ours)
    else:
        encoder.compile()


def _rebuilt(encoder: Encoder, image_size: int, num_frames: int) -> Encoder:
    """The same weights with the position code of another size; itself where it has that size."""
    if (image_size, num_frames) == (encoder.config.image_size, encoder.config.num_frames):
        return encoder
    if encoder.config.is_image_model != (num_frames == 1):
        return encoder
    return encoder.rebuilt_for(image_size=image_size, num_frames=num_frames)


def _open_timm(name: str, weights: Path | None, seed: int) -> FrozenEncoder:
    encoder = load_timm_encoder(name, weights, seed)
    if weights is None:
        return _freeze(encoder, None, "random", seed, name)
    return _freeze(encoder, str(weights), "target", None, name, str(weights))


def _freeze(
    encoder: Encoder | FrameEncoder,
    path: str | None,
    which: str,
    seed: int | None,
    timm: str | None = None,
    file: str | None = None,
) -> FrozenEncoder:
    """Freeze an encoder; an image model is shown one frame after another."""
    config, found = encoder.config, encoder
    if config.is_image_model and not isinstance(encoder, FrameEncoder):
        found = FrameEncoder(encoder, config)
    identity = EncoderIdentity(
        weights_hash=weights_hash(found),
        config=config,
        path=path,
        which=which,
        seed=seed,
        timm=timm,
        file=file,
    )
    return FrozenEncoder(found.eval().requires_grad_(False), identity)
