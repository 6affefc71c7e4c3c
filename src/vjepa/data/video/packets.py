"""Which packets are read, and which a decoder is given, so that wanted frames come out unchanged.

In h264 and hevc a packet's first bytes say whether other pictures may refer to its picture. So the
packets of pictures that nobody wants and no needed picture can refer to are left out unread; of all
others nothing changes. For every other codec all packets are needed.

What is relied on (ITU-T H.264, 7.4.1: `nal_ref_idc`; ITU-T H.265, 7.4.2.2: `nal_unit_type`,
`TemporalId`): an h264 picture whose `nal_ref_idc` is 0 is referred to by none; an hevc picture of
sub-layer s is referred to only by pictures of sub-layers >= s, and by none of s itself if its type
says so; no picture after an IDR picture refers to one before it.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from vjepa.data.video.headers import HeaderReader, hides_pictures, length_size_of, nal_units
from vjepa.data.video.info import VideoInfo

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext

    from vjepa.data.video.container import VideoFile

# Starting anew at a key frame costs the decoder about as much as this many frames.
WORTH_A_JUMP = 4

# How many key frames further back a seek is tried before the file is read from its start.
_SEEK_ATTEMPTS = 3

_FOREVER = 1 << 62

# Most bytes of packets that are held back until their run is complete. Those of a clip are far
# fewer; those of a whole video would be the file. Runs are planned for a quarter of it, by the
# file's mean; what is above it in one group of pictures is decoded in parts.
_HELD_BYTES = 1 << 25

_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE
_NO_LAYER = -1
_H264_IDR = 5
_H264_PARAMETERS = frozenset((7, 8, 13, 15))
_HEVC_IDR = frozenset((19, 20))
_HEVC_PARAMETERS = frozenset((32, 33, 34))
_HEVC_FIRST_NON_PICTURE = 32
_HEVC_FIRST_INTRA = 16


@dataclass(frozen=True, slots=True)
class _Picture:
    """What a packet's header says."""

    sub_layer: int  # only pictures of this and higher ones may refer to it
    is_reference: bool  # pictures of its own sub-layer may refer to it
    is_idr: bool  # no later picture refers to anything before it
    has_parameters: bool = False  # parameter sets come with it, which any later picture may need


# A packet that cannot be read: it may refer to anything, and anything later to it.
_UNKNOWN = _Picture(sub_layer=7, is_reference=True, is_idr=False, has_parameters=True)


class PacketSelector:
    """Chooses among the packets of one stream."""

    def __init__(self, decoder: VideoCodecContext) -> None:
        self._length_size = length_size_of(decoder)
        # Fields of a picture may lie in packets of their own, of which only one has the frame's
        # timestamp: interlaced h264 is decoded whole.
        self._is_h264 = decoder.name == "h264" and decoder.field_order == _PROGRESSIVE
        self._is_hevc = decoder.name == "hevc"

    def needed(
        self, packets: Sequence[Packet], wanted: Container[int | None], is_end: bool = True
    ) -> list[Packet]:
        """Those that are wanted or may be referred to, up to the last wanted one if it is there.

        `packets` come in decoding order, from an entry point on; `wanted` are timestamps; at the
        end no frame is wanted of the packets that follow.
        """
        chosen: list[Packet] = []
        # The highest sub-layer of the chosen packets, and of those to come, that may refer back.
        highest = _NO_LAYER if is_end else _UNKNOWN.sub_layer
        for packet in reversed(packets):
            is_wanted = packet.pts in wanted
            if is_end and not chosen and not is_wanted:
                continue
            picture = self._look(packet)
            is_referred_to = picture.sub_layer + (not picture.is_reference) <= highest
            if is_wanted or is_referred_to or picture.has_parameters:
                chosen.append(packet)
                highest = _NO_LAYER if picture.is_idr else max(highest, picture.sub_layer)
        chosen.reverse()
        return chosen

    def _look(self, packet: Packet) -> _Picture:
        """Read the header of a packet's picture; unknown if there is anything unusual about it."""
        if not (self._is_h264 or self._is_hevc) or packet.pts is None:
            return _UNKNOWN
        data = bytes(packet)
        has_parameters = False
        for start in nal_units(data, self._length_size):
            if start + 1 >= len(data):
                return _UNKNOWN
            if self._is_h264:
                kind = data[start] & 31
                has_parameters = has_parameters or kind in _H264_PARAMETERS
                if 1 <= kind <= _H264_IDR:
                    # All slices of a picture agree in both, so the first one tells.
                    is_reference = bool(data[start] >> 5 & 3)
                    return _Picture(0, is_reference, kind == _H264_IDR, has_parameters)
                continue
            kind = data[start] >> 1 & 63
            has_parameters = has_parameters or kind in _HEVC_PARAMETERS
            if kind < _HEVC_FIRST_NON_PICTURE:
                is_reference = kind >= _HEVC_FIRST_INTRA or kind % 2 == 1
                sub_layer = (data[start + 1] & 7) - 1
                return _Picture(sub_layer, is_reference, kind in _HEVC_IDR, has_parameters)
        return _UNKNOWN


@dataclass(frozen=True, slots=True)
class Run:
    """Wanted frames (ascending) decoded in one go, and the groups of pictures that hold them."""

    first_group: int
    last_group: int
    numbers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunPart:
    """Packets of a run in decoding order, nearly always all of them."""

    packets: list[Packet]
    wanted: dict[int, int]  # timestamps and numbers of wanted frames that have not come out yet
    is_end: bool


def plan_runs(info: VideoInfo, numbers: NDArray[np.int64]) -> list[Run]:
    """Cut the wanted frames into runs: a new one wherever jumping to a key frame saves decoding.

    And at a key frame where the packets would become too many to hold.
    """
    groups = np.searchsorted(info.keyframe_index, numbers, side="right") - 1
    spared = info.keyframe_index[groups[1:]] - numbers[:-1]
    most_frames = max(1, _HELD_BYTES // 4 * info.num_frames // max(info.bytes, info.num_frames))
    blocks = info.keyframe_index[groups] // most_frames
    is_worth_it = (np.diff(groups) > 0) & (spared > WORTH_A_JUMP)
    starts = np.flatnonzero(is_worth_it | (np.diff(blocks) > 0)) + 1
    return [
        Run(int(groups[begin]), int(groups[end - 1]), numbers[begin:end])
        for begin, end in itertools.pairwise([0, *starts.tolist(), len(numbers)])
    ]


class PacketReader:
    """Reads the packets of runs in ascending order, jumping where that saves reading."""

    def __init__(
        self, video: VideoFile, info: VideoInfo, shown_pts: Callable[[], NDArray[np.int64]]
    ) -> None:
        """`shown_pts` gives the timestamps of all frames, in display order."""
        self._video = video
        self._info = info
        self._shown_pts = shown_pts
        self._packets = video.packets()
        self._unread: deque[Packet] = deque()
        self._next_group: int | None = 0
        self._is_counted, self._is_placed = info.is_counted, info.reading == "placed"
        self._headers = HeaderReader(video.decoder) if hides_pictures(video.decoder.name) else None

    def read(self, run: Run) -> Iterator[RunPart]:
        """Read from the run's key frame until the last wanted frame's timestamp is certain.

        A packet's pts is never below its decoding timestamp (dts), and dts ascend: a pts below the
        newest dts has its final rank. Without dts, or where this was found not to hold, all frames
        of the run's groups are read.
        """
        if not self.go_to(run.first_group):
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
        while (packet := self.next_packet()) is not None:
            packets.append(packet)
            num_bytes += packet.size
            pts = packet.pts
            is_hidden = packet.is_discard or (
                self._headers is not None and not self._headers.look(packet).is_shown
            )
            if pts is not None and pts >= key_pts and not is_hidden:
                bisect.insort(shown, pts)
            if len(shown) > ranks[-1]:
                is_certain = packet.dts is not None and shown[ranks[-1]] < packet.dts
                is_certain = is_certain and info.reading == "stamps"
                if is_certain or bisect.bisect_left(shown, end_pts) >= num_shown:
                    break
            if num_bytes > _HELD_BYTES:
                # The timestamps have to be known before the run is complete.
                if wanted is None:
                    every = self._shown_pts()
                    numbers = run.numbers[run.numbers < len(every)]
                    wanted = dict(zip(every[numbers].tolist(), numbers.tolist(), strict=True))
                yield RunPart(packets, wanted, is_end=False)
                packets.clear()
                num_bytes = 0
        if wanted is None:
            wanted = {shown[rank]: rank + first for rank in ranks if rank < len(shown)}
        yield RunPart(packets, wanted, is_end=True)
        # What was read beyond the run is kept: packets from the next key frame on.
        self._next_group = end
        for index, packet in enumerate(packets):
            if not is_open and packet.is_keyframe and packet.pts == end_pts:
                self._unread.extendleft(reversed(packets[index:]))
                break

    def go_to(self, group: int) -> bool:
        """Make a group's key frame the next packet, if it can be found."""
        is_next, self._next_group = group == self._next_group, None
        if is_next and self._is_counted:  # the first group, from the file's start
            return True
        if is_next and self._skip_to(int(self._info.keyframe_pts[group])):
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
            self._video.container.seek(
                pts, stream=self._video.stream, unsupported_byte_offset=self._is_placed
            )
        except FFmpegError:  # a format without seeking, or a damaged table
            return False
        self._packets = self._video.packets()
        return True

    def _skip_to(self, key_stamp: int) -> bool:
        while (packet := self.next_packet()) is not None:
            is_untimed = self._is_counted and packet.pts is None
            stamp = packet.dts if is_untimed else packet.pts
            stamp = packet.pos if self._is_placed else stamp
            if packet.is_keyframe and stamp is not None and stamp >= key_stamp:
                self._unread.appendleft(packet)
                return stamp == key_stamp
        return False

    def next_packet(self) -> Packet | None:
        """Packets put back first, then those of the file; None at its end."""
        return self._unread.popleft() if self._unread else next(self._packets, None)
