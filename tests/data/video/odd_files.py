"""Files that say of their frames what is not true; each is a healthy stream in a wrong wrapping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from tests.data.video_files import Spec, barcode, write_video

VOP, PACKED = b"\x00\x00\x01\xb6", b"\x00\x00\x01\xb2DivX503b1393p"


def remuxed(
    source: Path, target: Path, change: Callable[[int, Packet], Packet | None], **tags: str
) -> Path:
    """Copy the packets; `change` gets each with its number and may alter or replace it."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        stream.metadata.update(tags)
        packets = (packet for packet in given.demux(video=0) if packet.size)
        for number, packet in enumerate(packets):
            changed = change(number, packet) or packet
            changed.stream = stream
            output.mux(changed)
    return target


def repeat_stamps(numbers: Sequence[int]) -> Callable[[int, Packet], None]:
    """Give some packets the timestamp of the one before."""
    latest: list[int | None] = [None]

    def change(number: int, packet: Packet) -> None:
        if number in numbers:
            packet.pts = packet.dts = latest[0]
        latest[0] = packet.pts

    return change


def flag_all(path: Path) -> Path:
    """An MP4 without its table of key frames, which means that every frame is one."""
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    return path


def flag_others(path: Path, every: int) -> Path:
    """An AVI in whose index other frames are key frames."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"idx1") + 8
    count = int.from_bytes(data[start - 4 : start], "little") // 16
    for number in range(count):
        at = start + 16 * number + 4
        data[at : at + 4] = (16 * (number % every == 0)).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def pack_pictures(source: Path, target: Path, has_header: bool) -> Path:
    """An mpeg4 AVI as DivX writes it: a picture and the first that is shown before it together.

    A chunk of one byte follows, so that there are as many as frames. The first packet says so, and
    only that, if the file `has_header`: else FFmpeg takes the beginning of the packet for it.
    """
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        packets = [bytes(packet) for packet in given.demux(video=0) if packet.size]
        made = output.add_stream_from_template(stream)
        kinds = [data[data.index(VOP) + 4] >> 6 for data in packets]
        chunks: list[tuple[bytes, bool]] = []
        for data, kind in zip(packets, kinds, strict=True):
            if kind == 2 and len(chunks[-1][0]) == 1:
                chunks.insert(-1, (data, False))
            elif kind == 2:
                chunks[-1] = (chunks[-1][0] + data, chunks[-1][1])
                chunks.append((b"\x7f", False))
            else:
                chunks.append((data, kind == 0))
        first = chunks[0][0]
        at = first.index(b"\x00\x00\x01\xb3")  # the header of a group of pictures
        chunks[0] = (first[:at] + PACKED + first[at:], True)
        for number, (data, is_key) in enumerate(chunks):
            packet = Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), made, is_key
            output.mux(packet)
    if not has_header:
        data = bytearray(target.read_bytes())
        at = data.index(b"strf") + 4
        junk = int.from_bytes(data[at : at + 4], "little") - 48
        data[at : at + 8] = (40).to_bytes(4, "little") * 2
        data[at + 44 : at + 52] = b"JUNK" + junk.to_bytes(4, "little")
        target.write_bytes(data)
    return target


def without_index(path: Path) -> Path:
    """An AVI whose list of chunks is lost."""
    path.write_bytes(path.read_bytes().replace(b"idx1", b"JUNK"))
    return path


def delay_decoding(path: Path, ticks: int) -> Path:
    """A transport stream whose decoding times are later by `ticks` of 90 kHz."""
    data = bytearray(path.read_bytes())
    for start in range(0, len(data), 188):
        at = data.find(b"\x00\x00\x01\xe0", start, start + 188)
        if at >= 0 and data[at + 7] >> 6 == 3:
            field = data[at + 14 : at + 19]
            value = (field[0] >> 1 & 7) << 30 | field[1] << 22 | field[2] >> 1 << 15
            value += (field[3] << 7 | field[4] >> 1) + ticks
            data[at + 14 : at + 19] = (
                field[0] & 0xF1 | value >> 29 & 14,
                value >> 22 & 255,
                value >> 14 & 254 | 1,
                value >> 7 & 255,
                value << 1 & 254 | 1,
            )
    path.write_bytes(data)
    return path


def joined(target: Path, *specs: Spec) -> Path:
    """Transport streams one behind the other, as `cat` joins them."""
    parts = [replace(spec, container="mpegts") for spec in specs]
    data = b"".join(write_video(target.with_suffix(".part"), part).read_bytes() for part in parts)
    target.write_bytes(data)
    return target


def write_streams(path: Path, *streams: tuple[str, int, int, bool]) -> Path:
    """Video streams, each: codec, width, number of frames, whether it is the default one.

    Barcodes count from 100 times the number of the stream on.
    """
    with av.open(str(path), "w") as output:
        made = []
        for codec, width, _, is_default in streams:
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height = width, width * 3 // 5
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = av.stream.Disposition(is_default)
            made.append(stream)
        for place, stream in enumerate(made):
            for number in range(streams[place][2]):
                image = barcode(100 * place + number, stream.width, stream.height)
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


def turned_by_key_frames(source: Path, target: Path) -> Path:
    """An h264 transport stream that says only at its key frames that it is turned by 90 degrees."""
    with av.open(str(source)) as given, av.open(str(target), "w", format="mpegts") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        change = "h264_metadata=display_orientation=insert:rotate=90"
        context = BitStreamFilterContext(change, given.streams.video[0], stream)
        for packet in [*(one for one in given.demux(video=0) if one.size), None]:
            for changed in context.filter(packet):
                changed.stream = stream
                output.mux(changed)
    return target


class _Bits:
    """Writes the bits of an h264 header."""

    def __init__(self) -> None:
        self.text = ""

    def take(self, value: int, count: int) -> _Bits:
        self.text += format(value, f"0{count}b")
        return self

    def golomb(self, *values: int) -> _Bits:
        for value in values:
            code = format(value + 1, "b")
            self.text += "0" * (len(code) - 1) + code
        return self

    def align(self) -> _Bits:
        self.text += "0" * (-len(self.text) % 8)
        return self

    def unit(self, header: int) -> bytes:
        """As a NAL unit, with a start code before it."""
        self.text += "1"
        self.align()
        data = int(self.text, 2).to_bytes(len(self.text) // 8, "big")
        while b"\x00\x00\x00" in data or b"\x00\x00\x01" in data:
            for short in (b"\x00\x00\x00", b"\x00\x00\x01"):
                data = data.replace(short, b"\x00\x00\x03" + short[2:])
        return b"\x00\x00\x00\x01" + bytes([header]) + data


def write_fields(path: Path, num_frames: int, group: int = 10) -> Path:
    """h264 of 32 x 32 pixels whose frames are two fields in packets of their own, 20 ms apart.

    All pixels of frame n have the luma 20 + 5 n; pictures are stored, not predicted.
    """
    # Main profile; frame numbers of 4 bits; 2 x 1 macroblocks a field; pictures may be fields.
    sequence = _Bits().take(77, 8).take(0, 8).take(10, 8).golomb(0, 0, 2, 1).take(0, 1)
    sequence.golomb(1, 0).take(0b00100, 5)
    pictures = _Bits().golomb(0, 0).take(0, 2).golomb(0, 0, 0).take(0, 3).golomb(0, 0, 0).take(0, 3)
    parameters = sequence.unit(0x67) + pictures.unit(0x68)

    def field(number: int, parity: int) -> bytes:
        is_idr = number % group == 0 and not parity
        bits = _Bits().golomb(0, 7, 0).take(number % group, 4).take(1, 1).take(parity, 1)
        if is_idr:
            bits.golomb(number // group % 2).take(0, 2)
        else:
            bits.take(0, 1)
        bits.golomb(0)
        for _ in range(2):
            bits.golomb(25).align()
            for value in [20 + 5 * number] * 256 + [128] * 128:
                bits.take(value, 8)
        return bits.unit(0x65 if is_idr else 0x21)

    fields = [field(number, parity) for number in range(num_frames) for parity in (0, 1)]
    raw = path.with_suffix(".h264")
    raw.write_bytes(parameters + b"".join(fields))
    with av.open(str(raw), format="h264") as given, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for number, data in enumerate(fields):
            is_key = number % (2 * group) == 0
            packet = Packet((parameters if is_key else b"") + data)
            packet.pts = packet.dts = 20 * number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 1000), stream, is_key
            output.mux(packet)
    return path
