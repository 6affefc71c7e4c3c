"""What the first bytes of a packet say about its picture, without decoding it.

The flags of a container are promises: files call every packet a key frame, or the wrong ones, and
give a timestamp to packets of which no frame comes. Whether decoding can begin with a picture,
whether it is shown and whether it is one field of two stands in the picture's own header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext

_START_CODE = b"\x00\x00\x01"
_HEADER_BYTES = 64
_H264_IDR, _H264_SEI, _H264_SPS = 5, 6, 7
_H264_LONG_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
_RECOVERY_POINT = 6
_HEVC_ENTRIES, _HEVC_IDR_WITHOUT_LEADING, _HEVC_FIRST_NON_PICTURE = range(16, 22), 20, 32
_AV1_FRAME_HEADER, _AV1_FRAME = 3, 6
_VOP = _START_CODE + b"\xb6"  # the start of an mpeg4 picture
_SAYS_PACKED = re.compile(rb"DivX\d+(Build|b)\d+p")
_PICTURE, _EXTENSION = _START_CODE + b"\x00", _START_CODE + b"\xb5"  # of mpeg2
_PICTURE_CODING, _WHOLE_FRAME = 8, 3


@dataclass(frozen=True, slots=True)
class Picture:
    """What a packet's header says; as it stands here, where the header cannot be read."""

    is_entry: bool | None = None
    """Whether decoding can begin with it; None: the header does not tell."""
    is_closed: bool = False
    """It is an entry point, and no packet behind it is shown before it."""
    is_shown: bool = True
    """Whether a frame comes of it."""
    is_field: bool = False
    """Whether it is one field of a frame, with the other field in another packet."""
    is_known: bool = True


UNKNOWN = Picture(is_known=False)
_ALONE = Picture(is_entry=True, is_closed=True)


def length_size_of(decoder: VideoCodecContext) -> int:
    """Bytes of the length before each NAL unit of an h264 or hevc stream; 0: start codes."""
    data = decoder.extradata or b""
    if decoder.name == "h264" and len(data) > 6 and data[0] == 1:  # avcC
        return (data[4] & 3) + 1
    if decoder.name == "hevc" and len(data) > 22:  # hvcC
        return 0 if data[:3] in (b"\x00\x00\x00", _START_CODE) else (data[21] & 3) + 1
    return 0


def nal_units(data: bytes, length_size: int) -> Iterator[int]:
    """Offsets of the NAL units of a packet."""
    if length_size:
        start = length_size
        while start < len(data):
            yield start
            start += int.from_bytes(data[start - length_size : start], "big") + length_size
        return
    start = data.find(_START_CODE)
    while start >= 0:
        yield start + 3
        start = data.find(_START_CODE, start + 3)


class _Bits:
    """Reads a header's bits, most significant first; ValueError behind its end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """An unsigned number of `count` bits."""
        self._left -= count
        if self._left < 0:
            raise ValueError("a header ends too early")
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """An unsigned number in h264's Exp-Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def skip_scaling_list(self, size: int) -> None:
        """Pass over a table of an h264 sequence's parameters."""
        last = following = 8
        for _ in range(size):
            if following:
                code = self.golomb()
                following = (last + ((code + 1) // 2 if code % 2 else -code // 2)) % 256
            last = following or last


def hides_pictures(decoder_name: str) -> bool:
    """Whether a codec has packets of which no frame comes."""
    return decoder_name in ("vp8", "libvpx", "vp9", "libvpx-vp9")


class HeaderReader:
    """Reads the headers of one stream's packets, in decoding order."""

    def __init__(self, decoder: VideoCodecContext) -> None:
        self._length_size = length_size_of(decoder)
        self._frame_num_bits: int | None = None  # of h264 that may have fields; None: it has none
        extradata = decoder.extradata or b""
        with suppress(IndexError, ValueError):  # they come again in the packets, or never
            if decoder.name == "h264" and self._length_size:
                self._read_sps(extradata[9:])
            elif decoder.name == "h264":
                self._h264(extradata)
        units = {"h264": self._h264, "hevc": self._hevc, "mpeg4": self._mpeg4}
        self._read = units.get(decoder.name) or _READERS.get(decoder.name)
        self.is_intra_only = decoder.name in _INTRA_ONLY
        is_unsaid = decoder.name == "mpeg4" and not _SAYS_PACKED.search(extradata)
        self._may_surprise = hides_pictures(decoder.name) or decoder.name == "mpeg2video"
        self._may_surprise = self._may_surprise or is_unsaid
        self.is_packed = False
        """Whether packets were seen that hold two mpeg4 pictures, as DivX writes them, in a stream
        that says so in a packet at most: a decoder that has not read that loses frames."""

    @property
    def must_see_all(self) -> bool:
        """Whether any packet may be a field, two pictures, or one that is never shown."""
        return self._may_surprise or self._frame_num_bits is not None

    def look(self, packet: Packet) -> Picture:
        """Read a packet's header."""
        if self.is_intra_only:
            return _ALONE
        try:
            return UNKNOWN if self._read is None else self._read(bytes(packet))
        except (IndexError, ValueError):  # it ends too early
            return UNKNOWN

    def _h264(self, data: bytes) -> Picture:
        recovery: int | None = None
        found, parity = UNKNOWN, set[int]()
        for start in nal_units(data, self._length_size):
            unit, rest = data[start] & 31, data[start + 1 :][:_HEADER_BYTES]
            if unit == _H264_SPS:
                self._read_sps(data[start + 1 :])
            elif unit == _H264_SEI and recovery is None:
                recovery = _recovery_frames(_unescaped(rest))
            elif 1 <= unit <= _H264_IDR:
                bits = _Bits(_unescaped(rest))
                bits.golomb()
                is_intra = bits.golomb() % 5 == 2
                is_entry: bool | None = unit == _H264_IDR
                if not is_entry and is_intra and not recovery:
                    is_entry = None if recovery is None else True
                if found is UNKNOWN:
                    found = Picture(is_entry, is_closed=unit == _H264_IDR)
                if self._frame_num_bits is None:
                    return found
                bits.golomb()
                bits.take(self._frame_num_bits)
                if not bits.take(1):
                    return found
                parity.add(bits.take(1))
        return replace(found, is_field=True) if len(parity) == 1 else found

    def _read_sps(self, data: bytes) -> None:
        """Learn from a sequence's parameters whether its pictures may be fields."""
        bits = _Bits(_unescaped(data[: 4 * _HEADER_BYTES]))
        profile = bits.take(8)
        bits.take(16)
        bits.golomb()
        if profile in _H264_LONG_PROFILES:
            chroma = bits.golomb()
            if chroma == 3 and bits.take(1):
                self._frame_num_bits = None  # colour planes apart: as good as never seen
                return
            bits.golomb()
            bits.golomb()
            bits.take(1)
            if bits.take(1):
                for number in range(12 if chroma == 3 else 8):
                    if bits.take(1):
                        bits.skip_scaling_list(16 if number < 6 else 64)
        frame_num_bits = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1)
            for _ in range(2):
                bits.golomb()
            for _ in range(bits.golomb()):
                bits.golomb()
        bits.golomb()
        bits.take(1)
        bits.golomb()
        bits.golomb()
        self._frame_num_bits = None if bits.take(1) else frame_num_bits

    def _hevc(self, data: bytes) -> Picture:
        for start in nal_units(data, self._length_size):
            unit = data[start] >> 1 & 63
            if unit < _HEVC_FIRST_NON_PICTURE:
                return Picture(unit in _HEVC_ENTRIES, unit == _HEVC_IDR_WITHOUT_LEADING)
        return UNKNOWN

    def _mpeg4(self, data: bytes) -> Picture:
        at = data.index(_VOP)
        self.is_packed = self.is_packed or (self._may_surprise and data.find(_VOP, at + 4) > 0)
        return Picture(data[at + 4] >> 6 == 0)


def _unescaped(data: bytes) -> bytes:
    """The bytes of a NAL unit without those put in so that no start code arises."""
    return data.replace(b"\x00\x00\x03", b"\x00\x00")


def _recovery_frames(data: bytes) -> int | None:
    """After how many frames an h264 stream is whole, by its recovery point message; None: none."""
    at = 0
    while at + 2 < len(data):
        values = []
        for _ in range(2):
            value = 0
            while data[at] == 255:
                value, at = value + 255, at + 1
            values.append(value + data[at])
            at += 1
        kind, size = values
        if kind == _RECOVERY_POINT:
            return _Bits(data[at : at + size]).golomb()
        at += size
    return None


def _mpeg2(data: bytes) -> Picture:
    at = data.index(_PICTURE)
    is_entry = data[at + 5] >> 3 & 7 == 1
    extension = data.find(_EXTENSION, at)
    while extension >= 0 and data[extension + 4] >> 4 != _PICTURE_CODING:
        extension = data.find(_EXTENSION, extension + 1)
    is_whole = extension < 0 or data[extension + 6] & 3 == _WHOLE_FRAME
    return Picture(is_entry, is_field=not is_whole and data.find(_PICTURE, at + 1) < 0)


def _vp8(data: bytes) -> Picture:
    is_key = not data[0] & 1
    return Picture(is_key, is_key, is_shown=bool(data[0] & 16))


def _vp9(data: bytes) -> Picture:
    # Several pictures in one packet have an index at its end; the last of them is shown.
    is_joined = data[-1] & 0xE0 == 0xC0
    bits = _Bits(data[:2])
    bits.take(2)
    if bits.take(2) == 3:
        bits.take(1)
    if bits.take(1):  # an earlier picture is shown
        return Picture(is_entry=False)
    is_key, is_shown = not bits.take(1), bool(bits.take(1))
    return Picture(is_key, is_key and is_shown, is_shown or is_joined)


def _av1(data: bytes) -> Picture:
    at = 0
    while at < len(data):
        kind, has_extension, has_size = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + has_extension
        size = len(data) - at
        if has_size:
            size = shift = 0
            while data[at] & 128:
                size, shift, at = size | (data[at] & 127) << shift, shift + 7, at + 1
            size, at = size | data[at] << shift, at + 1
        if kind in (_AV1_FRAME_HEADER, _AV1_FRAME):
            bits = _Bits(data[at : at + 1])
            is_repeat, kind, is_shown = bits.take(1), bits.take(2), bits.take(1)
            is_key = not is_repeat and kind == 0
            return Picture(is_key, is_key and bool(is_shown))
        at += size
    return UNKNOWN


def _first_bits_zero(mask: int, at: int = 0) -> Callable[[bytes], Picture]:
    """A reader for codecs whose key pictures have zeros in certain bits."""
    return lambda data: Picture(data[at] & mask == 0)


_READERS: dict[str, Callable[[bytes], Picture]] = {
    **dict.fromkeys(("mpeg1video", "mpeg2video"), _mpeg2),
    **dict.fromkeys(("vp8", "libvpx"), _vp8),
    **dict.fromkeys(("vp9", "libvpx-vp9"), _vp9),
    **dict.fromkeys(("av1", "libdav1d", "libaom-av1"), _av1),
    **dict.fromkeys(("msmpeg4v2", "msmpeg4", "wmv1"), _first_bits_zero(0xC0)),
    "wmv2": _first_bits_zero(0x80),
    "theora": _first_bits_zero(0xC0),
    "cinepak": _first_bits_zero(0x01, at=10),
}
_INTRA_ONLY = frozenset(
    ("mjpeg", "prores", "dnxhd", "dvvideo", "rawvideo", "huffyuv", "ffvhuff", "utvideo")
)
