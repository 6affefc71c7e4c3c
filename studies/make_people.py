"""Simulated people with boxes, from PyBullet's motion capture, in AVA's files.

One to three jointed figures a clip move as fifteen recorded motions say (walk, run, kick, ...),
before textured, panning backgrounds. Each box of a key frame has up to three classes: the action;
whether it runs forwards or backwards in time, where that means something (a single frame does not
tell); and whether another is near.

    pip install 'open-vjepa[people]'
    python studies/make_people.py --out people --train 400 --test 150
    vjepa data index people/clips.csv --out people/manifest.parquet
    vjepa data ava people/train.csv --videos people/manifest.parquet --out people/train.parquet \
        --label_map people/actions.pbtxt --persons "[people/train_persons.csv]" \
        --min_person_score 0.8 --match_persons 0.9

Splits differ by seed, by the directions from which people are seen, by phases and backgrounds; the
performers are the same, so nothing is said about other people. Simulated: write so in every table.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pybullet
import pybullet_data
from numpy.typing import NDArray
from PIL import Image

from vjepa.demo.synthetic import SyntheticConfig, draw_scene
from vjepa.demo.synthetic_boxes import shaken
from vjepa.reporting.pictures import write_moving
from vjepa.runtime.progress import Progress

ACTIONS = (
    *("walk", "run", "jump", "kick", "punch", "crawl", "roll", "cartwheel", "backflip", "spin"),
    *("spinkick", "getup_facedown", "getup_faceup", "dance_a", "dance_b"),
)
DIRECTED = ("walk", "run", "jump", "kick", "roll", "getup_facedown", "getup_faceup")
"""Actions that are another thing when they run backwards."""
WRAPPED = ("walk", "run")
CLASSES = (*ACTIONS, "forwards", "backwards", "near_another")

FPS = 15
FRAMES = 24
KEY_FRAMES = (8, 16)
STEP = 2 / 30  # seconds of the motion a frame
_JOINTS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13)  # chest, neck, right hip, knee, ankle, ...
_HINGES = (4, 7, 10, 13)  # knees and elbows, which have one number
_METRES = 2.3  # that a rendered square shows
_FOLLOWED = 0.8  # share of a person's way that the camera goes along
_LEAST_VISIBLE = 0.4
_NEAR = 0.35  # of the frame, between two boxes' centres


@dataclass(frozen=True)
class Motion:
    """Recorded poses [n, 43]: root position and rotation, joints; `times` [n] in seconds."""

    times: NDArray[np.float64]
    poses: NDArray[np.float64]
    wraps: bool

    def at(self, second: float) -> NDArray[np.float64]:
        """The pose at a time; past the ends a walk goes on and all else stands still."""
        length, drift = float(self.times[-1]), np.zeros(3)
        if self.wraps:
            rounds = math.floor(second / length)
            second -= rounds * length
            drift = rounds * (self.poses[-1, :3] - self.poses[0, :3]) * (1, 0, 1)
        second = min(max(second, 0.0), length)
        after = min(int(np.searchsorted(self.times, second, side="right")), len(self.times) - 1)
        before = max(after - 1, 0)
        gap = self.times[after] - self.times[before]
        share = 0.0 if gap == 0 else (second - self.times[before]) / gap
        one, other = self.poses[before], self.poses[after]
        pose = (1 - share) * one + share * other
        for start in _quaternions():
            here = slice(start, start + 4)
            pose[here] = _slerp(one[here], other[here], share)
        pose[:3] += drift
        return pose


def read_motion(name: str) -> Motion:
    """One of the recordings that come with the package."""
    path = Path(pybullet_data.getDataPath()) / "data" / "motions" / f"humanoid3d_{name}.txt"
    rows = np.array(json.loads(path.read_text())["Frames"], dtype=np.float64)
    times = np.concatenate([[0.0], np.cumsum(rows[:-1, 0])])
    return Motion(times, rows[:, 1:44], name in WRAPPED)


def _quaternions() -> list[int]:
    """Where the rotations (w, x, y, z) of a pose begin."""
    found, place = [3], 7
    for joint in _JOINTS:
        if joint not in _HINGES:
            found.append(place)
        place += 1 if joint in _HINGES else 4
    return found


def _slerp(
    one: NDArray[np.float64], other: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    dot = float(one @ other)
    other, dot = (-other, -dot) if dot < 0 else (other, dot)
    angle = math.acos(min(dot, 1.0))
    if angle < 1e-4:
        mixed = (1 - share) * one + share * other
    else:
        mixed = math.sin((1 - share) * angle) * one + math.sin(share * angle) * other
    return mixed / np.linalg.norm(mixed)


class Figure:
    """The jointed figure, alone in its world."""

    def __init__(self) -> None:
        """Load it; no display is needed."""
        pybullet.connect(pybullet.DIRECT)
        pybullet.setAdditionalSearchPath(pybullet_data.getDataPath())
        self._body = pybullet.loadURDF(
            "humanoid/humanoid.urdf", globalScaling=0.25, flags=pybullet.URDF_MAINTAIN_LINK_ORDER
        )

    def dress(self, rng: np.random.Generator) -> None:
        """A colour for each limb."""
        for link in range(-1, pybullet.getNumJoints(self._body)):
            colour = [*rng.uniform(0.15, 1.0, size=3), 1.0]
            pybullet.changeVisualShape(self._body, link, rgbaColor=colour)

    def take(self, pose: NDArray[np.float64]) -> tuple[float, float, float]:
        """Take a pose; where its root is then, z up."""
        upright = pybullet.getQuaternionFromEuler((math.pi / 2, 0, 0))
        x, y, z = pose[:3]
        w, *vector = pose[3:7]
        root = (float(x), float(-z), float(y))
        _, turned = pybullet.multiplyTransforms((0, 0, 0), upright, (0, 0, 0), (*vector, w))
        pybullet.resetBasePositionAndOrientation(self._body, root, turned)
        place = 7
        for joint in _JOINTS:
            if joint in _HINGES:
                pybullet.resetJointState(self._body, joint, pose[place])
                place += 1
                continue
            w, *vector = pose[place : place + 4]
            pybullet.resetJointStateMultiDof(self._body, joint, (*vector, w))
            place += 4
        return root

    def look(
        self, target: tuple[float, float, float], yaw: float, pitch: float, side: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels [side, side, 3] and where the figure is in them [side, side]."""
        view = pybullet.computeViewMatrixFromYawPitchRoll(target, 6.0, yaw, -pitch, 0, 2)
        field = 2 * math.degrees(math.atan(_METRES / 2 / 6.0))
        lens = pybullet.computeProjectionMatrixFOV(field, 1.0, 0.1, 20.0)
        *_, pixels, _, mask = pybullet.getCameraImage(
            side, side, view, lens, shadow=0, renderer=pybullet.ER_TINY_RENDERER
        )
        picture = np.asarray(pixels, dtype=np.uint8).reshape(side, side, 4)[..., :3]
        return picture, np.asarray(mask).reshape(side, side) == self._body


@dataclass(frozen=True)
class Person:
    """One person of a clip: pixels and mask in the whole frame, and what he does."""

    pixels: NDArray[np.uint8]  # [T, H, W, 3]
    mask: NDArray[np.bool_]  # [T, H, W]
    labels: tuple[int, ...]


def draw_person(
    figure: Figure, motions: dict[str, Motion], rng: np.random.Generator, size: int, is_test: bool
) -> Person:
    """A person of random action, direction, speed, phase, scale, place and colours."""
    name = ACTIONS[rng.integers(len(ACTIONS))]
    motion = motions[name]
    backwards = name in DIRECTED and rng.random() < 0.5
    labels = [1 + ACTIONS.index(name)]
    if name in DIRECTED:
        labels.append(1 + CLASSES.index("backwards" if backwards else "forwards"))
    figure.dress(rng)
    step = STEP * rng.uniform(0.8, 1.2)
    spare = motion.times[-1] if motion.wraps else max(motion.times[-1] - FRAMES * step, 0.0)
    seconds = rng.uniform(0.0, max(spare, 1e-6)) + np.arange(FRAMES) * step
    seconds = seconds[::-1] if backwards else seconds
    # Directions of the test lie between those of the training.
    yaw = 45.0 * rng.integers(8) + (22.5 if is_test else 0.0) + rng.uniform(-10, 10)
    pitch, side = rng.uniform(0, 20), int(size * rng.uniform(0.45, 1.1))
    poses = [motion.at(float(second)) for second in seconds]
    middle = np.mean([pose[:3] for pose in poses], axis=0)
    left, top = rng.integers(-side // 5, size - side + side // 5 + 1, size=2)
    pixels = np.zeros((FRAMES, size, size, 3), dtype=np.uint8)
    mask = np.zeros((FRAMES, size, size), dtype=bool)
    for number, pose in enumerate(poses):
        x, y, _ = figure.take(pose)
        target = (
            float(middle[0] + _FOLLOWED * (x - middle[0])),
            float(-middle[2] + _FOLLOWED * (y + middle[2])),
            0.8,
        )
        picture, where = figure.look(target, yaw, pitch, side)
        y, x = (
            slice(max(top, 0), min(top + side, size)),
            slice(max(left, 0), min(left + side, size)),
        )
        part = (slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left))
        pixels[number, y, x], mask[number, y, x] = picture[part], where[part]
    return Person(pixels, mask, tuple(labels))


Row = tuple[float, tuple[float, ...], tuple[int, ...]]


def draw_clip(
    figure: Figure, motions: dict[str, Motion], seed: int, number: int, size: int, is_test: bool
) -> tuple[list[NDArray[np.uint8]], list[Row]]:
    """A clip's frames, and a row (second, box, labels) for each visible person of a key frame."""
    rng = np.random.default_rng([seed, int(is_test), number])
    scene = SyntheticConfig(size=size, num_distractors=0)
    frames = np.clip(draw_scene(scene, rng, FRAMES)[0] * 255, 0, 255).astype(np.uint8)
    people = [
        draw_person(figure, motions, rng, size, is_test) for _ in range(1 + int(rng.integers(3)))
    ]
    for person in people:
        frames[person.mask] = person.pixels[person.mask]
    rows = []
    for at in KEY_FRAMES:
        seen = []
        for place, person in enumerate(people):
            visible = person.mask[at].copy()
            for later in people[place + 1 :]:
                visible &= ~later.mask[at]
            if visible.sum() >= max(20, _LEAST_VISIBLE * person.mask[at].sum()):
                seen.append((_box_of(visible), person.labels))
        centres = [np.array([box[0] + box[2], box[1] + box[3]]) / 2 for box, _ in seen]
        for place, (box, labels) in enumerate(seen):
            others = centres[:place] + centres[place + 1 :]
            near = any(np.linalg.norm(centres[place] - other) < _NEAR for other in others)
            rows.append((at / FPS, box, (*labels, len(CLASSES)) if near else labels))
    return list(frames), rows


def _box_of(mask: NDArray[np.bool_]) -> tuple[float, ...]:
    """The box around a mask, as shares of the frame."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    sides = (columns[0] / width, rows[0] / height)
    return (*sides, (columns[-1] + 1) / width, (rows[-1] + 1) / height)


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=900, metavar="CLIPS")
    parser.add_argument("--test", type=int, default=300, metavar="CLIPS")
    parser.add_argument("--size", type=int, default=96, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="write some frames of the first clips here")
    args = parser.parse_args()
    figure, motions = Figure(), {name: read_motion(name) for name in ACTIONS}
    args.out.mkdir(parents=True, exist_ok=True)
    items = (f'item {{\n  name: "{name}"\n  id: {n}\n}}\n' for n, name in enumerate(CLASSES, 1))
    (args.out / "actions.pbtxt").write_text("".join(items))
    strips = []
    with ExitStack() as stack:
        clips = csv.writer(stack.enter_context((args.out / "clips.csv").open("w", newline="")))
        clips.writerow(("path", "split"))
        progress = stack.enter_context(Progress("people", args.train + args.test))
        for split, count in (("train", args.train), ("test", args.test)):
            truth, found = (
                csv.writer(stack.enter_context((args.out / name).open("w", newline="")))
                for name in (f"{split}.csv", f"{split}_persons.csv")
            )
            noise = np.random.default_rng([args.seed, 7, split == "test"])
            for number in range(count):
                video = f"{split}_{number:05d}"
                frames, rows = draw_clip(
                    figure, motions, args.seed, number, args.size, split == "test"
                )
                write_moving(frames, args.out / split / f"{video}.mp4", 1 / FPS)
                clips.writerow((f"{split}/{video}.mp4", split))
                empty = {at / FPS for at in KEY_FRAMES} - {row[0] for row in rows}
                truth.writerows((video, f"{second:.5f}") for second in sorted(empty))
                for person, (second, box, labels) in enumerate(rows):
                    key = (video, f"{second:.5f}")
                    sides = [f"{side:.4f}" for side in box]
                    truth.writerows((*key, *sides, label, person) for label in labels)
                    if noise.random() < 0.9:
                        moved = [f"{side:.4f}" for side in shaken(box, noise)]
                        found.writerow((*key, *moved, "", f"{noise.uniform(0.85, 1):.4f}"))
                if noise.random() < 0.3:
                    low, high = noise.uniform(0, 0.5, 2), noise.uniform(0.15, 0.4, 2)
                    sides = [f"{side:.4f}" for side in (*low, *(low + high))]
                    key = (video, f"{KEY_FRAMES[0] / FPS:.5f}")
                    found.writerow((*key, *sides, "", f"{noise.uniform(0.7, 0.95):.4f}"))
                if len(strips) < 6:
                    strips.append(np.concatenate([frames[at] for at in (0, 6, 12, 18, 23)], axis=1))
                progress.update(number + 1 + (args.train if split == "test" else 0))
    if args.picture is not None:
        Image.fromarray(np.concatenate(strips)).save(args.picture)


if __name__ == "__main__":
    main()
