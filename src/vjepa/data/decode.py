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

from vjepa.data.images import decode_images
from vjepa.data.pixels import RgbConverter
from vjepa.data.probe_file import probe, scan_packets, stamp_of
from vjepa.data.video_file import VideoFile, open_video, reason_of
from vjepa.data.video_info import DecodeError, LimitsConfig, VideoInfo

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

__all__ = ["DecodeError", "DecodedClip", "decode_all", "decode_clip", "decode_frames"]

# Decoders whose "non-reference" skipping leaves every other pixel untouched.
_CAN_SKIP = frozenset(("h264", "hevc"))

# A file may end in the middle of a group of pictures: its last packets then give no frame. Up to
# this many frames the last good one stands in; a longer gap is an error.
_MAX_LOST_TAIL = 8

# Starting anew at a key frame costs the decoder about as much as this many frames.
_WORTH_A_JUMP = 4

# How many key frames further back a seek is tried before the file is read from its start.
_SEEK_ATTEMPTS = 3

_FOREVER = 1 << 62


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
    if wanted.size == 0 or wanted.min() < 0:
        raise ValueError("indices must be one or more frame numbers from 0 on")
    info = _usable(source)
    if info.kind == "image":
        wanted = np.zeros_like(wanted)
    if wanted.max() >= info.num_frames:
        raise DecodeError(
            info.path, f"frame {wanted.max()} asked for, but it has {info.num_frames} frames"
        )
    if info.kind != "video":
        return DecodedClip(decode_images(info, wanted), wanted / info.fps)
    unique, inverse = np.unique(wanted, return_inverse=True)
    collector = _Collector(info, unique)
    if info.num_keyframes:
        _decode_indexed(info, collector)
    else:
        _decode_counting(info, collector)
    if np.array_equal(unique, wanted):
        return DecodedClip(collector.frames, collector.times)
    return DecodedClip(collector.frames[inverse], collector.times[inverse])


def decode_all(source: VideoInfo | str, max_frames: int) -> NDArray[np.uint8]:
    """The first `max_frames` frames (all, if it has fewer): uint8 [T, H, W, 3] as decode_frames."""
    info = _usable(source)
    return decode_frames(info, np.arange(min(info.num_frames, max_frames)))


def _usable(source: VideoInfo | str) -> VideoInfo:
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
    """Puts decoded frames into their places in one preallocated array."""

    def __init__(self, info: VideoInfo, numbers: NDArray[np.int64]) -> None:
        self.numbers = numbers
        self.frames = np.empty((len(numbers), info.height, info.width, 3), dtype=np.uint8)
        self.times = np.zeros(len(numbers), dtype=np.float64)
        self._have = np.zeros(len(numbers), dtype=bool)
        self._info = info
        self._converter = RgbConverter(info.width, info.height)

    def put(self, number: int, frame: VideoFrame) -> None:
        """Keep a frame if its number is wanted."""
        place = int(np.searchsorted(self.numbers, number))
        if place == len(self.numbers) or self.numbers[place] != number or self._have[place]:
            return
        self.frames[place] = self._converter.convert(frame)
        if self._info.num_keyframes and frame.pts is not None:
            ticks = frame.pts - self._info.start_pts
            self.times[place] = float(ticks * self._info.time_base)
        else:
            self.times[place] = number / self._info.fps
        self._have[place] = True

    def missing(self) -> NDArray[np.int64]:
        """Numbers not delivered so far, int64 ascending."""
        return self.numbers[~self._have]

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
            if self._have.all():
                return
        num_frames = self._info.num_frames
        is_tail_short = latest is not None and num_frames - 1 - latest[0] <= _MAX_LOST_TAIL
        for number in self.missing():
            if latest is None or not is_tail_short or number < latest[0]:
                raise DecodeError(
                    self._info.path,
                    f"frame {number} of {num_frames} cannot be decoded (damaged file)",
                )
            self.put(int(number), latest[1])


def _decode_counting(info: VideoInfo, collector: _Collector) -> None:
    """Decode from the start and count: the way for files without usable timestamps."""
    with open_video(info.path, _limits(info)) as video:
        collector.read_forward(enumerate(video.frames()))


def _limits(info: VideoInfo) -> LimitsConfig:
    """The usual limits, raised to what was let pass when the file was indexed."""
    usual = LimitsConfig()
    return replace(usual, max_pixels=max(usual.max_pixels, info.width * info.height))


def _decode_indexed(info: VideoInfo, collector: _Collector) -> None:
    """Decode run by run, starting each at its key frame."""
    with open_video(info.path, _limits(info)) as video:
        reader = _RunReader(video, info)
        for run in _plan_runs(info, collector.numbers):
            reader.decode(run, collector)
    if collector.missing().size:
        # An entry point that was none (a stream with intra refresh, a broken seek table) or damage.
        # Once more from the very start, without jumps; what is still missing is not in the file.
        _decode_from_start(info, collector)


def _decode_from_start(info: VideoInfo, collector: _Collector) -> None:
    """Decode from the start to the last missing frame, finding frames by their timestamps."""
    with open_video(info.path, _limits(info)) as video:
        shown = np.sort(scan_packets(video).shown_pts)
    number_of = {pts: number for number, pts in enumerate(shown.tolist())}
    with open_video(info.path, _limits(info)) as video:
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

    def __init__(self, video: VideoFile, info: VideoInfo) -> None:
        self._video = video
        self._info = info
        self._packets = video.packets()
        self._unread: deque[Packet] = deque()
        self._next_group = 0
        self._can_skip = video.decoder.name in _CAN_SKIP

    def decode(self, run: _Run, collector: _Collector) -> None:
        """Decode the wanted frames of a run into the collector."""
        packets, shown = self._find(run)
        first = int(self._info.keyframe_index[run.first_group])
        ranks = {number - first: number for number in run.numbers.tolist()}
        wanted = {shown[rank]: number for rank, number in ranks.items() if rank < len(shown)}
        self._feed(packets, wanted, collector)
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
        """Feed packets up to the last wanted one; `wanted` maps timestamps to frame numbers."""
        places = [place for place, packet in enumerate(packets) if packet.pts in wanted]
        decoder = self._video.decoder
        end = places[-1] + 1 if places else 0
        for packet in packets[:end]:
            if self._can_skip:
                # Frames that nobody wants and no other frame refers to are not decoded at all.
                decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            self._keep(self._video.feed(packet), wanted, collector)
        self._keep(self._video.feed(None), wanted, collector)
        decoder.flush_buffers()

    @staticmethod
    def _keep(frames: list[VideoFrame], wanted: dict[int, int], collector: _Collector) -> None:
        for frame in frames:
            if frame.pts in wanted:
                collector.put(wanted[frame.pts], frame)

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
