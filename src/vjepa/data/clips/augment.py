"""Random views for training probes: as the paper's text says, and as the released code does it.

Every number is a pure function of (seed, row of the manifest, pass), so that a pass can be computed
again, cached, or drawn anew in each epoch with the same clips. Pixels stay uint8; the operations
are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import derive_seed, uniforms
from vjepa.data.clips.crops import NUM_UNIFORMS as _CROP_UNIFORMS
from vjepa.data.clips.crops import TransformConfig, check_crop_ranges, draw_crops
from vjepa.data.clips.plan import Change, ClipConfig, ClipPlan
from vjepa.data.clips.source import Source
from vjepa.data.clips.views import ViewConfig, segments_of

AugmentPolicy = Literal["none", "paper", "released", "image_paper", "image_released"]

NUM_OPERATIONS = 4
_LEVEL_MEAN, _LEVEL_DEVIATION, _LEVEL_MAX = 7.0, 0.5, 10.0
_PROBABILITY = 0.5
_UNIFORMS_EACH = 5  # which, whether, two for the level, sign
RAND_UNIFORMS = NUM_OPERATIONS * _UNIFORMS_EACH
AUTO_UNIFORMS = 5  # which pair, whether and sign of each operation
_LARGEST_MAGNITUDE = 9.0  # of AutoAugment, from 0

_ERASE_PROBABILITY = 0.25
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_ASPECT = (0.3, 1 / 0.3)
_ERASE_TRIES = 10
_ERASE_UNIFORMS = 1 + 2 * _ERASE_TRIES + 2
# ImageNet's mean and standard deviation in grey levels: what pixels are normalised with.
_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_FILL = [124.0, 116.0, 104.0]  # the mean colour, in grey levels


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
        check_crop_ranges(self.crop_scale, self.crop_aspect)

    @property
    def flips(self) -> bool:
        """Whether clips are mirrored at random."""
        return self.policy != "released" if self.horizontal_flip is None else self.horizontal_flip


@dataclass(frozen=True)
class ClipDraws:
    """The random numbers of one video's S clips in one pass."""

    windows: NDArray[np.float64]  # [S] in [0, 1): the place of each clip in its segment
    pixels: NDArray[np.float64]  # [S, numbers]: what crops and operations are made of
    noise_seeds: tuple[int, ...]  # [S], of the erased box's noise


def draw_clips(seed: int, row: int, pass_index: int, num_segments: int) -> ClipDraws:
    """The random numbers of one manifest row in one pass, enough for every policy."""
    each = _CROP_UNIFORMS + RAND_UNIFORMS + _ERASE_UNIFORMS
    stream = f"augment/{pass_index}"
    drawn = uniforms(seed, stream, row, num_segments * (each + 1)).reshape(num_segments, -1)
    noise = [derive_seed(seed, f"{stream}/noise/{number}", row) for number in range(num_segments)]
    return ClipDraws(drawn[:, 0], drawn[:, 1:], tuple(noise))


def plan_augmented(
    clip: ClipConfig, view: ViewConfig, augment: AugmentConfig, source: Source, draws: ClipDraws
) -> list[ClipPlan]:
    """Plans of one random clip for each of the S segments; the policy is not ``none``.

    ValueError: no clip can be cut from such a video.
    """
    segments = segments_of(clip, view, source, draws.windows)
    crop = TransformConfig(
        crop_size=view.crop_size,
        crop_scale=augment.crop_scale,
        crop_aspect=augment.crop_aspect,
        horizontal_flip=augment.flips,
        resize=view.resize,
    )
    crop_u, rand_u, erase_u = np.split(
        draws.pixels, [_CROP_UNIFORMS, _CROP_UNIFORMS + RAND_UNIFORMS], axis=1
    )
    boxes, flips = draw_crops(source.height, source.width, crop, crop_u)
    plans = []
    for number, frames in enumerate(segments):
        before: tuple[Change, ...] = ()
        after: tuple[Change, ...] = ()
        if augment.policy == "released":
            before = (partial(rand_augment, u=rand_u[number]),)
        if augment.policy in ("image_paper", "image_released"):
            after = (partial(auto_augment, u=rand_u[number, :AUTO_UNIFORMS]),)
        if augment.policy in ("released", "image_released"):
            seed = draws.noise_seeds[number]
            after = (*after, partial(erase_box, u=erase_u[number], noise_seed=seed))
        plans.append(
            ClipPlan(
                frames=frames,
                before=before,
                box=boxes[number],
                resize_to=(view.crop_size, view.crop_size),
                resize=view.resize,
                flip=flips[number],
                after=after,
            )
        )
    return plans


Operation = Callable[[Tensor, float, float], Tensor]
"""frames uint8 [T, C, H, W], level / 10 in [0, 1], sign -1 or 1 -> uint8 [T, C, H, W]."""


def _torchvision() -> Any:
    from torchvision.transforms.v2 import functional

    return functional


def _plain(name: str) -> Operation:
    """An operation of torchvision without a strength."""
    return lambda frames, _amount, _sign: getattr(_torchvision(), name)(frames)


def _enhance(name: str) -> Operation:
    """Colour, contrast, brightness and sharpness: factor 1 leaves the frame as it is."""
    return lambda frames, amount, sign: getattr(_torchvision(), name)(
        frames, max(0.1, 1.0 + sign * 0.9 * amount)
    )


def _affine(
    frames: Tensor, *, translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    return _torchvision().affine(
        frames,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=[math.degrees(math.atan(value)) for value in shear],
        interpolation=_torchvision().InterpolationMode.BILINEAR,
        fill=_FILL,
        center=[0.0, 0.0],
    )


def _rotate(frames: Tensor, amount: float, sign: float) -> Tensor:
    bilinear = _torchvision().InterpolationMode.BILINEAR
    return _torchvision().rotate(frames, sign * 30.0 * amount, interpolation=bilinear, fill=_FILL)


def _solarize_add(frames: Tensor, amount: float, _sign: float) -> Tensor:
    added = (frames.to(torch.int16) + min(128, int(110 * amount))).clamp_(max=255)
    return torch.where(frames < 128, added.to(torch.uint8), frames)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _plain("autocontrast"),
    "Equalize": _plain("equalize"),
    "Invert": _plain("invert"),
    "Rotate": _rotate,
    "Posterize": lambda frames, amount, _: _torchvision().posterize(
        frames, max(1, 4 - int(4 * amount))
    ),
    "Solarize": lambda frames, amount, _: _torchvision().solarize(
        frames, 256 - min(256, int(256 * amount))
    ),
    "SolarizeAdd": _solarize_add,
    "Color": _enhance("adjust_saturation"),
    "Contrast": _enhance("adjust_contrast"),
    "Brightness": _enhance("adjust_brightness"),
    "Sharpness": _enhance("adjust_sharpness"),
    "ShearX": lambda frames, amount, sign: _affine(frames, shear=(sign * 0.3 * amount, 0)),
    "ShearY": lambda frames, amount, sign: _affine(frames, shear=(0, sign * 0.3 * amount)),
    "TranslateX": lambda frames, amount, sign: _affine(
        frames, translate=(sign * 0.45 * amount * frames.shape[-1], 0)
    ),
    "TranslateY": lambda frames, amount, sign: _affine(
        frames, translate=(0, sign * 0.45 * amount * frames.shape[-2])
    ),
}
"""The fifteen operations of RandAugment, with torchvision's names; the order matters."""


def rand_augment(frames: Tensor, u: NDArray[np.float64]) -> Tensor:
    """RandAugment: four random operations on one clip, the same on all its frames.

    The policy ``rand-m7-n4-mstd0.5-inc1`` that the released evaluation trains its video probes with
    (the paper's text does not name it): each operation is done with probability 0.5, its level
    drawn from a normal distribution of mean 7 and deviation 0.5 in 0..10. All grow with the level.

    `frames` are uint8 [T, C, H, W], `u` [`RAND_UNIFORMS`] uniform in [0, 1).
    """
    names = list(OPERATIONS)
    for which, whether, radius, angle, side in u.reshape(NUM_OPERATIONS, _UNIFORMS_EACH):
        if whether >= _PROBABILITY:
            continue
        normal = math.sqrt(-2.0 * math.log(1.0 - radius)) * math.cos(2.0 * math.pi * angle)
        level = min(max(_LEVEL_MEAN + _LEVEL_DEVIATION * normal, 0.0), _LEVEL_MAX)
        operation = OPERATIONS[names[int(which * len(names))]]
        frames = operation(frames, level / 10.0, -1.0 if side < 0.5 else 1.0)
    return frames


def auto_augment(frames: Tensor, u: NDArray[np.float64]) -> Tensor:
    """AutoAugment: one of 25 pairs of operations that were found on ImageNet, on all frames alike.

    The paper (Table 9) uses it for image tasks only. Pairs, probabilities and magnitudes (0 .. 9)
    are torchvision's, from arXiv 1805.09501. `u` [`AUTO_UNIFORMS`] is uniform in [0, 1).
    """
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    pairs = AutoAugment(AutoAugmentPolicy.IMAGENET).policies
    pair = pairs[int(u[0] * len(pairs))]
    for (name, probability, magnitude), whether, side in zip(pair, u[1:3], u[3:5], strict=True):
        if whether >= probability:
            continue
        if name == "Posterize":
            # The one operation that is milder here than in RandAugment: 4 to 8 bits stay.
            bits = 8 - round((magnitude or 0) / (_LARGEST_MAGNITUDE / 4))
            frames = _torchvision().posterize(frames, bits)
        else:
            amount = (magnitude or 0) / _LARGEST_MAGNITUDE
            frames = OPERATIONS[name](frames, amount, -1.0 if side < 0.5 else 1.0)
    return frames


def erase_box(frames: Tensor, u: NDArray[np.float64], noise_seed: int) -> Tensor:
    """Random erasing: with probability 0.25 one box of the clip [T, C, S, S] becomes noise.

    The box is the same in all frames, the noise another in each. In the released code it is
    normal noise after normalisation; here it is put into grey levels, so that its tails (beyond
    about two standard deviations) are cut off at 0 and 255.
    """
    if u[0] >= _ERASE_PROBABILITY:
        return frames
    size = frames.shape[-1]
    low, high = math.log(_ERASE_ASPECT[0]), math.log(_ERASE_ASPECT[1])
    for area_u, aspect_u in u[1:-2].reshape(_ERASE_TRIES, 2):
        area = size * size * (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * area_u)
        aspect = math.exp(low + (high - low) * aspect_u)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            top, left = int(u[-2] * (size - height + 1)), int(u[-1] * (size - width + 1))
            frames = frames.clone()
            box = frames.transpose(0, 1)[:, :, top : top + height, left : left + width]
            generator = torch.Generator().manual_seed(noise_seed)
            noise = torch.randn(box.shape, generator=generator)
            shape = (-1, 1, 1, 1)
            levels = noise * torch.tensor(_DEVIATION).view(shape) + torch.tensor(_MEAN).view(shape)
            box.copy_(levels.round_().clamp_(0, 255).to(torch.uint8))
            break
    return frames
