"""Leaving packets out must never change a wanted frame, whatever the structure of the stream."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.video_files import decode_all, decode_by_pyav

from vjepa.data.video.decode import decode_frames, decode_parts
from vjepa.data.video.inspect import inspect_file
from vjepa.data.video.packets import PacketSelector

NUM_FRAMES = 40


class FakePacket(bytes):
    """What a selector looks at: bytes and a timestamp."""

    pts: int | None


def packets_of(*data: bytes) -> list[FakePacket]:
    packets = [FakePacket(each) for each in data]
    for number, packet in enumerate(packets):
        packet.pts = number
    return packets


class FakeDecoder:
    def __init__(self, name: str, extradata: bytes = b"", field_order: int = 1) -> None:
        self.name, self.extradata, self.field_order = name, extradata, field_order


def write_texture(path: Path, codec: str, container: str | None, options: dict[str, str]) -> Path:
    """A moving texture that changes a little: every picture depends on those it refers to."""
    generator = np.random.default_rng(3)
    texture = generator.integers(0, 255, (48, 80, 3)).astype(np.int16)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = options
        for number in range(NUM_FRAMES):
            texture = np.roll(texture, (1, 2), axis=(0, 1)) + generator.integers(
                -9, 10, (48, 80, 1)
            )
            image = texture.clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@settings(max_examples=8, deadline=None)
@given(
    codec=st.sampled_from(["h264", "hevc"]),
    container=st.sampled_from(["mp4", "mkv", "ts"]),
    gop=st.integers(1, 30),
    b_frames=st.integers(0, 7),
    pyramid=st.integers(0, 1),
    refs=st.integers(1, 4),
    is_open=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_frames_of_any_structure_equal_decoding_everything(
    tmp_path_factory, codec, container, gop, b_frames, pyramid, refs, is_open, seed
):
    if codec == "hevc":
        encoder, name, log = "libx265", "x265-params", "log-level=none:pools=none:"
        layers = f"temporal-layers={seed % 2}:"
    else:
        encoder, name, log, layers = "libx264", "x264-params", "", ""
        pyramid *= 2
    parameters = (
        f"{log}{layers}keyint={gop}:min-keyint={min(gop, 3)}:ref={refs}:b-pyramid={pyramid}"
        f":bframes={b_frames}:b-adapt=0:open-gop={is_open}:scenecut=0"
    )
    path = tmp_path_factory.mktemp("structure") / f"a.{container}"
    muxer = "mpegts" if container == "ts" else None
    write_texture(path, encoder, muxer, {name: parameters, "crf": "20"})
    everything = decode_by_pyav(str(path))
    info = inspect_file(str(path))
    assert (info.ok, info.num_frames) == (True, NUM_FRAMES)
    generator = np.random.default_rng(seed)
    for size in (1, 3, 8):
        for _ in range(4):
            indices = np.sort(generator.choice(NUM_FRAMES, size, replace=False))
            np.testing.assert_array_equal(decode_frames(info, indices), everything[indices])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "scenecut=0:keyint=60"}),
        ("a.ts", "libx264", {"x264-params": "scenecut=0:keyint=60"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none:pools=none:scenecut=0:keyint=60"}),
    ],
)
def test_unwanted_frames_are_not_decoded(tmp_path, name, codec, options, fed):
    path = str(write_texture(tmp_path / name, codec, None, options))
    info = inspect_file(path)
    fed.clear()
    frame = decode_frames(info, [35])[0]
    assert 0 < len(fed) < 30
    np.testing.assert_array_equal(frame, decode_by_pyav(path)[35])


def h264(kind: int, ref: int) -> bytes:
    return bytes([0, 0, 0, 2, ref << 5 | kind, 0])


AVCC = b"\x01d\x00\x0a\xff\xe1\x00"


def chosen(decoder: FakeDecoder, packets: list[FakePacket], wanted: set[int]) -> list[int | None]:
    return [packet.pts for packet in PacketSelector(decoder).needed(packets, wanted)]


def test_h264_rules():
    decoder = FakeDecoder("h264", AVCC)
    idr, p, b = h264(5, 3), h264(1, 2), h264(1, 0)
    packets = packets_of(idr, p, b, p, b, idr, p, b)
    assert chosen(decoder, packets, {2}) == [0, 1, 2]  # nothing after the last wanted
    assert chosen(decoder, packets, {3}) == [0, 1, 3]  # no unwanted frame that none refers to
    assert chosen(decoder, packets, {1, 6}) == [0, 1, 5, 6]  # nothing before an IDR for its sake
    assert chosen(decoder, packets, set()) == []
    interlaced = FakeDecoder("h264", AVCC, field_order=2)
    assert chosen(interlaced, packets, {3}) == [0, 1, 2, 3]


def test_packets_with_parameters_or_surprises_are_kept():
    decoder = FakeDecoder("h264", AVCC)
    parameters = h264(8, 3) + h264(1, 0)
    for data in (parameters, b"", b"\x00\x00\x00\x02", h264(6, 0)):
        assert chosen(decoder, packets_of(h264(5, 3), data, h264(1, 2)), {2}) == [0, 1, 2]
    assert chosen(decoder, packets_of(h264(5, 3), parameters, h264(5, 3)), {2}) == [0, 1, 2]
    untimed = packets_of(h264(5, 3), h264(1, 0), h264(1, 2))
    untimed[1].pts = None
    assert chosen(decoder, untimed, {2}) == [0, None, 2]


def hevc(kind: int, sub_layer: int = 0) -> bytes:
    return bytes([0, 0, 1, kind << 1, sub_layer + 1, 0])


def test_hevc_rules():
    decoder = FakeDecoder("hevc")
    idr, trail_r, trail_n = hevc(19), hevc(1), hevc(0)
    assert chosen(decoder, packets_of(idr, trail_r, trail_n, trail_r), {3}) == [0, 1, 3]
    # A frame that its own sub-layer does not refer to may serve the next sub-layer.
    packets = packets_of(idr, trail_n, hevc(1, 1), hevc(0, 1), trail_r)
    assert chosen(decoder, packets, {3}) == [0, 1, 2, 3]
    assert chosen(decoder, packets, {4}) == [0, 4]


def test_other_codecs_are_decoded_whole():
    assert chosen(FakeDecoder("vp9"), packets_of(*[h264(1, 0)] * 4), {2}) == [0, 1, 2]


def test_crops_equal_cut_frames(tmp_path):
    info = inspect_file(str(write_texture(tmp_path / "a.mp4", "libx264", None, {})))
    frames = decode_all(info.path)
    some, others = np.array([3, 7, 7, 30]), np.array([39, 3, 0, 12])
    cut, whole = [
        clip.frames for clip in decode_parts(info, [(some, (4, 6, 20, 33)), (others, None)])
    ]
    np.testing.assert_array_equal(cut, frames[some, 4:24, 6:39])
    np.testing.assert_array_equal(whole, frames[others])
