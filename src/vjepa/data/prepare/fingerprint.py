"""What a video is known by: the hash of its encoded pictures, and hashes of some of its frames."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vjepa.data.manifest.storage import opened
from vjepa.data.prepare.config import MatchConfig, Order, Part
from vjepa.data.video.container import open_video, reason_of
from vjepa.data.video.decode import frame_times, read_frames
from vjepa.data.video.images import images_in
from vjepa.data.video.info import DecodeError, VideoInfo

SIDE = 32
"""Side of the grey image that is hashed, in pixels."""

_LOW = 8
_LEAST_FRAMES = 8
# A frame whose pixels differ less than this (standard deviation in grey levels) is all but empty:
# the bits of its hash are noise.
_MIN_CONTRAST = 3.0
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def grey_thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A frame, uint8 [H, W, 3] RGB, as the mean grey of 32 x 32 equal parts: float32, 0 to 255."""
    down = _area_weights(frame.shape[0])
    across = _area_weights(frame.shape[1])
    grey = frame.reshape(-1, 3) @ _LUMA
    return down @ grey.reshape(frame.shape[:2]) @ across.T


def _area_weights(size: int) -> NDArray[np.float32]:
    """Share of each of `size` pixels in each of 32 equal parts: float32 [32, size], rows sum 1."""
    edges = np.linspace(0, size, SIDE + 1)
    pixels = np.arange(size)
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    shares = np.maximum(0.0, high - low)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def is_informative(thumbnail: NDArray[np.float32]) -> bool:
    """Whether a thumbnail shows enough for its hash to mean anything."""
    return float(thumbnail.std()) >= _MIN_CONTRAST


def hash_thumbnail(thumbnail: NDArray[np.float32]) -> int:
    """The hash of a thumbnail, float32 [32, 32]: 64 bits as an unsigned integer."""
    # The lowest rows of the orthonormal cosine transform.
    frequency, place = np.mgrid[0:_LOW, 0:SIDE]
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    cosines[0] /= np.sqrt(2)
    cosines = cosines.astype(np.float32)
    low = (cosines @ thumbnail @ cosines.T).reshape(-1)
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness says nothing
    return int(np.packbits(bits).view(">u8")[0])


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What a video, or the used part of one, is known by."""

    content: str
    """SHA-256 (hex) of its encoded pictures and of where the part begins and ends."""
    frames: NDArray[np.uint64]
    """uint64 [F], perceptual hashes of frames that show something, in order."""

    def to_json(self) -> dict[str, str]:
        """As plain values."""
        data = base64.b64encode(self.frames.astype("<u8").tobytes()).decode()
        return {"content": self.content, "frames": data}

    @classmethod
    def from_json(cls, values: dict[str, str]) -> Fingerprint:
        """Inverse of :meth:`to_json`."""
        data = np.frombuffer(base64.b64decode(values["frames"]), dtype="<u8")
        return cls(values["content"], data.astype(np.uint64))


def fingerprint(match: MatchConfig, order: Order) -> dict[str, str]:
    """A task for workers: a video's fingerprint as JSON, or why it has `failed`."""
    try:
        return take_fingerprint(order.info, order.part, match).to_json()
    except DecodeError as error:
        return {"failed": error.reason}
    except (OSError, MemoryError) as error:
        return {"failed": reason_of(error)}


def take_fingerprint(info: VideoInfo, part: Part, match: MatchConfig) -> Fingerprint:
    """Read the packets of a usable video, and decode the frames of its part that are hashed.

    Raises:
        DecodeError: It cannot be read.
    """
    digest = hashlib.sha256(b"" if part.is_whole else repr((part.start, part.end)).encode())
    for block in _encoded_pictures(info):
        digest.update(block)
    hashes: list[int] = []
    if match.by_pictures:
        for streamed in read_frames(info, hashed_frames(info, part, match)):
            thumbnail = grey_thumbnail(streamed.image)
            if is_informative(thumbnail):
                hashes.append(hash_thumbnail(thumbnail))
    return Fingerprint(digest.hexdigest(), np.array(hashes, dtype=np.uint64))


def hashed_frames(info: VideoInfo, part: Part, match: MatchConfig) -> NDArray[np.int64]:
    """Numbers of the frames that are hashed, ascending: int64 [F].

    Their times depend on the part's length in seconds alone, so that a copy of another frame rate
    is looked at in the same places.
    """
    times = frame_times(info)
    seconds = part.seconds(info, times)
    step = max(min(match.hash_seconds, seconds / _LEAST_FRAMES), seconds / match.hash_frames)
    return np.unique(part.shown_at(info, times, np.arange(0.5 * step, seconds, step)))


def _encoded_pictures(info: VideoInfo) -> Iterator[bytes]:
    """The video's packets without their container; or the bytes of images."""
    if info.kind == "video":
        with open_video(info.path, stream_number=info.stream) as video:
            for packet in video.packets():
                yield bytes(packet)
        return
    names = [info.path]
    if info.kind == "image_folder":
        names = [str(Path(info.path, name)) for name in images_in(info.path)]
    for name in names:
        with opened(name) as source:
            yield Path(source).read_bytes() if isinstance(source, str) else source.read() or b""
