"""RandAugment on whole clips: four random operations of strength 7, the same on every frame.

The policy ``rand-m7-n4-mstd0.5-inc1`` that the released evaluation trains its video probes with
(the paper's text does not name it): four operations out of fifteen, each done with probability
0.5, their level drawn from a normal distribution of mean 7 and deviation 0.5 in 0..10. All
operations grow with the level. They work on uint8 through torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_OPERATIONS = 4
_LEVEL_MEAN, _LEVEL_DEVIATION, _LEVEL_MAX = 7.0, 0.5, 10.0
_PROBABILITY = 0.5
_UNIFORMS_EACH = 5  # which, whether, two for the level, sign
NUM_UNIFORMS = NUM_OPERATIONS * _UNIFORMS_EACH
"""Uniform numbers that one clip takes."""
_FILL = [124.0, 116.0, 104.0]  # the mean colour, in grey levels

Operation = Callable[[Tensor, float, float], Tensor]
"""frames uint8 [T, C, H, W], level / 10 in [0, 1], sign -1 or 1 -> uint8 [T, C, H, W]."""


def _enhanced(amount: float, sign: float) -> float:
    """Factor of colour, contrast, brightness and sharpness: 1 leaves the frame as it is."""
    return max(0.1, 1.0 + sign * 0.9 * amount)


def _affine(frames: Tensor, translate: Sequence[float], shear: Sequence[float]) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    degrees = [math.degrees(math.atan(value)) for value in shear]
    return tv.affine(
        frames,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=degrees,
        interpolation=InterpolationMode.BILINEAR,
        fill=_FILL,
        center=[0.0, 0.0],
    )


def _rotate(frames: Tensor, amount: float, sign: float) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    return tv.rotate(
        frames, sign * 30.0 * amount, interpolation=InterpolationMode.BILINEAR, fill=_FILL
    )


def _solarize_add(frames: Tensor, amount: float, sign: float) -> Tensor:  # noqa: ARG001
    added = (frames.to(torch.int16) + min(128, int(110 * amount))).clamp_(max=255)
    return torch.where(frames < 128, added.to(torch.uint8), frames)


def _plain(name: str) -> Operation:
    """An operation of torchvision without a strength."""

    def apply(frames: Tensor, amount: float, sign: float) -> Tensor:  # noqa: ARG001
        from torchvision.transforms.v2 import functional as tv

        return getattr(tv, name)(frames)

    return apply


def _strong(name: str, value: Callable[[float, float], float]) -> Operation:
    """An operation of torchvision with one number, made of (amount, sign)."""

    def apply(frames: Tensor, amount: float, sign: float) -> Tensor:
        from torchvision.transforms.v2 import functional as tv

        return getattr(tv, name)(frames, value(amount, sign))

    return apply


OPERATIONS: dict[str, Operation] = {
    "auto contrast": _plain("autocontrast"),
    "equalize": _plain("equalize"),
    "invert": _plain("invert"),
    "rotate": _rotate,
    "posterize": _strong("posterize", lambda amount, _: max(1, 4 - int(4 * amount))),
    "solarize": _strong("solarize", lambda amount, _: 256 - min(256, int(256 * amount))),
    "solarize add": _solarize_add,
    "colour": _strong("adjust_saturation", _enhanced),
    "contrast": _strong("adjust_contrast", _enhanced),
    "brightness": _strong("adjust_brightness", _enhanced),
    "sharpness": _strong("adjust_sharpness", _enhanced),
    "shear x": lambda frames, amount, sign: _affine(frames, [0, 0], [sign * 0.3 * amount, 0.0]),
    "shear y": lambda frames, amount, sign: _affine(frames, [0, 0], [0.0, sign * 0.3 * amount]),
    "translate x": lambda frames, amount, sign: _affine(
        frames, [sign * 0.45 * amount * frames.shape[-1], 0], [0.0, 0.0]
    ),
    "translate y": lambda frames, amount, sign: _affine(
        frames, [0, sign * 0.45 * amount * frames.shape[-2]], [0.0, 0.0]
    ),
}
"""The fifteen operations of the policy, by name."""


def rand_augment(frames: Tensor, u: NDArray[np.float64]) -> Tensor:
    """Four random operations on one clip, the same on all its frames.

    Args:
        frames: uint8 [T, C, H, W], RGB.
        u: Uniform numbers in [0, 1), float64 [`NUM_UNIFORMS`].

    Returns:
        uint8 [T, C, H, W].
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
