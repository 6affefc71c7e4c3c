"""AutoAugment on images: one of 25 pairs of operations that were found on ImageNet.

The paper (Table 9) uses it for image tasks only. Pairs, probabilities and magnitudes are those of
the AutoAugment paper (arXiv 1805.09501, ImageNet policy) as torchvision has them; a test holds the
table against torchvision's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clips.rand_augment import OPERATIONS

NUM_UNIFORMS = 5
"""Uniform numbers that one image takes: which pair, whether and sign of each operation."""

_LARGEST = 9.0  # magnitudes are 0 .. 9

PAIRS: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto contrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear x", 0.6, 5), ("equalize", 1.0, 0)),
    (("colour", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto contrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""(name in :data:`vjepa.data.clips.rand_augment.OPERATIONS`, probability, magnitude), twice."""


def auto_augment(frames: Tensor, u: NDArray[np.float64]) -> Tensor:
    """One random pair of operations, the same on all frames.

    Args:
        frames: uint8 [T, C, H, W], RGB.
        u: Uniform numbers in [0, 1), float64 [`NUM_UNIFORMS`].

    Returns:
        uint8 [T, C, H, W].
    """
    pair = PAIRS[int(u[0] * len(PAIRS))]
    for (name, probability, magnitude), whether, side in zip(pair, u[1:3], u[3:5], strict=True):
        if whether < probability:
            frames = _apply(name, frames, magnitude, -1.0 if side < 0.5 else 1.0)
    return frames


def _apply(name: str, frames: Tensor, magnitude: int, sign: float) -> Tensor:
    if name == "posterize":
        # The one operation that is milder here than in RandAugment: 4 to 8 bits stay.
        from torchvision.transforms.v2 import functional as tv

        return tv.posterize(frames, 8 - round(magnitude / (_LARGEST / 4)))
    return OPERATIONS[name](frames, magnitude / _LARGEST, sign)
