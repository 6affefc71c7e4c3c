"""The report of ``vjepa learn``: what was learnt from one's own videos, in plain words."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional

from vjepa.checkpoint import AnyEncoder
from vjepa.config import RESOLVED_CONFIG_FILE, dump_yaml, load_config
from vjepa.data.clips.cut import cut
from vjepa.data.clips.plan import ClipPlan
from vjepa.data.clips.source import VideoSource
from vjepa.data.clips.views import ViewConfig, plan_views
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.frozen import encode_clips
from vjepa.evaluation.heads import to_compare
from vjepa.evaluation.metrics import ClassificationMetrics
from vjepa.evaluation.preprocess import load_encoder, load_model
from vjepa.evaluation.results import ProbeResult
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.probe.encoder import untrained_encoder
from vjepa.jobs.show import (
    SHOWN_SIDE,
    Shot,
    feature_section,
    mask_section,
    prediction_section,
    read_shot,
)
from vjepa.reporting.html import (
    Block,
    Figure,
    PictureBlock,
    Report,
    Section,
    Table,
    Text,
    write_report,
)
from vjepa.reporting.pictures import Strip, picture_of, write_png
from vjepa.reporting.runs import RunState, read_run, run_charts
from vjepa.runtime.progress import format_seconds
from vjepa.runtime.workers import WorkerPool

_LOGGER = logging.getLogger(__name__)

PICTURES_FOLDER = "pictures"
_SHOTS = 3
MOMENTS = 96
"""Looked at for likeness, where there is time enough."""
_QUERIES, _NEIGHBOURS = 4, 3
_APART_SECONDS = 4.0
"""Moments of one video are compared only if they are so far from each other."""


def write_learn_report(
    path: Path,
    seed: int,
    minutes: float,
    lines: Sequence[str],
    skipped: Sequence[tuple[str, str]],
    results: Mapping[str, ProbeResult],
    cut: Sequence[str],
    moments: int,
) -> None:
    """Write the page, and its pictures as PNG files beside it.

    `minutes` is the time that all of it was given. `lines` say what was chosen, `skipped` which
    files were not used and why, `cut` what was left out for want of time. `results` are those of
    probes on the `target` encoder and on `random` weights, none without classes; `moments` is how
    many are looked at for likeness.
    """
    _LOGGER.info("writing the report")
    run = path.parent / "run"
    config = load_config(PretrainConfig, [run / RESOLVED_CONFIG_FILE])
    state, manifest = read_run(run), Manifest.open(path.parent / "videos.parquet")
    trained = load_encoder(run)
    encoders = {
        "untrained": untrained_encoder(trained.config, seed).eval(),
        "trained": trained,
    }
    # Files that were looked into may still turn out to be damaged.
    unread = {str(v["path"]): f"while learning: {v['reason']}" for v in state.bad_videos}
    if "target" in results and (test := results["target"].test) is not None:
        failed = (*results["target"].train_bad_videos, *test.bad_videos)
        unread = {video.path: f"by the probe: {video.reason}" for video in failed} | unread
    unread |= dict(skipped)
    skipped, bad = list(unread.items()), set(unread)
    shots = _shots(manifest, config, bad)
    records: list[Block] = [Text("\n".join(lines), preformatted=True)]
    if skipped:
        records.append(Table(("file that was not used", "why"), skipped))
    records.append(Text("pretraining config\n\n" + dump_yaml(config), preformatted=True))
    sections = [
        *_probe_sections(results),
        mask_section(config, shots[0]),
        feature_section(shots, encoders, "videos"),
        prediction_section(load_model(run).eval(), config, shots[:2]),
        *moment_sections(manifest, config, encoders, bad, most=moments),
        Section("How training went", blocks=run_charts({"run": state})),
        _next_section(path.parent, minutes, manifest, bad),
        Section("What was chosen, and what was left out", blocks=records, folded=True),
    ]
    for section in sections:
        for number, block in enumerate(section.blocks):
            if isinstance(block, PictureBlock):
                name = f"{section.title.lower().replace(' ', '_')}_{number}.png"
                picture = picture_of(block.strips, caption=block.caption)
                write_png(picture, path.parent / PICTURES_FOLDER / name)
    answer, figures = _headline(results, len(skipped), cut, state, config, manifest)
    write_report(Report("What was learnt from your videos", answer, figures, sections), path)


def _headline(
    results: Mapping[str, ProbeResult],
    num_skipped: int,
    cut: Sequence[str],
    state: RunState,
    config: PretrainConfig,
    manifest: Manifest,
) -> tuple[str, list[Figure]]:
    """The answer in plain words and in figures, whatever it is."""
    weights = [manifest.select(split=source.split).weights for source in config.data.sources]
    count = sum(int((each > 0).sum()) for each in weights) - len(state.bad_videos)
    clips = state.steps_done * config.data.batch_size
    seconds = float(state.newest("train").get("elapsed_seconds", 0.0))
    skipped = f", files skipped: {num_skipped}" if num_skipped else ""
    videos = f"video{'s' * (count != 1)}"
    figures = [
        Figure(f"{count:,}", f"{videos} to learn from{skipped}"),
        Figure(
            format_seconds(seconds), f"of learning: updates {state.steps_done:,}, clips {clips:,}"
        ),
    ]
    answer = (
        f"In {format_seconds(seconds)} of training a V-JEPA watched {clips:,} clips of {count:,} "
        f"{videos}, without any label. Large parts of each clip were hidden from it, and it learnt "
        "to predict the features of what was hidden."
    )
    health = state.newest("health")
    explained = health.get("explained_vs_position_mean")
    if isinstance(explained, float):
        than = "than guessing what is usual at each place"
        if explained > 0:
            percent = f"{100 * explained:.0f} %"
            figures.append(
                Figure(percent, "of what differs between clips learnt from is predicted")
            )
            answer += (
                f" Of clips that it learns from, its predictions are better {than} ({percent} of "
                "the difference explained)."
            )
        else:
            answer += f" Its predictions are no better {than}: it needs more time or videos."
    tested = {name: result.test.metrics for name, result in results.items() if result.test}
    mine, random = tested.get("target"), tested.get("random")
    if isinstance(mine, ClassificationMetrics) and isinstance(random, ClassificationMetrics):
        named = f"test videos named rightly, untrained {random.correct}"
        figures.append(Figure(f"{mine.correct} of {mine.count}", named))
        above = "above" if mine.wilson.low > random.top1 else "not told apart from"
        above = "below" if mine.wilson.high < random.top1 else above
        copies = _known_copies(results)
        answer += (
            f" A probe, a small classifier on its features, names {mine.correct} of {mine.count} "
            f"{'test' if copies else 'unseen'} videos rightly; "
            f"on an untrained encoder {random.correct}. By the 95 % interval it is {above} the "
            f"untrained one.{copies}"
        )
    if cut:
        answer += f" Time was short: {'; '.join(cut)}. More --minutes make up for it."
    return answer, figures


def _known_copies(results: Mapping[str, ProbeResult]) -> str:
    """What to say where test videos are copies of those that were trained on."""
    test = results["target"].test
    if test is None or not test.trained_on:
        return ""
    one = test.trained_on == 1
    copies = "is a copy of a training video" if one else "are copies of training videos"
    return f" {test.trained_on} of them {copies}: the number is too good."


def _probe_sections(results: Mapping[str, ProbeResult]) -> list[Section]:
    rows = []
    for which, name in (("target", "trained on your videos"), ("random", "untrained")):
        test = results[which].test if which in results else None
        if test is None or not isinstance(test.metrics, ClassificationMetrics):
            return []
        metrics = test.metrics
        interval = f"{100 * metrics.wilson.low:.0f} to {100 * metrics.wilson.high:.0f}"
        right = f"{metrics.correct} of {metrics.count}"
        rows.append((name, f"{100 * metrics.top1:.0f}", interval, right))
        if which == "random":
            most = max(metrics.per_class, key=lambda entry: entry.count)
            share = f"{100 * most.count / metrics.count:.0f}"
            rows.append(
                (f"no encoder: always {most.name}", share, "", f"{most.count} of {metrics.count}")
            )
    introduction = (
        "The encoder is frozen; only a small probe on top is trained with labels, and tested on "
        "videos that were kept out of all training. Clips cut from one recording may stand "
        f"on both sides: then the number is too good.{_known_copies(results)}"
    )
    head = ("encoder", "right %", "95 % interval", "videos")
    return [Section("What the features know of your classes", introduction, [Table(head, rows)])]


def _shots(manifest: Manifest, config: PretrainConfig, bad: set[str]) -> list[Shot]:
    """The middles of a few videos, of the test part if there is one."""
    rows = manifest.select(split="test") if "test" in manifest.splits else manifest
    paths = [path for path in map(rows.path, range(len(rows))) if path not in bad]
    shots, names = list[Shot](), _names(paths)
    # Every so many first, then those between.
    step = max(1, len(paths) // _SHOTS)
    size = config.model.encoder.image_size
    for path in [path for start in range(step) for path in paths[start::step]]:
        try:
            shots.append(read_shot(Path(path), config.data.clip, size, names[path]))
        except UserError as error:
            _LOGGER.warning("not shown: %s", error)
        if len(shots) == _SHOTS:
            break
    if not shots:
        raise UserError("no video can be read any more; bring them back and start the same command")
    return shots


def _names(paths: Sequence[str]) -> dict[str, str]:
    """What videos are called in pictures: by their files, with the folder where two are alike."""
    counts = Counter(Path(path).name for path in paths)
    is_alone = {path: counts[Path(path).name] == 1 for path in paths}
    return {path: "/".join(Path(path).parts[-1 if is_alone[path] else -2 :]) for path in paths}


def moment_sections(
    manifest: Manifest,
    config: PretrainConfig,
    encoders: Mapping[str, AnyEncoder],
    bad: set[str],
    label: str | None = None,
    view: ViewConfig | None = None,
    most: int = MOMENTS,
) -> list[Section]:
    """Moments, and those of other videos (or other times) that are nearest to them.

    At `most` so many are looked at. The last of the encoders is the trained one. Below a moment
    stand its time and its file, or the `label` of that, if one is named.
    """
    size = config.model.encoder.image_size
    view = view or ViewConfig(crop_size=size, short_side=size)
    (rows, taken, times), features = _encode_moments(manifest, config, encoders, bad, view, most)
    if not len(rows):
        return []
    strips: list[Strip] = []
    names = _names([manifest.path(row) for row in range(len(manifest))])
    # Moments that have little in common with each other.
    queries, nearness = [len(rows) // 2], np.full(len(rows), -1.0)
    trained = features[tuple(encoders)[-1]]
    while len(queries) < min(_QUERIES, len(rows)):
        nearness = np.maximum(nearness, trained @ trained[queries[-1]])
        queries.append(int(nearness.argmin()))
    for query in queries:
        other = rows != rows[query]
        if not other.any():
            other = np.abs(times - times[query]) > _APART_SECONDS
        if not other.any():
            continue
        for name, vectors in features.items():
            alike = np.where(other, vectors @ vectors[query], -2.0)
            nearest = []
            for found in alike.argsort()[::-1].tolist():
                # One moment of a video is enough where there are several videos.
                is_new = rows[found] not in rows[nearest]
                if other[found] and (is_new or len(manifest) <= _NEIGHBOURS):
                    nearest.append(found)
                if len(nearest) == _NEIGHBOURS:
                    break
            frames, notes = [], []
            for number in (query, *nearest):
                video = manifest.row(int(rows[number]))
                clip = decode_frames(video, taken[number])
                side = (SHOWN_SIDE, SHOWN_SIDE)
                images = [ImageOps.fit(Image.fromarray(frame), side) for frame in clip]
                frames.append(np.stack([np.asarray(image) for image in images]))
                seconds = int(times[number])
                said = f"{names[video.path]}, {seconds // 60}:{seconds % 60:02d}"
                if label is not None:
                    said = manifest.labels(label)[rows[number]] or "no label"
                likeness = "" if number == query else f"{alike[number]:.2f} alike: "
                notes.append(f"{likeness}{said}")
            strips.append(Strip(name, frames, notes))
    if not strips:
        return []
    caption = (
        "In each row, left: a moment; then the moments whose features are most alike (1: the same, "
        "0: nothing in common beyond what all moments share), each of another video where there "
        "are several. An untrained encoder finds the same colours in the same places; a trained "
        "one should find the same things or the same motion."
    )
    if label is not None:
        named = manifest.labels(label)[rows]
        other = rows[:, None] != rows
        shares = [
            f"{name} {100 * np.mean(named[nearest] == named):.0f} %"
            for name, vectors in features.items()
            for nearest in [np.where(other, vectors @ vectors.T, -2.0).argmax(axis=1)]
        ]
        caption += (
            f" Of all {len(named)} moments looked at, the nearest has the same {label} in: "
            f"{', '.join(shares)}."
        )
    return [Section("Which moments are alike", blocks=[PictureBlock(strips, caption)])]


@torch.no_grad()
def _encode_moments(
    manifest: Manifest,
    config: PretrainConfig,
    encoders: Mapping[str, AnyEncoder],
    bad: set[str],
    view: ViewConfig,
    most: int,
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]], dict[str, NDArray]]:
    """Evenly spread moments and what each encoder makes of them: unit vectors float32 [n, D].

    A moment is a clip of a video: its manifest row [n], frames [n, T] and middle's time [n]. Those
    that cannot be read are left out, which is said.
    """
    usable = np.array([row for row in range(len(manifest)) if manifest.path(row) not in bad])
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, most).astype(int))]
    view = replace(view, num_segments=max(1, most // len(chosen)), num_views=1)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in encoders}
    rows, frames, seconds, planned = [], [], [], []
    failed: list[str] = []
    for row in chosen.tolist():
        try:
            video = VideoSource(manifest.row(row))
            plans, times = plan_views(config.data.clip, view, video), video.times
        except DecodeError as error:
            failed.append(str(error))
            continue
        for plan in plans:
            middle = int(plan.frames[len(plan.frames) // 2])
            time = middle / video.fps if times is None else float(times[middle])
            planned.append((row, time, manifest.row(row), plan))
    workers = max(1, config.data.loader.num_workers)
    pool = WorkerPool(_read_moment, workers, ReadingConfig.sample_timeout_seconds)
    with closing(pool):
        for (row, time, video, plan), outcome in pool.map(planned, ahead=2 * workers):
            found = outcome.value if outcome.kind == "done" else outcome.reason
            if isinstance(found, str):
                failed.append(f"{video.path}: {found}")
                continue
            for name, encoder in encoders.items():
                clip = torch.from_numpy(found)[None]
                parts[name].append(encode_clips(encoder, clip, "float32").mean(dim=1))
            rows.append(row)
            frames.append(plan.frames)
            seconds.append(time)
    if failed:
        _LOGGER.warning(
            "moments that are alike: %d could not be read and are left out (first: %s)",
            *(len(failed), failed[0]),
        )
    features = {}
    for name, vectors in parts.items() if rows else ():
        joined = torch.cat(vectors)
        mean, weights = to_compare(joined)
        features[name] = functional.normalize((joined - mean) @ weights, dim=1).numpy()
    return (np.array(rows), np.array(frames), np.array(seconds)), features


def _read_moment(job: tuple[int, float, VideoInfo, ClipPlan]) -> NDArray[np.uint8] | str:
    """A worker's job, a moment at a time: those of a long film together have no room.

    Its clip uint8 [3, T, S, S], or why it cannot be read.
    """
    _, _, video, plan = job
    clip = torch.empty(1, 3, len(plan.frames), *plan.size, dtype=torch.uint8)
    try:
        cut(VideoSource(video), [plan], clip)
    except DecodeError as error:
        return error.reason
    return clip[0].numpy()


def _next_section(folder: Path, minutes: float, manifest: Manifest, bad: set[str]) -> Section:
    out = shlex.quote(str(folder))
    paths = [path for path in map(manifest.path, range(len(manifest))) if path not in bad]
    videos = shlex.join(paths[:2])
    text = f"""\
# go on, with more time
vjepa learn --out {out} --minutes {2 * minutes:g}

# all curves
vjepa show run {out}/run

# features: as files, and as colours over videos
vjepa features {out}/videos.parquet --encoder.path {out}/run --out features
vjepa show features {videos} --model {out}/run --out features.png

# name classes with the frozen encoder
vjepa probe train --help

# in Python
python -c "import vjepa, sys; print(vjepa.load_encoder(sys.argv[1]))" {out}/run\
"""
    return Section("How to go on", blocks=[Text(text, preformatted=True)])
