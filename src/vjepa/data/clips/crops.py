"""Crops of clips: one random box per training clip, and how frames are resized. All on uint8.

Randomness comes in as uniform numbers, so that the same sample gets the same crop whoever draws it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from vjepa.config import config_dataclass
from vjepa.data.video.info import Box

Resize = Literal["antialias", "reference"]

CROP_TRIES = 10
NUM_UNIFORMS = 2 * CROP_TRIES + 3
"""Uniform numbers that one training crop takes: (area, aspect) of each try, top, left, flip."""


@config_dataclass
class TransformConfig:
    """Crop, resize and flip of a training clip."""

    crop_size: Annotated[int, Field(ge=1)] = 224
    """Height and width of a clip, in pixels."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the crop's area, as a share of the frame's."""
    crop_scale_of: Literal["frame", "square"] = "frame"
    """Of what `crop_scale` is a share: of the `frame`, as the paper, so that crops of wide and tall
    frames show more than the square that an evaluation sees, and things smaller; or of the largest
    `square` in it, so that both show them at the same size."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Range of the crop's width / height, drawn evenly on a logarithmic scale."""
    horizontal_flip: bool = True
    """Mirror every second clip; turn it off where left and right carry meaning."""
    resize: Resize = "antialias"
    """`antialias`: bilinear on uint8 with antialias; `reference`: bilinear without it, as the
    released code does (shrinking then keeps only the nearest pixels)."""

    def __post_init__(self) -> None:
        check_crop_ranges(self.crop_scale, self.crop_aspect)


def check_crop_ranges(scale: tuple[float, float], aspect: tuple[float, float]) -> None:
    """Refuse ranges that mean nothing, by a ValueError that begins with the field's name."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"crop_scale must rise within (0, 1], got {scale}")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"crop_aspect must be positive and rise, got {aspect}")


def draw_crops(
    height: int, width: int, config: TransformConfig, u: NDArray[np.float64]
) -> tuple[list[Box], list[bool]]:
    """One box for each of n clips of a video, shared by its frames, and whether it is mirrored.

    The area is uniform in `crop_scale`, a share of what `crop_scale_of` says, the aspect
    log-uniform in `crop_aspect`. A box that does not fit is drawn again, ten times; then the
    largest centred box of an allowed aspect is taken.
    `u` [n, `NUM_UNIFORMS`] is uniform in [0, 1).
    """
    tries = u[:, : 2 * CROP_TRIES].reshape(-1, CROP_TRIES, 2)
    low, high = config.crop_scale
    side = min(height, width)
    area = side * side if config.crop_scale_of == "square" else height * width
    target = float(area) * (low + (high - low) * tries[..., 0])
    log_low, log_high = np.log(config.crop_aspect)
    aspect = np.exp(log_low + (log_high - log_low) * tries[..., 1])
    tried_w = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    tried_h = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    fits = (tried_w > 0) & (tried_w <= width) & (tried_h > 0) & (tried_h <= height)
    first = np.argmax(fits, axis=1)
    found = fits.any(axis=1)
    clips = np.arange(len(u))

    # Where no try fitted: the whole frame, cut to the nearest allowed aspect.
    least, most = config.crop_aspect
    full_h = round(width / least) if width / height < least else height
    full_w = round(height * most) if width / height > most else width
    box_h = np.where(found, tried_h[clips, first], min(max(full_h, 1), height))
    box_w = np.where(found, tried_w[clips, first], min(max(full_w, 1), width))
    free_h, free_w = height - box_h, width - box_w
    top = np.where(found, np.floor(u[:, -3] * (free_h + 1)).astype(np.int64), free_h // 2)
    left = np.where(found, np.floor(u[:, -2] * (free_w + 1)).astype(np.int64), free_w // 2)
    sides = (top.tolist(), left.tolist(), box_h.tolist(), box_w.tolist())
    flips = (u[:, -1] < 0.5) & config.horizontal_flip
    return list(zip(*sides, strict=True)), flips.tolist()


def resize_frames(
    frames: Tensor, height: int, width: int, resize: Resize, *, rounded: bool = True
) -> Tensor:
    """Frames of another size, bilinear with half-pixel centres; of this size already: themselves.

    Frames are uint8 [T, C, H, W], of any strides (channels last is the fast one); so is the result,
    but float32 in 0..255 with ``reference`` (no antialias, on floats) unless `rounded`.
    """
    if rounded and tuple(frames.shape[-2:]) == (height, width):
        return frames
    if resize == "antialias":
        return functional.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    resized = functional.interpolate(frames.float(), (height, width), mode="bilinear")
    return resized.round_().to(torch.uint8) if rounded else resized


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with such a short side; the long one rounded down, as released."""
    if height <= width:
        return short_side, max(short_side, width * short_side // height)
    return max(short_side, height * short_side // width), short_side


def centre_of(height: int, width: int, crop_size: int) -> Box:
    """The square in the middle of a frame, with the released code's rounding."""
    # Python rounds halves to even here: 4.5 becomes 4 and 18.5 becomes 18.
    top, left = round((height - crop_size) / 2), round((width - crop_size) / 2)
    return top, left, crop_size, crop_size


def usual_short_side(crop_size: int) -> int:
    """What the short side is brought to before the single centre crop of an evaluation."""
    return crop_size * 256 // 224
