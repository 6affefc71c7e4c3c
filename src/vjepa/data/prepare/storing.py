"""Videos encoded anew for training, and stored as shards or files with their manifest."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from vjepa.data.manifest.manifest import ManifestRow, rows_to_table
from vjepa.data.manifest.storage import member_at, opened, write_shard
from vjepa.data.prepare.config import Order, Part, ShardConfig, TranscodeConfig, plain_name
from vjepa.data.video.container import FOREIGN_ERRORS, reason_of
from vjepa.data.video.decode import frame_times, read_frames
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo, info_to_json
from vjepa.data.video.inspect import inspect_file
from vjepa.runtime.files import atomic_path, atomic_write, read_json, sync
from vjepa.runtime.workers import going_on

# Ticks per second of the written timestamps: exact for all usual frame rates.
_CLOCK = 90_000
_COPY_BLOCK = 1 << 20
_LARGEST = (8 << 30) - 1  # what a ustar header can say
# x264's AVX-512 code for the macroblock tree depends on memory that nothing wrote: of 1500 files of
# the same frames some 7 had other bits. Without it all were equal, and equal to the usual ones.
_UP_TO_AVX2 = "MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"
_DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))


def encode_order(config: TranscodeConfig, limits: LimitsConfig, order: Order) -> dict[str, Any]:
    """A task for workers: encode a video into the order's target, which appears when complete.

    The answer is what was made, as `info`; or why it has `failed`; or, as `disk`, why nothing can
    be written any more, which is no fault of the video.
    """
    target = Path(order.target)
    try:
        # A file that stands there is complete: its maker was killed before it could say so.
        if not target.exists():
            with atomic_path(target) as aside:
                if config.mode == "copy" or order.info.kind == "image":
                    _copy(order.info, aside)
                else:
                    encode(order.info, order.part, aside, config)
        info = inspect_file(order.target, limits)
    except DecodeError as error:
        return {"failed": error.reason}
    except FOREIGN_ERRORS as error:
        is_ours = getattr(error, "errno", None) in _DISK_ERRORS
        return {"disk" if is_ours else "failed": reason_of(error)}
    if not info.ok:
        return {"failed": f"what was made of it cannot be read: {info.reason}"}
    if info.bytes > _LARGEST:
        return {"failed": "encoded it is larger than 8 GiB; trim it"}
    return {"info": info_to_json(info)}


def output_suffix(info: VideoInfo, config: TranscodeConfig) -> str:
    """Suffix of the file that a video becomes.

    Raises:
        DecodeError: Its bytes cannot be copied: it is a folder.
    """
    if config.mode == "h264" and info.kind != "image":
        return ".mp4"
    if info.kind == "image_folder":
        raise DecodeError(info.path, "a folder of images cannot be copied; use mode h264")
    return Path(info.path).suffix.lower() or ".mp4"


def encode(info: VideoInfo, part: Part, target: Path, config: TranscodeConfig) -> None:
    """Encode a part of a video with libx264 into an MP4 file.

    One thread: workers are the parallelism. The same video and settings give the same file.

    Raises:
        DecodeError: A frame of the part cannot be decoded.
        OSError: The file cannot be written.
    """
    width, height = output_size(info, config)
    times = frame_times(info)
    numbers = taken_frames(info, part, config, times)
    fps = min(info.fps, config.fps) if config.fps is not None else info.fps
    with av.open(str(target), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_rate(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, _CLOCK)
        encoder = stream.codec_context
        encoder.time_base = Fraction(1, _CLOCK)
        encoder.gop_size = config.gop
        encoder.max_b_frames = config.b_frames
        encoder.thread_count = 1
        # Every key frame is an entry point; none is added at cuts, so groups are of equal length.
        params = f"keyint={config.gop}:min-keyint={config.gop}:scenecut=0:open-gop=0"
        if torch.cpu._is_avx512_supported():  # of the processor, whatever torch is told to use
            params += f":asm={_UP_TO_AVX2}"
        encoder.options = {"preset": config.preset, "crf": str(config.crf), "x264-params": params}
        stamp, start = -1, 0.0
        for count, shown in enumerate(read_frames(info, numbers)):
            # Even stamps at a constant rate, else those that the frames had.
            start = shown.seconds if count == 0 else start
            seconds = count / fps if times is None else shown.seconds - start
            stamp = max(stamp + 1, round(seconds * _CLOCK))
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown.image), "rgb24")
            frame = picture.reformat(width, height, "yuv420p", interpolation="AREA", threads=1)
            frame.pts, frame.time_base = stamp, Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))
            going_on()
        container.mux(stream.encode(None))


def _rate(fps: float) -> Fraction:
    """A frame rate as the fraction of small numbers that it is: 29.97 is 30000 / 1001."""
    for denominator in (1, 1001):
        rate = Fraction(round(fps * denominator), denominator)
        if abs(float(rate) - fps) < 1e-4 * fps:
            return rate
    return Fraction(fps).limit_denominator(10_000)


def taken_frames(
    info: VideoInfo, part: Part, config: TranscodeConfig, times: NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """Numbers of the frames that are kept: all of the part, or fewer for a lower rate.

    At a lower rate they are the ones shown at k / fps seconds; where frames come less often than
    that for a while (`times` tell, None at a constant rate), all of these.
    """
    if config.fps is None or (times is None and info.fps <= config.fps):
        return np.arange(*part.frames(info, times))
    count = max(1, round(part.seconds(info, times) * config.fps))
    numbers = part.shown_at(info, times, np.arange(count) / config.fps)
    return numbers if times is None else np.unique(numbers)


def output_size(info: VideoInfo, config: TranscodeConfig) -> tuple[int, int]:
    """Width and height of the written frames in pixels: even, aspect kept, never enlarged."""
    short = min(info.width, info.height)
    side = short if config.short_side is None else min(short, config.short_side)
    width, height = (
        max(2, 2 * round(size * side / short / 2)) for size in (info.width, info.height)
    )
    return width, height


def _copy(info: VideoInfo, target: Path) -> None:
    with opened(info.path) as source:
        if isinstance(source, str):
            shutil.copyfile(source, target)
            return
        with target.open("wb") as out:
            shutil.copyfileobj(source, out, _COPY_BLOCK)


PLAN = "plan.json"
_MOST_FILES = 1000  # in one folder, where videos are stored as files

_INDEX_COLUMNS: Mapping[str, pa.DataType] = {
    "shard": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "source_path": pa.large_string(),
    "source_start_seconds": pa.float64(),
    "source_end_seconds": pa.float64(),
}


@dataclass(frozen=True, slots=True)
class PreparedVideo:
    """An encoded video that waits to be stored."""

    key: str  # what its order was noted under
    number: int  # place of its source in the input
    name: str  # in the result, without suffix
    file: Path  # where it waits
    row: ManifestRow  # what the manifest said of its source
    part: Part  # of the source
    info: VideoInfo  # what it is itself

    @property
    def end_seconds(self) -> float | None:
        """Where the part ends; None: with the source."""
        return None if self.part.end == np.inf else self.part.end

    @property
    def facts(self) -> dict[str, object]:
        """What a reader of the shard alone should know of it."""
        return {
            "source": self.row.info.path,
            "start_seconds": self.part.start,
            "end_seconds": self.end_seconds,
            "split": self.row.split,
            "dataset": self.row.dataset,
            "weight": self.row.weight,
            "labels": dict(self.row.labels),
            "num_frames": self.info.num_frames,
            "fps": self.info.fps,
            "width": self.info.width,
            "height": self.info.height,
        }


def _split_names(splits: Iterable[str]) -> dict[str, str]:
    """What the shards of each split are called; two whose plain names are one are numbered."""
    names: dict[str, str] = {}
    # Those whose name needs no change come first and keep it.
    for split in sorted(splits, key=lambda split: (plain_name(split) != split, not split, split)):
        plain = plain_name(split or "all")
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        names[split] = next(
            n for n in itertools.chain([plain], numbered) if n not in names.values()
        )
    return names


@dataclass(frozen=True)
class Store:
    """The folder of the result and how it is laid out. What cannot be written is an OSError."""

    out: Path
    work: Path  # folder of unfinished work in it
    config: ShardConfig
    label_names: Sequence[str]  # label columns of the manifest

    def plan(self, videos: Sequence[PreparedVideo]) -> dict[str, list[str]]:
        """Keys of the videos of each shard (or folder of files), by its name.

        Fixed once and read back ever after: from then on the set of videos is fixed.
        """
        file = self.work / PLAN
        if file.exists():
            return read_json(file, "delete the set, or give another --out")
        order = np.arange(len(videos))
        if self.config.shuffle_seed is not None:
            order = np.random.default_rng(self.config.shuffle_seed).permutation(len(videos))
        most = _MOST_FILES if self.config.form == "files" else len(videos)
        groups: dict[str, list[str]] = {}
        open_groups: dict[str, tuple[int, int]] = {}  # of each split: its number, its bytes
        names = _split_names({video.row.split or "" for video in videos})
        for video in (videos[place] for place in order.tolist()):
            split = names[video.row.split or ""]
            number, size = open_groups.get(split, (0, 0))
            group = groups.setdefault(f"{split}-{number:06d}", [])
            is_full = size + video.info.bytes > self.config.megabytes * 1_000_000
            if group and (is_full or len(group) == most):
                number, size = number + 1, 0
                group = groups.setdefault(f"{split}-{number:06d}", [])
            group.append(video.key)
            open_groups[split] = number, size + video.info.bytes
        groups = dict(sorted(groups.items()))
        atomic_write(file, json.dumps(groups))
        return groups

    def rows_file(self, name: str) -> Path:
        """The rows of a group of videos; where they stand, the group is in its place."""
        return self.work / "rows" / f"{name}.parquet"

    def store(self, name: str, videos: Sequence[PreparedVideo]) -> None:
        """Put a group of videos in its place and write its rows of the manifest."""
        if self.config.form == "tar":
            shard = self.out / "shards" / f"{name}.tar"
            entries = ((video.name, video.file, video.facts) for video in videos)
            members = write_shard(shard, entries)
            paths = [replace(member, shard=f"shards/{shard.name}").address for member in members]
            changed = [shard.stat().st_mtime_ns] * len(videos)
        else:
            targets = [
                self.out / "videos" / name / f"{video.name}{video.file.suffix}" for video in videos
            ]
            targets[0].parent.mkdir(parents=True, exist_ok=True)
            for video, target in zip(videos, targets, strict=True):
                if video.file.exists():
                    video.file.replace(target)
            sync(targets[0].parent)
            paths = [f"videos/{name}/{target.name}" for target in targets]
            changed = [target.stat().st_mtime_ns for target in targets]
        with atomic_path(self.rows_file(name)) as aside:
            pq.write_table(self._rows(videos, paths, changed), aside)
        for video in videos:
            video.file.unlink(missing_ok=True)

    def _rows(
        self, videos: Sequence[PreparedVideo], paths: Sequence[str], changed: Sequence[int]
    ) -> pa.Table:
        base = "" if self.config.url is None else self.config.url.rstrip("/") + "/"
        paths = [base + path for path in paths]
        rows = [
            replace(video.row, info=replace(video.info, path=path, mtime_ns=mtime))
            for video, path, mtime in zip(videos, paths, changed, strict=True)
        ]
        members = [member_at(path) for path in paths]
        columns: dict[str, list[object]] = {
            "shard": [getattr(member, "shard", None) for member in members],
            "offset": [getattr(member, "offset", None) for member in members],
            "length": [getattr(member, "length", None) for member in members],
            "source_path": [video.row.info.path for video in videos],
            "source_start_seconds": [video.part.start for video in videos],
            "source_end_seconds": [video.end_seconds for video in videos],
        }
        table = rows_to_table(rows, self.label_names)
        for column, kind in _INDEX_COLUMNS.items():
            table = table.append_column(column, pa.array(columns[column], type=kind))
        return table

    def all_rows(self, names: Sequence[str]) -> pa.Table:
        """Rows of all groups, with weights whose mean is 1."""
        table = pa.concat_tables(pq.read_table(self.rows_file(name)) for name in names)
        table = table.unify_dictionaries().combine_chunks()
        weights = table.column("weight").to_numpy()
        mean = weights.mean()
        place = table.column_names.index("weight")
        return table.set_column(place, "weight", pa.array(weights / mean if mean > 0 else weights))
