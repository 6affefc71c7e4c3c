"""A 64-bit number for each frame that stays nearly the same when the video is encoded anew.

The perceptual hash by discrete cosine transform: the frame, shrunk to 32 x 32 grey pixels, is
described by which of its 64 lowest spatial frequencies are above their median. Scaling, another
codec, brightness and contrast change few of these bits; mirrors, crops and inserted borders change
many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 32
"""Side of the grey image that is hashed, in pixels."""

_LOW = 8
# A frame whose pixels differ less than this (standard deviation in grey levels) is all but empty:
# the bits of its hash are noise.
_MIN_CONTRAST = 3.0
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _cosines() -> NDArray[np.float32]:
    """The lowest rows of the orthonormal cosine transform: float32 [_LOW, SIDE]."""
    frequency, place = np.mgrid[0:_LOW, 0:SIDE]
    rows = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def grey_thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A frame as the mean grey of 32 x 32 equal parts, whatever its size and aspect.

    Args:
        frame: uint8 [H, W, 3], RGB.

    Returns:
        float32 [32, 32], 0 to 255.
    """
    down = _area_weights(frame.shape[0])
    across = _area_weights(frame.shape[1])
    grey = frame.reshape(-1, 3) @ _LUMA
    return down @ grey.reshape(frame.shape[:2]) @ across.T


def _area_weights(size: int) -> NDArray[np.float32]:
    """Share of each of `size` pixels in each of 32 equal parts: float32 [32, size], rows sum 1."""
    edges = np.linspace(0, size, SIDE + 1)
    pixels = np.arange(size)
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    shares = np.maximum(0.0, high - low)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def is_informative(thumbnail: NDArray[np.float32]) -> bool:
    """Whether a thumbnail shows enough for its hash to mean anything."""
    return float(thumbnail.std()) >= _MIN_CONTRAST


def hash_thumbnail(thumbnail: NDArray[np.float32]) -> int:
    """The hash of a thumbnail, float32 [32, 32]: 64 bits as an unsigned integer."""
    cosines = _cosines()
    low = (cosines @ thumbnail @ cosines.T).reshape(-1)
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean brightness says nothing
    return int(np.packbits(bits).view(">u8")[0])


def distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of differing bits of two broadcastable arrays of hashes: int64."""
    return np.bitwise_count(left ^ right).astype(np.int64)
