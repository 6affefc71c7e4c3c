"""Looking into files: what they hold, and whether frames can be had from them.

A bad file is no error but a result (`ok` False and a `reason`). :func:`inspect_file` runs in this
process, :func:`inspect_files` on many files in processes that may hang or crash without harm. PyAV
and Pillow are imported where a file is opened: the process that hands files out needs neither.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.data.manifest.storage import (
    FileStatus,
    absolute,
    is_address,
    member_at,
    member_status,
    status_of,
)
from vjepa.data.video.info import (
    IMAGE_FOLDER_FPS,
    DecodeError,
    LimitsConfig,
    MediaKind,
    VideoInfo,
    images_in,
    kind_of,
)
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from vjepa.data.video.container import VideoFile

# Decoders whose key-frame flag can be trusted as an entry point. GIF and its like build each
# picture on the one before, whatever the flag says.
_TRUSTED = """h264 hevc vp8 vp9 libvpx libvpx-vp9 av1 libdav1d libaom-av1 mpeg1video mpeg2video
mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4 wmv1 wmv2 wmv3 vc1 h263 flv theora mjpeg prores ffv1 dnxhd dvvideo
cinepak rawvideo huffyuv ffvhuff utvideo"""
_TRUSTED_KEYFRAMES = frozenset(_TRUSTED.split())

# The timestamps of the first frames, as decoded, must agree with those of the packets: some formats
# (h264 in AVI) have made-up timestamps in decoding order. B-frames reach back at most 16 frames.
_NUM_VERIFIED = 24

_LONG_AGO = -(1 << 62)

_FALLBACK_FPS = 25.0

# Files handed out ahead of the one waited for, per process: keeps all busy while one is slow.
_AHEAD = 16


def inspect_file(
    path: str,
    limits: LimitsConfig | None = None,
    kind: MediaKind | None = None,
    image_folder_fps: float = IMAGE_FOLDER_FPS,
    deep: bool = False,
) -> VideoInfo:
    """Look into a video, an image or a folder of images; `ok` False if it cannot give frames.

    `kind` None decides by folder or suffix. With `deep` every frame is decoded and has to come out.
    """
    from vjepa.data.video.container import open_video, reason_of

    limits = limits or LimitsConfig()
    path = absolute(path)
    info = VideoInfo(path=path, kind=kind or kind_of(path))
    try:
        status = stamp_of(path, info.kind)
        info = replace(info, bytes=status.bytes, mtime_ns=status.mtime_ns)
        if info.kind != "image_folder":
            if os.path.isdir(path):  # noqa: PTH112
                raise DecodeError(path, "is a folder, not a file")
            is_stored = is_address(path) or member_at(path) is not None
            if not is_stored and not os.path.isfile(path):  # noqa: PTH113
                raise DecodeError(path, "is no regular file")
            if info.bytes == 0:
                raise DecodeError(path, "empty file (0 bytes)")
            if info.bytes > limits.max_bytes:
                reason = f"{info.bytes} bytes, above max_bytes = {limits.max_bytes}"
                raise DecodeError(path, reason)
        if info.kind == "video":
            info = _inspect_video(info, limits)
        else:
            from vjepa.data.video.images import inspect_images, read_images

            info = inspect_images(info, limits, image_folder_fps)
        if deep and info.kind == "video":
            with open_video(info.path, limits) as video:
                lost = info.num_frames - sum(1 for _ in video.frames())
            if lost > 0:
                raise DecodeError(path, f"{lost} of {info.num_frames} frames damaged")
        elif deep:
            for _ in read_images(info, np.arange(info.num_frames)):
                pass
    except DecodeError as error:
        return replace(info, ok=False, reason=error.reason)
    except OSError as error:
        return replace(info, ok=False, reason=reason_of(error))
    return info


def stamp_of(path: str, kind: MediaKind) -> FileStatus:
    """Size and time of the last change; of a folder, summed over its images and the latest time.

    They tell an unchanged file without opening it.

    Raises:
        OSError: There is no such file, or it cannot be looked at.
    """
    if kind != "image_folder":
        member = member_at(path)
        return status_of(path) if member is None else member_status(member)
    status = os.stat(path)  # noqa: PTH116
    each = [os.stat(os.path.join(path, name)) for name in images_in(path)]  # noqa: PTH116, PTH118
    newest = max([status.st_mtime_ns, *(one.st_mtime_ns for one in each)])
    return FileStatus(sum(one.st_size for one in each), newest)


@dataclass(frozen=True, slots=True)
class PacketScan:
    """What the packets of a video tell without decoding.

    Timestamps are int64 [n], in decoding order; empty if unusable.
    """

    shown_pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    num_packets: int  # that hold data
    is_cut_off: bool  # the last packet is incomplete: the file ends in its middle


def scan_packets(video: VideoFile, max_frames: int | None = None) -> PacketScan:
    """Read all packets of a freshly opened video without decoding them.

    Frame 0 is the first key frame, or the first displayed frame after it where an edit list hides
    the key frame itself; what comes before cannot be decoded and is not counted.

    Raises:
        DecodeError: More than `max_frames` packets.
    """
    shown, keys = array("q"), array("q")
    has_pts, is_cut_off, count = True, False, 0
    for packet in video.packets():
        count += 1
        if max_frames is not None and count > max_frames:
            raise DecodeError(video.path, f"more than max_frames = {max_frames} frames")
        is_cut_off = packet.is_corrupt
        if packet.pts is None:
            has_pts = False
            continue
        if packet.is_keyframe:
            keys.append(packet.pts)
        if keys and packet.pts >= keys[0] and not packet.is_discard:
            shown.append(packet.pts)
    shown_pts = np.array(shown, dtype=np.int64)
    keyframe_pts = np.array(keys, dtype=np.int64)
    is_usable = (
        has_pts
        and len(shown_pts) > 0
        and len(np.unique(shown_pts)) == len(shown_pts)
        and bool(np.all(np.diff(keyframe_pts) > 0))
    )
    if not is_usable:
        shown_pts = keyframe_pts = np.zeros(0, dtype=np.int64)
    return PacketScan(shown_pts, keyframe_pts, count, is_cut_off)


def _inspect_video(info: VideoInfo, limits: LimitsConfig) -> VideoInfo:
    """Count and time the frames from the packets; decode the first few to see that it works."""
    from vjepa.data.video.container import open_video, orientation_of

    with open_video(info.path, limits) as video:
        scan = scan_packets(video, limits.max_frames)
        if scan.num_packets == 0:
            raise DecodeError(info.path, "no video data in it")
        if scan.is_cut_off or _ends_early(video, scan):
            complete = scan.num_packets - scan.is_cut_off
            raise DecodeError(info.path, f"truncated: only {complete} frames are in the file")
    shown_pts = np.sort(scan.shown_pts)
    with open_video(info.path, limits) as video:
        first, num_counted = _look_at_first_frames(video, shown_pts)
        orientation = orientation_of(first)
        size = (first.width, first.height)
        width, height = size[::-1] if orientation.transpose else size
        if width * height > limits.max_pixels:
            raise DecodeError(
                info.path,
                f"frames of {width} x {height} pixels are above max_pixels = {limits.max_pixels}",
            )
        codec = video.stream.codec_context.name
        is_trusted = video.decoder.name in _TRUSTED_KEYFRAMES
        stated = video.stream.average_rate or video.stream.guessed_rate
        time_base = video.stream.time_base or Fraction(0)
    info = replace(info, width=width, height=height, rotation=orientation.rotation, codec=codec)
    fps = float(stated) if stated else _FALLBACK_FPS
    if num_counted is not None:
        seconds = num_counted / fps
        return replace(info, num_frames=num_counted, fps=fps, duration_seconds=seconds)
    num_frames, start = len(shown_pts), int(shown_pts[0])
    ticks = int(shown_pts[-1]) - start
    if ticks:
        fps = float(1 / (Fraction(ticks, num_frames - 1) * time_base))
    even = start + ticks / max(1, num_frames - 1) * np.arange(num_frames)
    keyframe_pts = scan.keyframe_pts if is_trusted else scan.keyframe_pts[:1]
    return replace(
        info,
        num_frames=num_frames,
        fps=fps,
        duration_seconds=num_frames / fps,
        # Timestamps are rounded to ticks, so an even rate strays from the line by up to one.
        constant_rate=bool(np.abs(shown_pts - even).max() <= 1.0),
        keyframe_pts=keyframe_pts,
        keyframe_index=np.searchsorted(shown_pts, keyframe_pts).astype(np.int64),
        time_base=time_base,
        start_pts=start,
    )


def _ends_early(video: VideoFile, scan: PacketScan) -> bool:
    """Whether an MP4 (or its kin) holds fewer frames than its table lists.

    Only these formats have a table to believe; other headers promise what they like. An edit list
    takes frames out, too, but then the duration without them is reached.
    """
    stream = video.stream
    is_listed = "mov" in video.container.format.name and scan.num_packets < stream.frames
    if not is_listed or stream.duration is None or scan.shown_pts.size < 2:
        return is_listed
    end = (stream.start_time or 0) + stream.duration
    step = np.ptp(scan.shown_pts) / (scan.shown_pts.size - 1)
    return bool(scan.shown_pts.max() + 1.5 * step < end)


def _look_at_first_frames(
    video: VideoFile, expected: NDArray[np.int64]
) -> tuple[VideoFrame, int | None]:
    """The first frame, and the number of all if they had to be counted.

    The first frames' timestamps are compared with the `expected` ones (ascending). Where they come
    in another order, the timestamps are worth nothing and the whole file is decoded to count its
    frames: here and only here. (Frames that do not come at all are damage.)
    """
    first: VideoFrame | None = None
    number, latest = 0, _LONG_AGO
    known = set(expected[: 4 * _NUM_VERIFIED].tolist())
    is_timed = len(expected) > 0
    for frame in video.frames():
        first = first or frame
        pts = frame.pts
        is_timed = is_timed and pts is not None and pts in known and pts > latest
        latest = latest if pts is None else pts
        number += 1
        if is_timed and number >= min(_NUM_VERIFIED, len(expected)):
            break
    if first is None:
        raise DecodeError(video.path, "no frame of it can be decoded")
    return first, None if is_timed else number


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectOrder:
    """One file to look into; with `deep`, every frame of it is decoded."""

    path: str
    kind: MediaKind | None = None
    image_folder_fps: float = IMAGE_FOLDER_FPS
    deep: bool = False

    def __str__(self) -> str:
        return self.path

    def bad(self, reason: str) -> VideoInfo:
        """The file, known to be bad."""
        return VideoInfo(path=self.path, kind=self.kind or "video", ok=False, reason=reason)


def inspect_order(order: InspectOrder, limits: LimitsConfig) -> VideoInfo:
    """What is found in one file, or why it is bad; runs in a worker process."""
    try:
        return inspect_file(order.path, limits, order.kind, order.image_folder_fps, order.deep)
    except MemoryError:
        return order.bad("out of memory while reading it")


def inspect_files(
    orders: Iterable[InspectOrder], workers: int, limits: LimitsConfig, timeout_seconds: float
) -> Generator[VideoInfo]:
    """What is found in each file, in the order of the orders, which are read lazily.

    A file at which a process hangs for `timeout_seconds` or dies is a bad file; the processes end
    with the generator.

    Raises:
        UserError: `workers` is below 1.
        RuntimeError: A mistake in the program, not in a file; its traceback is in the message.
    """
    if workers < 1:
        raise UserError(f"workers: must be at least 1, got {workers}")
    pool = WorkerPool(
        partial(inspect_order, limits=limits),
        workers,
        timeout_seconds,
        limits.max_memory_gigabytes,
        preload=["vjepa.data.video.inspect", "vjepa.data.video.container"],
    )
    with closing(pool):
        for order, outcome in pool.map(orders, _AHEAD * workers):
            if outcome.kind == "done":
                yield outcome.value
            elif outcome.kind == "hang":
                yield order.bad(f"reading it took longer than {timeout_seconds:g} s")
            else:
                yield order.bad(f"the decoder crashed (exit status {outcome.exit_code})")
