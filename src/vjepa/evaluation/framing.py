"""Which part of a frame the encoder sees, at which size, for features of whole videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.transforms import Resize, resize_frames, short_side_size

FramingKind = Literal["whole", "centre", "stretch"]


@dataclass(frozen=True, kw_only=True)
class FramingConfig:
    """Which part of a frame is seen."""

    kind: FramingKind = "whole"
    """`whole`: the whole frame at its own aspect, rounded to whole patches; the position code is
    stretched to it. `centre`: the centre crop of an evaluation. `stretch`: the whole frame, made
    square."""
    size: int | None = None
    """Short side (`whole`) or side (`centre`, `stretch`) in pixels, in whole patches; null: the
    image size that the encoder was made for."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: must be at least 1, got {self.size}")


@dataclass(frozen=True)
class Framing:
    """The way of one video's frames to the encoder.

    Attributes:
        resized: Height and width that the frame is brought to, in pixels.
        top, left: Where the seen part begins in the resized frame, in pixels.
        height, width: Of the seen part, in pixels.
        box: The seen part in the source frame: top, left, height, width, in source pixels.
        resize: How frames are resized.
    """

    resized: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    box: tuple[float, float, float, float]
    resize: Resize

    def apply(self, frame: NDArray[np.uint8]) -> Tensor:
        """Resize and cut one frame: uint8 [H, W, 3] -> uint8 [3, height, width]."""
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        scaled = resize_frames(image, *self.resized, self.resize)
        if scaled.dtype != torch.uint8:
            scaled = scaled.round_().to(torch.uint8)
        cut = scaled[0, :, self.top : self.top + self.height, self.left : self.left + self.width]
        return cut.contiguous()


def framing_for(
    config: FramingConfig, height: int, width: int, *, image_size: int, patch_size: int
) -> Framing:
    """The framing of a video whose frames have a given size.

    Args:
        config: What is wanted.
        height, width: Of the source frames, in pixels.
        image_size: What the encoder was made for, in pixels.
        patch_size: Of the encoder, in pixels.

    Returns:
        The framing.

    Raises:
        ValueError: The size is not whole patches.
    """
    size = config.size or image_size
    if size % patch_size:
        raise ValueError(f"size: {size} pixels are not whole patches of {patch_size}")
    whole = (0.0, 0.0, float(height), float(width))
    if config.kind == "stretch":
        return Framing((size, size), 0, 0, size, size, whole, config.resize)
    if config.kind == "whole":
        long = max(1, round(max(height, width) / min(height, width) * size / patch_size))
        tall, wide = (size, long * patch_size) if height <= width else (long * patch_size, size)
        return Framing((tall, wide), 0, 0, tall, wide, whole, config.resize)
    tall, wide = short_side_size(height, width, size * 256 // 224)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    down, across = height / tall, width / wide
    box = (top * down, left * across, size * down, size * across)
    return Framing((tall, wide), top, left, size, size, box, config.resize)
