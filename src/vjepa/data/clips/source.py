"""Where the frames of clips come from: a file that is decoded, or frames that are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vjepa.data.video.info import DecodeError, Part, VideoInfo
from vjepa.errors import UserError
from vjepa.paths import local_path


def video_path(video: object) -> str:
    """The path of a video as text; a UserError that says what is taken where it is none."""
    if isinstance(video, (str, os.PathLike)):
        return local_path(video)
    raise UserError(
        f"{type(video).__name__} is no video: give its path, or to encoder.preprocess its frames "
        "as one array, uint8 [T, H, W, 3] (of single frames np.stack(frames))"
    )


class VideoSource:
    """A video, still image or folder of images; attributes as in :class:`VideoInfo`."""

    def __init__(self, info: VideoInfo) -> None:
        """Read nothing yet; DecodeError if the manifest knows that it cannot be read."""
        if not info.ok:
            raise DecodeError(info.path, info.reason or "marked as bad in the manifest")
        self._info = info
        self.path, self.num_frames, self.fps = info.path, info.num_frames, info.fps
        self.height, self.width = info.height, info.width

    @cached_property
    def times(self) -> NDArray[np.float64] | None:
        """When each frame is shown, float64 [L], in seconds from 0; None: evenly, at `fps`."""
        # PyAV may be missing where only models are used; only here and below is it needed.
        from vjepa.data.video.decode import frame_times

        return frame_times(self._info)

    def read(self, parts: Sequence[Part]) -> Iterator[NDArray[np.uint8]]:
        """The parts, each uint8 [T, h, w, C], or DecodeError; every frame is decoded once."""
        from vjepa.data.video.decode import decode_parts

        if any(box is not None for _, box in parts):
            yield from (clip.frames for clip in decode_parts(self._info, parts))
            return
        # Whole frames, which clips may share, are kept once.
        wanted = np.unique(np.concatenate([numbers for numbers, _ in parts]))
        whole = decode_parts(self._info, [(wanted, None)])[0].frames
        for numbers, _ in parts:
            yield whole[np.searchsorted(wanted, numbers)]


class FrameSource:
    """The frames of a whole video, decoded already; attributes as in :class:`VideoSource`."""

    def __init__(
        self,
        frames: NDArray[np.uint8],
        fps: float = 0.0,
        times: NDArray[np.float64] | None = None,
        path: str = "",
    ) -> None:
        """Take frames uint8 [L, H, W, C]."""
        self._frames = frames
        self.num_frames, self.height, self.width = frames.shape[:3]
        self.path, self.fps, self.times = path, fps, times

    def read(self, parts: Sequence[Part]) -> Iterator[NDArray[np.uint8]]:
        """The parts, each uint8 [T, h, w, C]."""
        for numbers, box in parts:
            top, left, height, width = box or (0, 0, self.height, self.width)
            yield self._frames[numbers, top : top + height, left : left + width]


Source = VideoSource | FrameSource
