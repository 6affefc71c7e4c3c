"""Pictures and reports that show what a run does and what a model sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vjepa.checkpoint import Which, find_checkpoint, load_model, read_config
from vjepa.config import RESOLVED_CONFIG_FILE, from_dict
from vjepa.data.clips.dataset import centre_view
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.video.info import DecodeError
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_encoder
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA, Encoder, normalise_clip
from vjepa.reporting.html import Figure, PictureBlock, Report, Section, Text, write_report
from vjepa.reporting.pictures import (
    Picture,
    filmstrip,
    heat,
    hide_masked,
    pca_colours,
    stack_rows,
    tokens_to_frames,
    upscale,
    write_png,
)
from vjepa.reporting.runs import (
    rank_charts,
    rank_table,
    read_run,
    run_charts,
    state_lines,
    status_lines,
    status_of,
)

_SHOWN_HEIGHT = 96
_SHOWN_FRAMES = 8


def model_input(frames: Picture) -> Tensor:
    """A clip uint8 [T, H, W, 3] as the model takes it: float32 [1, 3, T, H, W], normalised."""
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    return normalise_clip(clip)


def _strip(frames: Picture) -> Picture:
    """At most eight evenly spaced frames side by side."""
    count = min(len(frames), _SHOWN_FRAMES)
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(np.int64)
    return filmstrip(upscale(frames[chosen], _SHOWN_HEIGHT))


def _grid(frames: Picture, tubelet_size: int, patch_size: int) -> tuple[int, int, int]:
    steps, height, width = frames.shape[:3]
    return (steps // tubelet_size, height // patch_size, width // patch_size)


def masks_picture(
    frames: Picture,
    masking: MaskingConfig,
    tubelet_size: int,
    patch_size: int,
    seed: int,
    ordinal: int,
) -> Picture:
    """The clip and, below it, what each mask kind leaves visible (Figure 9 of the paper).

    `frames` are uint8 [T, H, W, 3]; the same `seed` and `ordinal` give the same masks.
    """
    grid = _grid(frames, tubelet_size, patch_size)
    sampler = MaskSampler(masking, grid, tubelet_size, seed)
    masked = sampler.full(np.array([ordinal], dtype=np.int64), 0)
    rows = [_strip(frames)] + [_strip(hide_masked(frames, kind[0])) for kind in masked]
    return stack_rows(rows, ["clip", *(f"mask {kind}" for kind in range(len(masked)))])


@torch.no_grad()
def feature_grid(encoder: Encoder, frames: Picture) -> NDArray[np.float32]:
    """Features of one clip as a grid: uint8 [T, H, W, 3] -> float32 [t, h, w, D]."""
    tokens = encoder(model_input(frames))[0]
    grid = _grid(frames, encoder.config.tubelet_size, encoder.config.patch_size)
    return tokens.reshape(*grid, -1).float().numpy()


def features_picture(clips: Sequence[Picture], encoders: Mapping[str, Encoder]) -> Picture:
    """For every clip: its frames, then one row of PCA colours for each encoder.

    The principal directions are those of all shown clips together, so one colour means one thing
    over time and over clips. `clips` are uint8 [T, H, W, 3] of one shape.
    """
    colours: dict[str, Picture] = {}
    for name, encoder in encoders.items():
        grids = np.stack([feature_grid(encoder, clip) for clip in clips])
        flat = pca_colours(grids.reshape(-1, *grids.shape[2:]))
        colours[name] = flat.reshape(*grids.shape[:4], 3)
    rows: list[Picture] = []
    for number, clip in enumerate(clips):
        rows.append(_strip(clip))
        rows += [_strip(tokens_to_frames(g[number], *clip.shape[:3])) for g in colours.values()]
    return stack_rows(rows, ["clip", *colours] * len(clips))


@dataclass(frozen=True)
class PredictionError:
    """How wrong the predictor is, token by token."""

    relative: NDArray[np.float32]
    """[t, h, w]: L1 error divided by the error of predicting the clip's mean feature; 1 is no
    better than that mean, 0 is perfect; 0 where nothing was predicted."""
    predicted: NDArray[np.bool_]
    """[t, h, w]: tokens that were masked and predicted."""

    @property
    def mean(self) -> float:
        """Mean relative error over the predicted tokens."""
        return float(self.relative[self.predicted].mean())


@torch.no_grad()
def prediction_error(
    model: VJEPA, frames: Picture, masks: TokenMasks, mask_index: int
) -> PredictionError:
    """The predictor's error on one clip, with layer-normed target features as in the loss.

    `frames` are uint8 [T, H, W, 3], `masks` have indices [1, K] and [1, M], and `mask_index` says
    which mask token the predictor uses.
    """
    config = model.config.encoder
    clip = model_input(frames)
    grid = _grid(frames, config.tubelet_size, config.patch_size)
    target = functional.layer_norm(model.target_encoder(clip), (config.width,))[0]
    context = model.encoder(clip, masks.context)
    predicted = model.predictor(context, masks.context, masks.target, mask_index)[0]
    places = masks.target[0]
    error = (predicted - target[places]).abs().mean(-1)
    trivial = (target[places] - target.mean(0)).abs().mean()
    relative = torch.zeros(target.shape[0])
    relative[places] = error / trivial
    where = torch.zeros(target.shape[0], dtype=torch.bool)
    where[places] = True
    return PredictionError(relative.reshape(grid).numpy(), where.reshape(grid).numpy())


def prediction_picture(frames: Picture, error: PredictionError) -> Picture:
    """Three rows: the clip, what the context encoder saw, the error over what was hidden."""
    seen = hide_masked(frames, error.predicted)
    return stack_rows(
        [_strip(frames), _strip(seen), _strip(heat(frames, error.relative, error.predicted, 1.0))],
        ["clip", "shown", "error"],
    )


def prediction_pictures(
    model: VJEPA, frames: Picture, masking: MaskingConfig, seed: int, ordinal: int
) -> list[tuple[Picture, float]]:
    """For each mask kind the picture of the errors on one clip, and their mean."""
    encoder, found = model.config.encoder, []
    sampler = MaskSampler(masking, encoder.grid, encoder.tubelet_size, seed)
    for kind, masks in enumerate(sampler.sample(np.array([ordinal], dtype=np.int64), 0)):
        error = prediction_error(model, frames, masks.sample(0), kind)
        found.append((prediction_picture(frames, error), error.mean))
    return found


def mask_section(config: PretrainConfig, clip: Picture) -> Section:
    """What is hidden of a clip."""
    encoder = config.model.encoder
    picture = masks_picture(
        clip, config.masking, encoder.tubelet_size, encoder.patch_size, config.seed, 0
    )
    caption = (
        "First row: the clip. Below: what the context encoder is shown under each mask kind; grey "
        "is hidden, and its features have to be predicted."
    )
    return Section("The task", blocks=[PictureBlock(picture, caption)])


def feature_section(
    clips: Sequence[Picture], encoders: Mapping[str, Encoder], what: str
) -> Section:
    """The features of clips, which are `what`, as colours."""
    caption = (
        f"For each of {len(clips)} {what}: the frames, then the three main directions of each "
        "encoder's features as colours. Equal colour means similar features; what moves should "
        "stand out from what does not."
    )
    block = PictureBlock(features_picture(clips, encoders), caption)
    return Section("What the features look like", blocks=[block])


def prediction_section(model: VJEPA, config: PretrainConfig, clips: Sequence[Picture]) -> Section:
    """How right the predictor is on clips."""
    blocks = []
    for number, clip in enumerate(clips):
        picture, mean = prediction_pictures(model, clip, config.masking, config.seed, number)[0]
        caption = (
            "The clip; what the model saw; the error of its prediction over what was hidden, from "
            f"green (0) to red (no better than the clip's mean feature). Mean {mean:.2f}."
        )
        blocks.append(PictureBlock(picture, caption))
    introduction = "Predicted and true features of hidden patches, compared one by one."
    return Section("Where the prediction is right and wrong", introduction, blocks)


def _run_config(model: Path) -> PretrainConfig | None:
    """The pretraining config inside a checkpoint; None for a released file."""
    run = read_config(find_checkpoint(model)).run if model.is_dir() else None
    return from_dict(PretrainConfig, run, str(model)) if run else None


def read_frames(video: Path, clip: ClipConfig, image_size: int) -> Picture:
    """The clip around the middle of a video as a model sees it: uint8 [T, S, S, 3].

    Raises:
        UserError: The file is missing or cannot be decoded.
    """
    try:
        view = ViewConfig(crop_size=image_size, short_side=image_size)
        frames = centre_view(video, clip, view)
    except DecodeError as error:
        raise UserError(f"{error}; `vjepa data check` tells more") from error
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def show_masks(video: Path, config: PretrainConfig, out: Path, ordinal: int = 0) -> None:
    """Draw what each mask kind leaves visible of a video or image, for one sample's masks."""
    encoder = config.model.encoder
    frames = read_frames(video, config.data.clip, encoder.image_size)
    picture = masks_picture(
        frames, config.masking, encoder.tubelet_size, encoder.patch_size, config.seed, ordinal
    )
    write_png(picture, out)


def show_features(
    videos: Sequence[Path], model: Path, which: Which, out: Path, num_heads: int | None = None
) -> None:
    """Draw the principal directions of a model's features over videos, as a PNG file.

    `model` is anything that :func:`vjepa.load_encoder` reads. Clips are taken as in its
    run; with the paper's stride where the file does not tell.
    """
    encoder = load_encoder(model, which, num_heads)
    run, config = _run_config(model), encoder.config
    clip = run.data.clip if run else ClipConfig(num_frames=config.num_frames)
    clips = [read_frames(video, clip, config.image_size) for video in videos]
    write_png(features_picture(clips, {"features": encoder}), out)


def show_predictions(
    video: Path, model: Path, out: Path, ordinal: int = 0, num_heads: int | None = None
) -> list[str]:
    """Draw where the predictor errs, one picture for each mask kind that it was trained with.

    With several mask kinds the number of the kind is put before the suffix of `out`. Returned is
    one line for each picture: file and mean relative error.
    """
    loaded = load_model(model, num_heads)
    run, encoder = _run_config(model), loaded.config.encoder
    masking = run.masking if run else MaskingConfig()
    clip = run.data.clip if run else ClipConfig(num_frames=encoder.num_frames)
    frames = read_frames(video, clip, encoder.image_size)
    found = prediction_pictures(loaded, frames, masking, run.seed if run else 0, ordinal)
    lines = []
    for kind, (picture, mean) in enumerate(found):
        path = out if len(found) == 1 else out.with_stem(f"{out.stem}_{kind}")
        write_png(picture, path)
        lines.append(
            f"{path}: mask kind {kind}, error {mean:.2f} of that of the clip's mean feature"
        )
    return lines


def show_run(folder: Path, out: Path) -> list[str]:
    """Write the HTML report of a running or dead run and return its state in plain lines.

    Raises:
        UserError: No run folder, or damaged.
    """
    state = read_run(folder)
    status = status_of(state)
    first, *others = state_lines(state)
    lines = [first, *status_lines(state, status), *others]
    total = state.steps_total
    figures = [
        Figure(f"{state.steps_done:,}", f"steps done of {total:,}" if total else "steps done"),
        Figure(str(len(state.checkpoints)), "checkpoints kept"),
        Figure(str(len(state.bad_videos)), "bad videos"),
        Figure(str(status.skipped), "updates skipped"),
    ]
    sections = [Section("Curves", blocks=run_charts({folder.name: state}))]
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
        title=f"Run {folder.name}",
        answer=f"{status.state[0].upper()}{status.state[1:]}.",
        figures=figures,
        sections=sections,
        footer=str(folder.resolve()),
    )
    write_report(report, out)
    return lines
