"""The 1797 real handwritten digits that serve as objects.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0; the test part, as bundled
with scikit-learn. Grey values 0 to 16 of 8 x 8 pixels are kept unchanged in `digits.npz`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from vjepa.errors import UserError

_GREY_MAXIMUM = 16
_PARTS = {"train": (0.0, 0.7), "validation": (0.7, 0.8), "test": (0.8, 1.0)}


@dataclass(frozen=True)
class DigitSet:
    """Digit images of one split.

    Attributes:
        images: float32 `[N, 8, 8]`, 0 (paper) to 1 (ink).
        labels: int64 `[N]`, the digit.
        ids: int64 `[N]`, row of the image in `digits.npz`: the identity of the object.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


@cache
def load_digits(split: str) -> DigitSet:
    """Load the digits of `split`; splits are disjoint and hold every class in equal shares."""
    if split not in _PARTS:
        raise UserError(f"unknown split {split!r}; the splits are {', '.join(_PARTS)}")
    with (resources.files("vjepa.data.synthetic") / "digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    first, last = _PARTS[split]
    chosen = []
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        chosen.append(rows[round(first * len(rows)) : round(last * len(rows))])
    ids = np.sort(np.concatenate(chosen))
    return DigitSet(images[ids].astype(np.float32) / _GREY_MAXIMUM, labels[ids], ids)
