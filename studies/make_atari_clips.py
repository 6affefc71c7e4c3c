"""Labelled clips from games that others made: Atari 2600, by the Arcade Learning Environment.

Every clip has two independent labels: `motion`, the direction in which the joystick is held while
it is recorded (up, down, left, right), and `game`. It shows the surroundings of what the joystick
moves. Only moments are taken where each of the four directions leads to another picture, which is
tried from the same state of the game, so that the label can be seen. The split is by walk: all
clips of one random walk from a game's beginning are in the same split.

    pip install 'ale-py==0.12.1'
    python studies/make_atari_clips.py --out data/atari --clips 6000
    vjepa data index data/atari/clips.csv --out data/atari/manifest.parquet

The clips are simulated; a number on them says nothing about camera video.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ale_py
import numpy as np
from ale_py import roms
from clip_files import new_folder, write_clip
from numpy.typing import NDArray
from PIL import Image

MOTIONS = {"up": ale_py.Action.UP, "down": ale_py.Action.DOWN}
MOTIONS |= {"left": ale_py.Action.LEFT, "right": ale_py.Action.RIGHT}
GAMES = (
    *("alien", "amidar", "asterix", "bank_heist", "berzerk", "boxing", "chopper_command"),
    *("frostbite", "hero", "ice_hockey", "kangaroo", "krull", "montezuma_revenge", "ms_pacman"),
    *("road_runner", "seaquest", "tennis", "tutankham", "venture", "wizard_of_wor"),
)
TICS = 32
"""Length of a clip in the game's ticks; every second one is kept."""
KEEP_EVERY = 2
WINDOW = 96
"""Side of what is shown, in the game's pixels (160 x 210)."""
CHANGED = 24
"""Two pictures differ where a pixel does by so much, of 255."""
LEAST = 12
"""Pixels in which the pictures of two directions must differ at the end."""
WALK = 40
"""Random moves from a game's beginning; some clips are recorded on the way."""
TRIES = 6000
"""A game in which so many moments were no use is given up."""


@dataclass(frozen=True)
class Clip:
    """One recorded clip."""

    frames: NDArray[np.uint8]
    """uint8 [T, H, W, 3]."""
    motion: str
    game: str
    split: str


def held(game: ale_py.ALEInterface, action: ale_py.Action) -> NDArray[np.uint8]:
    """Frames uint8 [T, 210, 160, 3] while one direction is held, from the state as it is."""
    frames = []
    for tic in range(TICS):
        game.act(action)
        if tic % KEEP_EVERY == 0:
            frames.append(game.getScreenRGB())
    return np.stack(frames)


def differing(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where two pictures differ, [H, W]."""
    return np.abs(one.astype(int) - other).max(-1) > CHANGED


def record(game: ale_py.ALEInterface, motion: str) -> NDArray[np.uint8] | None:
    """Hold one direction and record; None where the directions cannot be told apart.

    The game goes on from the end of what was recorded.
    """
    state = game.cloneState()
    all_frames = {}
    for name in sorted(MOTIONS, key=lambda name: name == motion):  # the one to go on from is last
        game.restoreState(state)
        all_frames[name] = held(game, MOTIONS[name])
        if game.game_over():
            return None
    frames = all_frames.pop(motion)
    maps = [differing(frames[-1], other[-1]) for other in all_frames.values()]
    if min(int(where.sum()) for where in maps) < LEAST:
        return None
    # What moves lies where the directions first part.
    for frame in range(1, len(frames)):
        where = [differing(frames[frame], other[frame]) for other in all_frames.values()]
        rows, columns = np.nonzero(np.any(where, axis=0))
        if len(rows) >= LEAST:
            break
    height, width = frames.shape[1:3]
    top = int(np.clip(np.median(rows) - WINDOW // 2, 0, height - WINDOW))
    left = int(np.clip(np.median(columns) - WINDOW // 2, 0, width - WINDOW))
    if not maps[0][top : top + WINDOW, left : left + WINDOW].any():
        return None
    return frames[:, top : top + WINDOW, left : left + WINDOW]


def clips(count: int, size: int, seed: int) -> Iterator[Clip]:
    """`count` clips: all games and directions equally often, as far as a game has such moments."""
    random = np.random.default_rng(seed)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    for name in GAMES:
        game = ale_py.ALEInterface()
        game.setInt("random_seed", seed)
        game.setFloat("repeat_action_probability", 0.0)
        game.loadROM(roms.get_rom_path(name))
        made, tried, walk, split = 0, 0, 0, "train"
        while made < -(-count // len(GAMES)) and tried < TRIES:
            if walk == 0 or game.game_over():
                game.reset_game()
                walk, u = WALK, random.random()
                split = "train" if u < 0.7 else "validation" if u < 0.8 else "test"
                game.act(ale_py.Action.FIRE)
            walk -= 1
            action = list(MOTIONS.values())[random.integers(4)]
            for _ in range(int(random.integers(2, 24))):
                game.act(action)
            tried += 1
            motion = list(MOTIONS)[made % 4]
            frames = None if game.game_over() else record(game, motion)
            if frames is None:
                continue
            made += 1
            pictures = [Image.fromarray(frame).resize((size, size)) for frame in frames]
            yield Clip(np.stack([np.asarray(p) for p in pictures]), motion, name, split)
        print(f"{name}: {made} clips of {tried} moments", flush=True)


def main() -> None:
    """Write the clips and a table of their labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--size", type=int, default=60, help="side of a clip in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = new_folder(arguments.out)
    with (out / "clips.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["path", "split", "motion", "game"])
        for number, clip in enumerate(clips(arguments.clips, arguments.size, arguments.seed)):
            path = out / "clips" / f"{number:06d}.mp4"
            write_clip(path, clip.frames, 12)
            writer.writerow([f"clips/{path.name}", clip.split, clip.motion, clip.game])


if __name__ == "__main__":
    main()
