"""Pictures and reports that show what a run does and what a model sees."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vjepa.checkpoint import Which, find_checkpoint, load_encoder, load_model, read_config
from vjepa.config import from_dict
from vjepa.data.clips.load import centre_view
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.manifest.index import index_sources
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.data.video.inspect import probe
from vjepa.data.video.media_files import is_media
from vjepa.errors import UserError
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskingConfig, MaskSampler, TokenMasks
from vjepa.models import VJEPA, Encoder, EncoderConfig, normalise_clip
from vjepa.reporting.html import Figure, Report, Section, Text, write_report
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
from vjepa.reporting.run_status import (
    RunStatus,
    rank_charts,
    rank_table,
    status_lines,
    status_of,
)
from vjepa.reporting.runs import RunState, read_run, run_charts, state_lines


def files_of(sources: Sequence[Path], split: str | None = None) -> list[VideoInfo]:
    """Every file of the sources, each once, in the order of the sources.

    Args:
        sources: Videos, images, folders, lists of files, or Parquet manifests.
        split: Only this split of the manifests among the sources.

    Returns:
        What probing has found, also of files that cannot be read.

    Raises:
        UserError: A source is missing, or there is no file in any.
    """
    found: dict[str, VideoInfo] = {}
    for source in sources:
        found |= {info.path: info for info in _files_of(source, split) if info.path not in found}
    if not found:
        raise UserError("no video to look at: name a file, a folder, a list or a manifest")
    return list(found.values())


def _files_of(source: Path, split: str | None) -> list[VideoInfo]:
    if source.suffix == ".parquet":
        manifest = Manifest.open(source).select(split=split, ok_only=False)
        return [manifest.row(row) for row in range(len(manifest))]
    if source.is_file() and is_media(str(source)):
        return [probe(str(source))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = index_sources([source], Path(folder) / "manifest.parquet", names=["videos"])
        return [manifest.row(row) for row in range(len(manifest))]


_SHOWN_HEIGHT = 96
_SHOWN_FRAMES = 8


def model_input(frames: Picture) -> Tensor:
    """A clip uint8 [T, H, W, 3] as the model takes it: float32 [1, 3, T, H, W], normalised."""
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    return normalise_clip(clip)


def _chosen(num_frames: int) -> NDArray[np.int64]:
    """At most eight evenly spaced frames to draw."""
    return np.linspace(0, num_frames - 1, min(num_frames, _SHOWN_FRAMES)).round().astype(np.int64)


def _strip(frames: Picture) -> Picture:
    return filmstrip(upscale(frames[_chosen(len(frames))], _SHOWN_HEIGHT))


def masks_picture(
    frames: Picture,
    masking: MaskingConfig,
    tubelet_size: int,
    patch_size: int,
    seed: int,
    ordinal: int,
) -> Picture:
    """The clip and, below it, what each mask kind leaves visible (Figure 9 of the paper).

    Args:
        frames: uint8 [T, H, W, 3], cropped to the model's input size.
        masking: The mask kinds.
        tubelet_size, patch_size: Of the patch embedding.
        seed, ordinal: Which masks; the same numbers give the same picture.
    """
    steps, height, width = frames.shape[:3]
    grid = (steps // tubelet_size, height // patch_size, width // patch_size)
    sampler = MaskSampler(masking, grid, tubelet_size, seed)
    masked = sampler.full(np.array([ordinal], dtype=np.int64), 0)
    rows = [_strip(frames)] + [_strip(hide_masked(frames, kind[0])) for kind in masked]
    return stack_rows(rows, ["clip", *(f"mask {kind}" for kind in range(len(masked)))])


@torch.no_grad()
def feature_grid(encoder: Encoder, frames: Picture) -> NDArray[np.float32]:
    """Features of one clip as a grid: uint8 [T, H, W, 3] -> float32 [t, h, w, D]."""
    config = encoder.config
    tokens = encoder(model_input(frames))[0]
    grid = (
        len(frames) // config.tubelet_size,
        frames.shape[1] // config.patch_size,
        frames.shape[2] // config.patch_size,
    )
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
    labels: list[str] = []
    for number, clip in enumerate(clips):
        rows.append(_strip(clip))
        labels.append("clip")
        for name, grids in colours.items():
            rows.append(_strip(tokens_to_frames(grids[number], *clip.shape[:3])))
            labels.append(name)
    return stack_rows(rows, labels)


@dataclass(frozen=True)
class PredictionError:
    """How wrong the predictor is, token by token.

    Attributes:
        relative: float32 [t, h, w], L1 error divided by the error of predicting the clip's mean
            feature; 1 is no better than that mean, 0 is perfect; 0 where nothing was predicted.
        predicted: bool [t, h, w], tokens that were masked and predicted.
    """

    relative: NDArray[np.float32]
    predicted: NDArray[np.bool_]

    @property
    def mean(self) -> float:
        """Mean relative error over the predicted tokens."""
        return float(self.relative[self.predicted].mean())


@torch.no_grad()
def prediction_error(
    model: VJEPA, frames: Picture, masks: TokenMasks, mask_index: int
) -> PredictionError:
    """The predictor's error on one clip, with layer-normed target features as in the loss.

    Args:
        model: Encoder, target encoder and predictor.
        frames: uint8 [T, H, W, 3].
        masks: Context and target indices of one clip, [1, K] and [1, M].
        mask_index: Which mask token the predictor uses.
    """
    config = model.config.encoder
    clip = model_input(frames)
    grid = (
        len(frames) // config.tubelet_size,
        frames.shape[1] // config.patch_size,
        frames.shape[2] // config.patch_size,
    )
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


@dataclass(frozen=True)
class ModelSource:
    """A model on disk with what its run says of clips and masks.

    Attributes:
        path: Checkpoint, run folder or released file.
        num_heads: Attention heads, where the file and the preset table do not tell.
    """

    path: Path
    num_heads: int | None = None

    def run_config(self) -> PretrainConfig | None:
        """The pretraining config inside the checkpoint; None for a released file."""
        if not self.path.is_dir():
            return None
        run = read_config(find_checkpoint(self.path)).run
        return from_dict(PretrainConfig, run, str(self.path)) if run else None

    def clip(self, encoder: EncoderConfig) -> ClipConfig:
        """How the model's clips are taken; the paper's stride where the file does not tell."""
        run = self.run_config()
        return run.data.clip if run else ClipConfig(num_frames=encoder.num_frames)


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
    """Draw what each mask kind of a config leaves visible of a video.

    Args:
        video: Any video or image.
        config: Gives masks, clip and token grid.
        out: The PNG file to write.
        ordinal: Which sample's masks.
    """
    encoder = config.model.encoder
    frames = read_frames(video, config.data.clip, encoder.image_size)
    picture = masks_picture(
        frames, config.masking, encoder.tubelet_size, encoder.patch_size, config.seed, ordinal
    )
    write_png(picture, out)


def show_features(videos: Sequence[Path], model: ModelSource, which: Which, out: Path) -> None:
    """Draw the principal directions of a model's features over the frames of videos.

    Args:
        videos: At least one.
        model: The model.
        which: Target or context encoder.
        out: The PNG file to write.
    """
    encoder: Encoder = load_encoder(model.path, which=which, num_heads=model.num_heads)
    config = encoder.config
    clip = model.clip(config)
    clips = [read_frames(video, clip, config.image_size) for video in videos]
    write_png(features_picture(clips, {"features": encoder.eval()}), out)


def show_predictions(video: Path, model: ModelSource, out: Path, ordinal: int = 0) -> list[str]:
    """Draw where the predictor errs, one part for each mask kind that the model was trained with.

    Args:
        video: Any video or image.
        model: A model with its predictor.
        out: PNG file; with several mask kinds the number of the kind is put before the suffix.
        ordinal: Which sample's masks.

    Returns:
        One line for each picture: file and mean relative error.
    """
    loaded = load_model(model.path, num_heads=model.num_heads).eval()
    run, encoder = model.run_config(), loaded.config.encoder
    masking = run.masking if run else MaskingConfig()
    frames = read_frames(video, model.clip(encoder), encoder.image_size)
    sampler = MaskSampler(masking, encoder.grid, encoder.tubelet_size, run.seed if run else 0)
    lines = []
    for kind, masks in enumerate(sampler.sample(np.array([ordinal], dtype=np.int64), 0)):
        error = prediction_error(loaded, frames, masks.sample(0), kind)
        path = out if len(masking.masks) == 1 else out.with_stem(f"{out.stem}_{kind}")
        write_png(prediction_picture(frames, error), path)
        lines.append(
            f"{path}: mask kind {kind}, error {error.mean:.2f} of that of the clip's mean feature"
        )
    return lines


def show_run(folder: Path, out: Path) -> list[str]:
    """Write the report of a running or dead run and return its state in plain lines.

    Args:
        folder: The run folder.
        out: The HTML file to write.

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
    sections = [
        Section("Curves", blocks=run_charts({folder.name: state})),
        *_process_sections(state, status),
        Section("State", blocks=[Text("\n".join(lines), preformatted=True)]),
        Section(
            "Config",
            blocks=[Text((folder / "config.yaml").read_text(encoding="utf-8"), preformatted=True)],
            folded=True,
        ),
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


def _process_sections(state: RunState, status: RunStatus) -> list[Section]:
    """The table and curves of the processes of a run of several."""
    if not status.ranks:
        return []
    slow = [Text(f"Process {text.removeprefix('process ')}.") for text in status.stragglers]
    return [Section("Processes", blocks=[rank_table(status), *slow, *rank_charts(state)])]
