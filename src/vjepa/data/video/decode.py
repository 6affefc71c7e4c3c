"""Exactly the frames asked for, and as little decoding as that needs.

How a frame is found. Each packet carries the presentation timestamp (pts) of its frame, so the
packets alone, read without decoding, tell the display order: frame number = number of the key frame
+ rank of the pts among those at or after the key frame's. The manifest's key-frame index says where
to start. So variable frame rates, B-frames, streams that do not start at 0 and frames lost by a
damaged file are all met by one rule. Where indexing found that timestamps do not tell frames apart,
these are counted from key frames, or from the start of a file that has none.

T is the number of frames of a clip, H x W the size of a frame in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vjepa.data.video.container import VideoFile, naming_the_file, open_video, to_rgb
from vjepa.data.video.images import read_images
from vjepa.data.video.info import DecodeError, LimitsConfig, Part, VideoInfo, enter_stage
from vjepa.data.video.inspect import inspect_file, stamp_of
from vjepa.data.video.packets import PacketReader, PacketSelector, plan_runs
from vjepa.data.video.stamps import read_packets

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    Numbered = tuple[int, VideoFrame]  # a frame and its number in the file

# A file may end in the middle of a group of pictures: its last packets then give no frame. Up to
# this many frames the last good one is given instead; a longer gap is an error.
_MAX_LOST_TAIL = 8

_MOST_EARLY = 16  # frames that come before an earlier one: as far as a decoder reorders them
_WAITING_PIXELS = 1 << 23  # of decoded frames that wait for their conversion, 12 MB in yuv420p
_MOST_KEPT = 1 << 23  # timestamps of the videos that a process has read whole, 64 MB
_KEPT: dict[tuple[object, ...], NDArray[np.int64]] = {}


@dataclass(frozen=True, slots=True)
class Frame:
    """Frame `number` in display order, from 0, shown `seconds` after the first.

    `image`: uint8 [H, W, 3], RGB, upright; not to be written to.
    """

    number: int
    image: NDArray[np.uint8]
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """Frames uint8 [T, H, W, 3], RGB, upright; times float64 [T], in seconds since the first."""

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]


def read_frames(info: VideoInfo, numbers: NDArray[np.int64]) -> Iterator[Frame]:
    """The frames with the given numbers, in their order, in memory that does not grow with them.

    Args:
        info: A manifest row, or what inspecting a file has found.
        numbers: int64 [n], from 0, never falling; a repeated number gives the same frame again. For
            a still image any number is its one picture.

    Yields:
        n frames: rotated as the file asks, grey and alpha (over black) made RGB.

    Raises:
        DecodeError: The file cannot give a frame; those before it have been given.
        ValueError: `numbers` fall or are negative.
    """
    _check_usable(info)
    if not len(numbers):
        return
    if numbers[0] < 0 or np.any(np.diff(numbers) < 0):
        raise ValueError("numbers must rise from 0 on")
    if info.kind == "image":
        numbers = np.zeros_like(numbers)
    if numbers[-1] >= info.num_frames:
        asked = f"frame {numbers[-1]} asked for, but it has {info.num_frames}"
        raise DecodeError(info.path, asked)
    unique, counts = np.unique(numbers, return_counts=True)
    if info.kind == "video":
        frames = _video_frames(info, unique)
    else:
        enter_stage("decode")
        frames = (
            Frame(number, image, number / info.fps)
            for number, image in zip(unique.tolist(), read_images(info, unique), strict=True)
        )
    for frame, count in zip(frames, counts.tolist(), strict=True):
        yield from itertools.repeat(frame, count)


def decode_frames(
    source: VideoInfo | str, indices: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] with the given numbers, in any order, repeats allowed.

    A path is inspected first. Errors as :func:`read_frames`; ValueError also if `indices` is empty.
    """
    return decode_clip(source, indices).frames


def decode_clip(source: VideoInfo | str, indices: Sequence[int] | NDArray[np.int64]) -> DecodedClip:
    """As :func:`decode_frames`, with the frames' times (exact also at a variable frame rate)."""
    info = inspect_file(source) if isinstance(source, str) else source
    return decode_parts(info, [(np.asarray(indices, dtype=np.int64).reshape(-1), None)])[0]


def decode_parts(info: VideoInfo, parts: Sequence[Part]) -> list[DecodedClip]:
    """Parts of several clips, each frame decoded once and cut without a copy in between.

    Boxes must lie inside of the frames. Else as :func:`decode_frames`.
    """
    wanted = np.concatenate([numbers for numbers, _ in parts])
    if wanted.size == 0 or wanted.min() < 0:
        raise ValueError("indices must be one or more frame numbers from 0 on")
    clips: list[DecodedClip] = []
    targets: list[tuple[DecodedClip, int, slice, slice]] = []
    for numbers, box in parts:
        top, left, height, width = box or (0, 0, info.height, info.width)
        rows, columns = slice(top, top + height), slice(left, left + width)
        with naming_the_file(info.path):
            frames = np.empty((len(numbers), height, width, 3), dtype=np.uint8)
        clips.append(DecodedClip(frames, np.zeros(len(numbers))))
        targets.extend((clips[-1], t, rows, columns) for t in range(len(numbers)))
    order = np.argsort(wanted)
    for index, frame in zip(order.tolist(), read_frames(info, wanted[order]), strict=True):
        clip, t, rows, columns = targets[index]
        clip.frames[t] = frame.image[rows, columns]
        clip.times[t] = frame.seconds
    return clips


def frame_times(info: VideoInfo) -> NDArray[np.float64] | None:
    """When the frames of a variable-rate video are shown: float64 [L], seconds from 0, ascending.

    Reads every packet of the file, without decoding. None for everything else, which goes by
    `info.fps`: constant rates, images, files without usable timestamps.

    Raises:
        DecodeError: The file cannot be read, or is not the one that was indexed.
    """
    if info.kind != "video" or info.constant_rate:
        return None
    if len(info.frame_pts):
        return (info.frame_pts - info.frame_pts[0]) * float(info.time_base)
    if info.is_counted or not info.num_keyframes:
        return None
    _check_usable(info)
    shown = _shown_pts(info)
    if len(shown) != info.num_frames:
        raise DecodeError(info.path, "has changed since it was indexed; index it again")
    return (shown - info.start_pts) * info.time_base.numerator / info.time_base.denominator


def _check_usable(info: VideoInfo) -> None:
    """Refuse a file that is known to be bad, with its reason, or that is not the indexed one."""
    if not info.ok:
        raise DecodeError(info.path, info.reason or "marked as unusable in the manifest")
    if info.kind != "image_folder" and info.bytes:
        with naming_the_file(info.path):
            num_bytes = stamp_of(info.path, info.kind).bytes
        if num_bytes != info.bytes:
            raise DecodeError(info.path, "has changed since it was indexed; index it again")


def _video_frames(info: VideoInfo, wanted: NDArray[np.int64]) -> Iterator[Frame]:
    """Frames of a video, numbers ascending, each once."""
    scaler = VideoReformatter()
    # Without an index; or when an entry point was none (a stream with intra refresh, a broken seek
    # table), or there is damage, from the start. What does not come out here is not in the file.
    jumps, all_frames = frames_by_jumps(info, wanted), frames_from_start(info)
    jumping, from_start = _Rising(jumps), _Rising(all_frames)
    # Closed here: where the garbage collector does it, a Ctrl-C just then is printed and swallowed.
    with naming_the_file(info.path), closing(jumps), closing(all_frames):
        for number in wanted.tolist():
            frame = jumping.get(number)
            if frame is None:
                enter_stage("decode")
                frame = from_start.get(number)
            if frame is None:
                # The last frame of the file in place of one of the few lost ones behind it.
                last = from_start.latest
                end = info.num_frames - 1
                if last is None or number < last[0] or end - last[0] > _MAX_LOST_TAIL:
                    lost = f"frame {number} of {info.num_frames}"
                    raise DecodeError(info.path, f"{lost} cannot be decoded (damaged file)")
                frame = last[1]
            enter_stage("convert")
            seconds = number / info.fps
            if number < len(info.frame_pts):
                seconds = float(int(info.frame_pts[number] - info.frame_pts[0]) * info.time_base)
            elif not info.is_counted and info.num_keyframes and frame.pts is not None:
                seconds = float((frame.pts - info.start_pts) * info.time_base)
            yield Frame(number, to_rgb(frame, info, scaler), seconds)


class _Rising:
    """Picks frames, numbers rising, of all that come, in damaged files a little out of order."""

    def __init__(self, frames: Iterator[Numbered]) -> None:
        self._frames = frames
        self._early: dict[int, VideoFrame] = {}
        self.latest: Numbered | None = None

    def get(self, number: int) -> VideoFrame | None:
        """The frame; None if it does not come."""
        self._early = {early: frame for early, frame in self._early.items() if early >= number}
        while number not in self._early and len(self._early) <= _MOST_EARLY:
            if (following := next(self._frames, None)) is None:
                break
            self.latest = following
            if following[0] >= number:
                self._early[following[0]] = following[1]
        return self._early.pop(number, None)


def frames_from_start(info: VideoInfo) -> Generator[Numbered]:
    """Every frame of the file with its number: its timestamp's rank among all, or by counting."""
    shown = None if info.is_counted or not info.num_keyframes else _shown_pts(info)
    with _opened(info) as video:
        if shown is None:
            yield from enumerate(video.frames())
            return
        for frame in video.frames():
            number = len(shown) if frame.pts is None else int(np.searchsorted(shown, frame.pts))
            if number < len(shown) and shown[number] == frame.pts:
                yield number, frame


def _opened(info: VideoInfo) -> AbstractContextManager[VideoFile]:
    """Open with the usual limits, raised to what was let pass when the file was indexed."""
    most = max(LimitsConfig.max_pixels, info.width * info.height)
    return open_video(info.path, LimitsConfig(max_pixels=most), info.stream)


def _shown_pts(info: VideoInfo) -> NDArray[np.int64]:
    """Timestamps of all frames in display order, from the packets: kept, not to be written to."""
    key = (info.path, info.bytes, info.mtime_ns, info.stream)
    shown = _KEPT.get(key)
    if shown is None:
        with _opened(info) as video:
            table = read_packets(video)
        shown = np.sort(table.pts[table.shown])
        if sum(map(len, [*_KEPT.values(), shown])) > _MOST_KEPT:
            _KEPT.clear()
        _KEPT[key] = shown
    return shown


def frames_by_jumps(info: VideoInfo, wanted: NDArray[np.int64]) -> Generator[Numbered]:
    """Those of the wanted frames that come out when decoding run by run from key frames."""
    if info.num_keyframes and len(wanted):
        yield from (_count_from if info.is_counted else _jump_to)(info, wanted)


def _jump_to(info: VideoInfo, wanted: NDArray[np.int64]) -> Iterator[Numbered]:
    """Frames known by their timestamps; packets that are not needed are not decoded."""
    enter_stage("open")
    with _opened(info) as video:
        reader = PacketReader(video, info, partial(_shown_pts, info))
        selector = PacketSelector(video.decoder)
        # Frames are converted several at a time: after a frame the decoder's code and tables are in
        # the processor's cache, and conversion would drive them out again and again.
        most = max(1, _WAITING_PIXELS // (info.width * info.height))
        waiting: list[Numbered] = []
        for run in plan_runs(info, wanted):
            enter_stage("seek")
            for part in reader.read(run):
                needed = selector.needed(part.packets, part.wanted, part.is_end)
                enter_stage("decode")
                for packet in [*needed, None] if part.is_end else needed:
                    for frame in video.feed(packet):
                        if frame.pts in part.wanted:
                            waiting.append((part.wanted.pop(frame.pts), frame))
                    if len(waiting) >= most or packet is None:
                        yield from waiting
                        waiting.clear()
                        enter_stage("decode")
                needed.clear()  # nothing is held while the next part is read
                enter_stage("seek")
            video.decoder.flush_buffers()


def _count_from(info: VideoInfo, wanted: NDArray[np.int64]) -> Iterator[Numbered]:
    """Frames that are counted from a key frame's own."""
    enter_stage("open")
    with _opened(info) as video:
        reader = PacketReader(video, info, partial(_shown_pts, info))
        for run in plan_runs(info, wanted):
            enter_stage("seek")
            if not reader.go_to(run.first_group):
                return
            enter_stage("decode")
            number = int(info.keyframe_index[run.first_group])
            left = set(run.numbers.tolist())
            is_before = run.first_group > 0  # what comes before the key frame belongs to others
            for place in itertools.count():
                packet = reader.next_packet()
                if packet is not None:
                    packet.pts = place  # so that the key frame is known when it comes out
                for frame in video.feed(packet):
                    is_before = is_before and frame.pts != 0
                    if is_before:
                        continue
                    if number in left:
                        left.remove(number)
                        yield number, frame
                    number += 1
                if packet is None or not left:
                    break
            video.decoder.flush_buffers()
