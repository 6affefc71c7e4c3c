"""Labelled clips of others' photographs: Fashion-MNIST's garments, moved over a drifting texture.

Every clip has two independent labels: `motion`, one of eight directions in which the garment
moves, and `garment`, one of ten kinds. The background is smooth noise in colour that drifts its own
way, so that neither a frame nor what changes most tells the motion at once. Training clips show the
set's training photographs, test clips its test photographs; a second garment stands still in each.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    python studies/make_fashion_clips.py --images fashion/usr/share/datasets/fashion-mnist \
        --out data/fashion --train 4000 --test 1000
    vjepa data index data/fashion/clips.csv --out data/fashion/manifest.parquet

Photographs are real, their motion is simulated; a number on them says nothing about camera video.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
from clip_files import new_folder, write_clip
from numpy.typing import NDArray

GARMENTS = (
    *("t_shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker"),
    *("bag", "boot"),
)
DIRECTIONS = {
    name: (np.cos(angle), np.sin(angle))
    for name, angle in zip(
        ("right", "right_down", "down", "left_down", "left", "left_up", "up", "right_up"),
        np.arange(8) * np.pi / 4,
        strict=True,
    )
}
SIZE, FRAMES, SIDE = 40, 8, 16
"""Pixels of a frame's side, frames of a clip, pixels of a garment's side."""
CONTRAST = 0.15
"""Standard deviation of the background, on a scale of 0 to 1."""


def read_set(folder: Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images [n, 16, 16] from 0 to 1, shrunk from 28 pixels, and their classes."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2))).astype(np.float32) / 255
    return padded.reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4)), labels


def background(random: np.random.Generator) -> NDArray[np.float32]:
    """A drifting texture [T, S, S, 3] around a mean of 0.35."""
    coarse = random.standard_normal((13, 13, 3)) * 0.6 + random.standard_normal((13, 13, 1)) * 0.8
    places = np.linspace(0, 12, 2 * SIZE)
    low = np.minimum(places.astype(int), 11)
    share = (places - low)[:, None, None]
    rows = coarse[low] * (1 - share) + coarse[low + 1] * share
    share = share[None, :, 0]
    whole = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    start, drift = random.uniform(8, 32, 2), random.uniform(-8, 8, 2)
    corners = np.rint(start + np.linspace(0, 1, FRAMES)[:, None] * drift).astype(int)
    frames = [whole[top : top + SIZE, left : left + SIZE] for top, left in corners]
    return (0.35 + CONTRAST * np.stack(frames)).astype(np.float32)


def make_clip(
    random: np.random.Generator,
    garment: NDArray[np.float32],
    other: NDArray[np.float32],
    motion: str,
) -> NDArray[np.uint8]:
    """Frames uint8 [T, S, S, 3]: `other` stands still, `garment` moves over it."""
    frames = background(random)
    room, length = SIZE - SIDE, random.uniform(10, 16)
    across, down = (length * step for step in DIRECTIONS[motion])
    left, top = (random.uniform(max(0.0, -x), room - max(0.0, x)) for x in (across, down))
    still = random.integers(0, room + 1, 2)
    colours = random.uniform(0.5, 1.0, (2, 3))
    for time, frame in enumerate(frames):
        share = time / (FRAMES - 1)
        moved = np.rint([top + share * down, left + share * across]).astype(int)
        for image, place, colour in ((other, still, colours[0]), (garment, moved, colours[1])):
            part = frame[place[0] : place[0] + SIDE, place[1] : place[1] + SIDE]
            cover = np.minimum(1, 3 * image)[..., None]
            part[:] = part * (1 - cover) + image[..., None] * colour * cover
    return (255 * frames.clip(0, 1)).round().astype(np.uint8)


def main() -> None:
    """Write the clips and a table of their labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of the four .gz files")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = new_folder(arguments.out)
    with (out / "clips.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["path", "split", "motion", "garment"])
        for split, part, count in (
            ("train", "train", arguments.train),
            ("test", "t10k", arguments.test),
        ):
            images, labels = read_set(arguments.images, part)
            for number in range(count):
                random = np.random.default_rng((arguments.seed, count, number))
                own, other = random.integers(0, len(images), 2)
                motion = list(DIRECTIONS)[number % len(DIRECTIONS)]
                frames = make_clip(random, images[own], images[other], motion)
                path = f"clips/{split}_{number:06d}.mp4"
                write_clip(out / path, frames, 8, threads="1")
                writer.writerow([path, split, motion, GARMENTS[labels[own]]])


if __name__ == "__main__":
    main()
