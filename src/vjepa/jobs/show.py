"""Pictures and reports that show what a run does and what a model sees."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.checkpoint import AnyEncoder, Which
from vjepa.config import RESOLVED_CONFIG_FILE
from vjepa.data.clips.dataset import centre_view
from vjepa.data.clips.plan import ClipConfig, checked_spacing
from vjepa.data.clips.views import ViewConfig
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_encoder, load_model, preprocess_of
from vjepa.jobs.pretrain import PretrainConfig, run_of
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA, EncoderConfig, normalise_clip
from vjepa.models.encoder import FrameEncoder
from vjepa.paths import as_path
from vjepa.reporting.html import Figure, PictureBlock, Report, Section, Text, write_report
from vjepa.reporting.pictures import (
    SHOWN_SIDE,
    Moving,
    Picture,
    Strip,
    check_picture,
    check_still,
    film_beside,
    heat,
    hide_masked,
    pca_colours,
    picture_of,
    resized,
    strip_of,
    write_png,
    write_rows,
)
from vjepa.reporting.runs import (
    rank_charts,
    rank_table,
    read_run,
    run_charts,
    state_lines,
    status_of,
)
from vjepa.runtime.files import check_kind
from vjepa.tasks.decoding import predicted_features, require_own_targets
from vjepa.tasks.masked_prediction import normalise_features

_LOGGER = logging.getLogger(__name__)


def _model_input(encoder: AnyEncoder, frames: Picture) -> Tensor:
    """A clip uint8 [T, H, W, 3] as the encoder takes it: float32 [1, C, T, H, W], normalised."""
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    return normalise_clip(clip, how=encoder.config.input)


@dataclass(frozen=True)
class Shot:
    """The middle of a video: `frames` uint8 [T, S, S, 3] as a model takes them, and for people."""

    frames: Picture
    sharp: Picture
    name: str = "clip"


def mask_strips(
    frames: Picture, masking: MaskingConfig, encoder: EncoderConfig, seed: int, ordinal: int
) -> list[Strip]:
    """The clip and, below it, what each mask kind leaves visible (Figure 9 of the paper).

    `frames` are uint8 [T, H, W, 3]; the same `seed` and `ordinal` give the same masks.
    """
    sampler = MaskSampler(masking, encoder.grid, encoder.tubelet_size, seed)
    masked = sampler.full(np.array([ordinal], dtype=np.int64), 0)
    strips = [strip_of("clip", frames)]
    for number, kind in enumerate(masked):
        name = f"shown, {number + 1}" if len(masked) > 1 else "shown"
        strips.append(strip_of(name, hide_masked(frames, kind[0])))
    return strips


@torch.no_grad()
def feature_grid(encoder: AnyEncoder, frames: Picture) -> NDArray[np.float32]:
    """Features of one clip as a grid: uint8 [T, H, W, 3] -> float32 [t, h, w, D]."""
    _, *places = encoder.config.grid
    shown = FrameEncoder(encoder, encoder.config) if encoder.config.is_image_model else encoder
    tokens = shown(_model_input(encoder, frames))[0]
    return tokens.reshape(-1, *places, tokens.shape[-1]).float().numpy()


Rows = list[tuple[str, Picture]]
"""Clips [T, H, W, 3] of one length with their names, to stand below each other."""


def feature_rows(shots: Sequence[Shot], encoders: Mapping[str, AnyEncoder]) -> Rows:
    """For every clip: its frames, then one row of PCA colours for each encoder.

    The principal directions are those of all shown clips together, so one colour means one thing
    over time and over clips.
    """
    colours: dict[str, Picture] = {}
    for name, encoder in encoders.items():
        grids = np.stack([feature_grid(encoder, shot.frames) for shot in shots])
        flat = pca_colours(grids.reshape(-1, *grids.shape[2:]))
        colours[name] = flat.reshape(*grids.shape[:4], 3)
    rows: Rows = []
    for number, shot in enumerate(shots):
        rows.append((shot.name, shot.sharp))
        for name, grids in colours.items():  # of tokens, blended between their middles
            of_frame = np.arange(len(shot.sharp)) * len(grids[number]) // len(shot.sharp)
            rows.append((name, resized(grids[number], shot.sharp.shape[1])[of_frame]))
    return rows


@torch.no_grad()
def prediction_errors(
    model: VJEPA, frames: Picture, masks: TokenMasks, mask_index: int
) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
    """The predictor's error on one clip, with layer-normed target features as in the loss.

    One [t, h, w] for each level that it predicts, lowest first; of most models the last alone: L1
    error divided by the error of predicting the clip's mean feature; 1 is no better than that mean,
    0 is perfect; 0 where nothing was predicted. And where that was, bool [t, h, w]. `frames` are
    uint8 [T, H, W, 3], `masks` have indices [1, K] and [1, M], and `mask_index` says which mask
    token the predictor uses.

    Raises:
        UserError: It was trained towards another encoder than its own.
    """
    require_own_targets(model)
    config = model.config.encoder
    clip = _model_input(model.encoder, frames)
    grid, places, levels = config.grid, masks.target[0], 1
    truth = model.target_encoder(clip)
    if model.config.predictor.levels > 1:
        levels = len(config.levels)
        truth = torch.cat(model.target_encoder(clip, layers=config.levels), dim=-1)
    predicted = predicted_features(model, clip, masks, mask_index)[0]
    found, where = [], torch.zeros(truth.shape[1], dtype=torch.bool)
    where[places] = True
    for level, guess in zip(truth[0].chunk(levels, -1), predicted.chunk(levels, -1), strict=True):
        target = normalise_features(level)
        error = (guess - target[places]).abs().mean(-1)
        trivial = (target[places] - target.mean(0)).abs().mean()
        relative = torch.zeros(len(target))
        relative[places] = error / trivial
        found.append(relative.reshape(grid).numpy())
    return found, where.reshape(grid).numpy()


def prediction_rows(
    model: VJEPA, shot: Shot, masking: MaskingConfig, seed: int, ordinal: int
) -> list[tuple[Rows, float]]:
    """For each mask kind the rows of :func:`error_rows`, and their mean error."""
    encoder = model.config.encoder
    sampler = MaskSampler(masking, encoder.grid, encoder.tubelet_size, seed)
    return [error_rows(model, shot, masks, kind) for kind, masks in enumerate(sampler.one(ordinal))]


def error_rows(model: VJEPA, shot: Shot, masks: TokenMasks, kind: int) -> tuple[Rows, float]:
    """The clip, what was shown, the error over the rest; and its mean. `masks` are of one clip.

    Of a predictor of several levels (V-JEPA 2.1) there is a row of errors for each.
    """
    errors, hidden = prediction_errors(model, shot.frames, masks, kind)
    rows = [(shot.name, shot.sharp), ("shown", hide_masked(shot.sharp, hidden))]
    levels = model.config.encoder.levels
    names = ["error"] if len(errors) == 1 else [f"block {n + 1}" for n in levels]
    rows += [
        (name, heat(shot.sharp, error, hidden, 1.0))
        for name, error in zip(names, errors, strict=True)
    ]
    return rows, sum(float(error[hidden].mean()) for error in errors) / len(errors)


def one_token(encoder: EncoderConfig) -> str:
    """How much of a clip one value stands for, in words."""
    frames = encoder.tubelet_size
    return f"{encoder.patch_size} pixels, {frames} frame{'s' if frames > 1 else ''}"


_MASKS_CAPTION = (
    "First row: the clip. Below: what the model is shown of it, with each kind of mask. Grey is "
    "hidden, and what is there has to be predicted: not its pixels but its features."
)


def _features_caption(what: str, encoder: EncoderConfig) -> str:
    return (
        f"For each of {what}: the frames, then the three main directions of each encoder's "
        "features as colours, the same for all frames and clips. Equal colour means similar "
        "features; what moves should stand out from what does not. The model gives one colour for "
        f"each token ({one_token(encoder)}); between them the colours are blended."
    )


def _prediction_caption(mean: float, encoder: EncoderConfig) -> str:
    levels = " A row for each block that is predicted, counted from 1." if encoder.levels else ""
    return (
        "The clip; what the model saw; the error of its prediction over what was hidden, from "
        "blue-green (0: right) over yellow to red (1 or more: no better than guessing the clip's "
        f"mean feature), the same in every picture. Mean {mean:.2f}. A square is one token: "
        f"{one_token(encoder)}.{levels}"
    )


def mask_section(config: PretrainConfig, shot: Shot) -> Section:
    """What is hidden of a clip."""
    strips = mask_strips(shot.sharp, config.masking, config.model.encoder, config.seed, 0)
    return Section("What has to be predicted", blocks=[PictureBlock(strips, _MASKS_CAPTION)])


def feature_section(
    shots: Sequence[Shot], encoders: Mapping[str, AnyEncoder], what: str
) -> Section:
    """The features of clips, which are `what`, as colours."""
    size = next(iter(encoders.values())).config
    strips = [strip_of(*row) for row in feature_rows(shots, encoders)]
    block = PictureBlock(strips, _features_caption(f"{len(shots)} {what}", size))
    return Section("What the features look like", blocks=[block])


def prediction_section(model: VJEPA, config: PretrainConfig, shots: Sequence[Shot]) -> Section:
    """How right the predictor is on clips."""
    blocks = []
    for number, shot in enumerate(shots):
        rows, mean = prediction_rows(model, shot, config.masking, config.seed, number)[0]
        caption = _prediction_caption(mean, config.model.encoder)
        blocks.append(PictureBlock([strip_of(*row) for row in rows], caption))
    introduction = "Predicted and true features of hidden patches, compared one by one."
    return Section("Where the prediction is right and wrong", introduction, blocks)


def read_shot(
    video: Path | Picture,
    clip: ClipConfig,
    image_size: int,
    name: str = "clip",
    view: ViewConfig | None = None,
    *,
    whole: bool = False,
) -> Shot:
    """The clip around the middle of a video as a model sees it, and the same part sharper.

    Or of the frames of a clip, uint8 [T, H, W, 3]. `view` says which part of the frames, if not all
    of their short side. Of a video that is shorter than a clip it is said that it was filled up.

    Raises:
        UserError: The file is missing, cannot be decoded, or is too short for a `whole` clip.
    """
    source = video if isinstance(video, np.ndarray) else inspect_file(str(video))
    if isinstance(source, VideoInfo) and source.ok and source.kind != "image":
        spacing, _ = checked_spacing(clip, source.num_frames, source.fps or 1.0, None)
        if source.num_frames < spacing.window:
            frames = f"frame{'s' * (source.num_frames != 1)}"
            words = f"{video}: has {source.num_frames} {frames}, a clip takes {spacing.window:g}"
            if whole:
                raise UserError(f"{words}: too short to predict anything; give a longer video")
            _LOGGER.warning("%s: filled up (short_video: %s)", words, clip.short_video)
    both = []
    part = view or ViewConfig(crop_size=image_size, short_side=image_size)
    for size in (image_size, max(image_size, SHOWN_SIDE)):
        side = part.short_side and round(part.short_side * size / image_size)
        frames = centre_view(source, clip, replace(part, crop_size=size, short_side=side))
        both.append(np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy()))
    return Shot(*both, name)


def show_masks(
    config: PretrainConfig, video: str | Path, out: str | Path, sample: int = 0
) -> list[str]:
    """Draw what each mask kind leaves visible of a video or image, for one sample's masks."""
    video, out = as_path(video), as_path(out)
    check_picture(out)
    encoder = config.model.encoder
    shot = read_shot(video, config.data.clip, encoder.image_size)
    strips = mask_strips(shot.sharp, config.masking, encoder, config.seed, sample)
    write_png(picture_of(strips, caption=_MASKS_CAPTION), out)
    return [str(out)]


def show_features(
    videos: Sequence[str | Path],
    model: str | Path,
    which: Which,
    out: str | Path,
    moving: Moving = "webp",
    **sizes: int | None,
) -> list[str]:
    """Draw the principal directions of a model's features over videos, still and moving.

    Returned is a line with both files. `model` is anything that :func:`vjepa.load_encoder` reads,
    which explains the `sizes`. Clips are taken as in its run; where the file does not tell,
    as its kind of model was trained.
    """
    model, out = as_path(model), as_path(out)
    files = [as_path(video) for video in videos]
    film = film_beside(out, moving, files)
    encoder = load_encoder(model, which, **sizes)
    config = encoder.config
    clip = preprocess_of(model, config).clip
    shots = [read_shot(video, clip, config.image_size, video.name) for video in files]
    rows = feature_rows(shots, {"features": encoder})
    caption = _features_caption("the clips", config)
    return [write_rows(rows, out, film, caption, in_a_line=2)]


def show_predictions(
    video: str | Path,
    model: str | Path,
    out: str | Path,
    sample: int = 0,
    moving: Moving = "webp",
    **sizes: int | None,
) -> list[str]:
    """Draw where the predictor errs, still and moving, for each mask kind of its training.

    The `sizes` are for :func:`vjepa.checkpoint.read_model`. With several mask kinds the
    number of the kind is put before the suffix of `out`. Returned is one line for each: files and
    mean relative error.
    """
    video, model, out = as_path(video), as_path(model), as_path(out)
    check_still(out)
    loaded = load_model(model, **sizes)
    run, encoder = run_of(model), loaded.config.encoder
    masking = run.masking if run else MaskingConfig()
    clip = preprocess_of(model, encoder).clip
    shot = read_shot(video, clip, encoder.image_size, whole=True)
    found = prediction_rows(loaded, shot, masking, run.seed if run else 0, sample)
    lines = []
    for kind, (rows, mean) in enumerate(found):
        path = out if len(found) == 1 else out.with_stem(f"{out.stem}_{kind}")
        film = film_beside(path, moving, [video])
        files = write_rows(rows, path, film, _prediction_caption(mean, encoder))
        lines.append(
            f"{files}: mask kind {kind}, error {mean:.2f} of that of the clip's mean feature"
        )
    return lines


def show_run(folder: str | Path, out: str | Path | None = None) -> list[str]:
    """Write the HTML report of a running or dead run and return its state in plain lines.

    Raises:
        UserError: No run folder, or damaged.
    """
    folder = as_path(folder)
    out = None if out is None else as_path(out)
    check_kind("--out", out, ".html")
    state, out = read_run(folder), out or folder / "report.html"
    status = status_of(state)
    lines = state_lines(state, status)
    total = None if state.minutes_total else state.steps_total
    figures = [
        Figure(f"{state.steps_done:,}", f"steps done of {total:,}" if total else "steps done"),
        Figure(str(len(state.checkpoints)), "checkpoints kept"),
        Figure(str(len(state.bad_videos)), "bad videos"),
        Figure(str(status.skipped), "updates skipped"),
    ]
    sections = [Section("Curves", blocks=run_charts({folder.name: state}))]
    if state.result is not None:
        sections.insert(0, Section("Result", blocks=[Text(state.result, preformatted=True)]))
    if status.ranks:
        slow = [Text(f"Process {text.removeprefix('process ')}.") for text in status.stragglers]
        blocks = [rank_table(status), *slow, *rank_charts(state)]
        sections.append(Section("Processes", blocks=blocks))
    config = (folder / RESOLVED_CONFIG_FILE).read_text(encoding="utf-8")
    sections += [
        Section("State", blocks=[Text("\n".join(lines), preformatted=True)]),
        Section("Config", blocks=[Text(config, preformatted=True)], folded=True),
    ]
    report = Report(
        title=f"Run {'/'.join(folder.resolve().parts[-2:])}",
        answer=f"{status.state[0].upper()}{status.state[1:]}.",
        figures=figures,
        sections=sections,
        footer=str(folder.resolve()),
    )
    write_report(report, out)
    return [*lines, f"report       {out}"]
