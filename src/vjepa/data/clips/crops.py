"""Crops of clips: one random box per training clip, fixed crops for evaluation. All on uint8.

Frames come in as decoders give them, uint8 [T, H, W, C] (T frames, H x W pixels, C channels, RGB,
0..255), and leave as the model wants them, uint8 [C, T, S, S] (S the crop size): no float video
ever waits in a queue. Randomness comes in as uniform numbers, so that the same sample gets the same
crop whoever draws it. In batches B is the number of clips and V the number of views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vjepa.config import config_dataclass

Resize = Literal["antialias", "reference"]

CROP_TRIES = 10
NUM_UNIFORMS = 2 * CROP_TRIES + 3
"""Uniform numbers that one training crop takes: (area, aspect) of each try, top, left, flip."""


@config_dataclass
class TransformConfig:
    """Crop, resize and flip of a training clip."""

    crop_size: int = 224
    """Height and width of a clip, in pixels."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the crop's area, as a share of the frame's."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Range of the crop's width / height, drawn evenly on a logarithmic scale."""
    horizontal_flip: bool = True
    """Mirror every second clip; turn it off where left and right carry meaning."""
    resize: Resize = "antialias"
    """`antialias`: bilinear on uint8 with antialias; `reference`: bilinear without it, as the
    released code does (shrinking then keeps only the nearest pixels)."""

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"crop_size must be at least 1, got {self.crop_size}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must rise within (0, 1], got {self.crop_scale}")
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise ValueError(f"crop_aspect must be positive and rise, got {self.crop_aspect}")


@dataclass(frozen=True)
class CropDraws:
    """What was drawn for B clips.

    Attributes:
        boxes: int64 [B, 4]: top, left, height, width, in pixels.
        flips: bool [B].
    """

    boxes: NDArray[np.int64]
    flips: NDArray[np.bool_]


def draw_crops(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    config: TransformConfig,
    u: NDArray[np.float64],
) -> CropDraws:
    """One box for each clip, shared by its frames.

    The area is uniform in `crop_scale`, the aspect log-uniform in `crop_aspect`. A box that does
    not fit is drawn again, ten times; then the largest centred box of an allowed aspect is taken.

    Args:
        heights: int64 [B], in pixels.
        widths: int64 [B], in pixels.
        config: Ranges of area and aspect.
        u: Uniform numbers in [0, 1), float64 [B, `NUM_UNIFORMS`].

    Returns:
        The boxes and which clips are mirrored.
    """
    area = (heights * widths).astype(np.float64)
    tries = u[:, : 2 * CROP_TRIES].reshape(-1, CROP_TRIES, 2)
    low, high = config.crop_scale
    target = area[:, None] * (low + (high - low) * tries[..., 0])
    log_low, log_high = np.log(config.crop_aspect)
    aspect = np.exp(log_low + (log_high - log_low) * tries[..., 1])
    tried_w = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    tried_h = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    fits = (tried_w > 0) & (tried_w <= widths[:, None]) & (tried_h > 0)
    fits &= tried_h <= heights[:, None]
    first = np.argmax(fits, axis=1)
    found = fits.any(axis=1)
    clips = np.arange(len(u))

    # Where no try fitted: the whole frame, cut to the nearest allowed aspect.
    frame_aspect = widths / heights
    least, most = config.crop_aspect
    full_h = np.where(frame_aspect < least, np.rint(widths / least).astype(np.int64), heights)
    full_w = np.where(frame_aspect > most, np.rint(heights * most).astype(np.int64), widths)
    box_h = np.where(found, tried_h[clips, first], np.clip(full_h, 1, heights))
    box_w = np.where(found, tried_w[clips, first], np.clip(full_w, 1, widths))
    free_h, free_w = heights - box_h, widths - box_w
    top = np.where(found, np.floor(u[:, -3] * (free_h + 1)).astype(np.int64), free_h // 2)
    left = np.where(found, np.floor(u[:, -2] * (free_w + 1)).astype(np.int64), free_w // 2)
    flips = (u[:, -1] < 0.5) & config.horizontal_flip
    return CropDraws(np.stack([top, left, box_h, box_w], axis=1), flips)


def resize_frames(frames: Tensor, height: int, width: int, resize: Resize) -> Tensor:
    """Frames of another size, bilinear with half-pixel centres.

    Args:
        frames: uint8 [T, C, H, W], any strides (channels last is the fast one).
        height: New height, in pixels.
        width: New width, in pixels.
        resize: ``antialias`` works on uint8; ``reference`` on float without antialias.

    Returns:
        [T, C, height, width]: uint8 with ``antialias``; float32 in 0..255, not rounded, with
        ``reference``.
    """
    if resize == "reference":
        return functional.interpolate(frames.float(), (height, width), mode="bilinear")
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    return functional.interpolate(frames, (height, width), mode="bilinear", antialias=True)


def _to_uint8(frames: Tensor) -> Tensor:
    return frames if frames.dtype == torch.uint8 else frames.round_().to(torch.uint8)


def _channels_first(frames: NDArray[np.uint8] | Tensor) -> Tensor:
    """[..., T, H, W, C] as a view [..., T, C, H, W]."""
    tensor = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
    return tensor.movedim(-1, -3)


def crop_and_resize(frames: Tensor, box: NDArray[np.int64], size: int, resize: Resize) -> Tensor:
    """Cut one box out of every frame and bring it to size.

    Args:
        frames: uint8 [T, C, H, W].
        box: int64 [4]: top, left, height, width, in pixels.
        size: S, in pixels.
        resize: As in :func:`resize_frames`.

    Returns:
        [T, C, S, S], dtype as in :func:`resize_frames`.
    """
    top, left, height, width = (int(number) for number in box)
    cut = frames[:, :, top : top + height, left : left + width]
    return resize_frames(cut, size, size, resize)


def training_crop(
    frames: NDArray[np.uint8] | Tensor,
    config: TransformConfig,
    u: NDArray[np.float64],
    out: Tensor | None = None,
) -> Tensor:
    """The random resized crop and flip of one training clip.

    Args:
        frames: uint8 [T, H, W, C].
        config: Size, ranges and resizer. ``reference`` rounds to whole grey levels here.
        u: Uniform numbers in [0, 1), float64 [`NUM_UNIFORMS`].
        out: Where to put the clip, uint8 [C, T, S, S]; made if None.

    Returns:
        uint8 [C, T, S, S]: `out`.
    """
    return training_crop_batch(frames[None], config, u[None], None if out is None else out[None])[0]


def training_crop_batch(
    frames: NDArray[np.uint8] | Tensor,
    config: TransformConfig,
    u: NDArray[np.float64],
    out: Tensor | None = None,
) -> Tensor:
    """The random resized crops and flips of B clips of one size, bit for bit as one at a time.

    Boxes are drawn for all clips together, and clips whose box is the whole frame and already of
    the right size are copied together, so that a cached set of small clips costs microseconds a
    clip.

    Args:
        frames: uint8 [B, T, H, W, C].
        config: As in :func:`training_crop`.
        u: Uniform numbers in [0, 1), float64 [B, `NUM_UNIFORMS`].
        out: Where to put the clips, uint8 [B, C, T, S, S]; made if None.

    Returns:
        uint8 [B, C, T, S, S]: `out`.
    """
    video = _channels_first(frames)
    count, num_frames, channels, height, width = video.shape
    size = config.crop_size
    if out is None:
        out = torch.empty(count, channels, num_frames, size, size, dtype=torch.uint8)
    draws = draw_crops(np.full(count, height), np.full(count, width), config, u)
    whole = (draws.boxes[:, 2] == size) & (draws.boxes[:, 3] == size)
    whole &= (height == size) & (width == size)
    if whole.all() and count:
        out.copy_(video.transpose(1, 2))
        flipped = torch.from_numpy(draws.flips)
        if draws.flips.any():
            out[flipped] = out[flipped].flip(-1)
        return out
    for clip, box, flip, target in zip(video, draws.boxes, draws.flips, out, strict=True):
        crop = _to_uint8(crop_and_resize(clip, box, size, config.resize))
        _write_clip(crop, bool(flip), target)
    return out


def resize_cut(cut: NDArray[np.uint8], flip: bool, config: TransformConfig, out: Tensor) -> None:
    """The rest of :func:`training_crop` for a clip that is cut to its box already.

    Args:
        cut: uint8 [T, h, w, C], the box of every frame.
        flip: Mirror it left to right.
        config: Size and resizer.
        out: uint8 [C, T, S, S], overwritten.
    """
    size = config.crop_size
    crop = _to_uint8(resize_frames(_channels_first(cut), size, size, config.resize))
    _write_clip(crop, flip, out)


def _write_clip(crop: Tensor, flip: bool, out: Tensor) -> None:
    """Write frames uint8 [T, C, S, S] as a clip uint8 [C, T, S, S], mirrored if `flip`."""
    # NumPy takes channels apart about twice as fast as torch does.
    pixels, target = crop.numpy(), out.numpy()
    for channel in range(pixels.shape[1]):
        target[channel] = pixels[:, channel, :, :: -1 if flip else 1]


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width, in pixels, after bringing the short side to `short_side`.

    The long side is rounded down, as the released code does.
    """
    if height <= width:
        return short_side, max(short_side, width * short_side // height)
    return max(short_side, height * short_side // width), short_side


def resize_short_side(
    frames: NDArray[np.uint8] | Tensor, short_side: int, resize: Resize = "antialias"
) -> Tensor:
    """Frames whose short side is `short_side` pixels, aspect kept.

    Args:
        frames: uint8 [T, H, W, C].
        short_side: In pixels.
        resize: As in :class:`TransformConfig`.

    Returns:
        uint8 [T, C, h, w]; the frames themselves when they have that size already.
    """
    video = _channels_first(frames)
    size = short_side_size(video.shape[-2], video.shape[-1], short_side)
    if size == tuple(video.shape[-2:]):
        return video
    return _to_uint8(resize_frames(video, *size, resize))


def center_crop_clip(
    frames: NDArray[np.uint8] | Tensor,
    crop_size: int,
    resize: Resize = "antialias",
    short_side: int | None = None,
) -> Tensor:
    """The single evaluation view: short side to 256 / 224 of the crop size, then the centre.

    Args:
        frames: uint8 [T, H, W, C].
        crop_size: S, in pixels.
        resize: As in :class:`TransformConfig`.
        short_side: Another short side in pixels, at least S; for example S itself to see all of a
            square video.

    Returns:
        uint8 [C, T, S, S].
    """
    short = crop_size * 256 // 224 if short_side is None else short_side
    if short < crop_size:
        raise ValueError(f"short_side {short} is smaller than the crop of {crop_size} pixels")
    video = resize_short_side(frames, short, resize)
    # Python rounds halves to even here: 4.5 becomes 4 and 18.5 becomes 18, as in the released code.
    top = round((video.shape[-2] - crop_size) / 2)
    left = round((video.shape[-1] - crop_size) / 2)
    view = video[:, :, top : top + crop_size, left : left + crop_size]
    return view.transpose(0, 1).contiguous()


def long_side_crops(
    frames: NDArray[np.uint8] | Tensor,
    crop_size: int,
    num_views: int,
    resize: Resize = "antialias",
    short_side: int | None = None,
) -> Tensor:
    """Evaluation views along the long side; the paper takes three (16 x 8 x 3).

    With the short side at the crop size they start at 0, s, 2s, ... pixels along the long side,
    s = floor((long - S) / (V - 1)), as in the released code for V = 3.

    Args:
        frames: uint8 [T, H, W, C].
        crop_size: S, in pixels.
        num_views: V, at least 2.
        resize: As in :class:`TransformConfig`.
        short_side: Length of the short side in pixels, at least S; None: S. Where it is longer the
            crops lie in its middle.

    Returns:
        uint8 [V, C, T, S, S].
    """
    video = resize_short_side(frames, crop_size if short_side is None else short_side, resize)
    height, width = video.shape[-2:]
    step = (max(height, width) - crop_size) // (num_views - 1)
    middle = round((min(height, width) - crop_size) / 2)
    long, short = (-2, -1) if height > width else (-1, -2)
    band = video.narrow(short, middle, crop_size)
    views = [band.narrow(long, view * step, crop_size) for view in range(num_views)]
    return torch.stack(views).transpose(1, 2).contiguous()
