"""Pictures of frozen features in use: where a probe looks, which moments of a set are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.data.manifest.storage import absolute
from vjepa.errors import UserError
from vjepa.evaluation.frozen import check_finite, encode_clips
from vjepa.evaluation.heads import to_compare
from vjepa.evaluation.saved_probe import check_encoder, load_saved_probe
from vjepa.evaluation.video_features import FileFeatures
from vjepa.jobs.features import FeaturesConfig, FeatureWorker, load_features, stored_config
from vjepa.jobs.probe.encoder import reopen_encoder
from vjepa.jobs.search import Moment, warn_of_changed
from vjepa.jobs.search_report import write_sheet
from vjepa.jobs.show import one_token, read_shot
from vjepa.models import AttentiveClassifier
from vjepa.paths import as_path
from vjepa.reporting.pictures import Moving, check_picture, film_beside, heat, write_rows

_ALL_FRAMES, _ANSWERS = 16, 3


@torch.no_grad()
def show_attention(
    video: str | Path,
    probe: str | Path,
    out: str | Path,
    encoder: str | Path | None = None,
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
    video, probe, out = as_path(video), as_path(probe), as_path(out)
    encoder = None if encoder is None else as_path(encoder)
    film = film_beside(out, moving, [video])
    saved = load_saved_probe(probe)
    head = saved.head
    if not isinstance(head, AttentiveClassifier):
        raise UserError(
            f"{probe}: a {saved.form.kind} probe has no query that looks anywhere; train one with "
            "`vjepa probe train --probe.kind attentive`"
        )
    frozen = reopen_encoder(saved.encoder, encoder)
    check_encoder(saved.encoder, frozen.encoder, frozen.identity.source, "probe")
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
    limit = max(2.0, float(mean.max()))  # an even share is never red
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
        "How much of what the probe reads comes from each place and time: from blue-green (none) "
        f"over yellow to red: {limit:.1f} times an even share or more, the same in all rows. First "
        f"the mean of the {len(maps)} attention heads, then each. One query serves all classes. A "
        f"square is one token: {one_token(saved.encoder.config)}.{mixed}"
    )
    files = write_rows(rows, out, film, caption, most=_ALL_FRAMES)
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
        files,
        f"answer for this clip: {named}",
        f"half of the attention lies on {100 * half:.0f} % of the places (even: 50 %)",
    ]


def moments_of(found: FileFeatures, steps: int) -> tuple[NDArray[np.float32], list[Moment]]:
    """Mean features [n, D] of each `steps` successive time steps, and where these are.

    A shorter file, and one that was pooled over time, is one moment.
    """
    tokens, times, numbers = found.tokens.float().numpy(), found.times, found.frame_numbers
    rows = tokens[None]
    if tokens.ndim > 1:
        rows = tokens.reshape(len(tokens), -1, tokens.shape[-1]).mean(axis=1)
    starts, ends = np.zeros(1, np.int64), np.array([len(times) - 1])
    means = rows.mean(axis=0, keepdims=True)
    if len(rows) > steps:
        sums = np.cumsum(np.concatenate([np.zeros_like(rows[:1]), rows]), axis=0, dtype=np.float64)
        means = ((sums[steps:] - sums[:-steps]) / steps).astype(np.float32)
        starts = np.arange(len(means))
        ends = starts + steps - 1
    places = zip(
        *(times[starts].tolist(), times[ends].tolist()),
        *(numbers[starts, 0].tolist(), numbers[ends, -1].tolist()),
        strict=True,
    )
    return means, [Moment(found.path, *place, alike=1.0) for place in places]


def nearest_moments(
    query: NDArray[np.float32], own: Moment, features: Sequence[FileFeatures], steps: int, most: int
) -> list[Moment]:
    """The moments of a set whose features are most like `query` float [D], most alike first.

    Likeness is the cosine after :func:`to_compare`, fitted to all moments. Moments of one video do
    not overlap, nor does any with `own`, the query itself.
    """
    parts = [moments_of(one, steps) for one in features]
    rows = np.concatenate([part for part, _ in parts])
    moments = [moment for _, several in parts for moment in several]
    mean, weights = (part.numpy() for part in to_compare(torch.from_numpy(rows)))
    rows, query = (rows - mean) @ weights, (query - mean) @ weights
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    likeness = rows @ query / np.maximum(lengths, 1e-12)
    found: list[Moment] = []
    for index in np.argsort(-likeness, kind="stable").tolist():
        one = replace(moments[index], alike=float(likeness[index]))
        others = [other for other in (own, *found) if other.path == one.path]
        if all(one.start > other.end or one.end < other.start for other in others):
            found.append(one)
        if len(found) == most:
            break
    return found


def show_neighbours(
    video: Path,
    features: str | Path,
    out: str | Path,
    at: float | None = None,
    most: int = 6,
    model: Path | None = None,
) -> list[str]:
    """Draw the moments of a set that are most like a clip of a video, and say their times.

    `features` is what `vjepa features` wrote; the video is encoded with the same encoder and
    settings, unless the set holds it as it is. The clip is as long as a window of these, and around
    `at` seconds, or the middle. `model` is where the encoder lies now, if not where it lay.

    Raises:
        UserError: The features are of another encoder than the one found; bad files.
    """
    features, out = as_path(features), as_path(out)
    if most < 1:
        raise UserError(f"--most: {most}, use 1 or more")
    check_picture(out)
    saved = load_features(features)
    path = absolute(str(video))
    worker = FeatureWorker(stored_config(FeaturesConfig, features, model), features)
    worker.require_same(features, saved.settings, "features")
    is_held = path in saved.paths and saved.is_current(path, worker)
    found = saved[path] if is_held else replace(worker.look_into(path), path=path)
    rows, places = moments_of(found, worker.window_steps)
    middles = np.array([(one.start + one.end) / 2 for one in places])
    wanted = float(found.times[0] + found.times[-1]) / 2 if at is None else at
    if at is not None and not 0 <= at <= float(found.times[-1]) + 1:
        raise UserError(f"--at: {at:g}; {video} runs to {found.times[-1]:.2f} s, give less")
    index = int(np.abs(middles - wanted).argmin())
    moments = nearest_moments(rows[index], places[index], saved, worker.window_steps, most)
    if not moments:
        raise UserError(f"{features}: holds no other moment than this clip; add videos to it")
    caption = (
        "First row: the clip that was asked for. Below: the moments of the set whose features are "
        "most like it, with their likeness: the cosine of the mean features (every direction in "
        "which moments differ made equally long). 1: the same; 0: no more alike than any. Made "
        f"with {worker.encoder}."
    )
    warn_of_changed(one.path for one in moments if not saved.is_current(one.path, worker))
    write_sheet(places[index], moments, out, caption)
    found = [f"{x.alike:5.2f}  {x.start:8.2f} to {x.end:.2f} s  {x.path}" for x in moments]
    return [*found, str(out)]
