"""How a video of any length is cut into windows, and its tokens put together again.

The video is looked at on a *timeline*: its frames at an even spacing. The timeline is cut into
tubelets, as the encoder takes them; windows of the encoder's length start on tubelets and overlap;
where several windows see a tubelet, its token is the mean of what they say. A video shorter than
one window is lengthened by its last frame, and tokens of that time alone are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROUNDING = 1e-6  # frames; as in the sampling of clips


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which frames are looked at, and in which windows."""

    num_frames: int | None = None
    """Frames of one window; null: as many as the encoder was made for (16 for an image model)."""
    stride: int | None = 4
    """Spacing in source frames, as in pretraining."""
    fps: float | None = None
    """Spacing by time instead: frames looked at per second of video (set `stride: null`)."""
    overlap: float = 0.5
    """Share of a window that the next one sees again, in [0, 1). Tokens that several windows give
    are averaged; 0 encodes every frame once."""
    still_frames: int | None = None
    """Frames that a still image is repeated to; null: as many as a window (the paper's 16 frames),
    one tubelet (2) costs an eighth of it."""

    def __post_init__(self) -> None:
        if (self.stride is None) == (self.fps is None):
            raise ValueError("stride: exactly one of stride and fps must be set")
        for name in ("num_frames", "stride", "fps", "still_frames"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: must be in [0, 1), got {self.overlap}")


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one video.

    Attributes:
        frames: int64 [n], source frames of the timeline, a whole number of windows' tubelets; a
            padded one repeats the last frame.
        num_tubelets: t, tubelets of the video that are kept.
        tubelet_size: Frames of one.
        window_tubelets: Tubelets of one window.
        starts: Tubelet that each window starts with, ascending from 0.
    """

    frames: NDArray[np.int64]
    num_tubelets: int
    tubelet_size: int
    window_tubelets: int
    starts: tuple[int, ...]

    @property
    def frame_numbers(self) -> NDArray[np.int64]:
        """Source frames of every kept tubelet: int64 [t, tubelet_size]."""
        kept = self.frames[: self.num_tubelets * self.tubelet_size]
        return kept.reshape(self.num_tubelets, self.tubelet_size)


def timeline(config: WindowConfig, num_frames_in_video: int, fps: float) -> NDArray[np.int64]:
    """Source frames that are looked at: int64 [n], n at least 1, never falling.

    Args:
        config: The spacing.
        num_frames_in_video: L, at least 1.
        fps: Frame rate of the video in frames per second; read only when sampling by time.

    Raises:
        ValueError: The video has no frames, or sampling by time needs a rate that is unknown.
    """
    if num_frames_in_video < 1:
        raise ValueError("the video has no frames")
    if config.stride is not None:
        return np.arange(0, num_frames_in_video, config.stride, dtype=np.int64)
    if not fps > 0:
        raise ValueError("the frame rate is unknown: give window.stride instead of window.fps")
    step = fps / (config.fps or fps)
    count = max(1, int(np.ceil(num_frames_in_video / step - _ROUNDING)))
    places = np.floor(np.arange(count) * step + _ROUNDING).astype(np.int64)
    return np.minimum(places, num_frames_in_video - 1)


def plan_windows(
    frames: NDArray[np.int64], *, num_frames: int, tubelet_size: int, overlap: float
) -> WindowPlan:
    """Cut a timeline into windows.

    The last window is moved back so that it ends with the timeline.

    Args:
        frames: int64 [n], the timeline.
        num_frames: Frames of one window, whole tubelets.
        tubelet_size: Frames of one token.
        overlap: As :attr:`WindowConfig.overlap`; rounded to whole tubelets.

    Returns:
        The plan.

    Raises:
        ValueError: A window is not whole tubelets.
    """
    if num_frames % tubelet_size:
        raise ValueError(
            f"num_frames: {num_frames} is not a multiple of the encoder's tubelet of {tubelet_size}"
        )
    window = num_frames // tubelet_size
    tubelets = -(-len(frames) // tubelet_size)
    lacking = max(tubelets, window) * tubelet_size - len(frames)
    padded = np.concatenate([frames, np.repeat(frames[-1:], lacking)])
    hop = max(1, round(window * (1 - overlap)))
    last = max(0, tubelets - window)
    starts = (*range(0, last, hop), last)
    return WindowPlan(padded, tubelets, tubelet_size, window, starts)


class Stitcher:
    """Puts the token maps of windows together, keeping only what later windows still see."""

    def __init__(self, plan: WindowPlan) -> None:
        """Start before the first window of `plan`."""
        self._plan = plan
        self._window = 0
        self._first = 0
        self._sums: Tensor | None = None
        self._counts = torch.zeros(0)

    @property
    def is_done(self) -> bool:
        """Whether all windows have been added."""
        return self._window == len(self._plan.starts)

    def add(self, tokens: Tensor) -> Tensor:
        """Add the next window.

        Args:
            tokens: float32 [window_tubelets, h, w, D].

        Returns:
            The tubelets that are finished with this window, following those returned before:
            float32 [m, h, w, D], the mean over the windows that saw each.
        """
        plan = self._plan
        start = plan.starts[self._window]
        self._window += 1
        end = plan.num_tubelets if self.is_done else plan.starts[self._window]
        lacking = start + plan.window_tubelets - self._first - len(self._counts)
        if self._sums is None:
            self._sums = tokens.new_zeros(0, *tokens.shape[1:])
        self._sums = torch.cat([self._sums, tokens.new_zeros(lacking, *tokens.shape[1:])])
        self._counts = torch.cat([self._counts, torch.zeros(lacking)])
        here = slice(start - self._first, start - self._first + plan.window_tubelets)
        self._sums[here] += tokens
        self._counts[here] += 1
        ready = end - self._first
        counts = self._counts[:ready].to(tokens.device)[:, None, None, None]
        finished = self._sums[:ready] / counts
        self._sums, self._counts = self._sums[ready:].clone(), self._counts[ready:].clone()
        self._first = end
        return finished
