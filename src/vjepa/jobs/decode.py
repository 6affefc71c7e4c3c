"""Decoding a model's predictions to pixels: training the decoder, and sampling it (section 6)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vjepa.checkpoint import described, find_checkpoint, locate
from vjepa.checkpoint.folder import CONFIG_FILE, WEIGHTS_FILE, read_json, read_weights
from vjepa.checkpoint.strict import load_strictly
from vjepa.config import config_dataclass, from_dict, to_dict
from vjepa.counter_random import derive_seed
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import LoaderConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import settings_hash, weights_hash
from vjepa.evaluation.preprocess import Preprocess, load_model, preprocess_of
from vjepa.jobs.pretrain import (
    LOG_FOLDER,
    DataConfig,
    PretrainConfig,
    SourceConfig,
    build_loader,
    run_of,
)
from vjepa.jobs.pretrain_room import check_same_run, check_same_weights, order_hashes
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import (
    VJEPA,
    Decoder,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    patchify,
    to_pixels,
    unpatchify,
)
from vjepa.models.decoder import CHANNELS
from vjepa.models.operations import NO_PREDICTOR, MaskTokens, update_memory
from vjepa.paths import as_path
from vjepa.reporting.pictures import (
    SECONDS_EACH,
    Moving,
    Strip,
    film_beside,
    heat,
    hide_masked,
    picture_of,
    strip_of,
    tokens_to_frames,
    write_moving,
    write_png,
)
from vjepa.runtime.device import seed_torch, set_up_device
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.files import begin_folder, check_kind, claimed_folder
from vjepa.runtime.logging import MetricLog, log_file
from vjepa.tasks import Decoding
from vjepa.tasks.decoding import predicted_features, token_noise
from vjepa.training import EmaConfig, OptimConfig, Trainer, TrainingConfig, TrainingResult
from vjepa.training.preflight import LIBRARIES_BYTES, check_disk, check_memory
from vjepa.training.schedules import Count

JOB = "decode train"
OBJECTIVE = "decoder"
_DRAWN_CLIPS = 32  # whose masks tell how many tokens are hidden
_MOST_SPREAD = 64
_LOGGER = logging.getLogger(__name__)


@config_dataclass
class DecodeDataConfig:
    """The videos that the decoder learns from."""

    sources: tuple[SourceConfig, ...] = ()
    """The data sets; at least one."""
    batch_size: Count = 256
    """Clips per optimiser step, over all accumulation steps together."""
    clip: ClipConfig | None = None
    """Which frames a clip takes; null: as the model was trained."""
    transform: TransformConfig | None = None
    """Crop, resize and flip; null: as the model was trained, where it says so."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Worker processes, prefetching, limits for bad videos."""


@config_dataclass
class DecodeConfig:
    """Everything that `vjepa decode train` needs to know."""

    seed: int = 0
    """Of weights, sample order, crops, masks, noise and times."""
    model: Path | None = None
    """Whose predictions are decoded: run, checkpoint, authors' file, or the name of weights that
    come with vjepa (`demo`, `vizdoom`, `vizdoom_hour`, `garments`). It is frozen."""
    num_heads: Count | None = None
    """Attention heads, for an authors' file of a size that is no preset."""
    masking: MaskingConfig | None = None
    """What is hidden; null: as the model was trained, or the paper's pair."""
    data: DecodeDataConfig = field(default_factory=DecodeDataConfig)
    """The videos."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Sizes of the decoder; those that are null follow from the model's encoder."""
    no_features_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of clips whose features are hidden in training, so that guidance is possible."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedules."""
    ema: EmaConfig = field(
        default_factory=lambda: EmaConfig(start_momentum=0.999, final_momentum=0.999)
    )
    """Momentum of the decoder's moving average, which samples are drawn with."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Device, precision, intervals."""


def open_model(path: str | Path | None, *, drawn: bool = True, **sizes: int | None) -> VJEPA:
    """A model whose predictions can be looked at, or `drawn` as pixels; `sizes` its file may lack.

    Raises:
        UserError: None is named; it has no predictor of features; or it is not shown pixels.
    """
    path = None if path is None else as_path(path)
    if path is None:
        raise UserError("model: not set; give a run, a checkpoint, an authors' file or `demo`")
    model = load_model(path, **sizes)
    encoder = model.config.encoder
    if encoder.is_image_model:
        raise UserError(f"{path}: an image model; this needs a model of video")
    if drawn and encoder.input.content not in ("rgb", "rgb_and_change"):
        raise UserError(
            f"{path}: is shown {encoder.input.content!r} of a clip and not its pixels "
            "(model.encoder.input.content), so none can be drawn; take a model of rgb"
        )
    return model


def _as_pretraining(config: DecodeConfig, model: VJEPA) -> PretrainConfig:
    """The pretraining config whose clips and masks the decoder learns from.

    Of the model's run, where it says so, with what this config sets in their place.
    """
    assert config.model is not None
    encoder, run = model.config.encoder, run_of(config.model)
    usual = run.data.transform if run else TransformConfig(crop_size=encoder.image_size)
    try:
        return PretrainConfig(
            seed=config.seed,
            model=model.config,
            masking=config.masking or (run.masking if run else MaskingConfig()),
            data=DataConfig(
                sources=config.data.sources,
                batch_size=config.data.batch_size,
                clip=config.data.clip or preprocess_of(config.model, encoder).clip,
                transform=config.data.transform or usual,
                loader=config.data.loader,
            ),
            optim=config.optim,
            ema=config.ema,
            training=config.training,
        )
    except ValueError as error:
        raise UserError(f"the config does not fit the model {config.model}: {error}") from error


def new_decoder(model: VJEPA, config: DecoderConfig) -> Decoder:
    """A fresh decoder of what the model's predictor says."""
    return Decoder(model.config.encoder, config, model.predictor.predictor_proj.out_features)


def build_task(config: DecodeConfig, model: VJEPA, learnt_from: PretrainConfig) -> Decoding:
    """The task with a fresh decoder."""
    encoder = model.config.encoder
    sampler = MaskSampler(learnt_from.masking, encoder.grid, encoder.tubelet_size, config.seed)
    return Decoding(
        model,
        new_decoder(model, config.decoder),
        config.no_features_share,
        config.seed,
        sampler,
        config.data.batch_size,
    )


def train(
    config: DecodeConfig,
    out: str | Path,
    task: Callable[[DecodeConfig, VJEPA, PretrainConfig], Decoding] = build_task,
) -> TrainingResult:
    """Train a decoder, or resume the training in `out`, to the config's last step.

    It raises what pretraining does.

    Raises:
        UserError: Bad input of any kind, before work starts where it can be known.
        TrainingStopped: The loss or a gradient became non-finite.
    """
    config, out = from_dict(DecodeConfig, config), as_path(out)
    device = config.training.set_up_device().device
    model = open_model(config.model, num_heads=config.num_heads)
    sizes = config.decoder.sizes_for(model.config.encoder)
    named = dict(zip(("width", "depth", "heads"), sizes, strict=True))
    try:
        config = replace(config, decoder=replace(config.decoder, **named))
    except ValueError as error:
        raise UserError(f"decoder.heads: {config.decoder.heads}: {error}") from error
    with ExitStack() as stack:
        if stack.enter_context(claimed_folder(out, JOB)):
            check_same_run(config, out)
        if not config.data.sources:
            raise UserError(
                "data.sources is empty: name a manifest, for example "
                "--data.sources.0.manifest videos.parquet (made by `vjepa data index`)"
            )
        frozen = predicting_hash(model)
        check_same_weights(out, config.model, frozen)
        learnt_from = _as_pretraining(config, model)
        seed_torch(config.seed, "weights")
        try:
            made = task(config, model, learnt_from)
        except ValueError as error:  # a width for which its grid has no code
            raise UserError(f"the decoder does not fit {config.model}: {error}") from error
        size = sum(p.numel() for p in made.decoder.parameters())
        _LOGGER.info("a decoder of %.2f M parameters for the model %s", size / 1e6, config.model)
        needs = partial(_memory_needed, config, made, learnt_from.masking, device.type)
        check_memory(needs, device, config.optim, config.training, config.data.batch_size)
        check_disk(out, 4.0 * 4 * size)  # weights, two moments, the average; all float32
        loader = build_loader(learnt_from, out, ProcessGroup())
        stack.callback(loader.close)
        clip = learnt_from.data.clip
        view = to_dict(preprocess_of(config.model, model.config.encoder).view)
        trainer = Trainer(
            task=made,
            batches=loader.batches,
            optim=config.optim,
            training=config.training,
            seed=config.seed,
            ema=config.ema,
            folder=out,
            about={
                "objective": OBJECTIVE,
                "model": to_dict(model.config),
                "run": to_dict(config),
                # How a clip is made of a video to be decoded, and what is hidden of it.
                "preprocess": {"clip": to_dict(replace(clip, clips_per_video=1)), "view": view},
                "masking": to_dict(learnt_from.masking),
                "weights_hash": frozen,
                **order_hashes(videos=loader.manifests),
            },
            sinks=[MetricLog(out / "metrics.jsonl", events=True)],
            description="decoder",
        )
        begin_folder(out, JOB, config)
        stack.enter_context(log_file(out / LOG_FOLDER / "rank_000.log"))
        return trainer.fit()


def _memory_needed(
    config: DecodeConfig,
    task: Decoding,
    masking: MaskingConfig,
    device_type: str,
    parts: int,
    checkpointing: bool,
) -> dict[str, float]:
    """Bytes that an update takes, in `parts` micro-batches; without the loader's."""
    encoder, (width, depth, heads) = task.config.encoder, task.decoder.sizes
    clips = config.data.batch_size
    at_once = -(-clips // parts)
    sampler = MaskSampler(masking, encoder.grid, encoder.tubelet_size, config.seed)
    masks = sampler.sample(np.arange(min(clips, _DRAWN_CLIPS)), 0)
    # The decoder's blocks, as those of an encoder that is shown the hidden tokens.
    blocks = EncoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=task.decoder.config.mlp_ratio,
        image_size=encoder.image_size,
        num_frames=encoder.num_frames,
        patch_size=encoder.patch_size,
        tubelet_size=encoder.tubelet_size,
    )
    activations = update_memory(
        ModelConfig(encoder=blocks, predictor=NO_PREDICTOR),
        [MaskTokens(mask.num_target_mean, 0) for mask in masks],
        at_once,
        activation_checkpointing=checkpointing,
        precision=config.training.set_up_device().precision,
        on_cpu=device_type == "cpu",
    ).activations
    trained = sum(p.numel() for p in task.decoder.parameters())
    frozen = sum(p.numel() for p in task.parameters()) - 2 * trained
    # Noise of all tokens, and beside each hidden one's pixels: noisy, named, their error and its
    # gradient; float32, as the clips and their patches are.
    pixels = encoder.num_tokens * task.decoder.patch_values
    hidden = sum(mask.num_target_mean for mask in masks) * task.decoder.patch_values
    return {
        "weights and moments": 4.0 * (4 * trained + frozen),
        "activations": max(activations, 4.0 * trained),
        "clips": pixels * (clips + 12.0 * at_once) + 16.0 * hidden * at_once,
        "libraries": LIBRARIES_BYTES,
    }


def predicting_hash(model: VJEPA) -> str:
    """SHA-256 of the weights that make predictions: encoder and predictor."""
    return settings_hash(
        {name: weights_hash(getattr(model, name)) for name in ("encoder", "predictor")}
    )


@dataclass(frozen=True)
class OpenDecoder:
    """A trained decoder, its model, and what it was trained to fill in."""

    model: VJEPA
    decoder: Decoder
    masking: MaskingConfig
    preprocess: Preprocess
    seed: int
    """Of the masks."""

    def masks(self, number: int = 0) -> list[TokenMasks]:
        """Sample `number`'s mask of each kind, of one clip: [1, K] and [1, M]."""
        encoder = self.model.config.encoder
        sampler = MaskSampler(self.masking, encoder.grid, encoder.tubelet_size, self.seed)
        return sampler.one(number)


def open_decoder(path: str | Path, model: str | Path | None = None) -> OpenDecoder:
    """Open what `decode train` has written, with the moving average of its weights.

    `path` is its run folder or a checkpoint; `model` says where its model lies now, if elsewhere.

    Raises:
        UserError: It is no decoder, or the model is not the one that it was trained on.
    """
    path = as_path(path)
    model = None if model is None else as_path(model)
    if not path.exists():
        raise UserError(f"{path}: no such folder; give the --out of `vjepa decode train`")
    folder = find_checkpoint(path.absolute())
    about, stored = described(folder), read_json(folder / CONFIG_FILE)
    if about is None or about.objective != OBJECTIVE:
        raise UserError(
            f"{path}: holds no decoder but a model; train one for it with `vjepa decode train "
            f"--model {path}`"
        )
    config = from_dict(DecodeConfig, about.run, f"{folder / CONFIG_FILE} (run)")
    source = model or config.model
    if source is not None and not locate(source).exists():
        raise UserError(
            f"{source}: the decoder's model is not there any more; say where it is (--model)"
        )
    opened = open_model(source, num_heads=config.num_heads)
    if predicting_hash(opened) != stored.get("weights_hash"):
        raise UserError(
            f"{path}: was trained on other weights than those of {source}; give the model that it "
            f"was trained on ({config.model}) with --model, or train a decoder for this one"
        )
    decoder = new_decoder(opened, config.decoder)
    tensors = read_weights(folder / WEIGHTS_FILE, prefix="average.")
    load_strictly(decoder, tensors, str(folder), "a decoder")
    masking = from_dict(MaskingConfig, stored.get("masking", {}), f"{folder / CONFIG_FILE}")
    preprocess = preprocess_of(folder, opened.config.encoder)
    return OpenDecoder(opened, decoder.eval(), masking, preprocess, config.seed)


@torch.no_grad()
def decode_clip(
    opened: OpenDecoder,
    clip: Tensor,
    masks: TokenMasks,
    kind: int = 0,
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 20,
    guidance: float = 1.0,
) -> Tensor:
    """Fill what is hidden of a clip once for each seed: uint8 [S, 3, T, H, W].

    `clip` is uint8 [3, T, H, W]; of its pixels the encoder sees the context alone, and the decoder
    nothing. `masks` are [1, K] and [1, M], and `kind` says which mask token the predictor uses.
    """
    model, decoder = opened.model, opened.decoder
    size, device = model.config.encoder, decoder.no_feature.device
    normal = model.encoder.normalise(clip[None].to(device))
    masks = masks.to(device)
    features = predicted_features(model, normal, masks, kind)
    shape, count = (size.num_tokens, decoder.patch_values), len(seeds)
    noise = torch.stack(
        [token_noise(shape, derive_seed(seed, "decoder sample"), device) for seed in seeds]
    )
    places = masks.target.expand(count, -1)
    rows = torch.arange(count, device=device)[:, None]
    named = decoder.sample(
        *(features.expand(count, -1, -1), places, noise[rows, places]),
        steps=steps,
        guidance=guidance,
    )
    pixels = patchify(normal[:, :CHANNELS], size.tubelet_size, size.patch_size)
    pixels = pixels.repeat(count, 1, 1)
    pixels[rows, places] = named
    video = unpatchify(pixels, size.grid, size.tubelet_size, size.patch_size)
    return to_pixels(video, size.input).cpu()


def show_samples(
    video: str | Path,
    decoder: str | Path,
    out: str | Path,
    *,
    samples: int = 4,
    seed: int = 0,
    mask: int = 0,
    kind: int = 0,
    steps: int = 20,
    guidance: float = 1.0,
    moving: Moving = "webp",
    model: str | Path | None = None,
) -> list[str]:
    """Fill the hidden part of a video's middle several times, and draw it (Figure 6 of the paper).

    Writes the still `out` and, with the suffix `moving`, the moving picture beside it. `seed` is of
    the first sample's noise, the others take the next numbers; `mask` says which mask is drawn,
    `kind` of which of the kinds that the decoder was trained with. Returned are lines that say
    where they are, and how far the samples are from what was hidden. A video
    with too few frames is a UserError.
    """
    video, decoder, out = as_path(video), as_path(decoder), as_path(out)
    model = None if model is None else as_path(model)
    numbers = {"samples": samples, "steps": steps, "mask": mask, "kind": kind}
    for name, value in numbers.items():
        if value < (least := int(name in ("samples", "steps"))):
            raise UserError(f"--{name}: {value} must be at least {least}")
    check_kind("--out", out, ".png")
    film = film_beside(out, moving, [video])
    opened = open_decoder(decoder, model)
    preprocess = opened.preprocess
    # A tail of repeated frames would be no motion to go on with.
    clip_config = replace(preprocess.clip, short_video="error")
    clip = replace(preprocess, clip=clip_config).pixels(video)
    kinds = opened.masks(mask)
    if kind >= len(kinds):
        raise UserError(
            f"--kind: {kind}, use 0 to {len(kinds) - 1}: the decoder was trained "
            "with so many kinds of masks"
        )
    masks, seeds = kinds[kind], range(seed, seed + samples)
    device = set_up_device("auto").device
    opened.model.to(device), opened.decoder.to(device)
    drawn = decode_clip(opened, clip, masks, kind, seeds, steps=steps, guidance=guidance)
    return write_samples(opened, clip, masks, drawn, out, film)


def write_samples(
    opened: OpenDecoder,
    clip: Tensor,
    masks: TokenMasks,
    drawn: Tensor,
    out: Path,
    film: Path,
    *,
    narrow: bool = False,
) -> list[str]:
    """Write what :func:`decode_clip` has drawn, as :func:`show_samples` does; arguments of both.

    With `narrow` the still picture has few frames of the clip, and all words are large.
    """
    most = 3 if narrow else 8
    encoder = opened.model.config.encoder
    strips, (of_sample, of_mean, spread) = sample_strips(encoder, clip, masks, drawn, most)
    size = encoder.image_size
    text = (
        f"The model saw the second row, and predicted features of what is grey. Each sample was "
        f"drawn from these features alone, with noise of its own, at {size} x {size} pixels "
        "(enlarged here), and laid into the grey. Mean: what the samples share. Spread: where they "
        f"differ, from blue-green (not at all) over yellow to red ({_MOST_SPREAD} of 255 or more)."
    )
    rows, _ = sample_strips(encoder, clip, masks, drawn, clip.shape[1])
    parts = [(part, [s.label for s in part]) for part in (rows[:2] + rows[-2:], rows[2:-2])]
    pages = [
        [Strip("", [s.frames[t] for s in part], n) for part, n in parts]
        for t in range(clip.shape[1])
    ]
    write_moving([picture_of(page, narrow=narrow) for page in pages], film, SECONDS_EACH)
    write_png(picture_of(strips, caption=text, narrow=narrow), out, film)
    return [
        f"{out}, {film}: {len(drawn)} samples",
        f"mean absolute error where it was hidden, of 255: samples {of_sample:.1f}, their "
        f"mean {of_mean:.1f}; they differ by {spread:.1f}",
    ]


def sample_strips(
    encoder: EncoderConfig, clip: Tensor, masks: TokenMasks, drawn: Tensor, most: int
) -> tuple[list[Strip], tuple[float, float, float]]:
    """The clip, what was seen, each sample, their mean, and their spread; and how wrong they are.

    `clip` is uint8 [3, T, H, W], `drawn` uint8 [S, 3, T, H, W], `masks` are of one clip; of `most`
    frames at most. How wrong: the absolute error of a sample, that of the samples' mean, and the
    standard deviation between them, means over what was hidden on the scale 0 to 255.
    """
    hidden = np.zeros(encoder.num_tokens, dtype=np.bool_)
    hidden[masks.target[0].cpu().numpy()] = True
    hidden = hidden.reshape(encoder.grid)
    frames, samples = (x.movedim(-4, -1).contiguous().numpy() for x in (clip, drawn))
    where = tokens_to_frames(hidden, *frames.shape[:3])
    mean = samples.mean(axis=0)
    spread = samples.std(axis=0).mean(axis=-1)
    truth = frames.astype(np.float64)
    hidden_parts = (np.abs(samples - truth)[:, where], np.abs(mean - truth)[where], spread[where])
    of_sample, of_mean, between = (float(part.mean()) for part in hidden_parts)
    averaged = mean.round().astype(np.uint8)
    # What is neither seen nor asked for is grey, too: count mode fixed leaves such tokens.
    seen = np.zeros(encoder.num_tokens, dtype=np.bool_)
    seen[masks.context[0].cpu().numpy()] = True
    shown = hide_masked(frames, ~seen.reshape(encoder.grid))
    rows = {"clip": frames, "seen": shown}
    rows |= {f"sample {n + 1}": sample for n, sample in enumerate(samples)}
    rows["mean"] = averaged
    rows["spread"] = heat(averaged, spread, where, _MOST_SPREAD)
    strips = [strip_of(name, row, most) for name, row in rows.items()]
    return strips, (of_sample, of_mean, between)
