"""Writes tiny real media files of every kind for the tests of this folder.

Every frame carries its number as a barcode, which survives lossy codecs: ten bars in the upper
half, the highest bit on the left. The lower half is black: turned and mirrored frames differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file

NUM_BITS = 10
WIDTH, HEIGHT = 80, 48


def barcode(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """The picture that stands for a frame number: uint8 [height, width, 3]."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    edges = np.linspace(0, width, NUM_BITS + 1).round().astype(int)
    for bit in range(NUM_BITS):
        if number >> (NUM_BITS - 1 - bit) & 1:
            image[: height // 2, edges[bit] : edges[bit + 1]] = 255
    return image


def read_barcode(frame: NDArray[np.uint8]) -> int:
    """The number of an upright decoded frame, uint8 [H, W, 3]."""
    height, width = frame.shape[:2]
    edges = np.linspace(0, width, NUM_BITS + 1).round().astype(int)
    number = 0
    for bit in range(NUM_BITS):
        middle = (edges[bit] + edges[bit + 1]) // 2
        bar = frame[height // 8 : height // 4, middle - 1 : middle + 2]
        number = number << 1 | int(bar.mean() > 127)
    return number


def decode_all(file: str | VideoInfo) -> NDArray[np.uint8]:
    """Every frame: uint8 [L, H, W, 3]."""
    info = inspect_file(file) if isinstance(file, str) else file
    return decode_frames(info, np.arange(info.num_frames))


def decode_by_pyav(path: str) -> NDArray[np.uint8]:
    """Every frame as it is stored, by PyAV alone: uint8 [L, H, W, 3]."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    return [read_barcode(frame) for frame in frames]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to encode a test video."""

    codec: str = "libx264"
    container: str | None = None
    pix_fmt: str = "yuv420p"
    num_frames: int = 60
    size: tuple[int, int] = (WIDTH, HEIGHT)
    gop: int = 12
    b_frames: int = 3
    rate: int = 25
    pts: Sequence[int] | None = None
    """Timestamps in units of `time_base`; None: 0, 1, 2 ... in frames."""
    time_base: Fraction | None = None
    options: dict[str, str] = field(default_factory=dict)
    rotation: int = 0
    mirror: bool = False
    alpha: int | None = None
    """Alpha of the upper half's right part, for formats that have one."""
    with_audio: bool = False
    muxer_options: dict[str, str] = field(default_factory=dict)


VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
VARIABLE_PTS = np.cumsum([0, *np.random.default_rng(5).integers(15, 200, 59)]).tolist()

# Name of the file -> how it is made. All have at least 60 frames.
SPECS: dict[str, Spec] = {
    "h264_gop12.mp4": Spec(num_frames=100),
    "h264_gop250.mp4": Spec(num_frames=300, gop=250),
    "h264_no_b.mp4": Spec(b_frames=0),
    "h264_intra.mp4": Spec(gop=1, b_frames=0),
    "h264_open_gop.mkv": Spec(options={"x264-params": "open-gop=1:keyint=12:scenecut=0"}),
    "h264_intra_refresh.mkv": Spec(options={"x264-params": "intra-refresh=1:keyint=12"}),
    "h264_vfr.mp4": Spec(pts=VARIABLE_PTS, time_base=Fraction(1, 1000)),
    "h264_vfr.mkv": Spec(pts=VARIABLE_PTS, time_base=Fraction(1, 1000)),
    "h264_offset.mkv": Spec(pts=range(17, 77)),
    "h264_trimmed.mp4": Spec(pts=range(-20, 60), num_frames=80),
    "h264.ts": Spec(container="mpegts"),
    "h264.avi": Spec(),
    "h264.flv": Spec(),
    "h264_audio.mp4": Spec(with_audio=True),
    "h264_odd.mp4": Spec(pix_fmt="yuv444p", size=(81, 47)),
    "h264_grey.mp4": Spec(pix_fmt="gray"),
    "hevc.mp4": Spec(codec="libx265", options={"x265-params": "log-level=none:pools=none"}),
    "mpeg4.avi": Spec(codec="mpeg4", b_frames=2),
    "mpeg4.mp4": Spec(codec="mpeg4", b_frames=2),
    "mpeg2.mpg": Spec(codec="mpeg2video", container="mpeg", b_frames=2),
    "mpeg2.ts": Spec(codec="mpeg2video", container="mpegts", b_frames=2),
    "wmv2.wmv": Spec(codec="wmv2", b_frames=0),
    "mjpeg.avi": Spec(codec="mjpeg", pix_fmt="yuvj420p", b_frames=0),
    "vp9.webm": Spec(codec="libvpx-vp9", b_frames=0, options=VP9),
    "vp9_odd.webm": Spec(codec="libvpx-vp9", size=(81, 47), b_frames=0, options=VP9),
    "vp8.webm": Spec(codec="libvpx", b_frames=0, options={"deadline": "realtime", "b": "500k"}),
    "ffv1_grey.mkv": Spec(codec="ffv1", pix_fmt="gray", b_frames=0),
    "animation.gif": Spec(codec="gif", pix_fmt="rgb8", b_frames=0),
    "rotated90.mp4": Spec(rotation=90),
    "rotated180.mp4": Spec(rotation=180),
    "rotated270.mov": Spec(rotation=270),
    "mirrored.mp4": Spec(mirror=True),
}


def write_video(path: Path, spec: Spec = SPECS["h264_no_b.mp4"]) -> Path:
    """Encode a video of barcodes."""
    with av.open(
        str(path), "w", format=spec.container, container_options=spec.muxer_options
    ) as container:
        stream = container.add_stream(spec.codec, rate=spec.rate)
        stream.width, stream.height = spec.size
        stream.pix_fmt = spec.pix_fmt
        context = stream.codec_context
        context.gop_size = spec.gop
        if spec.codec not in ("gif", "rawvideo", "ffv1", "libvpx-vp9", "libvpx"):
            context.max_b_frames = spec.b_frames
        context.thread_count = 1
        context.options = spec.options
        if spec.time_base is not None:
            context.time_base = spec.time_base
        if spec.rotation or spec.mirror:
            stream.set_display_rotation(spec.rotation, hflip=spec.mirror)
        sound = container.add_stream("aac", rate=8000) if spec.with_audio else None
        pts = spec.pts if spec.pts is not None else range(spec.num_frames)
        for number, stamp in zip(range(spec.num_frames), pts, strict=True):
            frame = _frame(number, spec)
            frame.pts = stamp
            frame.time_base = context.time_base or Fraction(1, spec.rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_sound(container, sound)
    return path


def _frame(number: int, spec: Spec) -> av.VideoFrame:
    image = barcode(number, *spec.size)
    if spec.alpha is None:
        return av.VideoFrame.from_ndarray(image, "rgb24")
    alpha = np.full((*image.shape[:2], 1), 255, dtype=np.uint8)
    alpha[:, image.shape[1] // 2 :] = spec.alpha
    return av.VideoFrame.from_ndarray(np.concatenate([image, alpha], axis=2), "rgba")


def _write_sound(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    for start in range(0, 16000, 1024):
        samples = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _write_sound(container, container.add_stream("aac", rate=8000))
    return path


def write_truncated(path: Path, keep: float = 0.6, spec: Spec | None = None) -> Path:
    """A video cut off; its table of frames comes first, so that it opens as if it were whole."""
    write_video(path, spec or Spec(num_frames=100, muxer_options={"movflags": "faststart"}))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def damage(path: Path, first: int, last: int) -> None:
    """Overwrite a video's packets from its key frame number `first` to before number `last`."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    end = keys[last] if last < len(keys) else len(packets)
    data = bytearray(path.read_bytes())
    for packet in packets[keys[first] : end]:
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(bytes(data))


def write_huge_header(path: Path, side: int) -> Path:
    """A small AVI whose header promises frames of `side` x `side` pixels."""
    write_video(path, Spec(codec="rawvideo", b_frames=0, num_frames=4))
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 8
    data[at + 4 : at + 12] = side.to_bytes(4, "little") * 2
    path.write_bytes(bytes(data))
    return path


def write_without_count(path: Path) -> Path:
    """An AVI that promises no frames at all in its headers."""
    write_video(path, Spec(codec="mpeg4", b_frames=0))
    data = bytearray(path.read_bytes())
    main, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    data[main + 16 : main + 20] = bytes(4)
    data[stream + 32 : stream + 36] = bytes(4)
    path.write_bytes(bytes(data))
    return path


def write_image(path: Path, number: int = 5, mode: str = "RGB", **options: object) -> Path:
    """A still image of a barcode; `options` go to Pillow."""
    Image.fromarray(barcode(number)).convert(mode).save(path, **options)
    return path


def write_image_folder(folder: Path, count: int = 12, suffix: str = ".png") -> Path:
    """A folder of numbered frames, without leading zeros: 9 must come before 10."""
    folder.mkdir(parents=True)
    for number in range(count):
        write_image(folder / f"frame_{number}{suffix}", number)
    return folder


class VideoLibrary:
    """The files of SPECS, each written when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        path = self.folder / name
        if not path.exists():
            write_video(path, SPECS[name])
        return str(path)
