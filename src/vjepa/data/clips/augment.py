"""Random views for training probes: as the paper's text says, and as the released code does it.

Every number is a pure function of (seed, row of the manifest, pass), so that a pass can be computed
again, cached, or drawn anew in each epoch with the same clips. Pixels stay uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import derive_seed, uniforms
from vjepa.data.clips import auto_augment, rand_augment
from vjepa.data.clips.crops import NUM_UNIFORMS as _CROP_UNIFORMS
from vjepa.data.clips.crops import Resize, TransformConfig, training_crop

AugmentPolicy = Literal["none", "paper", "released", "image_paper", "image_released"]

_ERASE_PROBABILITY = 0.25
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_ASPECT = (0.3, 1 / 0.3)
_ERASE_TRIES = 10
_ERASE_UNIFORMS = 1 + 2 * _ERASE_TRIES + 2
# ImageNet's mean and standard deviation in grey levels: what pixels are normalised with.
_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@config_dataclass
class AugmentConfig:
    """What is random about the clips that a probe is trained on."""

    policy: AugmentPolicy = "none"
    """`none`: the evaluation's segments, centre crop; `paper`: a random window in each segment,
    random resized crop and flip; `released`: the window, RandAugment (rand-m7-n4-mstd0.5-inc1), the
    crop, random erasing with probability 0.25, no flip, as the authors' code does for video.
    `image_paper`: crop, flip, AutoAugment; `image_released`: and random erasing, as their code does
    for images."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's area, as a share of the frame's (Table 9)."""
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    """Range of the crop's width / height, drawn evenly on a logarithmic scale."""
    horizontal_flip: bool | None = None
    """Mirror every second clip; null: as the policy does. Turn it off where left and right carry
    meaning (Something-Something)."""
    seed: int = 0
    """Of all that is random here; apart from the job's seed, so that cached passes serve several
    draws of few labels."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale: must rise within (0, 1], got {self.crop_scale}")
        low, high = self.crop_aspect
        if not 0 < low <= high:
            raise ValueError(f"crop_aspect: must be positive and rise, got {self.crop_aspect}")

    @property
    def flips(self) -> bool:
        """Whether clips are mirrored at random."""
        return self.policy != "released" if self.horizontal_flip is None else self.horizontal_flip


@dataclass(frozen=True)
class ClipDraws:
    """The random numbers of one video's S clips in one pass.

    Attributes:
        windows: float64 [S] in [0, 1): the place of each clip in its segment.
        pixels: float64 [S, numbers]: what crops and operations are made of.
        noise_seeds: S seeds of the erased box's noise.
    """

    windows: NDArray[np.float64]
    pixels: NDArray[np.float64]
    noise_seeds: tuple[int, ...]


def draw_clips(seed: int, row: int, pass_index: int, num_segments: int) -> ClipDraws:
    """The random numbers of one video: a pure function of the arguments.

    Args:
        seed: Of the augmentation.
        row: Row of the manifest.
        pass_index: Number of the pass over the data, from 0.
        num_segments: S.

    Returns:
        Numbers enough for every policy.
    """
    each = _CROP_UNIFORMS + rand_augment.NUM_UNIFORMS + _ERASE_UNIFORMS
    stream = f"augment/{pass_index}"
    drawn = uniforms(seed, stream, row, num_segments * (each + 1)).reshape(num_segments, -1)
    noise = tuple(
        derive_seed(seed, f"{stream}/noise/{segment}", row) for segment in range(num_segments)
    )
    return ClipDraws(drawn[:, 0], drawn[:, 1:], noise)


def augment_clip(
    frames: NDArray[np.uint8],
    config: AugmentConfig,
    crop_size: int,
    resize: Resize,
    u: NDArray[np.float64],
    noise_seed: int,
) -> Tensor:
    """One training clip.

    Args:
        frames: uint8 [T, H, W, C], RGB, as decoded.
        config: The policy; not ``none``.
        crop_size: S, in pixels.
        resize: As in :class:`vjepa.data.clips.crops.TransformConfig`.
        u: One row of :attr:`ClipDraws.pixels`.
        noise_seed: One of :attr:`ClipDraws.noise_seeds`.

    Returns:
        uint8 [C, T, S, S].
    """
    crop_u, rand_u, erase_u = np.split(
        u, [_CROP_UNIFORMS, _CROP_UNIFORMS + rand_augment.NUM_UNIFORMS]
    )
    crop = TransformConfig(
        crop_size=crop_size,
        crop_scale=config.crop_scale,
        crop_aspect=config.crop_aspect,
        horizontal_flip=config.flips,
        resize=resize,
    )
    video = torch.from_numpy(frames)
    if config.policy == "paper":
        return training_crop(video, crop, crop_u)
    if config.policy != "released":
        cropped = training_crop(video, crop, crop_u).movedim(0, 1).contiguous()
        changed = auto_augment.auto_augment(cropped, rand_u[: auto_augment.NUM_UNIFORMS])
        clip = changed.movedim(1, 0).contiguous()
        return clip if config.policy == "image_paper" else erase_box(clip, erase_u, noise_seed)
    changed = rand_augment.rand_augment(video.movedim(-1, -3).contiguous(), rand_u)
    clip = training_crop(changed.movedim(-3, -1), crop, crop_u)
    return erase_box(clip, erase_u, noise_seed)


def erase_box(clip: Tensor, u: NDArray[np.float64], noise_seed: int) -> Tensor:
    """Random erasing: with probability 0.25 one box of the clip becomes noise.

    The box is the same in all frames, the noise another in each. In the released code it is
    normal noise after normalisation; here it is put into grey levels, so that its tails (beyond
    about two standard deviations) are cut off at 0 and 255.

    Args:
        clip: uint8 [C, T, S, S]; changed in place.
        u: Uniform numbers in [0, 1).
        noise_seed: Of the noise.

    Returns:
        `clip`.
    """
    if u[0] >= _ERASE_PROBABILITY:
        return clip
    size = clip.shape[-1]
    low, high = math.log(_ERASE_ASPECT[0]), math.log(_ERASE_ASPECT[1])
    for area_u, aspect_u in u[1:-2].reshape(_ERASE_TRIES, 2):
        area = size * size * (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * area_u)
        aspect = math.exp(low + (high - low) * aspect_u)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            top, left = int(u[-2] * (size - height + 1)), int(u[-1] * (size - width + 1))
            box = clip[:, :, top : top + height, left : left + width]
            generator = torch.Generator().manual_seed(noise_seed)
            noise = torch.randn(box.shape, generator=generator)
            shape = (-1, 1, 1, 1)
            levels = noise * torch.tensor(_DEVIATION).view(shape) + torch.tensor(_MEAN).view(shape)
            box.copy_(levels.round_().clamp_(0, 255).to(torch.uint8))
            break
    return clip
