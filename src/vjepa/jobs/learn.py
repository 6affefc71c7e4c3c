"""From a folder of videos to a model and a report, within a time: ``vjepa learn``.

Nothing is done here that another job does: it indexes, chooses by a measurement what fits this
machine, and calls the jobs for pretraining, probes and pictures.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal
from unicodedata import normalize

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError

from vjepa.config import RESOLVED_CONFIG_FILE as CONFIG_FILE
from vjepa.config import config_dataclass, from_dict, load_config, recipe_names
from vjepa.data.frame_cache import open_frame_caches
from vjepa.data.manifest.index import index_sources, list_sources, unchanged_files
from vjepa.data.manifest.lists import SPLIT_NAMES, IndexConfig, shortened
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.manifest.storage import absolute
from vjepa.errors import UserError
from vjepa.evaluation.labels import Labels, copies_of, hold_out, paths_and_sizes
from vjepa.jobs import pretrain
from vjepa.jobs.learn_probes import (
    seconds_a_clip,
    seconds_an_update,
    stop_in_time,
    train_probes,
)
from vjepa.jobs.learn_report import MOMENTS, write_learn_report
from vjepa.jobs.pretrain import PretrainConfig, settle_input
from vjepa.jobs.pretrain_room import same_config
from vjepa.paths import as_path
from vjepa.reporting.runs import read_run
from vjepa.runtime.device import DeviceName, set_up_device
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.files import atomic_write, begin_folder, claimed_folder
from vjepa.runtime.process import usable_cpus
from vjepa.runtime.progress import format_seconds
from vjepa.training import TrainingResult

_LOGGER = logging.getLogger(__name__)

JOB = "learn"
LABEL = "class"
"""Name of the label in `videos.parquet`."""
REPORT_FILE, VIDEOS_FILE, RUN_FOLDER = "report.html", "videos.parquet", "run"
_CHOICES_FILE, _INDEX_FILE = "choices.json", "index.parquet"
_MAY_CHANGE = ("minutes", "workers", "device")
_SIZES: Mapping[str, tuple[str, ...]] = {
    "tiny": (
        "model.encoder={width: 96, depth: 4, image_size: 32, init_std: 0.1}",
        "model.predictor={width: 48, depth: 2}",
        "data.transform.crop_size=32",
        "data.loader.frame_cache_short_side=40",
    ),
    "small": (),
    "medium": (
        "model.encoder={width: 384, depth: 12, heads: 6, image_size: 64, init_std: 0.05}",
        "model.predictor={width: 192, depth: 6}",
        "data.transform.crop_size=64",
        "data.loader.frame_cache_short_side=80",
    ),
}
"""What each size changes in the recipe `small`."""
_ENOUGH_UPDATES = 5000
"""The largest size that gets so many in the time is chosen: in fewer the smallest learns more."""
_LARGER_COSTS = 3.0
"""A larger size is tried only where the one before would get so many times enough."""
_FEWEST_MINUTES = 0.05
_LITTLE = 0.3
"""Where less than this share of the time is for learning, that is said."""
_REPORT_SECONDS, _REPORT_SHARE = 20.0, 0.08
"""Of the time, what is kept for the report; once more for the probes."""
_FEWEST_MOMENTS = 12
"""Where the time is short, the report looks at fewer down to these."""
_DECODING_SHARE = 0.4
"""All videos are decoded once, before learning, where that takes no more of the time: clips that
are cut from the files take as long in a few updates."""
_DECODED_PIXELS_PER_SECOND = 1e8
"""By one CPU core; a low figure."""
_MEASURED_CLIPS, _MEASURED_OF_VIDEO = 128, 4
"""So many clips tell mean and deviation of the input, of a few videos so many of each."""


@config_dataclass
class LearnConfig:
    """What ``vjepa learn`` may be told; whatever is null it chooses, and says what."""

    sources: tuple[Path, ...] = ()
    """Folders, videos, lists of files, or one manifest made by `vjepa data index`."""
    minutes: Annotated[float, Field(gt=0)] = 10.0
    """Time for everything, from the first look at the files to the report. With a larger number a
    finished run goes on."""
    size: Literal["tiny", "small", "medium"] | None = None
    """Of model and frames: `tiny` (32 pixels), `small` (56), `medium` (64, for a GPU); null: the
    largest that gets 5000 updates in the time."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Clips per update; null: 32 on a CPU, 64 on a GPU."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode; null: by the number of CPU cores."""
    device: DeviceName = "auto"
    """`auto` takes a GPU when there is one."""
    label: str | None = None
    """Label of the sources to train a probe on; null: the only one, or the folders that the videos
    lie in; `none`: no probe."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class's files that the probe is tested on and nothing is trained on, where the
    sources name no test part themselves."""
    seed: int = 0
    """Of weights, the order of clips, masks, and the test part."""
    recipe: str = "small"
    """Pretraining recipe, or a YAML file, that all other settings come from."""
    settings: tuple[str, ...] = ()
    """Settings of the recipe, as `[optim.peak_lr=1e-3, ...]`; they go before what is chosen."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """How sources are read and files looked into."""

    def __post_init__(self) -> None:
        if self.size is not None and self.recipe != "small":
            raise ValueError(f"size: {self.size} is of the recipe small; {self.recipe} has its own")


@dataclass(frozen=True)
class Choices:
    """What was found and chosen, once for all calls; kept in `choices.json`."""

    settings: tuple[str, ...]
    """Of the recipe, as NAME=VALUE."""
    minutes_beside: float
    """Of the whole time, those that are not for pretraining."""
    seconds_an_update: float
    has_probe: bool
    lines: tuple[str, ...]
    """All of it in words."""
    skipped: tuple[tuple[str, str], ...]
    """Files that are not used, and why."""
    reported_minutes: float = 0.0
    """The time after which the report was written; 0: not yet."""
    reported_updates: int = 0
    """The updates that it shows; 0: written by an older version, or not yet."""
    minutes_kept: float = 0.0
    """Of those beside pretraining, those that come after it; 0: chosen by an older version."""


def run(config: LearnConfig, out: str | Path) -> TrainingResult | None:
    """Learn from videos and write a report; called again, go on.

    Returned is how pretraining ended, if that was before its time; None: the report is written.

    Raises:
        UserError: Bad input of any kind; `out` holds something else.
    """
    config, out = from_dict(LearnConfig, config), as_path(out)
    started = time.monotonic()
    with claimed_folder(out, JOB):
        _check_sources(config.sources, config.index)
        config, stored = _agreed(config), out / _CHOICES_FILE
        if stored.is_file():
            same_config(config, out, _MAY_CHANGE)
            try:
                choices = TypeAdapter(Choices).validate_json(stored.read_bytes())
            except ValidationError as error:
                raise UserError(f"{stored}: is damaged; give another --out") from error
            _LOGGER.info("going on in %s with what was chosen there:", out)
            _say_new_files(config, choices, out)
        else:
            set_up_device(config.device)
            # Before the first look at the files: a call that is killed there is made again.
            begin_folder(out, JOB, config)
            choices = _choose(config, out, started)
            _write_choices(choices, stored)
        lines = [*choices.lines, _time_line(config, choices)]
        for line in lines:
            _LOGGER.info("  %s", line)
        if choices.reported_minutes >= config.minutes and (out / REPORT_FILE).is_file():
            _LOGGER.info(_said_of_report(config, choices, out))
            return None
        ends = started + 60 * config.minutes - _trained_seconds(out)
        kept, most = 60 * choices.minutes_kept, 60 * max(choices.minutes_kept, config.minutes / 2)
        made, device = _pretraining(config, choices, out), set_up_device(config.device).device
        begin_folder(out, JOB, config)  # a call that is refused is not remembered
        ended = pretrain.run(made, out / RUN_FOLDER, is_enough=stop_in_time(ends, kept, most))
        if ended.interrupted:
            return ended
        planned, took = _training_minutes(config, choices), _trained_seconds(out) / 60
        cut = []
        if ended.out_of_time and took < 0.9 * planned:
            cut.append(f"learning took {60 * took:.0f} of {60 * planned:.0f} s")
        run_folder, videos_file = out / RUN_FOLDER, out / VIDEOS_FILE
        a_clip, results = seconds_a_clip(run_folder, videos_file, device), {}
        if choices.has_probe:
            try:
                settings = {"seed": config.seed, "device": config.device}
                seconds = (ends - time.monotonic()) / 4  # as much again for the report
                results = train_probes(
                    run_folder, ended.step, videos_file, LABEL, settings, seconds, a_clip, cut
                )
            except UserError as error:  # what was learnt is shown all the same
                _LOGGER.warning("no probe: %s", error)
                lines.append(f"probe     not possible: {error}")
        # Of what is left, half for looking for moments, by both encoders.
        fits = int((ends - time.monotonic()) / 4 / max(a_clip, 1e-9))
        moments = max(_FEWEST_MOMENTS, min(MOMENTS, fits))
        if moments < MOMENTS:
            cut.append(f"moments that are alike are sought among {moments} instead of {MOMENTS}")
        for said in cut:
            _LOGGER.warning("little time is left: %s", said)
        found = (choices.skipped, results, cut, moments)
        write_learn_report(out / REPORT_FILE, config.seed, config.minutes, lines, *found)
        shown = {"reported_minutes": config.minutes, "reported_updates": ended.step}
        _write_choices(replace(choices, **shown), stored)
        return None


def _said_of_report(config: LearnConfig, choices: Choices, out: Path) -> str:
    """That the time is over, and whether a stopped call has learnt more than the report shows."""
    updates, shown = read_run(out / RUN_FOLDER).steps_done, choices.reported_updates
    if not 0 < shown < updates:
        said = f"the {config.minutes:g} minutes are over, and the report is written"
        return f"{said}; --minutes {2 * config.minutes:g} goes on"
    minutes = math.ceil(_trained_seconds(out) / 60 + choices.minutes_beside)
    said = f"the report shows update {shown}, and learning has gone on to {updates}"
    return f"{said}: --minutes {minutes} writes it anew"


def _check_sources(sources: Sequence[Path], how: IndexConfig) -> None:
    if not sources:
        raise UserError("learn needs videos: name a folder, a video, a list or a manifest")
    if len(sources) > 1 and any(source.suffix == ".parquet" for source in sources):
        raise UserError("a manifest comes alone: index all sources together, or name it only")
    if sources[0].suffix == ".parquet" and how != IndexConfig():
        raise UserError("index: is for sources that are no manifest yet; leave its settings out")
    if missing := [source for source in sources if not source.exists()]:
        remedy = "name a folder with videos; to go on, bring back what was moved (a link will do)"
        raise UserError(f"{missing[0]}: no such file or folder; {remedy}")


def _agreed(config: LearnConfig) -> LearnConfig:
    """The config with the device that its settings name; UserError: they contradict its options."""
    options = config.device, config.workers, config.batch_size
    names = ("training.device", "data.loader.num_workers", "data.batch_size")
    told = [pair for pair in zip(names, options, strict=True) if pair[1] not in (None, "auto")]
    made = _load(config, [*(f"{n}={value}" for n, value in told), "training.max_minutes=null"])
    for name, value in told:
        if (found := attrgetter(name)(made)) != value:
            raise UserError(f"settings: {name}: {found}, but the option says {value}; give one")
    if (minutes := made.training.max_minutes or 0.0) > config.minutes:
        raise UserError(f"settings: training.max_minutes: {minutes:g}: give more --minutes")
    return replace(config, device=made.training.device)


def _write_choices(choices: Choices, path: Path) -> None:
    atomic_write(path, json.dumps(asdict(choices), indent=1) + "\n")


def _choose(config: LearnConfig, out: Path, started: float) -> Choices:
    """Look at the files, measure, decide, and decode them once if that pays."""
    recipe = _load(config, ())
    manifest, skipped = _find_videos(config, recipe.data.clip.num_frames, out)
    manifest, probe_line = _split_videos(config, manifest, out / VIDEOS_FILE)
    has_probe = "test" in manifest.splits
    length = format_seconds(float(manifest.numeric("duration_seconds").sum()))
    device, cpus = set_up_device(config.device).device, usable_cpus()
    is_gpu = device.type == "cuda"
    path = json.dumps(str((out / VIDEOS_FILE).resolve()))
    parts = [name for name in ("train", "unlabelled") if name in manifest.splits]
    sources = ", ".join(f"{{manifest: {path}, split: {name}}}" for name in parts)
    usual = max(1, min(12, cpus - 2 if is_gpu else cpus // 2))
    workers = usual if config.workers is None else config.workers
    settings = [
        f"seed={config.seed}",
        f"data.sources=[{sources}]",
        f"data.batch_size={config.batch_size or (64 if is_gpu else 32)}",
        f"data.loader.num_workers={workers}",
        f"data.loader.frame_cache_folder={json.dumps(str((out / 'frames').resolve()))}",
        "data.loader.max_bad_fraction=0.5",  # one damaged file of a few is no reason to stop
        "online_probe=null",  # there is a probe at the end
        f"training.device={config.device}",
        "training.precision=auto",
    ]
    sizes = [manifest.numeric(n).astype(float) for n in ("num_frames", "height", "width")]
    decoding = float(np.prod(sizes, axis=0).sum()) / _DECODED_PIXELS_PER_SECOND / cpus
    if decoding > _DECODING_SHARE * 60 * config.minutes:
        settings.append("data.loader.frame_cache_gigabytes=0")
    beside = max(_REPORT_SECONDS, _REPORT_SHARE * 60 * config.minutes) * (2 if has_probe else 1)
    left = 60 * config.minutes - beside - decoding - (time.monotonic() - started)
    left = 60 * _limited(config, left / 60)
    begun, cpu_begun = time.monotonic(), time.process_time()
    size, seconds, settings = _choose_size(config, settings, left)
    if not is_gpu:
        # Where others compute here too, the report takes longer as well.
        cpu = (time.process_time() - cpu_begun) / torch.get_num_threads()
        beside = min(beside * max(1.0, (time.monotonic() - begun) / cpu), max(beside, left / 2))
    updates = max(1.0, left / seconds)
    intervals = {"log": updates / 60, "health": updates / 25, "checkpoint": 30 / seconds}
    warmup = max(1, min(recipe.optim.warmup_steps, round(updates / 10)))
    settings += [f"optim.warmup_steps={warmup}"]
    settings += [
        f"training.{name}_every_steps={max(1, min(1000, round(every)))}"
        for name, every in intervals.items()
    ]
    made = _load(config, settings)
    (is_cached, lost), kept = _decode_once(made, manifest, out / VIDEOS_FILE), beside
    skipped = (*skipped, *lost)
    settings, a_clip = _measure_input(made, settings, len(manifest), out / RUN_FOLDER)
    reading = "decoded once, and kept small"
    if not is_cached:
        reading = f"decoded by {made.data.loader.num_workers} processes"
        if a_clip:
            reading += f", {a_clip:.2g} s a clip"
        if (waits := made.data.batch_size * a_clip) > seconds:
            _LOGGER.warning(
                "reading the videos takes longer than learning from them: make them small once, "
                "with `vjepa data prepare`, or give more --minutes"
            )
            seconds = waits
    beside += time.monotonic() - started
    encoder, clip = made.model.encoder, made.data.clip
    lines = (
        f"videos    {len(manifest) - len(lost)}, {length} in all; files skipped: {len(skipped)}",
        probe_line,
        f"size      {size}: {clip.num_frames} frames of {encoder.image_size} pixels, encoder of "
        f"{encoder.depth} blocks, {encoder.width} wide (--size)",
        f"batch     {made.data.batch_size} clips (--batch_size); videos are {reading} (--workers)",
        f"device    {torch.cuda.get_device_name() if is_gpu else f'CPU, {cpus} cores'} (--device)",
    )
    return Choices(
        tuple(settings), beside / 60, seconds, has_probe, lines, skipped, minutes_kept=kept / 60
    )


def _load(
    config: LearnConfig, settings: Sequence[str], begun: Path | None = None
) -> PretrainConfig:
    recipe, own = begun or config.recipe, config.settings
    return load_config(PretrainConfig, [recipe], [*settings, *own], "pretrain")


def _find_videos(
    config: LearnConfig, fewest_frames: int, out: Path
) -> tuple[Manifest, tuple[tuple[str, str], ...]]:
    """Every file of the sources that clips can be cut from, and the others with the reason."""
    if config.sources[0].suffix == ".parquet":
        manifest = Manifest.open(config.sources[0])
    else:
        index, workers = out / _INDEX_FILE, usable_cpus()
        manifest = index_sources(config.sources, index, config=config.index, workers=workers)
    rows, skipped = dict[str, ManifestRow](), []
    for number in range(len(manifest)):
        row = manifest.full_row(number)
        reason = row.info.reason if not row.info.ok else None
        if reason is None and row.info.kind == "image":
            reason = "a still image"
        if reason is None and (frames := row.info.num_frames) < fewest_frames:
            reason = f"has {frames} frame{'s' * (frames != 1)}, a clip takes {fewest_frames}"
        if reason is None:
            # Links lead to what is there already, and a copy of it in the test part tells nothing.
            first = rows.setdefault(os.path.realpath(row.info.path), row)
            if first is not row:
                reason = f"the same file as {first.info.path}, which is taken"
                reason += f" with its labels {first.labels}" * (first.labels != row.labels)
        if reason is not None:
            skipped.append((row.info.path, reason))
    _say_skipped(skipped)
    if not rows:
        raise UserError(
            f"none of the {len(skipped)} files can be used: {skipped[0][0]}: {skipped[0][1]}; "
            "name a folder with videos"
        )
    return Manifest.from_rows(rows.values(), out), tuple(skipped)


def _say_skipped(files: Sequence[tuple[str, str]]) -> None:
    for path, reason in files[:5]:
        _LOGGER.warning("skipped: %s: %s", path, reason)
    if more := len(files[5:]):
        _LOGGER.warning("skipped: %d more; the report names all", more)


def _say_new_files(config: LearnConfig, choices: Choices, out: Path) -> None:
    """Name files of the sources that are new, other or gone since they were looked at."""
    sources = [str(source) for source in config.sources]
    if config.sources[0].suffix == ".parquet":
        listed = set(chain.from_iterable(Manifest.open(sources[0]).paths()))
    else:
        listed = set(list_sources(sources, sources, config.index).column("path").to_pylist())
    manifest = Manifest.open(out / VIDEOS_FILE)
    used = set(chain.from_iterable(manifest.paths()))
    other_rows = np.flatnonzero(~unchanged_files(manifest, np.arange(len(manifest))))
    other = listed.intersection(chain.from_iterable(manifest.paths(other_rows)))
    known = {os.path.realpath(path) for path in (*used, *(path for path, _ in choices.skipped))}
    new = {path for path in listed if os.path.realpath(path) not in known}
    said = "files of the sources that are %s: %d (first: %s); to begin anew give another --out"
    found = {"new, and not used": new, "gone": used - listed, "no longer as they were": other}
    for what, paths in found.items():
        if paths:
            _LOGGER.warning(said, what, len(paths), min(paths))


def _split_videos(config: LearnConfig, manifest: Manifest, path: Path) -> tuple[Manifest, str]:
    """The videos with one label and the splits train, test and unlabelled; written to `path` too.

    Videos that the sources give to a test part, but that cannot be tested on, are `left out`, and
    beside a test part those of a validation part. With the manifest comes what was decided, in
    words.
    """
    rows = [manifest.full_row(number) for number in range(len(manifest))]
    values, origin = _label_of_rows(config, manifest, rows)
    splits = [SPLIT_NAMES.get(str(row.split).lower()) for row in rows]
    named = Counter(row.split for row in rows if row.split and row.split.lower() not in SPLIT_NAMES)
    for name, count in named.items():
        _LOGGER.warning(
            "split %r is none of train, validation and test: its %d videos are trained on",
            *(name, count),
        )
    parts = [name for name in ("test", "validation") if name in splits]
    given = parts[0] if parts else None
    test = {number for number, split in enumerate(splits) if given and split == given}
    aside = {number for number, split in enumerate(splits) if split in parts[1:]}
    values = [None if number in aside else value for number, value in enumerate(values)]
    counts = Counter(value for number, value in enumerate(values) if value and number not in test)
    classes = sorted(name for name, count in counts.items() if given or count > 1)
    lonely = sorted(counts.keys() - set(classes))
    alone = f"; left out, with one video: {shortened(', '.join(lonely))}" if lonely else ""
    labelled = [number for number, value in enumerate(values) if value in classes]
    origin_of_test = f"the split {given}"
    if given is None and len(classes) > 1:
        numbers = np.array([classes.index(str(values[number])) for number in labelled])
        labels = Labels(LABEL, tuple(classes), numbers)
        _, held = hold_out(labels, np.arange(len(labelled)), config.test_fraction, config.seed)
        test = {labelled[number] for number in held.tolist()}
        origin_of_test = f"{config.test_fraction:.0%} of each class's files (--test_fraction)"
        both = sorted(test), sorted(set(range(len(rows))) - test)
        known = copies_of(*(paths_and_sizes(manifest, np.array(part, int)) for part in both))
        test = {number for number in test if rows[number].info.path not in known}
        origin_of_test += f" but {len(known)}, copies of others to train on" if known else ""
    tested = test.intersection(labelled) if len(classes) > 1 else set()
    if len(test | aside) == len(rows):
        raise UserError(
            f"all {len(rows)} videos are of the split {' or '.join(parts)}: there is none to train "
            "on; name a source with others"
        )
    for number, row in enumerate(rows):
        split = "train" if values[number] in classes else "unlabelled"
        if number in test | aside:
            split = "test" if number in tested else "left out"
        label = values[number] if values[number] in classes else None
        rows[number] = replace(row, split=split, labels={LABEL: label})
    made = Manifest.from_rows(rows, path.parent)
    made.write(path)
    if not tested:
        few = " gives fewer than two classes with videos to train and to test on"
        return made, f"probe     none: {origin}{few if any(values) else ''} (--label){alone}"
    return made, (
        f"probe     {len(classes)} classes, by {origin} (--label): {len(labelled) - len(tested)} "
        f"videos to train on, {len(tested)} to test on, {origin_of_test}{alone}"
    )


def _label_of_rows(
    config: LearnConfig, manifest: Manifest, rows: Sequence[ManifestRow]
) -> tuple[list[str | None], str]:
    """The class of each video, if it has one, and where it comes from, in words."""
    names = manifest.label_names
    if config.label == "none":
        return [None] * len(rows), "not asked for"
    if config.label is not None or len(names) == 1:
        name = config.label or names[0]
        return list(manifest.labels(name)), f"label {name}"
    if names:
        return [None] * len(rows), f"there are the labels {', '.join(names)}: name one"
    values: list[str | None] = []
    roots = [absolute(str(source)) for source in config.sources if source.is_dir()]
    for row in rows:
        path = Path(row.info.path)
        root = next((root for root in roots if path.is_relative_to(root)), path.parent)
        # The first folder may be the split's.
        folders = path.relative_to(root).parts[1 if row.split else 0 : -1]
        values.append(normalize("NFC", folders[-1]) if folders else None)
    return values, "folder" if any(values) else "no label, and no folder of a class"


def _choose_size(
    config: LearnConfig, settings: list[str], left: float
) -> tuple[str, float, list[str]]:
    """The largest model that gets updates enough in the seconds that are left.

    Its name, the seconds that an update takes, and the settings with its own before them.
    """
    sizes = _SIZES if config.recipe == "small" else {Path(config.recipe).stem: ()}
    chosen: tuple[str, float, list[str]] | None = None
    for name in [config.size] if config.size else sizes:
        own = [*sizes[name], *settings]
        seconds = seconds_an_update(_load(config, own))
        updates = left / seconds
        if chosen is not None and updates < _ENOUGH_UPDATES:
            break
        chosen = name, seconds, own
        if updates < _LARGER_COSTS * _ENOUGH_UPDATES:
            break
    assert chosen is not None
    return chosen


def _decode_once(
    config: PretrainConfig, manifest: Manifest, path: Path
) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Fill the frame cache that pretraining will use; whether it uses one, and which videos failed.

    In the manifest at `path` these get weight 0: each draw would have to be replaced, and too many
    of that end training. Their rows stay, as the cache is found by them.
    """
    loader = config.data.loader
    if loader.frame_cache_gigabytes == 0:
        return False, ()
    sources = [Manifest.open(s.manifest).select(split=s.split) for s in config.data.sources]
    how = replace(loader, num_workers=usable_cpus())
    caches = open_frame_caches(sources, how, loader.frame_cache_short_side)
    if lost := dict(failure for cache in caches for failure in cache.failures()):
        _say_skipped(found := list(lost.items()))
        if len(found) == sum(map(len, sources)):
            raise UserError(f"no video to learn from can be decoded: {': '.join(found[0])}")
        rows = [manifest.full_row(number) for number in range(len(manifest))]
        rows = [replace(row, weight=0.0) if row.info.path in lost else row for row in rows]
        Manifest.from_rows(rows, path.parent).write(path)
    return bool(caches), tuple(lost.items())


def _measure_input(
    config: PretrainConfig, settings: list[str], videos: int, run: Path
) -> tuple[list[str], float]:
    """The settings with mean and deviation of the input, and the seconds that a clip took to read.

    Pretraining would measure them itself, but its time is counted in updates. 0 seconds: they are
    known, and nothing was read.
    """
    clips, begun = min(_MEASURED_CLIPS, _MEASURED_OF_VIDEO * videos), time.monotonic()
    how = settle_input(config, run, ProcessGroup(), clips).model.encoder.input
    seconds = (time.monotonic() - begun) / clips
    if how == config.model.encoder.input:
        return settings, 0.0
    numbers = {"mean": how.mean, "deviation": how.deviation}
    given = [f"model.encoder.input.{name}={json.dumps(each)}" for name, each in numbers.items()]
    return [*settings, *given, "data.normalisation=model"], seconds


def _training_minutes(config: LearnConfig, choices: Choices) -> float:
    return _limited(config, config.minutes - choices.minutes_beside)


def _limited(config: LearnConfig, minutes: float) -> float:
    """Of so many minutes for learning those that the settings leave."""
    minutes = max(_FEWEST_MINUTES, minutes)
    limit = _load(config, [f"training.max_minutes={minutes}"]).training.max_minutes
    return min(minutes, limit or minutes)


def _time_line(config: LearnConfig, choices: Choices) -> str:
    minutes, seconds = _training_minutes(config, choices), choices.seconds_an_update
    if config.minutes - choices.minutes_beside < _LITTLE * config.minutes:
        _LOGGER.warning("most of the time goes into files and report: give more --minutes")
    return (
        f"time      {minutes:.1f} of {config.minutes:g} minutes are for learning: about "
        f"{60 * minutes / seconds:,.0f} updates of {seconds:.2g} s (--minutes)"
    )


def _pretraining(config: LearnConfig, choices: Choices, out: Path) -> PretrainConfig:
    # The settings that the user gave go before all of these.
    chosen = [*choices.settings, f"training.device={config.device}"]
    chosen += [] if config.workers is None else [f"data.loader.num_workers={config.workers}"]
    begun = out / RUN_FOLDER / CONFIG_FILE
    is_kept = begun.is_file() and config.recipe in recipe_names("pretrain")
    # A run goes on as it was, also where a newer version's recipe is another.
    made = _load(config, chosen, begun if is_kept else None)
    minutes = _training_minutes(config, choices)
    if not (videos := made.data.sources[0].manifest).is_file():
        raise UserError(f"{videos}: is gone; was its folder moved? Move it back, and it goes on")
    return replace(made, training=replace(made.training, max_minutes=minutes))


def _trained_seconds(out: Path) -> float:
    run = out / RUN_FOLDER
    if not (run / CONFIG_FILE).is_file():
        return 0.0
    return float(read_run(run).newest("train").get("elapsed_seconds", 0.0))
