"""Video files for the demo: synthetic sets as .mp4 files, and their manifests."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np

from vjepa.config import from_dict
from vjepa.data.ava import AvaConfig, build_table
from vjepa.data.manifest.index import index_sources
from vjepa.demo.synthetic import SPLITS, SyntheticConfig, clip_labels, render_clip
from vjepa.demo.synthetic_boxes import BOX_CLASSES, boxes_of, key_seconds, render_people
from vjepa.errors import UserError
from vjepa.jobs.pretrain_room import same_config
from vjepa.jobs.videos import checked_workers, describe
from vjepa.paths import as_path
from vjepa.reporting.pictures import write_moving, write_mp4
from vjepa.runtime.files import (
    atomic_path,
    atomic_write,
    begin_folder,
    claimed_folder,
    write_csv,
)
from vjepa.runtime.progress import Progress
from vjepa.runtime.workers import WorkerPool

_LABELS_FILE = "labels.csv"
_CLASSES_FILE = "actions.pbtxt"
_ENCODER_OPTIONS = {
    "threads": "1",
    "preset": "veryfast",
    "g": "8",
    # x264's macroblock tree reads uninitialised memory on tiny frames: without it the same frames
    # always give the same bytes.
    "x264-params": "no-mbtree=1",
}
_CLIPS_PER_TASK = 16
_TASK_SECONDS = 600.0

_Task = tuple[SyntheticConfig, Path, str, range]


def write_synthetic_set(config: SyntheticConfig, out: Path, workers: int = 1) -> Path:
    """Write the whole set into the folder `out`, and its `labels.csv`, whose path is returned.

    A set that was cut short is continued. With one of `workers` it is drawn in this process.

    Raises:
        UserError: `out` holds a set of other settings, or something that is not such a set.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}, must be at least 1")
    with claimed_folder(out, "data synth") as has_begun:
        if has_begun:
            same_config(config, out)
        begin_folder(out, "data synth", config)
        tasks: list[_Task] = []
        names = () if config.boxes else ("motion", "appearance", "colour")[: 2 + config.colours]
        table = [("path", "split", *names)]
        for split in SPLITS:
            count = config.num_clips(split)
            if count:
                (out / split).mkdir(exist_ok=True)
            for start in range(0, count, _CLIPS_PER_TASK):
                indices = range(start, min(start + _CLIPS_PER_TASK, count))
                tasks.append((config, out, split, indices))
            for index in range(count):
                labels = () if config.boxes else clip_labels(config, split, index)
                path = clip_path(split, index, boxes=config.boxes)
                table.append((path.as_posix(), split, *labels))
        total = sum(len(indices) for *_, indices in tasks)
        done = 0
        others = 0 if workers == 1 or len(tasks) == 1 else workers
        pool = WorkerPool(_write_clips, others, _TASK_SECONDS, preload=("av", "numpy"))
        with Progress("synth", total) as progress, closing(pool):
            for task, outcome in pool.map(tasks, ahead=2 * workers, in_order=False):
                if outcome.kind != "done":
                    raise UserError(f"{out / task[2]}: clips could not be drawn: {outcome.reason}")
                done += len(task[3])
                progress.update(done)
        if config.boxes:
            _write_ava_files(config, out)
        write_csv(out / _LABELS_FILE, table)
        return out / _LABELS_FILE


def _write_ava_files(config: SyntheticConfig, out: Path) -> None:
    """The boxes of a set as AVA has them: classes, and for each split truth and people found."""
    items = (f'item {{\n  name: "{name}"\n  id: {n}\n}}\n' for n, name in enumerate(BOX_CLASSES, 1))
    atomic_write(out / _CLASSES_FILE, "".join(items))
    for split in SPLITS:
        truth: list[tuple[object, ...]] = []
        persons: list[tuple[object, ...]] = []
        for index in range(config.num_clips(split)):
            video = clip_path(split, index, boxes=True).stem
            boxes, found = boxes_of(config, split, index)
            empty = set(key_seconds(config)) - {row.second for row in boxes}
            truth += [(video, f"{second:.4f}") for second in sorted(empty)]
            for number, row in enumerate(boxes):
                second = f"{row.second:.4f}"
                truth += [(video, second, *row.box, label, number) for label in row.labels]
            for row in found:
                persons.append((video, f"{row.second:.4f}", *row.box, "", f"{row.score:.4f}"))
        if config.num_clips(split):
            write_csv(out / f"{split}.csv", truth)
            write_csv(out / f"{split}_persons.csv", persons)


def clip_path(split: str, index: int, *, boxes: bool = False) -> Path:
    """Path of a clip's file, relative to its set's folder; with boxes its name alone tells it."""
    return Path(split) / (f"{split}_{index:06d}.mp4" if boxes else f"{index:06d}.mp4")


def _write_clips(task: _Task) -> None:
    """Draw and encode the clips of one task that are not there yet."""
    config, out, split, indices = task
    for index in indices:
        path = out / clip_path(split, index, boxes=config.boxes)
        if not (path.exists() and path.stat().st_size > 0):
            if config.boxes:
                frames = render_people(config, split, index)
            else:
                frames = render_clip(config, split, index).frames
            with atomic_path(path, durable=False) as aside:
                write_mp4(frames, aside, Fraction(config.fps), _ENCODER_OPTIONS)


def example_videos(folder: Path) -> dict[str, Path]:
    """Two videos drawn for a first look, by what they show; no digit in them was trained on."""
    config = SyntheticConfig(size=160, num_frames=16, travel=0.6, background_speed=0.6)
    moving = (n for n in range(99) if clip_labels(config, "test", n)[0].startswith("move_"))
    clips = [render_clip(config, "test", next(moving)).frames for _ in range(3)]
    drawn = {
        "drawn: a digit moves (2 s)": clips[0],
        "drawn: three clips with two cuts (6 s)": np.concatenate(clips),
    }
    paths = {name: folder / f"example_{number}.mp4" for number, name in enumerate(drawn, 1)}
    for name, frames in drawn.items():
        write_moving(frames, paths[name], 1 / config.fps)
    return paths


def synthesise(
    config: SyntheticConfig, out: str | Path, workers: int | None = None
) -> tuple[Path, str]:
    """Write a synthetic labelled set and its manifest: its path, and a summary for the user.

    A set that was cut short is continued. One with boxes also gets a table of them for each split,
    ``boxes_train.parquet`` and so on, as ``vjepa data ava`` makes it.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    config, out = from_dict(SyntheticConfig, config), as_path(out)
    manifest = out / "manifest.parquet"
    workers = checked_workers(workers)
    labels = write_synthetic_set(config, out, workers)
    said = describe(index_sources([labels], manifest, workers=workers))
    for split in SPLITS if config.boxes else ():
        if config.num_clips(split):
            ava = AvaConfig(
                label_map=out / _CLASSES_FILE,
                persons=(out / f"{split}_persons.csv",),
                min_person_score=0.8,
                match_persons=0.9,
            )
            place = out / f"boxes_{split}.parquet"
            table, holds = build_table([out / f"{split}.csv"], manifest, ava)
            table.write(place)
            said += f"\n{place}: {holds}"
    return manifest, said
