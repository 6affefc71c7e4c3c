"""Where decoded frames go: into one array, or only their wanted parts into the clips they are for.

T is the number of frames of a clip, H x W the size of a frame in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class FrameStore(Protocol):
    """Takes decoded frames; each wanted frame comes once, in any order."""

    numbers: NDArray[np.int64]
    """The wanted frames, ascending, each once."""

    def put(self, place: int, image: NDArray[np.uint8]) -> None:
        """Keep a copy of frame ``numbers[place]``, uint8 [H, W, 3]."""
        ...


class WholeFrames:
    """All of every frame, side by side.

    Attributes:
        numbers: int64 [n].
        frames: uint8 [n, H, W, 3].
    """

    def __init__(self, numbers: NDArray[np.int64], height: int, width: int) -> None:
        """Get the memory; sizes in pixels."""
        self.numbers = numbers
        self.frames = np.empty((len(numbers), height, width, 3), dtype=np.uint8)

    def put(self, place: int, image: NDArray[np.uint8]) -> None:
        """Keep a copy of the frame."""
        self.frames[place] = image


@dataclass(frozen=True)
class CropOrder:
    """A clip and the part of its frames that is wanted.

    Attributes:
        indices: int64 [T], frame numbers, repeats allowed.
        box: int64 [4]: top, left, height, width, in pixels.
    """

    indices: NDArray[np.int64]
    box: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        """Size of the cropped clip, in bytes."""
        return len(self.indices) * int(self.box[2]) * int(self.box[3]) * 3


class CroppedClips:
    """Of every frame the parts that the clips need, without a copy in between.

    Attributes:
        numbers: int64 [n], the frames of all clips.
        clips: For each order uint8 [T, height, width, 3].
    """

    def __init__(self, orders: Sequence[CropOrder]) -> None:
        """Get the memory."""
        self.numbers, inverse = np.unique(
            np.concatenate([order.indices for order in orders]), return_inverse=True
        )
        self._boxes = [tuple(int(number) for number in order.box) for order in orders]
        self.clips = [
            np.empty((len(order.indices), box[2], box[3], 3), dtype=np.uint8)
            for order, box in zip(orders, self._boxes, strict=True)
        ]
        self._uses: list[list[tuple[int, int]]] = [[] for _ in self.numbers]
        uses = [(clip, t) for clip, order in enumerate(orders) for t in range(len(order.indices))]
        for place, use in zip(inverse.tolist(), uses, strict=True):
            self._uses[place].append(use)

    def put(self, place: int, image: NDArray[np.uint8]) -> None:
        """Keep what the clips need of the frame."""
        for clip, t in self._uses[place]:
            top, left, height, width = self._boxes[clip]
            self.clips[clip][t] = image[top : top + height, left : left + width]
