"""Exactly the frames asked for, and as little decoding as that needs.

How a frame is found. Each packet carries the presentation timestamp (pts) of its frame, so the
packets alone, read without decoding, tell the display order: frame number = number of the key frame
+ rank of the pts among those at or after the key frame's. The manifest's key-frame index says where
to start. So variable frame rates, B-frames, streams that do not start at 0 and frames lost by a
damaged file are all met by one rule, with nothing taken from headers. A file whose timestamps are
missing or repeat has an empty index and is decoded from its start, counting.

T is the number of frames of a clip, H x W the size of a frame in pixels.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vjepa.data.video.container import VideoFile, naming_the_file, open_video, reason_of, to_rgb
from vjepa.data.video.images import read_images
from vjepa.data.video.info import NO_CLOCK, DecodeError, LimitsConfig, Part, StageClock, VideoInfo
from vjepa.data.video.inspect import inspect_file, scan_packets, stamp_of
from vjepa.data.video.packets import PacketSelector

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

# A file may end in the middle of a group of pictures: its last packets then give no frame. Up to
# this many frames the last good one is given instead; a longer gap is an error.
_MAX_LOST_TAIL = 8

# Starting anew at a key frame costs the decoder about as much as this many frames.
_WORTH_A_JUMP = 4

# How many key frames further back a seek is tried before the file is read from its start.
_SEEK_ATTEMPTS = 3

# Frames that come before an earlier one at most: as far as a decoder reorders them.
_MOST_EARLY = 16

_FOREVER = 1 << 62

# Decoded frames of so many pixels together wait for their conversion (12 MB in yuv420p).
_WAITING_PIXELS = 1 << 23

# Most bytes of packets that are held back until their run is complete. Those of a clip are far
# fewer; those of a whole video would be the file. Runs are planned for a quarter of it, by the
# file's mean; what is above it in one group of pictures is decoded in parts.
_HELD_BYTES = 1 << 25


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


def read_frames(
    info: VideoInfo, numbers: NDArray[np.int64], clock: StageClock = NO_CLOCK
) -> Iterator[Frame]:
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
        raise DecodeError(
            info.path, f"frame {numbers[-1]} asked for, but it has {info.num_frames} frames"
        )
    unique, counts = np.unique(numbers, return_counts=True)
    if info.kind == "video":
        frames = _video_frames(info, unique, clock)
    else:
        clock.enter("decode")
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


def decode_parts(
    info: VideoInfo, parts: Sequence[Part], clock: StageClock = NO_CLOCK
) -> list[DecodedClip]:
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
        try:
            frames = np.empty((len(numbers), height, width, 3), dtype=np.uint8)
        except MemoryError as error:
            reason = f"{len(wanted)} frames of it do not fit in memory"
            raise DecodeError(info.path, reason) from error
        clips.append(DecodedClip(frames, np.zeros(len(numbers))))
        targets.extend((clips[-1], t, rows, columns) for t in range(len(numbers)))
    order = np.argsort(wanted)
    for index, frame in zip(order.tolist(), read_frames(info, wanted[order], clock), strict=True):
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
    if info.kind != "video" or info.constant_rate or not info.num_keyframes:
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
        try:
            num_bytes = stamp_of(info.path, info.kind).bytes
        except OSError as error:
            raise DecodeError(info.path, reason_of(error)) from error
        if num_bytes != info.bytes:
            raise DecodeError(info.path, "has changed since it was indexed; index it again")


def _video_frames(info: VideoInfo, wanted: NDArray[np.int64], clock: StageClock) -> Iterator[Frame]:
    """Frames of a video, numbers ascending, each once."""
    scaler = VideoReformatter()
    jumping = _Rising(_jump_to(wanted, info, clock) if info.num_keyframes else iter(()))
    # Without an index; or when an entry point was none (a stream with intra refresh, a broken seek
    # table), or there is damage. What does not come out here is not in the file.
    from_start = _Rising(_from_start(info))
    with naming_the_file(info.path):
        for number in wanted.tolist():
            frame = jumping.get(number)
            if frame is None:
                clock.enter("decode")
                frame = from_start.get(number)
            if frame is None:
                # The last frame of the file in place of one of the few lost ones behind it.
                last = from_start.latest
                end = info.num_frames - 1
                if last is None or number < last[0] or end - last[0] > _MAX_LOST_TAIL:
                    lost = f"frame {number} of {info.num_frames}"
                    raise DecodeError(info.path, f"{lost} cannot be decoded (damaged file)")
                frame = last[1]
            clock.enter("convert")
            if info.num_keyframes and frame.pts is not None:
                seconds = float((frame.pts - info.start_pts) * info.time_base)
            else:
                seconds = number / info.fps
            yield Frame(number, to_rgb(frame, info.width, info.height, scaler), seconds)


class _Rising:
    """Picks frames by number, rising from call to call, out of all that come.

    Damaged files give them out of order, by a few places.
    """

    def __init__(self, frames: Iterator[tuple[int, VideoFrame]]) -> None:
        self._frames = frames
        self._early: dict[int, VideoFrame] = {}
        self.latest: tuple[int, VideoFrame] | None = None

    def get(self, number: int) -> VideoFrame | None:
        """The frame; None if it does not come."""
        self._early = {early: frame for early, frame in self._early.items() if early >= number}
        while number not in self._early and len(self._early) <= _MOST_EARLY:
            following = next(self._frames, None)
            if following is None:
                break
            self.latest = following
            if following[0] >= number:
                self._early[following[0]] = following[1]
        return self._early.pop(number, None)


def _from_start(info: VideoInfo) -> Iterator[tuple[int, VideoFrame]]:
    """Every frame of the file with its number: its timestamp's rank among all, or by counting."""
    shown = _shown_pts(info) if info.num_keyframes else None
    with open_video(info.path, _limits_of(info)) as video:
        if shown is None:
            yield from enumerate(video.frames())
            return
        for frame in video.frames():
            number = len(shown) if frame.pts is None else int(np.searchsorted(shown, frame.pts))
            if number < len(shown) and shown[number] == frame.pts:
                yield number, frame


def _limits_of(info: VideoInfo) -> LimitsConfig:
    """The usual limits, raised to what was let pass when the file was indexed."""
    return LimitsConfig(max_pixels=max(LimitsConfig.max_pixels, info.width * info.height))


def _shown_pts(info: VideoInfo) -> NDArray[np.int64]:
    """Timestamps of all frames in display order, from the packets alone."""
    with open_video(info.path, _limits_of(info)) as video:
        return np.sort(scan_packets(video).shown_pts)


def _jump_to(
    wanted: NDArray[np.int64], info: VideoInfo, clock: StageClock
) -> Iterator[tuple[int, VideoFrame]]:
    """Those of the wanted frames that come out when decoding run by run from key frames."""
    clock.enter("open")
    with open_video(info.path, _limits_of(info)) as video:
        reader = _PacketReader(video, info)
        selector = PacketSelector(video.decoder)
        # Frames are converted several at a time: after a frame the decoder's code and tables are in
        # the processor's cache, and conversion would drive them out again and again.
        most = max(1, _WAITING_PIXELS // (info.width * info.height))
        waiting: list[tuple[int, VideoFrame]] = []
        for run in _plan_runs(info, wanted):
            clock.enter("seek")
            for part in reader.read(run):
                needed = selector.needed(part.packets, part.wanted, part.is_end)
                clock.enter("decode")
                for packet in [*needed, None] if part.is_end else needed:
                    for frame in video.feed(packet):
                        if frame.pts in part.wanted:
                            waiting.append((part.wanted.pop(frame.pts), frame))
                    if len(waiting) >= most or packet is None:
                        yield from waiting
                        waiting.clear()
                        clock.enter("decode")
                needed.clear()  # nothing is held while the next part is read
                clock.enter("seek")
            video.decoder.flush_buffers()


@dataclass(frozen=True, slots=True)
class _Run:
    """Wanted frames (ascending) decoded in one go, and the groups of pictures that hold them."""

    first_group: int
    last_group: int
    numbers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Part:
    """Packets of a run in decoding order, nearly always all of them."""

    packets: list[Packet]
    wanted: dict[int, int]  # timestamps and numbers of wanted frames that have not come out yet
    is_end: bool


def _plan_runs(info: VideoInfo, numbers: NDArray[np.int64]) -> list[_Run]:
    """Cut the wanted frames into runs: a new one wherever jumping to a key frame saves decoding.

    And at a key frame where the packets would become too many to hold.
    """
    groups = np.searchsorted(info.keyframe_index, numbers, side="right") - 1
    spared = info.keyframe_index[groups[1:]] - numbers[:-1]
    most_frames = max(1, _HELD_BYTES // 4 * info.num_frames // max(info.bytes, info.num_frames))
    blocks = info.keyframe_index[groups] // most_frames
    is_worth_it = (np.diff(groups) > 0) & (spared > _WORTH_A_JUMP)
    starts = np.flatnonzero(is_worth_it | (np.diff(blocks) > 0)) + 1
    return [
        _Run(int(groups[begin]), int(groups[end - 1]), numbers[begin:end])
        for begin, end in itertools.pairwise([0, *starts.tolist(), len(numbers)])
    ]


class _PacketReader:
    """Reads the packets of runs in ascending order, jumping where that saves reading."""

    def __init__(self, video: VideoFile, info: VideoInfo) -> None:
        self._video = video
        self._info = info
        self._packets = video.packets()
        self._unread: deque[Packet] = deque()
        self._next_group = 0

    def read(self, run: _Run) -> Iterator[_Part]:
        """Read from the run's key frame until the last wanted frame's timestamp is certain.

        A packet's pts is never below its decoding timestamp (dts), and dts ascend: a pts below the
        newest dts has its final rank. Without dts, all frames of the run's groups are read.
        """
        if not self._go_to(run.first_group):
            return
        info, end = self._info, run.last_group + 1
        key_pts = int(info.keyframe_pts[run.first_group])
        first = int(info.keyframe_index[run.first_group])
        is_open = end == info.num_keyframes
        end_pts = _FOREVER if is_open else int(info.keyframe_pts[end])
        num_shown = int(info.num_frames if is_open else info.keyframe_index[end]) - first
        ranks = (run.numbers - first).tolist()
        packets: list[Packet] = []
        num_bytes = 0
        shown: list[int] = []
        wanted: dict[int, int] | None = None
        while (packet := self._next_packet()) is not None:
            packets.append(packet)
            num_bytes += packet.size
            pts = packet.pts
            if pts is not None and pts >= key_pts and not packet.is_discard:
                bisect.insort(shown, pts)
            if len(shown) > ranks[-1]:
                is_certain = packet.dts is not None and shown[ranks[-1]] < packet.dts
                if is_certain or bisect.bisect_left(shown, end_pts) >= num_shown:
                    break
            if num_bytes > _HELD_BYTES:
                # The timestamps have to be known before the run is complete.
                if wanted is None:
                    every = _shown_pts(info)
                    numbers = run.numbers[run.numbers < len(every)]
                    wanted = dict(zip(every[numbers].tolist(), numbers.tolist(), strict=True))
                yield _Part(packets, wanted, is_end=False)
                packets.clear()
                num_bytes = 0
        if wanted is None:
            wanted = {shown[rank]: rank + first for rank in ranks if rank < len(shown)}
        yield _Part(packets, wanted, is_end=True)
        # What was read beyond the run is kept: packets from the next key frame on.
        self._next_group = end
        for index, packet in enumerate(packets):
            if not is_open and packet.is_keyframe and packet.pts == end_pts:
                self._unread.extendleft(reversed(packets[index:]))
                break

    def _go_to(self, group: int) -> bool:
        """Make a group's key frame the next packet, if it can be found."""
        if group == self._next_group and self._skip_to(int(self._info.keyframe_pts[group])):
            return True
        # Some formats are sought by decoding time, which may land behind the key frame: then begin
        # a little earlier. Packets read over cost next to nothing, they are not decoded.
        for earlier in range(max(0, group - _SEEK_ATTEMPTS + 1), group + 1)[::-1]:
            if not self._seek(int(self._info.keyframe_pts[earlier])):
                return False
            if self._skip_to(int(self._info.keyframe_pts[group])):
                return True
        return False

    def _seek(self, pts: int) -> bool:
        self._unread.clear()
        try:
            self._video.container.seek(pts, stream=self._video.stream)
        except FFmpegError:  # a format without seeking, or a damaged table
            return False
        self._packets = self._video.packets()
        return True

    def _skip_to(self, key_pts: int) -> bool:
        while (packet := self._next_packet()) is not None:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= key_pts:
                self._unread.appendleft(packet)
                return packet.pts == key_pts
        return False

    def _next_packet(self) -> Packet | None:
        """Packets put back first, then those of the file; None at its end."""
        return self._unread.popleft() if self._unread else next(self._packets, None)
