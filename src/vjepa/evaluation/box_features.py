"""Vectors of boxes from a frozen encoder, made once per pass and kept; and the figure of a head.

The encoder does not change, so a head is trained on vectors [boxes, layers * D] that are computed
once for each pass of random views: then it trains in minutes. They lie in a cache as token maps do
(:mod:`vjepa.evaluation.frozen`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.config import config_dataclass, to_dict
from vjepa.counter_random import uniforms
from vjepa.data.ava import rows_by_id, same_name
from vjepa.data.boxes import BoxTable, LabelledBoxes
from vjepa.data.clips.key_frames import (
    KeyFrameViewConfig,
    Moment,
    MomentClip,
    moved_boxes,
    read_moments,
)
from vjepa.data.clips.plan import ClipConfig, ClipPlan
from vjepa.data.loader.evaluation import BadVideo, OnBadVideo
from vjepa.data.loader.failures import FailedVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import read_passes, samples_of_step
from vjepa.evaluation.frozen import (
    EncodingConfig,
    FeatureSet,
    FrozenEncoder,
    check_finite,
    data_hash,
    encode_clips,
    kept_shard,
    open_cache_folder,
    stored_shard,
)
from vjepa.models import EncoderConfig, RegionConfig, region_features
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.progress import Progress

_FORMAT = "vjepa-box-features-1"
_HEAD_ROWS = 4096
"""Boxes that a head sees in one call: fixed, so that a figure comes out the same again."""


@config_dataclass
class DetectionSettings:
    """What is seen around a key frame and how its boxes become vectors: a detector's input."""

    clip: ClipConfig
    view: KeyFrameViewConfig
    regions: RegionConfig
    features: EncodingConfig


@dataclass(frozen=True)
class KeyFrames:
    """A table of boxes with its videos at hand."""

    table: BoxTable
    manifest: Manifest

    @classmethod
    def open(cls, path: Path, videos: Path | None = None) -> KeyFrames:
        """A table and the manifest that it names (or `videos`).

        UserError: a video is missing, or there are two of its name.
        """
        table = BoxTable.open(path)
        where = videos or table.videos
        if not where.is_file():
            raise UserError(
                f"{path}: the manifest of its videos, {where}, is not there; say where it is "
                "(data.videos, or --videos), or make the table anew with `vjepa data ava`"
            )
        found = cls(table, Manifest.open(where))
        if missing := sorted({video for video, _ in table.keys} - found.rows.keys()):
            raise UserError(
                f"{path}: {len(missing)} of its videos are not in {where} (first: "
                f"{missing[0]!r}): index them, or make the table anew with `vjepa data ava`"
            )
        return found

    @cached_property
    def rows(self) -> dict[str, int]:
        """The manifest's row of each video; UserError: one of the table's names means several."""
        found = rows_by_id(self.manifest)
        for video in dict.fromkeys(self.table.video):
            if len(found.get(video, ())) > 1:
                raise UserError(same_name(self.manifest, found[video]))
        return {video: rows[0] for video, rows in found.items()}

    def sizes(self, key: int) -> tuple[int, int]:
        """Height and width of a key frame's video."""
        row = self.rows[self.table.keys[key][0]]
        height, width = (int(self.manifest.numeric(name)[row]) for name in ("height", "width"))
        return height, width

    def by_key(self, rows: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        """Rows of the table by the number of their key frame, ascending."""
        keys = self.table.key_of_row[rows]
        order = np.argsort(keys, kind="stable")
        found, starts = np.unique(keys[order], return_index=True)
        return dict(zip(found.tolist(), np.split(rows[order], starts[1:]), strict=True))

    @cached_property
    def _times(self) -> dict[int, float]:
        return dict(zip(self.table.key_of_row.tolist(), self.table.time.tolist(), strict=True))

    def moments(
        self, keys: NDArray[np.int64], settings: DetectionSettings, patch: int, draw: Draw | None
    ) -> Iterator[Moment]:
        """The clips around some key frames, by number; `draw` says what is random about them."""
        infos: dict[str, VideoInfo] = {}
        for key in keys.tolist():
            video = self.table.keys[key][0]
            if video not in infos:
                infos = {video: self.manifest.row(self.rows[video])}  # films come in order
            number = None if draw is None else (*draw, key)
            yield Moment(
                infos[video], self._times[key], (settings.clip, settings.view, patch), number
            )


Draw = tuple[int, int]
"""The seed and the pass that random clips are drawn from."""


@dataclass(frozen=True)
class BoxFeatures:
    """Makes vectors of boxes with one encoder, always in the same way."""

    frozen: FrozenEncoder
    settings: DetectionSettings
    setup: DeviceSetup
    reading: ReadingConfig
    on_bad_video: OnBadVideo = "error"
    cache_dir: Path | None = None

    def features(
        self,
        data: KeyFrames,
        rows: NDArray[np.int64],
        name: str,
        draw: Draw | None = None,
        group: ProcessGroup | None = None,
    ) -> FeatureSet:
        """Vectors of boxes, [n, 1, 1, layers * D] in the stored type, without those not to be read.

        `rows` int64 are rows of the table, ascending; `draw` as for :meth:`KeyFrames.moments`. The
        processes of a `group` share the work, shard by shard, and all get all vectors.
        """
        group, parts, reasons = group or ProcessGroup(), list[FeatureSet](), list[str]()
        try:
            parts = list(self._shards(data, rows, name, draw, group))
        except UserError as error:  # said to the others, who would wait in vain
            reasons = [str(error)]
        group.agree(reasons)
        found = FeatureSet.joined([part for own in group.gather(parts) for part in own])
        if not len(found):
            reason = "".join(f" (first: {bad.path}: {bad.reason})" for bad in found.bad[:1])
            raise UserError(f"{name}: not one key frame could be read{reason}; name other videos")
        order = np.argsort(found.rows, kind="stable")
        return FeatureSet((found.tokens[torch.from_numpy(order)],), found.rows[order], found.bad)

    def _shards(
        self,
        data: KeyFrames,
        rows: NDArray[np.int64],
        name: str,
        draw: Draw | None,
        group: ProcessGroup,
    ) -> Iterator[FeatureSet]:
        """This process's share of the shards, encoded or out of the cache."""
        boxes, size = data.by_key(rows), self.settings.features.shard_clips
        keys = np.array(list(boxes), dtype=np.int64)
        folder = self.cache_dir and open_cache_folder(self.cache_dir, self._key(data, rows, draw))
        numbers = range(math.ceil(len(keys) / size))[group.rank :: group.size]
        shards = [keys[number * size : (number + 1) * size] for number in numbers]
        paths = [folder and folder / f"shard_{number:05d}.safetensors" for number in numbers]
        found = [kept_shard(path, data.manifest, self.on_bad_video) for path in paths]
        missing = [own for own, kept in zip(shards, found, strict=True) if kept is None]
        wanted = np.concatenate([np.zeros(0, np.int64), *missing])
        patch = self._config.patch_size
        clips = read_moments(
            data.moments(wanted, self.settings, patch, draw),
            readers=self.reading.num_workers,
            timeout_seconds=self.reading.sample_timeout_seconds,
        )
        which = "" if draw is None else f", pass {draw[1] + 1}"
        total = sum(map(len, shards))
        done = total - len(wanted)
        with Progress(f"boxes of {name}{which}", total, done) as progress:
            for own, path, kept in zip(shards, paths, found, strict=True):
                if kept is not None:
                    yield kept
                    continue
                parts = []
                for some in self._batches(data, own, islice(clips, len(own))):
                    parts.append(self._encode(data, some, boxes, draw))
                    done += len(some)
                    progress.update(done)
                yield stored_shard(path, data.manifest, FeatureSet.joined(parts))

    @property
    def _config(self) -> EncoderConfig:
        return self.frozen.identity.config

    def _batches(
        self, data: KeyFrames, keys: NDArray[np.int64], clips: Iterator[MomentClip | FailedVideo]
    ) -> Iterator[list[tuple[int, MomentClip | FailedVideo]]]:
        """Key frames whose clips have one size, some at a time; one that failed by itself."""
        pairs = zip(keys.tolist(), clips, strict=True)

        def size_of(pair: tuple[int, MomentClip | FailedVideo]) -> object:
            return pair[1].plan.size if isinstance(pair[1], MomentClip) else pair[0]

        for _, group in groupby(pairs, size_of):
            while some := list(islice(group, self.settings.features.batch_size)):
                if isinstance(some[0][1], FailedVideo) and self.on_bad_video == "error":
                    error = some[0][1]
                    second = data.table.keys[some[0][0]][1]
                    raise UserError(
                        f"{error.path}: second {second:g} cannot be read ({error.reason}); mend "
                        "it, leave the video out, or set data.on_bad_video: list"
                    )
                yield some

    @torch.no_grad()
    def _encode(
        self,
        data: KeyFrames,
        some: list[tuple[int, MomentClip | FailedVideo]],
        boxes: dict[int, NDArray[np.int64]],
        draw: Draw | None,
    ) -> FeatureSet:
        """The vectors of the boxes of some key frames; `boxes` are rows of the table by key."""
        how, table = self.settings.features, data.table
        kept: torch.dtype = getattr(torch, how.storage)
        width = self.settings.regions.width(self._config)
        clips = [(key, found) for key, found in some if isinstance(found, MomentClip)]
        if not clips:
            error = some[0][1]
            assert isinstance(error, FailedVideo)
            video, second = table.keys[some[0][0]]
            reason = f"second {second:g}: {error.reason}"
            bad = BadVideo(data.rows[video], error.path, reason, error.kind)
            return FeatureSet(
                (torch.empty(0, 1, 1, width, dtype=kept),), np.zeros(0, np.int64), (bad,)
            )
        plans = [(found.plan, key, boxes[key], draw) for key, found in clips]
        device, regions = self.setup.device, self.settings.regions
        flat = boxes_of_clips(data, plans, self.settings.view).to(device)
        encoder = self.frozen.encoder.to(device)
        pixels = torch.stack([found.clip for _, found in clips])
        read = partial(region_features, encoder, boxes=flat, how=regions)
        vectors = encode_clips(encoder, pixels, how.precision, read)
        found = check_finite(vectors, self.frozen.identity.source).to("cpu", kept)
        return FeatureSet((found[:, None, None],), np.concatenate([boxes[key] for key, _ in clips]))

    def _key(
        self, data: KeyFrames, rows: NDArray[np.int64], draw: Draw | None
    ) -> dict[str, object]:
        """Everything that the numbers depend on, as plain values."""
        table = data.table
        videos = np.unique([data.rows[table.video[row]] for row in rows.tolist()])
        digest = hashlib.sha256()
        digest.update(json.dumps([table.video[row] for row in rows.tolist()]).encode())
        for numbers in (rows, table.second[rows], table.time[rows], table.box[rows]):
            digest.update(np.ascontiguousarray(numbers).tobytes())
        settings = to_dict(self.settings)
        if not any(self.settings.view.jitter_boxes):
            del settings["view"]["jitter_boxes"]  # caches are older than it
        return {
            "format": _FORMAT,
            "weights_hash": self.frozen.identity.weights_hash,
            "encoder": self.frozen.identity.settings,
            "data_hash": data_hash(data.manifest, videos.astype(np.int64)),
            **({"sums": "float32"} if self.frozen.identity.config.is_rotary else {}),
            "boxes": digest.hexdigest(),
            **settings,
            "device": self.setup.device.type,
            "draw": None if draw is None else list(draw),
        }


def boxes_of_clips(
    data: KeyFrames,
    clips: Sequence[tuple[ClipPlan, int, NDArray[np.int64], Draw | None]],
    view: KeyFrameViewConfig,
) -> Tensor:
    """Boxes float32 [M, 5] in the pixels of clips, the clip's number first.

    `clips` are (what was done to the frames, key frame, rows of the table, what was drawn).
    """
    parts = []
    for number, (plan, key, rows, draw) in enumerate(clips):
        height, width = data.sizes(key)
        outwards = 0.0
        if draw is not None and any(view.jitter_boxes):
            u = uniforms(draw[0], f"box jitter/{draw[1]}", rows, 4)
            outwards = np.tile(view.jitter_boxes, 2) * (1.5 * u - 0.5)
        boxes = moved_boxes(plan, data.table.box[rows], height, width, view.enlarge_boxes, outwards)
        parts.append(np.insert(boxes, 0, number, axis=1))
    return torch.from_numpy(np.concatenate(parts)).float()


@dataclass(frozen=True)
class DetectionBatch:
    """What a detector is trained on at a step, as :class:`vjepa.tasks.Detection` takes it."""

    ordinals: NDArray[np.int64]
    boxes: Tensor
    labels: Tensor
    count: int
    vectors: Tensor | None = None
    clips: Tensor | None = None


@dataclass(frozen=True)
class DetectionBatches:
    """The batches of any range of steps: key frames with their boxes, as vectors or as clips.

    `rows` int64 are the rows of the table that are trained on. With `passes`, epoch e takes the
    vectors of pass e modulo their number; without, clips are cut anew. Of `world_size` processes
    each gets its part of every batch.
    """

    data: KeyFrames
    rows: NDArray[np.int64]
    batch_size: int
    seed: int
    settings: DetectionSettings
    reading: ReadingConfig
    patch: int
    passes: tuple[FeatureSet, ...] = ()
    rank: int = 0
    world_size: int = 1

    @cached_property
    def _boxes(self) -> dict[int, NDArray[np.int64]]:
        return self.data.by_key(self.rows)

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        return np.array(list(self._boxes), dtype=np.int64)

    @property
    def size(self) -> int:
        """Key frames of a batch: no more than there are."""
        return min(self.batch_size, len(self._keys))

    def steps_for(self, epochs: float) -> int:
        """Updates that make up so many passes over the key frames, at least one."""
        return max(1, math.ceil(epochs * len(self._keys) / self.size))

    @property
    def _part(self) -> slice:
        """Which key frames of a batch are this process's."""
        here, size = self.rank, self.size
        return slice(here * size // self.world_size, (here + 1) * size // self.world_size)

    def _wanted(self, step: int) -> list[tuple[int, int]]:
        """Key frames and epochs of a step (from 0)."""
        samples, epochs = samples_of_step(step, self.size, len(self._keys), self.seed, "detect")
        return list(zip(self._keys[samples].tolist(), epochs.tolist(), strict=True))

    def batches(self, start_step: int, stop_step: int) -> Iterator[DetectionBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`."""
        steps = range(start_step, stop_step)
        clips: Iterator[MomentClip | FailedVideo] = iter(())
        if not self.passes:
            clips = read_moments(
                (moment for step in steps for moment in self._moments(step)),
                readers=self.reading.num_workers,
                timeout_seconds=self.reading.sample_timeout_seconds,
            )
        for step in steps:
            wanted = self._wanted(step)
            count = sum(len(self._boxes[key]) for key, _ in wanted)
            wanted = wanted[self._part]
            rows = [self._boxes[key] for key, _ in wanted]
            every = np.concatenate(rows)
            ordinals = np.arange(step * self.size, (step + 1) * self.size)[self._part]
            labels = torch.from_numpy(self.data.table.targets(every))
            if self.passes:
                number = np.repeat(np.arange(len(wanted)), [len(own) for own in rows])
                epochs = np.repeat([epoch for _, epoch in wanted], [len(own) for own in rows])
                boxes = torch.zeros(len(every), 5)
                boxes[:, 0] = torch.from_numpy(number)
                vectors = next(read_passes(self.passes, [(every, epochs)])).tokens.flatten(1)
                yield DetectionBatch(ordinals, boxes, labels, count, vectors=vectors)
                continue
            found = list(islice(clips, len(wanted)))
            for clip in found:
                if isinstance(clip, FailedVideo):
                    raise UserError(
                        f"{clip.path}: {clip.reason}; mend it, or take it out of the table of boxes"
                    )
            good = [clip for clip in found if isinstance(clip, MomentClip)]
            plans = [
                (clip.plan, key, own, self._draw(epoch))
                for clip, (key, epoch), own in zip(good, wanted, rows, strict=True)
            ]
            pixels = torch.stack([clip.clip for clip in good])
            boxes = boxes_of_clips(self.data, plans, self.settings.view)
            yield DetectionBatch(ordinals, boxes, labels, count, clips=pixels)

    def _moments(self, step: int) -> Iterator[Moment]:
        for key, epoch in self._wanted(step)[self._part]:
            keys = np.array([key], dtype=np.int64)
            yield from self.data.moments(keys, self.settings, self.patch, self._draw(epoch))

    def _draw(self, epoch: int) -> Draw | None:
        return (self.seed, epoch) if self.settings.view.augment else None


ScoreKind = Literal["class", "class_times_person"]


@torch.no_grad()
def class_shares(head: nn.Module, vectors: Tensor, device: torch.device) -> NDArray[np.float64]:
    """How probable a head holds each class: vectors of boxes [n, ...] -> float64 [n, classes]."""
    head = head.to(device)
    parts = [
        head(part.flatten(1).to(device, torch.float32)).cpu().double().sigmoid()
        for part in vectors.split(_HEAD_ROWS)
    ]
    return torch.cat(parts).numpy()


def detections(
    table: BoxTable, rows: NDArray[np.int64], shares: NDArray[np.float64], scores: ScoreKind
) -> LabelledBoxes:
    """What a head says of some rows of a table, float64 [n, classes], as detections: n * classes.

    `scores`: the share of the class, or that times the score of the person.
    """
    classes = np.array(list(table.classes), dtype=np.int64)
    if scores == "class_times_person":
        shares = shares * table.score[rows][:, None]
    each = len(classes)
    return LabelledBoxes(
        images=table.keys,
        image=table.key_of_row[rows].repeat(each),
        box=table.box[rows].repeat(each, axis=0),
        label=np.tile(classes, len(rows)),
        score=shares.reshape(-1),
    )
