"""One video, or a window of it, encoded anew for training."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.data.manifest.storage import opened
from vjepa.data.prepare.config import TranscodeConfig
from vjepa.data.prepare.inputs import Order, Part
from vjepa.data.video.container import FOREIGN_ERRORS, reason_of
from vjepa.data.video.decode import Frame, read_frames
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo, info_to_json
from vjepa.data.video.inspect import inspect_file
from vjepa.runtime.files import atomic_path

# Ticks per second of the written timestamps: exact for all usual frame rates.
_CLOCK = 90_000
_COPY_BLOCK = 1 << 20
_LARGEST = (8 << 30) - 1  # what a ustar header can say
# x264's AVX-512 code for the macroblock tree depends on memory that nothing wrote: of 1500 files of
# the same frames some 7 had other bits. Without it all were equal, and equal to the usual ones.
_UP_TO_AVX2 = "MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"
_DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))


@dataclass(frozen=True, slots=True)
class EncodeTask:
    """Encodes videos; runs in a worker process."""

    config: TranscodeConfig
    limits: LimitsConfig

    def __call__(self, order: Order) -> dict[str, Any]:
        """Encode one video into the order's target, which appears only when complete.

        The answer is what was made, as `info`; or why it has `failed`; or, as `disk`, why nothing
        can be written any more, which is no fault of the video.
        """
        target = Path(order.target)
        try:
            # A file that stands there is complete: its maker was killed before it could say so.
            if not target.exists():
                with atomic_path(target) as aside:
                    if self.config.mode == "copy" or order.info.kind == "image":
                        _copy(order.info, aside)
                    else:
                        encode(order.info, order.part, aside, self.config)
            info = inspect_file(order.target, self.limits)
        except DecodeError as error:
            return {"failed": error.reason}
        except FOREIGN_ERRORS as error:
            is_ours = getattr(error, "errno", None) in _DISK_ERRORS
            return {"disk" if is_ours else "failed": reason_of(error)}
        if not info.ok:
            return {"failed": f"what was made of it cannot be read: {info.reason}"}
        if info.bytes > _LARGEST:
            return {"failed": "encoded it is larger than 8 GiB; trim it"}
        return {"info": info_to_json(info)}


def output_suffix(info: VideoInfo, config: TranscodeConfig) -> str:
    """Suffix of the file that a video becomes.

    Raises:
        DecodeError: Its bytes cannot be copied: it is a folder.
    """
    if config.mode == "h264" and info.kind != "image":
        return ".mp4"
    if info.kind == "image_folder":
        raise DecodeError(info.path, "a folder of images cannot be copied; use mode h264")
    return Path(info.path).suffix.lower() or ".mp4"


def encode(info: VideoInfo, part: Part, target: Path, config: TranscodeConfig) -> None:
    """Encode a part of a video with libx264 into an MP4 file.

    One thread: workers are the parallelism. The same video and settings give the same file.

    Raises:
        DecodeError: A frame of the part cannot be decoded.
        OSError: The file cannot be written.
    """
    width, height = output_size(info, config)
    numbers = taken_frames(info, part, config)
    fps = min(info.fps, config.fps) if config.fps is not None else info.fps
    with av.open(str(target), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_rate(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, _CLOCK)
        encoder = stream.codec_context
        encoder.time_base = Fraction(1, _CLOCK)
        encoder.gop_size = config.gop
        encoder.max_b_frames = config.b_frames
        encoder.thread_count = 1
        # Every key frame is an entry point; none is added at cuts, so groups are of equal length.
        params = f"keyint={config.gop}:min-keyint={config.gop}:scenecut=0:open-gop=0"
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            params += f":asm={_UP_TO_AVX2}"
        encoder.options = {"preset": config.preset, "crf": str(config.crf), "x264-params": params}
        frames = read_frames(info, numbers)
        is_even = info.constant_rate or config.fps is not None
        for stamp, shown in _stamped(frames, fps if is_even else None):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown.image), "rgb24")
            frame = picture.reformat(width, height, "yuv420p", interpolation="AREA", threads=1)
            frame.pts, frame.time_base = stamp, Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _rate(fps: float) -> Fraction:
    """A frame rate as the fraction of small numbers that it is: 29.97 is 30000 / 1001."""
    for denominator in (1, 1001):
        rate = Fraction(round(fps * denominator), denominator)
        if abs(float(rate) - fps) < 1e-4 * fps:
            return rate
    return Fraction(fps).limit_denominator(10_000)


def _stamped(frames: Iterator[Frame], fps: float | None) -> Iterator[tuple[int, Frame]]:
    """Timestamps of the written frames: even ones at a rate, else those the frames had."""
    latest, start = -1, 0.0
    for number, shown in enumerate(frames):
        if number == 0:
            start = shown.seconds
        seconds = number / fps if fps is not None else shown.seconds - start
        latest = max(latest + 1, round(seconds * _CLOCK))
        yield latest, shown


def taken_frames(info: VideoInfo, part: Part, config: TranscodeConfig) -> NDArray[np.int64]:
    """Numbers of the frames that are kept: all of the part, or fewer for a lower rate.

    At a lower rate, frame k is the one shown at k / fps seconds; with a variable frame rate, times
    go by the mean rate.
    """
    first, end = part.frames(info)
    if config.fps is None or info.fps <= config.fps:
        return np.arange(first, end)
    count = max(1, round((end - first) * config.fps / info.fps))
    numbers = first + np.floor(np.arange(count) * info.fps / config.fps + 1e-6).astype(np.int64)
    return np.minimum(numbers, end - 1)


def output_size(info: VideoInfo, config: TranscodeConfig) -> tuple[int, int]:
    """Width and height of the written frames in pixels: even, aspect kept, never enlarged."""
    short = min(info.width, info.height)
    side = short if config.short_side is None else min(short, config.short_side)
    width, height = (
        max(2, 2 * round(size * side / short / 2)) for size in (info.width, info.height)
    )
    return width, height


def _copy(info: VideoInfo, target: Path) -> None:
    with opened(info.path) as source:
        if isinstance(source, str):
            shutil.copyfile(source, target)
            return
        with target.open("wb") as out:
            shutil.copyfileobj(source, out, _COPY_BLOCK)
