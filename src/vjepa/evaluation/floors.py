"""Floors: what needs no trained encoder, so that no number stands without its yardstick.

Ridge classifiers on small grey pixels of the very clips that an encoder is shown. The strongest is
often the *size* of what changes: it says where and when something moves, whatever its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_SIDE = 16


def grey_frames(clips: Tensor) -> Tensor:
    """Clips uint8 [n, 3, T, H, W], grey and small: float32 [n, T, 16, 16], scale 0..255."""
    return torch.nn.functional.adaptive_avg_pool2d(clips.float().mean(dim=1), _SIDE)


def middle_frame(grey: Tensor) -> Tensor:
    """The middle frame alone, which cannot show motion: float [n, T, S, S] -> [n, S*S]."""
    return grey[:, grey.shape[1] // 2].flatten(1)


def frame_differences(grey: Tensor) -> Tensor:
    """What changes from each frame to the next: float [n, T, S, S] -> [n, (T-1)*S*S]."""
    return grey.diff(dim=1).flatten(1)


def size_of_differences(grey: Tensor) -> Tensor:
    """How much changes from each frame to the next: float [n, T, S, S] -> [n, (T-1)*S*S]."""
    return frame_differences(grey).abs()


PIXEL_FLOORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "middle frame": middle_frame,
    "all frames": lambda grey: grey.flatten(1),
    "frame differences": frame_differences,
    "size of differences": size_of_differences,
}
"""What a ridge classifier sees of :func:`grey_frames`, by name."""
