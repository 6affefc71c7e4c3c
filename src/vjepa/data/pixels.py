"""Decoded frames of any pixel format -> upright RGB bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideDataContainer
    from av.video.frame import VideoFrame


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pixels are turned for display: one of the eight turns and mirrors of a rectangle.

    Applied in this order: transpose, then mirror left-right, then mirror up-down.
    """

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation(self) -> int:
        """Counter-clockwise rotation in degrees, a mirror left aside: 0, 90, 180 or 270."""
        if self.transpose:
            return 90 if self.mirror_y else 270
        return 180 if self.mirror_y else 0

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn uint8 [H, W, 3] into a view of the upright image, [H', W', 3]."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix that the container gave the frame; upright without one.

    The matrix maps a stored pixel (x, y) to (a x + c y, b x + d y). An angle that is no multiple of
    90 degrees is rounded to the nearest one.
    """
    # PyAV's stub calls this a TypedDict; it is the container class.
    side_data = cast("SideDataContainer", frame.side_data)
    try:
        data = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return Orientation()
    matrix = np.frombuffer(bytes(data), dtype=np.int32).astype(np.int64)
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(transpose=False, mirror_x=a < 0, mirror_y=d < 0)
    return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)


class RgbConverter:
    """Turns the frames of one video into upright RGB, all of one size.

    Keeps FFmpeg's scaler between frames. A stream that changes its frame size midway is rescaled to
    the size of its first frame (bilinear). Alpha is laid over black.
    """

    def __init__(self, width: int | None = None, height: int | None = None) -> None:
        """Args: width, height: Upright size in pixels; None takes that of the first frame."""
        self._scaler = VideoReformatter()
        self._size = None if width is None or height is None else (width, height)

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """One decoded frame -> uint8 [H, W, 3], RGB, upright, a view that the caller copies."""
        orientation = orientation_of(frame)
        if self._size is None:
            stored = (frame.width, frame.height)
            self._size = stored[::-1] if orientation.transpose else stored
        width, height = self._size[::-1] if orientation.transpose else self._size
        has_alpha = any(component.is_alpha for component in frame.format.components)
        rgb = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if has_alpha else "rgb24",
            threads=1,
        )
        plane = rgb.planes[0]
        channels = 4 if has_alpha else 3
        # Rows are padded to the line size; the padding is cut off without a copy.
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)[
            :height
        ]
        image = rows[:, : width * channels].reshape(height, width, channels)
        return orientation.apply(over_black(image) if has_alpha else image)


def over_black(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay uint8 [..., 4] RGBA (alpha not premultiplied) over black: uint8 [..., 3], rounded."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)
