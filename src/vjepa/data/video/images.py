"""Still images and folders of images behind the same interface as videos, through Pillow."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401 (make them known)

from vjepa.data.manifest.storage import opened
from vjepa.data.video.container import over_black
from vjepa.data.video.info import (
    VIDEO_SUFFIXES,
    DecodeError,
    LimitsConfig,
    VideoInfo,
    images_in,
    is_numbered_sequence,
)
from vjepa.runtime.workers import going_on

_STILL_FPS = 1.0  # one frame that lasts one second

# Whatever the suffix says, only these are tried: Pillow gives a PostScript file to another program,
# and its rarer readers are little tested against hostile files.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "JPEG2000", "TIFF", "WEBP")

_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_TRANSPOSED = (5, 6, 7, 8)  # those that swap width and height
_TIFF_SIZE = (256, 257)  # tags of width and height as stored


def inspect_images(info: VideoInfo, limits: LimitsConfig, folder_fps: float) -> VideoInfo:
    """Fill in `info` from all headers of an image or a folder, and decode the first image.

    Raises:
        DecodeError: No image in a folder, images of several sizes, a damaged one, or a limit.
    """
    paths, fps = [info.path], _STILL_FPS
    if info.kind == "image_folder":
        paths, fps = _paths_in(info.path), folder_fps
        if not paths:
            raise DecodeError(info.path, "a folder without images")
        has_videos = any(
            name.suffix.lower() in VIDEO_SUFFIXES for name in Path(info.path).iterdir()
        )
        if has_videos and not is_numbered_sequence(images_in(info.path)):
            reason = "videos with images beside them, no numbered frames; name the videos"
            raise DecodeError(info.path, reason)
        if len(paths) > limits.max_frames:
            raise DecodeError(info.path, f"more than max_frames = {limits.max_frames} images")
    width, height, codec = _image_header(paths[0], limits)
    for path in paths[1:]:
        going_on()
        wide, high, _ = _image_header(path, limits)
        if (wide, high) != (width, height):
            other = f"{Path(path).name} has {wide} x {high} pixels"
            raise DecodeError(info.path, f"{other}, {Path(paths[0]).name} {width} x {height}")
    _read_image(paths[0])
    with _open_image(paths[0]) as image:  # counting the others would need them undamaged
        has_others = info.kind == "image" and getattr(image, "is_animated", False)
    return replace(
        info,
        note="of the pictures in it the first is read" if has_others else "",
        num_frames=len(paths),
        fps=fps,
        duration_seconds=len(paths) / fps,
        width=width,
        height=height,
        codec=codec,
    )


def read_images(info: VideoInfo, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Some frames of a still image or a folder of images, each uint8 [H, W, 3].

    Raises:
        DecodeError: An image cannot be read, or the folder is not what it was when indexed.
    """
    paths = [info.path]
    if info.kind == "image_folder":
        paths = _paths_in(info.path)
        if len(paths) != info.num_frames:
            raise DecodeError(
                info.path,
                f"has {len(paths)} images, {info.num_frames} when indexed; index it again",
            )
    for number in numbers.tolist():
        yield _read_image(paths[number], (info.width, info.height))


def _read_image(path: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """One image file, upright by its EXIF orientation, as uint8 [H, W, 3]; alpha over black.

    Raises:
        DecodeError: It cannot be read, or has not `size` (width, height): by its header, before a
            pixel of it is decoded.
    """
    with _open_image(path) as image:
        header = _upright_size(image)
        if size is not None and header != size:
            sizes = "{} x {} pixels, {} x {} when indexed".format(*header, *size)
            raise DecodeError(path, f"is {sizes}; index it again")
        # Not by Pillow's exif_transpose, which writes all EXIF anew and fails where it is nonsense.
        image.load()  # a TIFF is turned here, and then says so
        turn = _EXIF_TURNS.get(image.getexif().get(_EXIF_ORIENTATION))
        upright = image if turn is None else image.transpose(turn)
        if upright.size != header:
            sizes = "{} x {} pixels, {} x {} by its header".format(*upright.size, *header)
            raise DecodeError(path, f"is {sizes}; save it anew")
        if upright.mode[:1] in ("I", "F"):
            grey = _eight_bits(path, np.asarray(upright), upright.mode, image.format or "")
            return np.repeat(grey[..., None], 3, axis=2)
        if upright.has_transparency_data:
            return over_black(np.asarray(upright.convert("RGBA")))
        return np.array(upright.convert("RGB"))  # torch wants memory of its own


def _eight_bits(
    path: str, grey: NDArray[np.generic], mode: str, file_format: str
) -> NDArray[np.uint8]:
    """Grey of more than 8 bits, which Pillow would clip at 255, scaled so that white is white."""
    if mode == "F":
        low, high = float(grey.min()), float(grey.max())
        if not 0 <= low <= high <= 255:
            raise DecodeError(
                path, f"its pixels are numbers from {low:g} to {high:g}; save it with 8 or 16 bits"
            )
        return np.rint(grey.astype(np.float64) * (255 if high <= 1 else 1)).astype(np.uint8)
    if mode == "I" and file_format == "TIFF":
        raise DecodeError(path, "its white is not known (32-bit pixels); save it with 8 or 16 bits")
    return ((grey.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


@contextmanager
def _open_image(path: str) -> Generator[Image.Image]:
    """Open an image; what Pillow throws at foreign bytes becomes a DecodeError with the path."""
    try:
        with warnings.catch_warnings():
            # Sizes are limited by LimitsConfig at indexing; Pillow's warning would say it again.
            warnings.simplefilter("ignore")
            with opened(path) as source, Image.open(source, formats=_FORMATS) as image:
                yield image
    except Image.UnidentifiedImageError as error:
        raise DecodeError(path, "not an image, or damaged beyond reading") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(path, "more pixels than Pillow accepts") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error) as error:
        raise DecodeError(path, f"damaged image ({error})") from error


def _image_header(path: str, limits: LimitsConfig) -> tuple[int, int, str]:
    """Upright width and height in pixels and the format's name, from the header alone."""
    with _open_image(path) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise DecodeError(
                path, f"{width} x {height} pixels are above max_pixels = {limits.max_pixels}"
            )
        return *_upright_size(image), (image.format or "").lower()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels after turning, from the header."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow may have turned its size already
        width, height = (image.tag_v2[tag] for tag in _TIFF_SIZE)
    if image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED:
        return height, width
    return width, height


def _paths_in(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in images_in(folder)]  # noqa: PTH118
    except OSError as error:
        raise DecodeError(folder, f"cannot be listed ({error.strerror})") from error
