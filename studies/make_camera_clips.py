"""Labelled clips of camera recordings: what was done to them is known, so it can be asked for.

Every clip is a second or two of a recording with four independent labels: `source`, which recording
it is of; `direction`, forward or reversed; `speed`, once or twice; and `pan`, where the window
that is cut out of the frames moves (still, left, right, up, down). Training clips are of the first
55 % of each recording, test clips of its last 40 %. Recordings of less than 5 s, or of less than
8 frames a second, are left out.

    python studies/make_camera_clips.py --videos recordings/ --out data/camera
    vjepa data index data/camera/clips.csv --out data/camera/manifest.parquet

What is filmed is real, pans are simulated; few recordings say little about others.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from clip_files import new_folder, write_clip
from numpy.typing import NDArray
from PIL import Image

from vjepa.data.video.decode import read_frames
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file

PANS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIZE, FRAMES, FPS = 64, 8, 8
"""Pixels of a frame's side, frames of a clip, and how many of them are a second at single speed."""
WINDOW, WAY = 0.6, 0.25
"""Side of what is cut out, and how far it moves, as shares of a frame's short side."""
PARTS = {"train": (0.0, 0.55), "test": (0.6, 1.0)}


def make_clip(
    random: np.random.Generator,
    info: VideoInfo,
    part: tuple[float, float],
    speed: int,
    pan: str,
    sign: int,
) -> NDArray[np.uint8]:
    """Frames uint8 [T, S, S, 3] of a part of one recording; `sign` -1 is for reversed."""
    each = info.fps * speed / FPS
    first, last = (round(share * (info.num_frames - 1)) for share in part)
    start = random.uniform(first, last - each * (FRAMES - 1))
    numbers = np.floor(start + each * np.arange(FRAMES)).astype(np.int64)
    short = min(info.width, info.height)
    side, way = WINDOW * short, WAY * short
    across, down = (sign * way * step for step in PANS[pan])
    left = random.uniform(max(0.0, -across), info.width - side - max(0.0, across))
    top = random.uniform(max(0.0, -down), info.height - side - max(0.0, down))
    frames = []
    for share, frame in zip(np.linspace(0, 1, FRAMES), read_frames(info, numbers), strict=True):
        x, y = left + share * across, top + share * down
        image = Image.fromarray(frame.image)
        box = (x, y, x + side, y + side)
        frames.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX, box=box)))
    return np.stack(frames[::sign])


def main() -> None:
    """Write the clips and a table of their labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--train", type=int, default=400, help="clips of each recording")
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    infos = [inspect_file(str(path)) for path in sorted(arguments.videos.iterdir())]
    infos = [one for one in infos if one.ok and one.fps >= FPS and one.num_frames >= 5 * one.fps]
    out = new_folder(arguments.out)
    with (out / "clips.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["path", "split", "source", "direction", "speed", "pan"])
        for place, info in enumerate(infos):
            source = Path(info.path).stem
            for split, count in (("train", arguments.train), ("test", arguments.test)):
                for number in range(count):
                    random = np.random.default_rng((arguments.seed, place, len(split), number))
                    pan, speed = list(PANS)[number % len(PANS)], int(random.integers(1, 3))
                    direction = ("forward", "reversed")[random.integers(0, 2)]
                    sign = 1 if direction == "forward" else -1
                    frames = make_clip(random, info, PARTS[split], speed, pan, sign)
                    path = f"clips/{source}_{split}_{number:05d}.mp4"
                    write_clip(out / path, frames, FPS, threads="1")
                    writer.writerow([path, split, source, direction, f"{speed}x", pan])


if __name__ == "__main__":
    main()
