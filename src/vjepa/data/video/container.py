"""Opening a video file safely, and its decoded frames of any pixel format as upright RGB."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import av
import av.error
import numpy as np
from av.codec.context import ThreadType
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from vjepa.data.manifest.storage import opened
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo
from vjepa.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.sidedata.sidedata import SideDataContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

_DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,gif,3gp,mxf,nut,ivf,rm,"
    "yuv4mpegpipe,h264,hevc,m4v,obu,mjpeg,dv"
)
# FFmpeg's play-list formats (hls, dash, concat) open further files and addresses named *inside* the
# file: a downloaded "video" could then read anything. Only real containers on the local disk pass.
_CONTAINER_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}

BEST_STREAM = -1

_COVER = Disposition.attached_pic
_STILL = _COVER | Disposition.timed_thumbnails | Disposition.still_image

# The errors that foreign bytes can cause below PyAV. UnicodeError: metadata that is not text.
FOREIGN_ERRORS = (av.error.FFmpegError, OSError, UnicodeError, ValueError, EOFError, MemoryError)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pixels are turned for display: one of the eight turns and mirrors of a rectangle.

    Applied in this order: transpose, then mirror left-right, then mirror up-down.
    """

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def by(cls, rotation: int) -> Orientation:
        """The one whose :attr:`rotation` is given, without a mirror."""
        return cls(rotation in (90, 270), rotation == 180, rotation in (90, 180))

    @property
    def rotation(self) -> int:
        """Counter-clockwise rotation in degrees, a mirror left aside: 0, 90, 180 or 270."""
        if self.transpose:
            return 90 if self.mirror_y else 270
        return 180 if self.mirror_y else 0

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn uint8 [H, W, 3] into a view of the upright image, [H', W', 3]."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


UPRIGHT = Orientation()


def orientation_of(frame: VideoFrame, default: Orientation = UPRIGHT) -> Orientation:
    """How a frame of a :class:`VideoFile` is turned for display.

    By its own display matrix; else by that of the key frame before it; else as the `default`. The
    matrix maps a stored pixel (x, y) to (a x + c y, b x + d y). An angle that is no multiple of 90
    degrees is rounded to the nearest one.
    """
    # PyAV's stub calls this a TypedDict; it is the container class.
    side_data = cast("SideDataContainer", frame.side_data)
    try:
        data = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return frame.opaque if isinstance(frame.opaque, Orientation) else default
    matrix = np.frombuffer(bytes(data), dtype=np.int32).astype(np.int64)
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(transpose=False, mirror_x=a < 0, mirror_y=d < 0)
    return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)


@dataclass(frozen=True, slots=True)
class VideoFile:
    """An open video: its container, the stream that is read, and the decoder in use."""

    path: str
    container: InputContainer
    stream: VideoStream
    decoder: VideoCodecContext
    choice: str = ""
    """Which of several video streams this is, in words."""
    turn: list[Orientation] = field(default_factory=list)
    """How the newest key frame is turned; empty: it does not say."""
    refused: list[int | None] = field(default_factory=list)
    """Timestamps of the damaged packets that the decoder was given."""

    def packets(self) -> Iterator[Packet]:
        """The stream's packets from the present position on, without the empty ones at the end."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size > 0:
                    yield packet
        except IndexError:
            # At the end, PyAV looks beyond its own list if a stream has appeared midway (a
            # transport stream that was joined or damaged). All packets have been read by then.
            return

    def feed(self, packet: Packet | None) -> list[VideoFrame]:
        """Decode one packet (None: hand out what the decoder still holds).

        A damaged packet gives no frame; that a wanted frame is missing is found out by its
        timestamp, with the rest of the file still readable.
        """
        try:
            frames = self.decoder.decode(packet)
        except (av.error.InvalidDataError, av.error.EOFError):
            if packet is not None:
                self.refused.append(packet.pts)
            return []
        for frame in frames:  # a stream may say at its key frames alone how it is turned
            own = orientation_of(frame)
            if frame.key_frame or own != UPRIGHT:
                self.turn[:] = [own] if own != UPRIGHT else []
            elif self.turn:
                frame.opaque = self.turn[0]
        return frames

    def frames(self) -> Iterator[VideoFrame]:
        """Every frame in display order."""
        for packet in self.packets():
            yield from self.feed(packet)
        yield from self.feed(None)


def reason_of(error: BaseException) -> str:
    """An error's message in a few words, without the path."""
    if isinstance(error, av.error.InvalidDataError):
        return "not a video, truncated, or damaged beyond reading"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory while reading it"
    if isinstance(error, OSError | av.error.FFmpegError) and getattr(error, "strerror", None):
        return str(error.strerror)
    return f"{type(error).__name__}: {error}".strip(": ")


def _pick_stream(container: InputContainer, path: str, number: int | None) -> VideoStream:
    """A stream by its number; the one a player shows (`BEST_STREAM`); or the first (None).

    Cover pictures, thumbnails and stills are none.
    """
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        if not kinds:
            raise DecodeError(path, "no stream can be read from it (truncated?)")
        raise DecodeError(path, f"no video stream (it has: {', '.join(kinds)})")
    moving = [one for one in container.streams.video if not one.disposition & _STILL]
    if number is None or not moving:
        moving = [one for one in container.streams.video if not one.disposition & _COVER]
    if not moving:
        raise DecodeError(path, "no video stream (only the cover picture of an audio file)")
    if number is None:
        return moving[0]
    if number != BEST_STREAM:
        for stream in container.streams.video:
            if stream.index == number:
                return stream
        raise DecodeError(path, "has changed since it was indexed; index it again")
    # A track of one picture beside the video is a thumbnail, whatever it says of itself.
    moving = [one for one in moving if _num_pictures(one) != 1] or moving
    best = container.streams.best("video")
    defaults = [one for one in moving if one.disposition & Disposition.default]
    return next((one for one in moving if one is best), (defaults or moving)[0])


def _num_pictures(stream: VideoStream) -> int:
    """How many frames a stream says it has; 0 where it does not, Matroska says it in tags."""
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if stream.frames or (said := tags.get("number_of_frames", "")).isdecimal():
        return stream.frames or int(said)
    lasts = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", tags.get("duration", ""))
    if lasts is None or not stream.average_rate:
        return 0
    seconds = sum(60**place * float(part) for place, part in enumerate(lasts.groups()[::-1]))
    return max(1, round(seconds * float(stream.average_rate)))


def _pick_decoder(stream: VideoStream, path: str) -> VideoCodecContext:
    """FFmpeg's default decoder on one thread, or libvpx where the video carries an alpha plane.

    One thread: loader workers are the parallelism, and more threads per file oversubscribe the
    machine. FFmpeg's own VP8 and VP9 decoders drop the alpha plane that WebM keeps beside the
    video.
    """
    decoder = stream.codec_context
    if decoder is None:
        raise DecodeError(path, "its codec is unknown to this FFmpeg")
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if tags.get("alpha_mode") == "1" and decoder.name in ("vp8", "vp9"):
        created = av.CodecContext.create("libvpx-vp9" if decoder.name == "vp9" else "libvpx", "r")
        assert isinstance(created, VideoCodecContext)
        created.width, created.height = decoder.width, decoder.height
        decoder = created
    decoder.thread_count = 1
    decoder.thread_type = ThreadType.NONE
    return decoder


@contextmanager
def naming_the_file(path: str) -> Generator[None]:
    """Turn what foreign bytes cause into a DecodeError that names the file."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise DecodeError(path, reason_of(error)) from error


@contextmanager
def open_video(
    path: str, limits: LimitsConfig | None = None, stream_number: int | None = BEST_STREAM
) -> Generator[VideoFile]:
    """Open a video for reading: a file, its address, or that of a shard's member.

    `stream_number` is as :attr:`VideoInfo.stream`, or `BEST_STREAM` for the one a player shows.

    Raises:
        DecodeError: It cannot be opened, has no video, or is above the limits; or reading it in the
            body of the ``with`` failed. Names the file in every case.
    """
    limits = limits or LimitsConfig()
    with naming_the_file(path), opened(path) as source:
        try:
            container = av.open(
                source, mode="r", metadata_errors="ignore", container_options=_CONTAINER_OPTIONS
            )
        except av.error.ArgumentError as error:  # the format is not on the list
            reason = "not a video (a picture, a play list or a rare format)"
            raise DecodeError(path, reason) from error
        with container:
            stream = _pick_stream(container, path, stream_number)
            decoder = _pick_decoder(stream, path)
            # A frame size is refused before a single frame of it is allocated.
            width, height = decoder.width, decoder.height
            if width < 1 or height < 1:
                raise DecodeError(path, "its header gives no frame size, or an impossible one")
            if width * height > limits.max_pixels:
                size = f"{width} x {height} pixels"
                raise DecodeError(
                    path, f"frames of {size} are above max_pixels = {limits.max_pixels}"
                )
            # The header may lie: the decoder itself must refuse a stream that turns out larger. It
            # counts its padding, too, hence the factor.
            decoder.options = {"max_pixels": str(2 * limits.max_pixels)}
            others = [one for one in container.streams.video if not one.disposition & _STILL]
            choice = f"of {len(others)} video streams, number {stream.index} is read"
            choice = choice if len(others) > 1 else ""
            yield VideoFile(path, container, stream, decoder, choice)


def to_rgb(frame: VideoFrame, info: VideoInfo, scaler: VideoReformatter) -> NDArray[np.uint8]:
    """One decoded frame -> uint8 [H, W, 3], RGB, upright, alpha over black: a view, to be copied.

    The frame may have any size (a stream may change it midway) and pixel format; it gets the size
    that `info` says (bilinear). The scaler keeps FFmpeg's tables.
    """
    orientation = orientation_of(frame, Orientation.by(info.rotation))
    width, height = info.width, info.height
    if orientation.transpose:
        width, height = height, width
    has_alpha = any(component.is_alpha for component in frame.format.components)
    channels, pixels = (4, "rgba") if has_alpha else (3, "rgb24")
    plane = scaler.reformat(frame, width, height, pixels, threads=1).planes[0]
    # Rows are padded to the line size; the padding is cut off without a copy.
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
    image = rows[:height, : width * channels].reshape(height, width, channels)
    return orientation.apply(over_black(image) if has_alpha else image)


def over_black(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay uint8 [..., 4] RGBA (alpha not premultiplied) over black: uint8 [..., 3], rounded."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)
