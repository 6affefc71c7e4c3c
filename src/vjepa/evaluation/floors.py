"""Floors: what needs no trained encoder, so that no number stands without its yardstick.

Ridge classifiers on small pixels of the very clips that an encoder is shown. The strongest for
motion is often the *size* of what changes: it says where and when something moves, whatever its
sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_SIDE = 16


def small_frames(clips: Tensor) -> Tensor:
    """Frames of clips uint8 [n, 3, T, H, W], small: float32 [n, T, 3, 16, 16], scale 0..255."""
    frames = clips.float().transpose(1, 2)
    small = torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1), _SIDE)
    return small.unflatten(0, frames.shape[:2])


def middle_frame(frames: Tensor) -> Tensor:
    """The middle frame alone, which cannot show motion: float [n, T, 3, S, S] -> [n, 3*S*S]."""
    return frames[:, frames.shape[1] // 2].flatten(1)


def frame_differences(frames: Tensor) -> Tensor:
    """How grey changes from frame to frame: float [n, T, 3, S, S] -> [n, (T-1)*S*S]."""
    return frames.mean(dim=2).diff(dim=1).flatten(1)


def size_of_differences(frames: Tensor) -> Tensor:
    """How much it changes, whatever the sign: float [n, T, 3, S, S] -> [n, (T-1)*S*S]."""
    return frame_differences(frames).abs()


PIXEL_FLOORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "middle frame": middle_frame,
    "all frames": lambda frames: frames.flatten(1),
    "frame differences": frame_differences,
    "size of differences": size_of_differences,
}
"""What a ridge classifier sees of :func:`small_frames`, by name."""
