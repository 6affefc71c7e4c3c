"""Which files are videos, which are images, and which folders are clips."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import PurePath

from vjepa.data.video.info import MediaKind

_VIDEO = """.mp4 .m4v .mov .qt .mkv .webm .avi .divx .mpg .mpeg .mpe .m2v .vob .ts .mts .m2ts
.wmv .asf .flv .f4v .ogv .ogg .3gp .3g2 .mxf .nut .y4m .ivf .gif .rm .rmvb"""
_IMAGE = ".jpg .jpeg .png .bmp .webp .tif .tiff .ppm .pgm .pnm .jp2"

VIDEO_SUFFIXES = frozenset(_VIDEO.split())
"""Suffixes (lower case) read through FFmpeg. A GIF is a video."""

IMAGE_SUFFIXES = frozenset(_IMAGE.split())
"""Suffixes (lower case) read through Pillow as one still image."""

_LAST_NUMBER = re.compile(r"^(.*?)(\d+)$")


def is_image(path: str) -> bool:
    """Whether the suffix is an image's."""
    return PurePath(path).suffix.lower() in IMAGE_SUFFIXES


def is_media(path: str) -> bool:
    """Whether the suffix is a video's or an image's."""
    suffix = PurePath(path).suffix.lower()
    return suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES


def kind_of(path: str) -> MediaKind:
    """How `path` is read: a folder is a clip of images, an unknown suffix is tried as a video."""
    if is_image(path):
        return "image"
    return "image_folder" if os.path.isdir(path) else "video"  # noqa: PTH112 (10 M rows: no Path)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``frame_10`` after ``frame_9``."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def images_in(folder: str) -> list[str]:
    """Names of the images directly in `folder`, in the order of the numbers they contain."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
    return sorted(names, key=natural_key)


def is_numbered_sequence(names: Iterable[str]) -> bool:
    """Whether file names are one run of numbered frames: same prefix and suffix, even steps.

    Gaps mean that the folder is a collection of stills (as ImageNet's class folders, whose names
    end in numbers too) and not the frames of one clip.
    """
    numbers: list[int] = []
    prefixes: set[tuple[str, str]] = set()
    for name in names:
        path = PurePath(name)
        match = _LAST_NUMBER.match(path.stem)
        if match is None:
            return False
        prefixes.add((match[1], path.suffix.lower()))
        numbers.append(int(match[2]))
    if len(numbers) < 2 or len(prefixes) != 1:
        return False
    numbers.sort()
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    return len(steps) == 1 and 0 not in steps
