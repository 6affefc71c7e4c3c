"""Videos that show something, and copies of them as they occur in the wild."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def scene(
    seed: int, num_frames: int = 48, height: int = 72, width: int = 96, speed: float = 0.15
) -> NDArray[np.uint8]:
    """A random picture that moves by `speed` tenths of its width a frame: uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, size=(9, 16, 3)).astype(np.float32)
    rows = np.linspace(0, 8, height)
    frames = []
    for number in range(num_frames):
        columns = (np.linspace(0, 10, width) + number * speed) % 14
        low, left = rows.astype(int).clip(0, 7), columns.astype(int)
        down, across = (rows - low)[:, None, None], (columns - left)[None, :, None]
        top = small[low][:, left] * (1 - across) + small[low][:, left + 1] * across
        bottom = small[low + 1][:, left] * (1 - across) + small[low + 1][:, left + 1] * across
        frames.append((top * (1 - down) + bottom * down).astype(np.uint8))
    return np.stack(frames)


def write(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    rate: int = 12,
    size: tuple[int, int] | None = None,
    codec: str = "libx264",
    crf: int = 20,
    gop: int = 24,
) -> Path:
    """Encode frames, at another size if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height = size or (frames.shape[2], frames.shape[1])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.codec_context.options = {"crf": str(crf), "preset": "ultrafast"}
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            container.mux(stream.encode(frame.reformat(stream.width, stream.height, "yuv420p")))
        container.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as read, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return target
