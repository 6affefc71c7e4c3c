"""Exactly the frames asked for, and as little decoding as that needs.

How a frame is found. Each packet carries the presentation timestamp (pts) of its frame, so the
packets alone, read without decoding, tell the display order: frame number = number of the key frame
+ rank of the pts among those at or after the key frame's. The manifest's key-frame index says where
to start. So variable frame rates, B-frames, streams that do not start at 0 and frames lost by a
damaged file are all met by one rule, with nothing taken from headers. A file whose timestamps are
missing or repeat has an empty index and is decoded from its start, counting.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vjepa.data.stage_clock import NO_CLOCK, StageClock
from vjepa.data.video.container import RgbConverter, VideoFile, open_video, reason_of
from vjepa.data.video.frame_stores import CropOrder, CroppedClips, FrameStore, WholeFrames
from vjepa.data.video.images import decode_images
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo
from vjepa.data.video.inspect import probe, scan_packets, stamp_of
from vjepa.data.video.packets import PacketSelector

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

__all__ = ["DecodeError", "DecodedClip", "decode_all", "decode_clip", "decode_frames"]

# A file may end in the middle of a group of pictures: its last packets then give no frame. Up to
# this many frames the last good one stands in; a longer gap is an error.
MAX_LOST_TAIL = 8

# Starting anew at a key frame costs the decoder about as much as this many frames.
_WORTH_A_JUMP = 4

# How many key frames further back a seek is tried before the file is read from its start.
_SEEK_ATTEMPTS = 3

_FOREVER = 1 << 62

# Decoded frames of so many pixels together wait for their conversion (12 MB in yuv420p).
_WAITING_PIXELS = 1 << 23


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """Frames of one video.

    frames: uint8 [T, H, W, 3], RGB, upright.
    times: float64 [T], seconds since the video's first frame.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]


def decode_frames(
    source: VideoInfo | str, indices: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The frames with the given numbers in display order.

    Args:
        source: A manifest row; or a path, which is then probed first (every packet is read once).
        indices: int64 [T], from 0, in any order, repeats allowed. For a still image any number is
            its one picture.

    Returns:
        uint8 [T, H, W, 3], RGB, rotated as the file asks, grey and alpha (over black) made RGB.

    Raises:
        DecodeError: The file cannot give these frames; it names the path and why.
        ValueError: `indices` is empty or negative.
    """
    return decode_clip(source, indices).frames


def decode_clip(source: VideoInfo | str, indices: Sequence[int] | NDArray[np.int64]) -> DecodedClip:
    """As :func:`decode_frames`, with the frames' times (exact also at a variable frame rate)."""
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    info = usable_info(source)
    wanted = _checked(info, wanted)
    if info.kind != "video":
        return DecodedClip(decode_images(info, wanted), wanted / info.fps)
    unique, inverse = np.unique(wanted, return_inverse=True)
    try:
        store = WholeFrames(unique, info.height, info.width)
    except MemoryError as error:
        raise DecodeError(info.path, f"{len(unique)} frames of it do not fit in memory") from error
    times = _decode_into(info, store, NO_CLOCK)
    if np.array_equal(unique, wanted):
        return DecodedClip(store.frames, times)
    return DecodedClip(store.frames[inverse], times[inverse])


def decode_crops(
    info: VideoInfo, orders: Sequence[CropOrder], clock: StageClock = NO_CLOCK
) -> list[NDArray[np.uint8]]:
    """Parts of several clips of one video, decoded in one pass; equal to cutting whole frames.

    Args:
        info: A manifest row.
        orders: At least one clip; boxes lie inside the frame.
        clock: Told where the time goes.

    Returns:
        For each order uint8 [T, height, width, 3], RGB, upright.

    Raises:
        DecodeError: As :func:`decode_frames`.
    """
    usable_info(info)
    orders = [CropOrder(_checked(info, order.indices), order.box) for order in orders]
    try:
        store = CroppedClips(orders)
    except MemoryError as error:
        raise DecodeError(info.path, "the clips cut from it do not fit in memory") from error
    if info.kind == "video":
        _decode_into(info, store, clock)
        return store.clips
    clock.enter("decode")
    for place, image in enumerate(decode_images(info, store.numbers)):
        store.put(place, image)
    return store.clips


def _checked(info: VideoInfo, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frame numbers if the file has them; those of a still image are all 0."""
    if wanted.size == 0 or wanted.min() < 0:
        raise ValueError("indices must be one or more frame numbers from 0 on")
    if info.kind == "image":
        return np.zeros_like(wanted)
    if wanted.max() >= info.num_frames:
        raise DecodeError(
            info.path, f"frame {wanted.max()} asked for, but it has {info.num_frames} frames"
        )
    return wanted


def _decode_into(info: VideoInfo, store: FrameStore, clock: StageClock) -> NDArray[np.float64]:
    """Decode the store's frames of a video into it; their times, float64 [n]."""
    collector = _Collector(info, store, clock)
    if info.num_keyframes:
        _decode_indexed(info, collector, clock)
    else:
        clock.enter("decode")
        _decode_counting(info, collector)
    return collector.times


def decode_all(source: VideoInfo | str, max_frames: int) -> NDArray[np.uint8]:
    """The first `max_frames` frames (all, if it has fewer): uint8 [T, H, W, 3] as decode_frames."""
    info = usable_info(source)
    return decode_frames(info, np.arange(min(info.num_frames, max_frames)))


def usable_info(source: VideoInfo | str) -> VideoInfo:
    """The row itself, or the probed file; refused with its reason when it is known to be bad."""
    info = probe(source) if isinstance(source, str) else source
    if not info.ok:
        raise DecodeError(info.path, info.reason or "marked as unusable in the manifest")
    if info.kind != "image_folder" and info.bytes and not isinstance(source, str):
        try:
            num_bytes = stamp_of(info.path, info.kind).bytes
        except OSError as error:
            raise DecodeError(info.path, reason_of(error)) from error
        if num_bytes != info.bytes:
            raise DecodeError(info.path, "has changed since it was indexed; index it again")
    return info


class _Collector:
    """Turns decoded frames into RGB, hands each wanted one to the store, and knows what lacks."""

    def __init__(self, info: VideoInfo, store: FrameStore, clock: StageClock) -> None:
        self.numbers = store.numbers
        self.times = np.zeros(len(store.numbers), dtype=np.float64)
        self._store = store
        self._clock = clock
        self._lacking = {number: place for place, number in enumerate(store.numbers.tolist())}
        self._info = info
        self._converter = RgbConverter(info.width, info.height)

    def put(self, number: int, frame: VideoFrame) -> None:
        """Keep a frame if its number is wanted."""
        place = self._lacking.pop(number, None)
        if place is None:
            return
        self._clock.enter("convert")
        self._store.put(place, self._converter.convert(frame))
        if self._info.num_keyframes and frame.pts is not None:
            ticks, base = frame.pts - self._info.start_pts, self._info.time_base
            self.times[place] = ticks * base.numerator / base.denominator
        else:
            self.times[place] = number / self._info.fps
        self._clock.enter("decode")

    def missing(self) -> NDArray[np.int64]:
        """Numbers not delivered so far, int64 ascending."""
        return np.array(list(self._lacking), dtype=np.int64)

    def read_forward(self, numbered: Iterable[tuple[int, VideoFrame]]) -> None:
        """Keep what is wanted of frames in ascending order, to the end if something is missing.

        Raises:
            DecodeError: A wanted frame does not come, other than the few last ones of the file, for
                which the last good one stands in.
        """
        latest: tuple[int, VideoFrame] | None = None
        for number, frame in numbered:
            self.put(number, frame)
            latest = number, frame
            if not self._lacking:
                return
        num_frames = self._info.num_frames
        is_tail_short = latest is not None and num_frames - 1 - latest[0] <= MAX_LOST_TAIL
        for number in self.missing():
            if latest is None or not is_tail_short or number < latest[0]:
                raise DecodeError(
                    self._info.path,
                    f"frame {number} of {num_frames} cannot be decoded (damaged file)",
                )
            self.put(int(number), latest[1])


def _decode_counting(info: VideoInfo, collector: _Collector) -> None:
    """Decode from the start and count: the way for files without usable timestamps."""
    with open_video(info.path, limits_of(info)) as video:
        collector.read_forward(enumerate(video.frames()))


def limits_of(info: VideoInfo) -> LimitsConfig:
    """The usual limits, raised to what was let pass when the file was indexed."""
    usual = LimitsConfig()
    return replace(usual, max_pixels=max(usual.max_pixels, info.width * info.height))


def _decode_indexed(info: VideoInfo, collector: _Collector, clock: StageClock) -> None:
    """Decode run by run, starting each at its key frame."""
    clock.enter("open")
    with open_video(info.path, limits_of(info)) as video:
        reader = _RunReader(video, info, clock)
        for run in _plan_runs(info, collector.numbers):
            reader.decode(run, collector)
    if collector.missing().size:
        # An entry point that was none (a stream with intra refresh, a broken seek table) or damage.
        # Once more from the very start, without jumps; what is still missing is not in the file.
        _decode_from_start(info, collector)


def _decode_from_start(info: VideoInfo, collector: _Collector) -> None:
    """Decode from the start to the last missing frame, finding frames by their timestamps."""
    with open_video(info.path, limits_of(info)) as video:
        shown = np.sort(scan_packets(video).shown_pts)
    number_of = {pts: number for number, pts in enumerate(shown.tolist())}
    with open_video(info.path, limits_of(info)) as video:
        collector.read_forward(
            (number_of[frame.pts], frame) for frame in video.frames() if frame.pts in number_of
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """Wanted frames (ascending) decoded in one go, and the groups of pictures that hold them."""

    first_group: int
    last_group: int
    numbers: NDArray[np.int64]


def _plan_runs(info: VideoInfo, numbers: NDArray[np.int64]) -> list[_Run]:
    """Cut the wanted frames into runs: a new one wherever jumping to a key frame saves decoding."""
    groups = np.searchsorted(info.keyframe_index, numbers, side="right") - 1
    spared = info.keyframe_index[groups[1:]] - numbers[:-1]
    starts = np.flatnonzero((np.diff(groups) > 0) & (spared > _WORTH_A_JUMP)) + 1
    return [
        _Run(int(groups[begin]), int(groups[end - 1]), numbers[begin:end])
        for begin, end in itertools.pairwise([0, *starts.tolist(), len(numbers)])
    ]


class _RunReader:
    """Reads runs of frames in ascending order, jumping where that saves reading."""

    def __init__(self, video: VideoFile, info: VideoInfo, clock: StageClock) -> None:
        self._video = video
        self._info = info
        self._clock = clock
        self._packets = video.packets()
        self._unread: deque[Packet] = deque()
        self._next_group = 0
        self._selector = PacketSelector(video.decoder)

    def decode(self, run: _Run, collector: _Collector) -> None:
        """Decode the wanted frames of a run into the collector."""
        self._clock.enter("seek")
        packets, shown = self._find(run)
        first = int(self._info.keyframe_index[run.first_group])
        ranks = {number - first: number for number in run.numbers.tolist()}
        wanted = {shown[rank]: number for rank, number in ranks.items() if rank < len(shown)}
        needed = self._selector.needed(packets, wanted)
        self._clock.enter("decode")
        self._feed(needed, wanted, collector)
        self._put_back(packets, run.last_group + 1)

    def _find(self, run: _Run) -> tuple[list[Packet], list[int]]:
        """Packets of a run in decoding order, and its sorted timestamps; empty if not found."""
        group = run.first_group
        if group == self._next_group:
            packets, shown = self._read(run)
            if packets:
                return packets, shown
        # Some formats are sought by decoding time, which may land behind the key frame: then begin
        # a little earlier. Packets read over cost next to nothing, they are not decoded.
        for earlier in range(max(0, group - _SEEK_ATTEMPTS + 1), group + 1)[::-1]:
            self._seek(int(self._info.keyframe_pts[earlier]))
            packets, shown = self._read(run)
            if packets:
                return packets, shown
        return [], []

    def _seek(self, pts: int) -> None:
        self._unread.clear()
        self._video.container.seek(pts, stream=self._video.stream)
        self._packets = self._video.packets()

    def _next_packet(self) -> Packet | None:
        """Packets put back first, then those of the file; None at its end."""
        return self._unread.popleft() if self._unread else next(self._packets, None)

    def _read(self, run: _Run) -> tuple[list[Packet], list[int]]:
        """Read from the run's key frame until the last wanted frame's timestamp is certain.

        A packet's pts is never below its decoding timestamp (dts), and dts ascend: a pts below the
        newest dts has its final rank. Without dts, all frames of the run's groups are read.
        """
        info, end = self._info, run.last_group + 1
        key_pts = int(info.keyframe_pts[run.first_group])
        first = int(info.keyframe_index[run.first_group])
        is_open = end == info.num_keyframes
        end_pts = _FOREVER if is_open else int(info.keyframe_pts[end])
        num_shown = int(info.num_frames if is_open else info.keyframe_index[end]) - first
        last_rank = int(run.numbers[-1]) - first
        packets: list[Packet] = []
        shown: list[int] = []
        while (packet := self._next_packet()) is not None:
            pts = packet.pts
            if not packets and packet.is_keyframe and pts is not None and pts > key_pts:
                break
            if not packets and not (packet.is_keyframe and pts == key_pts):
                continue
            packets.append(packet)
            if pts is not None and pts >= key_pts and not packet.is_discard:
                bisect.insort(shown, pts)
            if len(shown) <= last_rank:
                continue
            is_certain = packet.dts is not None and shown[last_rank] < packet.dts
            if is_certain or bisect.bisect_left(shown, end_pts) >= num_shown:
                break
        return packets, shown

    def _feed(self, packets: list[Packet], wanted: dict[int, int], collector: _Collector) -> None:
        """Decode packets; `wanted` maps timestamps to frame numbers."""
        # Frames are converted several at a time: after a frame the decoder's code and tables are
        # in the processor's cache, and conversion would drive them out again and again.
        most = max(1, _WAITING_PIXELS // (self._info.width * self._info.height))
        waiting: list[tuple[int, VideoFrame]] = []
        for packet in [*packets, None]:
            for frame in self._video.feed(packet):
                if frame.pts in wanted:
                    waiting.append((wanted[frame.pts], frame))
            if len(waiting) >= most or packet is None:
                for number, frame in waiting:
                    collector.put(number, frame)
                waiting.clear()
        self._video.decoder.flush_buffers()

    def _put_back(self, packets: list[Packet], next_group: int) -> None:
        """Keep what was read beyond the run: packets from the next key frame on."""
        self._next_group = next_group
        if next_group >= self._info.num_keyframes:
            return
        key_pts = int(self._info.keyframe_pts[next_group])
        for place, packet in enumerate(packets):
            if packet.is_keyframe and packet.pts == key_pts:
                self._unread.extendleft(reversed(packets[place:]))
                return
