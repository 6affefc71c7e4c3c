"""One clip of one file, for people: frames and their times."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.plan import ClipConfig, indices_from, segment_indices
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError


@dataclass(frozen=True)
class Clip:
    """Frames of a video and when they are shown.

    Attributes:
        frames: uint8 [T, C, H, W], RGB, 0..255, upright, at the file's size.
        times: float64 [T], seconds since the first frame of the video.
    """

    frames: Tensor
    times: NDArray[np.float64]


def load_clip(
    path: str | os.PathLike[str],
    num_frames: int = 16,
    stride: int | None = 4,
    start_seconds: float | None = None,
    fps: float | None = None,
) -> Clip:
    """Read one clip of a video, image or folder of frames.

    Args:
        path: The file or folder.
        num_frames: T.
        stride: Spacing in frames, as in pretraining (16 frames over a window of 64).
        start_seconds: Where the clip begins; None takes the clip around the video's middle.
        fps: Spacing by time instead: frames of the clip per second of video. It takes the place of
            `stride`.

    Returns:
        The frames and their times. Where the video ends before the clip, the last frame is
        repeated.

    Raises:
        UserError: The file cannot be read, or the clip would begin outside the video.
    """
    # PyAV and Arrow may be missing where only models are used.
    from vjepa.data.video.decode import decode_clip, frame_times
    from vjepa.data.video.inspect import probe

    try:
        config = ClipConfig(num_frames=num_frames, stride=None if fps else stride, fps=fps)
    except ValueError as error:
        raise UserError(f"load_clip: {error}") from error
    try:
        video = probe(os.fspath(path))
        if not video.ok:
            raise DecodeError(video.path, video.reason or "cannot be read")
        times = frame_times(video) if config.is_by_time else None
        decoded = decode_clip(video, _indices(config, video, start_seconds, times))
    except DecodeError as error:
        raise UserError(f"{error.path}: {error.reason}; give another file") from error
    return Clip(torch.from_numpy(decoded.frames).permute(0, 3, 1, 2), decoded.times)


def _indices(
    config: ClipConfig,
    video: VideoInfo,
    start_seconds: float | None,
    times: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    """Frames [T] of the clip from `start_seconds` on, or around the middle."""
    if start_seconds is None:
        return segment_indices(config, video.num_frames, video.fps, 1, times=times)[0]
    if not 0 <= round(start_seconds * video.fps) < video.num_frames:
        raise UserError(
            f"start_seconds {start_seconds:g}: {video.path} runs from 0 to "
            f"{video.duration_seconds:.3g} s"
        )
    return indices_from(config, video.num_frames, video.fps, start_seconds, times)
