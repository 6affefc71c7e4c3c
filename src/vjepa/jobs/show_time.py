"""Pictures over time: what is alike in a clip, and what surprises a model in a video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.checkpoint import AnyEncoder, Which
from vjepa.data.clips.dataset import load_clip
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.windows import FramingConfig, WindowConfig, read_files
from vjepa.data.video.info import DecodeError
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError
from vjepa.evaluation.preprocess import load_encoder, preprocess_of
from vjepa.evaluation.video_features import FileEncodingConfig, look_of
from vjepa.jobs.decode import open_model
from vjepa.jobs.show import Rows, Shot, feature_grid, one_token, read_shot
from vjepa.masking import TokenMasks
from vjepa.models import VJEPA, EncoderConfig
from vjepa.paths import as_path
from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import Chart, Figure, PictureBlock, Report, Section, write_report
from vjepa.reporting.pictures import (
    SHOWN_SIDE,
    Strip,
    check_picture,
    heat,
    marked,
    picture_of,
    resized,
    strip_of,
    write_png,
)
from vjepa.runtime.files import check_kind
from vjepa.runtime.progress import Progress
from vjepa.tasks.decoding import predicted_features, require_own_targets
from vjepa.tasks.masked_prediction import normalise_features

_WORST_SHARE, _PEAKS, _AT_ONCE, _ALL_FRAMES = 0.25, 3, 8, 16
_STANDS_OUT = 5.0  # deviations above the median; docs/surprise.md counts false alarms
_LEAST = 0.1  # of the median
_FEW = 12  # moments
_DEVIATIONS = 1.4826  # of a normal distribution, for one median absolute deviation


def similarity(features: NDArray[np.float32], token: tuple[int, int, int]) -> NDArray[np.float32]:
    """How alike features [t, h, w, D] are to those at one token (t, row, column): [t, h, w].

    The cosine after the clip's mean feature was taken off, which all features share: 1 is the same,
    0 no more alike than any, below 0 unlike.
    """
    centred = features - features.mean((0, 1, 2))
    centred /= np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
    return centred @ centred[token]


def show_similarity(
    video: str | Path,
    model: str | Path,
    out: str | Path,
    at: tuple[float, float] = (0.5, 0.5),
    frame: int = 0,
    which: Which = "target",
    **sizes: int | None,
) -> list[str]:
    """Draw where in a clip the features are like those at one place.

    `at` is across and down, each as a share of the picture that the model sees; `frame` counts the
    frames of the clip. `model` is anything that :func:`vjepa.load_encoder` reads, which explains
    the `sizes`.

    Raises:
        UserError: A place outside of the picture or of the clip; bad files.
    """
    video, model, out = as_path(video), as_path(model), as_path(out)
    check_picture(out)
    encoder = load_encoder(model, which, **sizes)
    size = encoder.config
    clip_config = preprocess_of(model, size).clip
    if not (0 <= at[0] < 1 and 0 <= at[1] < 1):
        raise UserError(f"--at: {at[0]:g} {at[1]:g}: across and down are shares, 0 to below 1")
    if not 0 <= frame < clip_config.num_frames:
        raise UserError(f"--frame: {frame}; use 0 to {clip_config.num_frames - 1}")
    shot = read_shot(video, clip_config, size.image_size)
    rows = similar_rows(encoder, shot, at, frame)
    caption = (
        "Below: how alike the features at each place are to those at the marked place (cosine, the "
        "clip's mean taken off). Blue-green: no more than any (0 and below); red: the same (1). A "
        f"square is one token: {one_token(size)}."
    )
    write_png(picture_of([strip_of(*row, _ALL_FRAMES) for row in rows], caption=caption), out)
    return [str(out)]


def similar_rows(encoder: AnyEncoder, shot: Shot, at: tuple[float, float], frame: int) -> Rows:
    """The clip with a ring at a place of a frame, and a map of what is alike to it in each frame.

    `at` is across and down, each as a share in [0, 1).
    """
    features = feature_grid(encoder, shot.frames)
    steps, rows, columns = features.shape[:3]
    token = frame * steps // len(shot.frames), int(at[1] * rows), int(at[0] * columns)
    alike = similarity(features, token)
    where = np.ones(alike.shape, dtype=np.bool_)
    clip = marked(shot.sharp, frame, at)
    return [("clip", clip), ("alike", heat(shot.sharp, alike, where, 1.0))]


@dataclass(frozen=True)
class Surprise:
    """How wrong a model was about what came next, all along a video."""

    seconds: NDArray[np.float64]
    """[n], ascending: the middle of each judged time step (one tubelet)."""
    starts: NDArray[np.float64]
    """[n]: when the last time step before it begins, which the model still saw."""
    errors: NDArray[np.float32]
    """[n, h, w]: mean absolute error of the predicted features, normalised as in the loss."""
    box: tuple[float, float, float, float]
    """The part of the frames that was looked at: top, left, height, width, in source pixels."""

    @property
    def values(self) -> NDArray[np.float64]:
        """[n]: the mean over the quarter of the places that were predicted worst.

        Not over all: what happens is often small.
        """
        flat = np.sort(self.errors.reshape(len(self.errors), -1), axis=1)
        return flat[:, -max(1, round(_WORST_SHARE * flat.shape[1])) :].mean(axis=1, dtype=float)

    @property
    def deviation(self) -> float:
        """1.48 times the median distance from the median, as of normal values; or a tenth of it.

        The larger one: of few moments, or of very even ones, the first says too little.
        """
        values, median = self.values, float(np.median(self.values))
        return max(_DEVIATIONS * float(np.median(np.abs(values - median))), _LEAST * median, 1e-9)

    @property
    def heights(self) -> NDArray[np.float64]:
        """[n]: how far each value is above the video's median, in deviations."""
        return (self.values - np.median(self.values)) / self.deviation

    @property
    def unusual(self) -> float:
        """From this value on a moment is called unusual."""
        return float(np.median(self.values)) + _STANDS_OUT * self.deviation

    def rule(self) -> str:
        """What is called unusual in this video, in words."""
        few = len(self.values) < _FEW
        rough = f"; a rough guess of so few moments ({len(self.values)})" if few else ""
        return (
            f"unusual here: a surprise of {self.unusual:.2f} or more, {_STANDS_OUT:g} deviations of"
            f" {self.deviation:.2f} above the median {np.median(self.values):.2f}{rough}"
        )

    def line(self, index: int) -> str:
        """One step in words."""
        height, value = self.heights[index], self.values[index]
        side = "above" if height >= 0 else "below"
        return (
            f"{self.seconds[index]:.2f} s: surprise {value:.2f}, {abs(height):.1f} deviations "
            f"{side} the median: {'' if height >= _STANDS_OUT else 'not '}unusual"
        )

    def peaks(self, most: int, apart: int) -> list[int]:
        """The highest steps, so many steps apart, highest first."""
        found: list[int] = []
        for index in np.argsort(-self.values, kind="stable").tolist():
            if len(found) < most and all(abs(index - other) >= apart for other in found):
                found.append(index)
        return found


@torch.no_grad()
def surprise_of(
    model: VJEPA,
    video: Path,
    clip: ClipConfig,
    kind: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Surprise:
    """Predict what comes next from the past, window by window, and compare.

    Windows are as long as the model's clips and one time step apart. Of each the model sees the
    first half, predicts the features of the second, and is judged by the first time step of that:
    what the target encoder, which sees the whole window, says there. `clip` tells how frames are
    spaced, `kind` which mask token is used. `progress` is called with (windows judged, in all), and
    what it raises ends the work.

    Raises:
        UserError: The video cannot be read, or is shorter than one window.
    """
    size = model.config.encoder
    steps, rows, columns = size.grid
    seen, places = steps // 2, rows * columns
    levels = size.levels if model.predictor.config.levels > 1 else None
    require_own_targets(model)
    if seen < 1:
        raise UserError("a clip of this model is one time step long; take one of longer clips")
    window = WindowConfig(overlap=(steps - 1) / steps).spaced_as(clip)
    how = FileEncodingConfig(window=window, framing=FramingConfig(kind="centre"))
    context = torch.arange(seen * places)[None]
    target = torch.arange(seen * places, steps * places)[None]
    info = inspect_file(str(video))
    if info.kind == "image":
        raise DecodeError(str(video), "a picture, in which nothing comes next")
    look = look_of(info, how, size)
    if look.plan.num_tubelets < steps:
        raise DecodeError(
            str(video),
            f"too few frames ({info.num_frames}): a window of this model covers "
            f"{size.num_frames} frames, spaced as it was trained",
        )
    seconds, starts, errors = [], [], []
    waiting: list[torch.Tensor] = []

    def judge() -> None:
        clips = model.encoder.normalise(torch.stack(waiting))
        count = len(waiting)
        tokens = model.target_encoder(clips, layers=levels)
        every = tokens if isinstance(tokens, list) else [tokens]
        truth = torch.cat([normalise_features(level) for level in every], dim=-1)
        truth = truth[:, seen * places :]
        half = TokenMasks(context.expand(count, -1), target.expand(count, -1))
        predicted = predicted_features(model, clips, half, kind)
        error = (predicted - truth).abs().mean(-1)[:, :places]
        errors.append(error.reshape(count, rows, columns).numpy())
        waiting.clear()

    total = len(look.plan.starts)
    for number, (*_, found) in enumerate(read_files([(0, look)], readers=0, timeout_seconds=60)):
        if isinstance(found, DecodeError):
            raise found
        times = found.seconds.reshape(steps, size.tubelet_size)
        seconds.append(times[seen].mean())
        starts.append(times[seen - 1, 0])
        waiting.append(found.clip)
        if len(waiting) == _AT_ONCE or number == total - 1:
            judge()
        if progress is not None:
            progress(number + 1, total)
    return Surprise(np.array(seconds), np.array(starts), np.concatenate(errors), look.box)


def show_surprise(
    video: str | Path, model: str | Path, out: str | Path, peaks: int = _PEAKS, **sizes: int | None
) -> list[str]:
    """Write the curve of :func:`surprise_of` over a video, with its peaks as frames, as one page.

    Returned are a line for each peak and the page.

    Raises:
        UserError: The video or the model cannot be used.
    """
    video, model, out = as_path(video), as_path(model), as_path(out)
    check_kind("--out", out, ".html")
    opened = open_model(model, drawn=False, **sizes)
    clip = preprocess_of(model, opened.config.encoder).clip
    with Progress("surprise", None) as display:
        found = surprise_of(
            opened, video, clip, progress=lambda done, total: display.update(done, total=total)
        )
    size, values, heights = opened.config.encoder, found.values, found.heights
    chosen = found.peaks(peaks, size.grid[0])
    out_standing = [index for index in chosen if heights[index] >= _STANDS_OUT]
    limit = float(found.errors[chosen].max())
    strips = [s for index in chosen for s in peak_strips(video, found, index, clip, size, limit)]
    lines = [*(found.line(index) for index in chosen), found.rule()]
    answer = (
        f"No moment is unusual: the highest, at {found.seconds[chosen[0]]:.2f} s, is "
        f"{heights[chosen[0]]:.1f} deviations above the median, and {_STANDS_OUT:g} are asked for."
    )
    if out_standing:
        times = ", ".join(f"{found.seconds[index]:.2f} s" for index in sorted(out_standing))
        answer = f"What came next was not what the model expected at {times}."
    curve = line_chart(
        [Line("surprise", found.seconds.tolist(), values.tolist(), level=found.unusual)],
        x_label="seconds",
        y_label="surprise",
    )
    about = (
        f"At each moment the model had seen the {size.num_frames // 2} frames before it and "
        "predicted the features of what comes next. The curve is the error of that prediction, as "
        "in training (mean absolute difference of normalised features), over the quarter of the "
        "places that were predicted worst. 0: everything came as predicted. High values are "
        "changes that the past does not tell: cuts, things that vanish or turn; or what this model "
        "never learnt."
    )
    below = (
        "For each peak: the frames before (seen) and the frames that came. Below, where the "
        f"prediction was wrong, from blue-green (0) over yellow to red ({limit:.2f}, the same for "
        "all peaks)."
    )
    report = Report(
        title=f"Surprise in {video.name}",
        answer=answer,
        figures=[
            Figure(f"{values.max():.2f}", "largest surprise"),
            Figure(f"{np.median(values):.2f}", "median of the video"),
            Figure(str(len(out_standing)), f"of {len(chosen)} peaks are unusual"),
        ],
        sections=[
            Section("Over time", about, [Chart(curve, f"Dotted: {found.rule()}.", wide=True)]),
            Section("The peaks", blocks=[PictureBlock(strips, below)]),
        ],
        footer=f"model {model}; {found.rule()}",
    )
    write_report(report, out)
    return [*lines, str(out)]


def peak_strips(
    video: Path, found: Surprise, index: int, clip: ClipConfig, size: EncoderConfig, limit: float
) -> list[Strip]:
    """The frames around a peak, sharp, and where the prediction was wrong."""
    tubelet = size.tubelet_size
    spaced = WindowConfig().spaced_as(clip)
    exact = "exact" if spaced.stride else "reference"
    shown = ClipConfig(num_frames=2 * tubelet, stride=spaced.stride, fps=spaced.fps, sampling=exact)
    around = load_clip(video, clip=shown, start_seconds=max(0.0, float(found.starts[index]))).frames
    top, left, height, width = (round(side) for side in found.box)
    part = around[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
    frames = resized(part.numpy(), SHOWN_SIDE)
    error = np.stack([np.zeros_like(found.errors[index]), found.errors[index]])
    where = np.stack([np.zeros_like(error[0], dtype=np.bool_), np.ones_like(error[0], np.bool_)])
    label, notes = f"{found.seconds[index]:.2f} s", ["seen"] * tubelet + ["came"] * tubelet
    judged = ["not judged"] * tubelet + ["judged"] * tubelet
    wrong = list(heat(frames, error, where, limit))
    return [Strip(label, list(frames), notes), Strip("wrong", wrong, judged)]
