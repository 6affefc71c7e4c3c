"""The clips of one video: random for training, views for evaluation, one for people."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.config import from_dict
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.cut import cut, read_pixels
from vjepa.data.clips.plan import ClipConfig, checked_spacing, indices_from, plan_training
from vjepa.data.clips.segments import segment_indices
from vjepa.data.clips.source import FrameSource, Source, VideoSource, video_path
from vjepa.data.clips.views import (
    AugmentConfig,
    TrainingAugmentConfig,
    ViewConfig,
    plan_augmented,
    plan_repeated,
    plan_views,
)
from vjepa.data.video.info import DecodeError, VideoInfo, enter_stage
from vjepa.errors import UserError

_CHANNELS = 3


@dataclass(frozen=True)
class TrainingClips:
    """Random clips; all that is random about one is a pure function of (seed, ordinal)."""

    clip: ClipConfig
    transform: TransformConfig
    seed: int
    max_gigabytes: float  # that the decoded frames of one opened video may take
    augment: TrainingAugmentConfig | None = None  # the clips of an opened video then share frames

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one clip: C, T, S, S."""
        size = self.transform.crop_size
        return (_CHANNELS, self.clip.num_frames, size, size)

    def cut(self, source: Source, ordinals: NDArray[np.int64], out: Tensor) -> None:
        """Write the clips of n samples that share a video (or DecodeError) to `out`.

        `ordinals` are int64 [n], `out` uint8 [n, C, T, S, S].
        """
        enter_stage("seek")
        how = (source, self.seed, ordinals)
        if self.augment is None:
            plans = plan_training(self.clip, self.transform, *how)
        else:
            plans = plan_repeated(self.clip, self.transform, self.augment, *how)
        gigabytes = read_pixels(source, plans) * _CHANNELS / 1e9
        if gigabytes > self.max_gigabytes:
            raise DecodeError(
                source.path,
                f"its frames of {source.width}x{source.height} take {gigabytes:.1f} GB, "
                f"loader.max_clip_gigabytes is {self.max_gigabytes:g}",
            )
        cut(source, plans, out)


@dataclass(frozen=True)
class ClipViews:
    """All clips through which evaluation, or the training of a probe, sees a video."""

    clip: ClipConfig
    view: ViewConfig
    augment: AugmentConfig | None = None  # None or policy `none`: nothing is random

    @property
    def _policy(self) -> AugmentConfig | None:
        is_random = self.augment is not None and self.augment.policy != "none"
        return self.augment if is_random else None

    @property
    def clips_per_video(self) -> int:
        """R: for random views one crop of each segment."""
        return self.view.num_segments if self._policy else self.view.clips_per_video

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one clip: C, T, S, S."""
        size = self.view.crop_size
        return (_CHANNELS, self.clip.num_frames, size, size)

    def cut(self, source: Source, numbers: Sequence[int] | NDArray[np.int64], out: Tensor) -> None:
        """Write the clips of a video (or DecodeError) to `out`, uint8 [R, C, T, S, S].

        `numbers` are its row in the manifest and the pass, which random views are drawn from.
        """
        if self._policy is None:
            plans = plan_views(self.clip, self.view, source)
        else:
            row, pass_index = map(int, numbers)
            plans = plan_augmented(self.clip, self.view, self._policy, source, row, pass_index)
        cut(source, plans, out)


def centre_view(
    source: str | os.PathLike[str] | VideoInfo | NDArray[np.uint8],
    clip: ClipConfig,
    view: ViewConfig,
) -> Tensor:
    """The clip around the middle of one video, centre crop: nothing random.

    `source` is a video, image or folder of images; what probing it has found; or its frames, uint8
    [L, H, W, C], of which as many as a clip has are taken as they are. Returns uint8 [T, C, S, S],
    RGB. DecodeError: the frames cannot be had; UserError: an array that cannot be frames.
    """
    opened: Source
    view = replace(view, num_segments=1, num_views=1)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 4 or source.shape[-1] != 3 or not len(source):
            raise UserError(
                f"frames must be uint8 [T, H, W, 3] in RGB, 0 to 255, got {source.dtype} "
                f"{list(source.shape)}: bring them into this form (of single frames "
                "np.stack(frames))"
            )
        opened = FrameSource(source, path="the frames given")
        if len(source) == clip.num_frames:
            clip = replace(clip, stride=1, fps=None, clip_seconds=None, sampling="exact")
            view = replace(view, placement="centre")
    elif isinstance(source, VideoInfo):
        opened = VideoSource(source)
    else:
        from vjepa.data.video.inspect import inspect_file

        opened = VideoSource(inspect_file(video_path(source)))
    views = ClipViews(clip, view)
    out = torch.empty(1, *views.shape, dtype=torch.uint8)
    views.cut(opened, (0, 0), out)
    return out[0].transpose(0, 1)


@dataclass(frozen=True)
class Clip:
    """Frames of a video and when they are shown."""

    frames: Tensor  # uint8 [T, C, H, W], RGB, 0..255, upright, at the file's size
    times: NDArray[np.float64]  # [T], seconds since the first frame of the video


def load_clip(
    path: str | os.PathLike[str],
    num_frames: int = 16,
    stride: int | None = None,
    start_seconds: float | None = None,
    fps: float | None = None,
    *,
    clip: ClipConfig | None = None,
) -> Clip:
    """Read one clip of a video, image or folder of frames, spaced as is said here.

    A model may have been trained on another spacing: its own is ``encoder.preprocess.clip``. Where
    the video ends before the clip, the last frame is repeated; a `clip` that calls a short video an
    ``error`` is refused.

    Args:
        stride: Spacing in frames; 4 where nothing is said, as in pretraining (16 frames over a
            window of 64).
        start_seconds: Where the clip begins; None takes the clip around the video's middle.
        fps: Spacing by time instead of `stride`: frames of the clip per second of video.
        clip: All of that in place of `num_frames`, `stride` and `fps`.

    Raises:
        UserError: The file cannot be read, or the clip would begin outside the video.
    """
    # PyAV and Arrow may be missing where only models are used.
    from vjepa.data.video.decode import decode_clip
    from vjepa.data.video.inspect import inspect_file

    if clip is not None and (num_frames, stride, fps) != (16, None, None):
        raise UserError("load_clip: clip says it all; leave num_frames, stride and fps out")
    if stride is None and fps is None:
        stride = 4
    try:
        given = ClipConfig(num_frames=num_frames, stride=stride, fps=fps) if clip is None else clip
        config = from_dict(ClipConfig, given, "clip")
    except ValueError as error:
        raise UserError(f"load_clip: {error}") from error
    info = inspect_file(video_path(path))
    video = VideoSource(info)
    times = video.times if config.is_by_time or start_seconds is not None else None
    try:
        if start_seconds is None:
            frames = segment_indices(config, info.num_frames, info.fps, 1, times=times)[0]
        elif (
            isinstance(start_seconds, (int, float, np.floating))
            and math.isfinite(start_seconds)
            and 0 <= round(start_seconds * info.fps) < info.num_frames
        ):
            frames = indices_from(config, info.num_frames, info.fps, start_seconds, times)
            window = checked_spacing(config, info.num_frames, info.fps, times)[0].window
            if config.short_video == "error" and frames[0] + window > info.num_frames:
                left = info.num_frames - frames[0]
                raise UserError(
                    f"start_seconds {start_seconds:g}: {info.path} has {left} frames from there "
                    f"on, a clip takes {window:g}; give an earlier one"
                )
        else:
            raise UserError(
                f"start_seconds {start_seconds!r}: {info.path} runs from 0 to "
                f"{info.duration_seconds:.3g} s; give one of these, a number"
            )
    except ValueError as error:  # too short, or of an unknown rate
        raise DecodeError(info.path, str(error)) from error
    decoded = decode_clip(info, frames)
    return Clip(torch.from_numpy(decoded.frames).permute(0, 3, 1, 2), decoded.times)
