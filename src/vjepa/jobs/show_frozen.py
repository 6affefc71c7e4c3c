"""Pictures of frozen features in use: where a probe looks, which moments of a set are alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.config import RESOLVED_CONFIG_FILE, load_config
from vjepa.data.clips.dataset import load_clip
from vjepa.data.manifest.storage import absolute
from vjepa.errors import UserError
from vjepa.evaluation.frozen import check_finite, encode_clips
from vjepa.evaluation.saved_probe import load_saved_probe
from vjepa.evaluation.video_features import FileFeatures
from vjepa.jobs.features import FeaturesConfig, FeatureWorker, load_features
from vjepa.jobs.probe.encoder import reopen_encoder
from vjepa.jobs.show import read_shot
from vjepa.models import AttentiveClassifier
from vjepa.reporting.pictures import (
    SHOWN_SIDE,
    Moving,
    Strip,
    beside,
    heat,
    picture_of,
    resized,
    strip_of,
    write_png,
    write_side_by_side,
)

_ALL_FRAMES = 16
_FRAMES_OF_A_MOMENT = 4
_ANSWERS = 3


@torch.no_grad()
def show_attention(
    video: Path,
    probe: Path,
    out: Path,
    encoder: Path | None = None,
    moving: Moving = "webp",
) -> list[str]:
    """Draw where the query of an attentive probe looks, over all frames of one clip.

    A still picture at `out` and a moving one beside it. One row is the mean over the
    attention heads, below it is each head. All classes share the one query, so a class has no map
    of its own. `encoder` is where the probe's encoder lies now, if not where it lay. Returned are
    lines for the screen.

    Raises:
        UserError: The probe has no query, its encoder is another, or a file cannot be used.
    """
    saved = load_saved_probe(probe)
    head = saved.head
    if not isinstance(head, AttentiveClassifier):
        raise UserError(
            f"{probe}: a {saved.form.kind} probe has no query that looks anywhere; train one with "
            "`vjepa probe train --probe.kind attentive`"
        )
    frozen = reopen_encoder(saved.encoder, encoder)
    saved.check_encoder(frozen.encoder, frozen.identity.source)
    settings = saved.settings
    shot = read_shot(video, settings.clip, settings.view.crop_size, view=settings.view)
    clip = torch.from_numpy(shot.frames).permute(3, 0, 1, 2)[None]
    tokens = encode_clips(frozen.encoder, clip, settings.features.precision)
    check_finite(tokens, frozen.identity.source)
    count = tokens.shape[1]
    looks = head.pooler.attention(tokens)[0, :, 0].numpy() * count
    side = settings.view.crop_size // saved.encoder.config.patch_size
    maps = looks.reshape(len(looks), -1, side, side)
    mean = maps.mean(axis=0)
    limit = float(mean.max())
    every = np.ones(mean.shape, dtype=np.bool_)
    rows = [("clip", shot.sharp), ("all heads", heat(shot.sharp, mean, every, limit))]
    rows += [
        (f"head {number}", heat(shot.sharp, one, every, limit))
        for number, one in enumerate(maps, start=1)
        if len(maps) > 1
    ]
    mixed = (
        " Blocks of the probe mix the tokens before they are read, so a place also stands for what "
        "it took from others."
        if head.pooler.variant == "released_2" and head.pooler.depth > 1
        else ""
    )
    caption = (
        "How much of what the probe reads comes from each place and time: blue-green none, red "
        f"{limit:.1f} times an even share or more, the same in all rows. First the mean of the "
        f"{len(maps)} attention heads, then each. One query serves all classes. A square is one "
        f"token: {saved.encoder.config.patch_size} pixels, {len(shot.frames) // len(mean)} frames."
        f"{mixed}"
    )
    strips = [strip_of(name, frames, _ALL_FRAMES) for name, frames in rows]
    write_png(picture_of(strips, caption=caption), out)
    film = beside(out, moving)
    write_side_by_side(rows, film)
    scores = head(tokens)[0]
    shares = scores.sigmoid() if saved.multi_label else scores.softmax(dim=0)
    best = shares.topk(min(_ANSWERS, len(shares)))
    named = ", ".join(
        f"{saved.classes[number]} {100 * share:.0f} %"
        for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
    falling = np.sort(mean.reshape(-1))[::-1].cumsum() / count
    half = (int(np.searchsorted(falling, 0.5)) + 1) / count
    return [
        f"{out}, {film}",
        f"answer for this clip: {named}",
        f"half of the attention lies on {100 * half:.0f} % of the places (even: 50 %)",
    ]


@dataclass(frozen=True)
class Moment:
    """A stretch of a video, in seconds, and how alike it is to the clip that was asked for."""

    path: str
    start: float
    end: float
    likeness: float


def moments_of(found: FileFeatures, steps: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Mean features [n, D] of each `steps` successive time steps, and their times [n, 2].

    A shorter file, and one that was pooled over time, is one moment.
    """
    tokens = found.tokens.float().numpy()
    times = found.times
    ends = np.array([[times[0], times[-1]]])
    if tokens.ndim == 1:
        return tokens[None], ends
    rows = tokens.reshape(len(tokens), -1, tokens.shape[-1]).mean(axis=1)
    if len(rows) <= steps:
        return rows.mean(axis=0, keepdims=True), ends
    sums = np.cumsum(np.concatenate([np.zeros_like(rows[:1]), rows]), axis=0, dtype=np.float64)
    means = (sums[steps:] - sums[:-steps]) / steps
    return means.astype(np.float32), np.stack([times[: len(means)], times[steps - 1 :]], axis=1)


def nearest_moments(
    query: NDArray[np.float32],
    own: tuple[str, float, float],
    features: Sequence[FileFeatures],
    steps: int,
    most: int,
) -> list[Moment]:
    """The moments of a set whose features are most like `query` float [D], most alike first.

    Likeness is the cosine after the mean over all moments was taken off. Moments of one video do
    not overlap, nor does any with `own`: path and seconds of the query itself.
    """
    paths = tuple(one.path for one in features)
    parts = [moments_of(one, steps) for one in features]
    owner = np.repeat(np.arange(len(paths)), [len(rows) for rows, _ in parts])
    rows, times = (np.concatenate(one) for one in zip(*parts, strict=True))
    mean = rows.mean(axis=0)
    rows, query = rows - mean, query - mean
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    likeness = rows @ query / np.maximum(lengths, 1e-12)
    chosen = [own]
    found: list[Moment] = []
    for index in np.argsort(-likeness, kind="stable").tolist():
        path, (start, end) = paths[owner[index]], times[index].tolist()
        if any(path == other and start <= to and end >= since for other, since, to in chosen):
            continue
        chosen.append((path, start, end))
        found.append(Moment(path, start, end, float(likeness[index])))
        if len(found) == most:
            break
    return found


def show_neighbours(
    video: Path,
    features: Path,
    out: Path,
    at: float | None = None,
    most: int = 6,
    model: Path | None = None,
) -> list[Moment]:
    """Draw the moments of a set that are most like a clip of a video, with their times.

    `features` is what `vjepa features` wrote; the video is encoded with the same encoder and
    settings, unless it is one of the set. The clip is as long as a window of these, and around `at`
    seconds, or the middle. `model` is where the encoder lies now, if not where it lay.

    Raises:
        UserError: The features are of another encoder than the one found; bad files.
    """
    if most < 1:
        raise UserError(f"--most: {most}; at least 1 moment is shown")
    saved = load_features(features)
    path = absolute(str(video))
    worker = _worker_as_before(features, saved.settings, model)
    found = saved[path] if path in saved.paths else worker.look_into(path)
    rows, times = moments_of(found, worker.window_steps)
    middles = times.mean(axis=1)
    wanted = float(found.times[0] + found.times[-1]) / 2 if at is None else at
    if at is not None and not 0 <= at <= float(found.times[-1]) + 1:
        raise UserError(f"--at: {at:g}; {video} runs to {found.times[-1]:.2f} s")
    index = int(np.abs(middles - wanted).argmin())
    own = path, *times[index].tolist()
    moments = nearest_moments(rows[index], own, saved, worker.window_steps, most)
    if not moments:
        raise UserError(f"{features}: holds no other moment than this clip; add videos to it")
    strips = [_strip("asked for", Moment(*own, 1.0))]
    strips += [_strip(f"{one.likeness:.2f}", one) for one in moments]
    caption = (
        "First row: the clip that was asked for. Below: the moments of the set whose features are "
        "most like it, with their likeness: the cosine of the mean features, the mean of the whole "
        f"set taken off. 1: the same; 0: no more alike than any. Made with {worker.encoder}."
    )
    write_png(picture_of(strips, caption=caption), out)
    return moments


def _worker_as_before(
    features: Path, settings: Mapping[str, Any], model: Path | None
) -> FeatureWorker:
    """The encoder that features were made with, set as it was then; UserError if it is another."""
    config = load_config(
        FeaturesConfig,
        [features / RESOLVED_CONFIG_FILE],
        {} if model is None else {"encoder.path": model},
    )
    worker = FeatureWorker(config, features)
    now = json.loads(json.dumps(worker.settings))
    other = [name for name, value in now.items() if settings.get(name) != value]
    if "weights_hash" in other:
        raise UserError(
            f"{features}: features of another encoder (weights "
            f"{str(settings.get('weights_hash'))[:12]}...) than {config.encoder.path} has now "
            f"({now['weights_hash'][:12]}...); give the right one with --model, or make the "
            "features again"
        )
    if other:
        raise UserError(
            f"{features}: made with other settings ({', '.join(other)}) than "
            f"{RESOLVED_CONFIG_FILE} names; make the features again"
        )
    return worker


def _strip(label: str, moment: Moment) -> Strip:
    """Some frames of a moment with their times, and below the first which video it is."""
    length = moment.end - moment.start
    count = _FRAMES_OF_A_MOMENT if length > 0 else 1
    fps = (count - 1) / length if length > 0 else None
    clip = load_clip(moment.path, count, 1, moment.start if length > 0 else None, fps)
    frames = resized(clip.frames.permute(0, 2, 3, 1).numpy(), SHOWN_SIDE)
    notes = [f"{moment.start + length * n / max(1, count - 1):.2f} s" for n in range(count)]
    name = Path(moment.path).name
    notes[0] += f"  {name if len(name) <= 20 else f'{name[:8]}...{name[-9:]}'}"
    return Strip(label, list(frames), notes)
