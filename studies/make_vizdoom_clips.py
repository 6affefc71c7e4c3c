"""Labelled clips from a simulator that others made: VizDoom with the maps of Freedoom.

Every clip has two independent labels: `motion`, the one button that is held while it is recorded
(turn left / right, walk forward / back, step left / right), and `map`, the level where it is. The
split is by place: a level's floor is cut into squares, and all clips that begin in a square are in
the same split, so no test clip starts where a training clip did. No monsters, weapon or status bar.

    pip install 'vizdoom==1.3.2'
    python studies/make_vizdoom_clips.py --out data/vizdoom --clips 8000
    vjepa data index data/vizdoom/clips.csv --out data/vizdoom/manifest.parquet

The clips are simulated; a number on them says nothing about camera video.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vizdoom
from clip_files import new_folder, write_clip
from numpy.typing import NDArray
from PIL import Image

MOTIONS = ("turn_left", "turn_right", "forward", "back", "step_left", "step_right")
MAPS = ("map01", "map02", "map03", "map04", "map05", "map06", "map07", "map08", "map09", "map10")
TICS = 32
"""Length of a clip in the game's ticks; every second one is kept."""
KEEP_EVERY = 2
SQUARE = 384.0
"""Side of the squares that the split is made by, in the game's units (the player is 32 wide)."""
WALKED = 96.0
"""A walk that gets less far than this ran into a wall and is dropped, in the game's units."""
CHANGED = 6.0
"""Smallest mean difference between first and last frame of a clip, of 255."""


@dataclass(frozen=True)
class Clip:
    """One recorded clip."""

    frames: NDArray[np.uint8]
    """uint8 [T, H, W, 3]."""
    motion: str
    level: str
    split: str


def open_game(seed: int) -> vizdoom.DoomGame:
    """A game without window, monsters, weapon and status bar; 160 x 120 RGB."""
    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(Path(vizdoom.__file__).parent / "freedoom2.wad"))
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_render_hud(False)
    game.set_render_weapon(False)
    game.set_render_crosshair(False)
    game.set_available_buttons(
        [
            vizdoom.Button.TURN_LEFT,
            vizdoom.Button.TURN_RIGHT,
            vizdoom.Button.MOVE_FORWARD,
            vizdoom.Button.MOVE_BACKWARD,
            vizdoom.Button.MOVE_LEFT,
            vizdoom.Button.MOVE_RIGHT,
        ]
    )
    game.set_available_game_variables(
        [vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y]
    )
    game.add_game_args("-nomonsters")
    game.set_episode_timeout(0)
    game.set_seed(seed)
    game.set_doom_map(MAPS[0])
    game.init()
    return game


def split_of(level: str, x: float, y: float) -> str:
    """Which split a place belongs to: 70 % of the squares train, 10 % validation, 20 % test."""
    square = f"{level}:{int(x // SQUARE)}:{int(y // SQUARE)}"
    u = int.from_bytes(hashlib.sha256(square.encode()).digest()[:4]) / 2**32
    return "train" if u < 0.7 else "validation" if u < 0.8 else "test"


def record(game: vizdoom.DoomGame, motion: int, level: str, size: tuple[int, int]) -> Clip | None:
    """Hold one button and record; None if the player ran into something or nothing changed."""
    action = [float(button == motion) for button in range(len(MOTIONS))]
    start = game.get_state().game_variables
    frames = []
    for tic in range(TICS):
        if tic % KEEP_EVERY == 0:
            picture = Image.fromarray(game.get_state().screen_buffer)
            frames.append(np.asarray(picture.resize(size, Image.Resampling.BOX)))
        game.make_action(action, 1)
        if game.is_episode_finished() or game.is_player_dead():
            return None
    walked = float(np.linalg.norm(game.get_state().game_variables - start))
    clip = np.stack(frames)
    changed = np.abs(clip[-1].astype(float) - clip[0]).mean()
    if changed < CHANGED or (MOTIONS[motion] not in MOTIONS[:2] and walked < WALKED):
        return None
    return Clip(clip, MOTIONS[motion], level, split_of(level, float(start[0]), float(start[1])))


def clips(count: int, size: tuple[int, int], seed: int) -> Iterator[Clip]:
    """`count` clips: all levels and motions equally often, on a random walk through each level."""
    random = np.random.default_rng(seed)
    game = open_game(seed)
    per_level = -(-count // len(MAPS))
    for level in MAPS:
        game.set_doom_map(level)
        game.new_episode()
        made = 0
        while made < per_level:
            if game.is_episode_finished() or game.is_player_dead():
                game.new_episode()
            # Between clips: turn to somewhere, walk a while. The walk drifts through the level.
            for _ in range(int(random.integers(2, 6))):
                button = int(random.choice([0, 1, 2, 2, 2]))
                action = [float(b == button) for b in range(len(MOTIONS))]
                game.make_action(action, int(random.integers(6, 30)))
            if game.is_episode_finished() or game.is_player_dead():
                continue
            clip = record(game, made % len(MOTIONS), level, size)
            if clip is not None:
                made += 1
                yield clip
    game.close()


def main() -> None:
    """Write the clips and a table of their labels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--width", type=int, default=80, help="pixels; the height is 3/4 of it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = new_folder(arguments.out)
    size = (arguments.width, arguments.width * 3 // 4)
    with (
        tempfile.TemporaryDirectory() as scratch,
        (out / "clips.csv").open("w", newline="") as table,
    ):
        os.chdir(scratch)  # the game leaves files where it runs
        writer = csv.writer(table)
        writer.writerow(["path", "split", "motion", "map"])
        for number, clip in enumerate(clips(arguments.clips, size, arguments.seed)):
            path = out / "clips" / f"{number:06d}.mp4"
            write_clip(path, clip.frames, 12)
            writer.writerow([f"clips/{path.name}", clip.split, clip.motion, clip.level])
            if (number + 1) % 1000 == 0:
                print(f"{number + 1} clips", flush=True)


if __name__ == "__main__":
    main()
