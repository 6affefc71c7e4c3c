"""Which packets a decoder must be given so that the wanted frames come out unchanged.

In h264 and hevc a packet's first bytes say whether other pictures may refer to its picture. So the
packets of pictures that nobody wants and no needed picture can refer to are left out unread; of all
others nothing changes. For every other codec all packets are needed.

What is relied on (ITU-T H.264, 7.4.1: `nal_ref_idc`; ITU-T H.265, 7.4.2.2: `nal_unit_type`,
`TemporalId`): an h264 picture whose `nal_ref_idc` is 0 is referred to by none; an hevc picture of
sub-layer s is referred to only by pictures of sub-layers >= s, and by none of s itself if its type
says so; no picture after an IDR picture refers to one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext

_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE
_NO_LAYER = -1
_START_CODE = b"\x00\x00\x01"
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

_Unit = _Picture | Literal["parameters", "other"]


class PacketSelector:
    """Chooses among the packets of one stream."""

    def __init__(self, decoder: VideoCodecContext) -> None:
        extradata = decoder.extradata or b""
        self._length_size = 0
        self._unit_of: Callable[[int, int], _Unit] | None = None
        # Fields of a picture may lie in packets of their own, of which only one has the frame's
        # timestamp: interlaced h264 is decoded whole.
        if decoder.name == "h264" and decoder.field_order == _PROGRESSIVE:
            self._unit_of = _h264_unit
            if len(extradata) > 6 and extradata[0] == 1:  # avcC
                self._length_size = (extradata[4] & 3) + 1
        elif decoder.name == "hevc":
            self._unit_of = _hevc_unit
            if len(extradata) > 22 and extradata[:3] not in (b"\x00\x00\x00", _START_CODE):  # hvcC
                self._length_size = (extradata[21] & 3) + 1

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
        if self._unit_of is None or packet.pts is None:
            return _UNKNOWN
        data = bytes(packet)
        has_parameters = False
        for start in self._units(data):
            if start + 1 >= len(data):
                return _UNKNOWN
            unit = self._unit_of(data[start], data[start + 1])
            if isinstance(unit, _Picture):
                return replace(unit, has_parameters=True) if has_parameters else unit
            has_parameters = has_parameters or unit == "parameters"
        return _UNKNOWN

    def _units(self, data: bytes) -> Iterator[int]:
        """Offsets of the NAL units of a packet."""
        size = self._length_size
        if size:
            start = size
            while start < len(data):
                yield start
                start += int.from_bytes(data[start - size : start], "big") + size
            return
        start = data.find(_START_CODE)
        while start >= 0:
            yield start + 3
            start = data.find(_START_CODE, start + 3)


def _h264_unit(first: int, second: int) -> _Unit:
    """What a NAL unit holds, by the two bytes of its header."""
    del second
    kind = first & 31
    if kind in _H264_PARAMETERS:
        return "parameters"
    if not 1 <= kind <= _H264_IDR:
        return "other"
    # All slices of a picture agree in both, so the first one tells.
    return _Picture(0, bool(first >> 5 & 3), kind == _H264_IDR)


def _hevc_unit(first: int, second: int) -> _Unit:
    """What a NAL unit holds, by the two bytes of its header."""
    kind = first >> 1 & 63
    if kind in _HEVC_PARAMETERS:
        return "parameters"
    if kind >= _HEVC_FIRST_NON_PICTURE:
        return "other"
    is_reference = kind >= _HEVC_FIRST_INTRA or kind % 2 == 1
    return _Picture((second & 7) - 1, is_reference, kind in _HEVC_IDR)
