"""Pictures and reports that show what a run does and what a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vjepa.config import from_dict
from vjepa.data.clip_sampling import ClipConfig
from vjepa.data.probe_file import probe
from vjepa.data.video_info import DecodeError
from vjepa.errors import UserError
from vjepa.evaluation.clips import ViewConfig, read_centre_clip
from vjepa.interop import Which, find_checkpoint, load_encoder, load_model, read_config
from vjepa.jobs.pretrain_config import PretrainConfig
from vjepa.jobs.visualise import (
    features_picture,
    masks_picture,
    prediction_error,
    prediction_picture,
)
from vjepa.masking import MaskingConfig, MaskSampler
from vjepa.models import Encoder, EncoderConfig
from vjepa.reporting.html import Figure, Report, Section, Text, write_report
from vjepa.reporting.pictures import Picture, write_png
from vjepa.reporting.run_status import (
    RunStatus,
    rank_charts,
    rank_table,
    status_lines,
    status_of,
)
from vjepa.reporting.runs import RunState, read_run, run_charts, state_lines


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
        frames = read_centre_clip(
            probe(str(video)), clip, ViewConfig(crop_size=image_size, short_side=image_size)
        )
    except DecodeError as error:
        raise UserError(f"{error}; `vjepa data check` tells more") from error
    return np.ascontiguousarray(frames.permute(1, 2, 3, 0).numpy())


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
