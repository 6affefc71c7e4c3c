"""The frozen encoder of a probe: found, loaded, and known by the hash of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vjepa.checkpoint import AnyEncoder, LoadReport, described, locate, read_encoder
from vjepa.checkpoint.folder import WEIGHTS_FILE, Tokens, file_sha256
from vjepa.checkpoint.huggingface import INDEX_FILE
from vjepa.checkpoint.load import is_hub
from vjepa.checkpoint.timm_models import TimmVit, load_timm_encoder
from vjepa.errors import UserError
from vjepa.evaluation.frozen import EncoderIdentity, FrozenEncoder, weights_hash
from vjepa.evaluation.video_features import require_fitting
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
    encoder, report = read_encoder(
        config.path,
        which,
        config.num_heads,
        image_size=config.image_size,
        num_frames=config.num_frames,
        tokens=config.tokens,
    )
    if config.input is not None:
        if not report.title:
            raise UserError(
                f"{config.path}: encoder.input: stands in its checkpoint; leave it out (it is for "
                "models of others)"
            )
        encoder.config = replace(encoder.config, input=config.input)
    sizes = encoder.config
    if config.position_code == "table_stretched":
        if sizes.position != "given" or sizes.is_image_model or not isinstance(encoder, Encoder):
            raise UserError(
                f"{config.path}: encoder.position_code: table_stretched is for tables that come "
                "with the weights of VideoMAE, MVD or OmniMAE; leave it out"
            )
        encoder.config = replace(sizes, position="given_stretched")
    if config.is_random:
        fresh = _untrained_like(encoder, config.seed)
        return _freeze(fresh, str(config.path), "random", config.seed, report, config.tokens)
    return _freeze(encoder, str(config.path), which, None, report, config.tokens)


def untrained_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """An encoder that has learnt nothing: the baseline beside which every number must stand.

    Torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, "random encoder")
        return Encoder(config)


def _untrained_like(encoder: AnyEncoder, seed: int) -> AnyEncoder:
    """One of the same architecture that has learnt nothing, with the same table of positions."""
    if not isinstance(encoder, Encoder):
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed, "random encoder")
            return encoder.fresh()
    fresh = untrained_encoder(encoder.config, seed)
    if encoder.config.is_given:
        fresh.pos_embed = encoder.pos_embed
    return fresh


def reopen_encoder(identity: EncoderIdentity, path: Path | None = None) -> FrozenEncoder:
    """The encoder that a probe was trained on; `path` says where it lies now, if elsewhere.

    Whether its weights are the right ones is for
    :func:`vjepa.evaluation.saved_probe.check_encoder` to say.
    """
    sizes, which = identity.config, identity.which
    if identity.timm is not None:
        weights = path or (Path(identity.path) if identity.path else None)
        return _open_timm(identity.timm, weights, identity.seed or 0)
    random = which == "random"
    if path is None and random and identity.model is None:
        seed = identity.seed or 0
        return _freeze(untrained_encoder(sizes, seed), identity.path, which, seed)
    found = Path(identity.path or "") if path is None else path
    if not locate(found).exists():
        raise UserError(
            f"{found}: the probe's encoder is not there any more; say where it is (--encoder)"
        )
    wanted = "context" if which == "context" else "target"
    if identity.model is None:
        # A folder of ours says its heads; whether they are the probe's is for its check to say.
        heads = None if described(found) else sizes.heads
        encoder, report = read_encoder(found, wanted, heads)
    else:  # a model of others, as it was opened when its features were made
        try:
            encoder, report = read_encoder(
                found,
                wanted,
                sizes.heads,
                image_size=sizes.image_size,
                num_frames=None if sizes.is_image_model else sizes.num_frames,
                tokens=identity.tokens,
            )
        except UserError as error:
            raise UserError(f"the probe's encoder is {identity.model}: {error}") from error
        encoder.config = replace(encoder.config, input=sizes.input, position=sizes.position)
        if random:
            encoder = _untrained_like(encoder, identity.seed or 0)
    report = replace(report, assumed=identity.assumed)
    image_size, num_frames = sizes.image_size, sizes.num_frames
    same = replace(encoder.config, image_size=image_size, num_frames=num_frames) == sizes
    if same and isinstance(encoder, Encoder):
        encoder = _rebuilt(encoder, image_size, num_frames)
    return _freeze(encoder, str(found), which, identity.seed, report, identity.tokens)


def fit_to_clips(
    frozen: FrozenEncoder, config: EncoderSourceConfig, num_frames: int, image_size: int
) -> FrozenEncoder:
    """The encoder with the position code that is wanted for clips of a size.

    It stays the same where the code is stretched, or the size is its own.
    """
    require_fitting(frozen.encoder, num_frames, image_size, frozen.identity.source)
    if config.position_code != "computed":
        return frozen
    sizes, encoder = frozen.identity.config, frozen.encoder
    if isinstance(encoder, FrameEncoder):
        encoder, num_frames = encoder.image_encoder, 1
    if not isinstance(encoder, Encoder) or sizes.is_given:
        raise UserError(
            "encoder.position_code: computed: the table of positions comes with the weights of "
            f"{frozen.identity.source}; leave it out"
        )
    encoder = _rebuilt(encoder, image_size, num_frames).eval()
    identity = replace(frozen.identity, config=encoder.config)
    shown = FrameEncoder(encoder, encoder.config) if encoder.config.is_image_model else encoder
    return replace(frozen, encoder=shown, identity=identity)


def gives_layers(encoder: nn.Module) -> bool:
    """Whether the outputs of any of its blocks can be asked for, not of the last one alone."""
    if isinstance(encoder, FrameEncoder):
        encoder = encoder.image_encoder
    return isinstance(encoder, Encoder | TimmVit)


def compile_encoder(encoder: nn.Module) -> None:
    """Compile a frozen encoder in place: blocks of ours, the whole of another library's model."""
    ours = [module for module in encoder.modules() if isinstance(module, Encoder)]
    if ours:
        compile_blocks(ours)
    else:
        encoder.compile()


def _rebuilt(encoder: Encoder, image_size: int, num_frames: int) -> Encoder:
    """The same weights with the position code of another size; itself where it has that size."""
    same = (image_size, num_frames) == (encoder.config.image_size, encoder.config.num_frames)
    if same or encoder.config.is_image_model != (num_frames == 1):
        return encoder
    return encoder.rebuilt_for(image_size=image_size, num_frames=num_frames)


def _open_timm(name: str, weights: Path | None, seed: int) -> FrozenEncoder:
    how = (None, "random", seed) if weights is None else (str(weights), "target", None)
    return _freeze(load_timm_encoder(name, weights, seed), *how, timm=name)


def _freeze(
    encoder: AnyEncoder | FrameEncoder,
    path: str | None,
    which: str,
    seed: int | None,
    report: LoadReport | None = None,
    tokens: Tokens | None = None,
    timm: str | None = None,
) -> FrozenEncoder:
    """Freeze an encoder; an image model is shown one frame after another."""
    config, found = encoder.config, encoder
    if config.is_image_model and not isinstance(encoder, FrameEncoder):
        found = FrameEncoder(encoder, config)
    file = None if report is None or which == "random" else report.source
    if file and is_hub(file):  # its weights, or what lists their files
        listed = Path(file, INDEX_FILE)
        file = str(listed if listed.is_file() else Path(file, WEIGHTS_FILE))
    identity = EncoderIdentity(
        weights_hash=weights_hash(found),
        config=config,
        path=path,
        which=which,
        seed=seed,
        timm=timm,
        file=path if timm else file,
        model=report.title or None if report else None,
        file_hash=file_sha256(Path(file)) if file and Path(file).is_file() else None,
        assumed=report.assumed if report else (),
        tokens=tokens,
    )
    return FrozenEncoder(found.eval().requires_grad_(False), identity)
