"""A synthetic set for detection: several digits that each do something, with a box each.

A clip is a row of segments. In each of them every digit does something else, seamlessly: its box at
the segment's middle (a key frame) has two labels, which digit it is and what it does, and a third
where it stands close to another one. Discs, which mean nothing, are what a detector of people takes
for one now and then. As everything here it is made by a simulator: never report it as footage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vjepa.demo.synthetic import (
    APPEARANCE_CLASSES,
    MOTION_CLASSES,
    SPLITS,
    Array,
    SyntheticConfig,
    Track,
    digit_coverage,
    disturb,
    draw_digit,
    draw_scene,
    load_digits,
    paint,
)

ACTIONS: tuple[str, ...] = (*MOTION_CLASSES[:8], "stand_still")
"""What a digit does in a segment: all that relates to no other, or nothing."""

BOX_CLASSES: tuple[str, ...] = (*ACTIONS, *APPEARANCE_CLASSES, "close_to_another")
"""All labels of a box; class i has the id i + 1."""

_SHIFTS = {0: (-1.0, 0.0), 1: (1.0, 0.0), 2: (0.0, -1.0), 3: (0.0, 1.0)}
_MARGIN = 0.12
_SIDES = (0.6, 1.7)  # smallest and largest, of the mean side
_LEAST_VISIBLE = 0.4
_CLOSE = 1.15  # mean sides between two centres
_NUMBERS = (0, 1, 2, 2, 3, 3, 4, 4)  # of digits, each as likely
_FOUND = 0.9  # share of the digits that a detector finds
_FALSE = 0.5  # and of the discs


@dataclass(frozen=True)
class BoxRow:
    """One box of a key frame, as AVA's files have it; `labels` are ids of classes."""

    second: float
    box: tuple[float, float, float, float]
    labels: tuple[int, ...]
    score: float


def key_seconds(config: SyntheticConfig) -> list[float]:
    """The key frames of every clip, in seconds: one in the middle of each segment."""
    middle = config.num_frames // 2
    return [
        (segment * config.num_frames + middle) / config.fps
        for segment in range(config.num_segments)
    ]


def render_people(config: SyntheticConfig, split: str, index: int) -> NDArray[np.uint8]:
    """The frames of a clip, uint8 [T, H, W, 3], RGB; T is `num_segments` times `num_frames`."""
    rng, rows, tracks, _ = _draw(config, split, index)
    digits = load_digits(split)
    frames, _ = draw_scene(config, rng, config.num_segments * config.num_frames)
    for row, track in zip(rows, tracks, strict=True):
        coverage = digit_coverage(digits.images[row], track, config.size)
        paint(frames, coverage, rng.uniform(0.6, 1.0, size=3))
    disturb(frames, config, rng)
    return np.clip(frames * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)


def boxes_of(config: SyntheticConfig, split: str, index: int) -> tuple[list[BoxRow], list[BoxRow]]:
    """The true boxes of a clip's key frames, and those that a detector of people would find.

    Digits that are mostly hidden by others have none. What is found is some of the true boxes,
    moved and resized to an overlap of 0.6 and more, and some discs.
    """
    rng, rows, tracks, actions = _draw(config, split, index)
    digits, middle = load_digits(split), config.num_frames // 2
    _, discs = draw_scene(config, rng, config.num_segments * config.num_frames)
    noise = np.random.default_rng([config.seed, 3 + SPLITS.index(split), index])
    truth, found = [], []
    for segment, second in enumerate(key_seconds(config)):
        at = segment * config.num_frames + middle
        still = [
            Track(t.centre[at : at + 1], t.side[at : at + 1], t.angle[at : at + 1]) for t in tracks
        ]
        cover = [
            digit_coverage(digits.images[row], track, config.size)[0]
            for row, track in zip(rows, still, strict=True)
        ]
        centres = np.array([track.centre[0] for track in still]).reshape(-1, 2)
        for number, track in enumerate(still):
            seen = cover[number]
            for later in cover[number + 1 :]:
                seen = seen * (1.0 - later)
            if seen.sum() < _LEAST_VISIBLE * cover[number].sum():
                continue
            labels = [1 + actions[number][segment]]
            labels.append(1 + len(ACTIONS) + int(digits.labels[rows[number]]))
            apart = np.linalg.norm(np.delete(centres, number, 0) - centres[number], axis=1)
            if len(apart) and apart.min() < _CLOSE * config.object_size:
                labels.append(len(BOX_CLASSES))
            row = BoxRow(second, _box(track), tuple(labels), 1.0)
            truth.append(row)
            if noise.random() < _FOUND:
                score = float(noise.uniform(0.85, 1.0))
                found.append(BoxRow(second, shaken(row.box, noise), (), score))
        for disc in discs:
            if noise.random() < _FALSE:
                place = Track(disc.centre[at : at + 1], disc.side[at : at + 1], disc.angle[:1])
                box = _box(place)
                if box[0] < box[2] and box[1] < box[3]:
                    found.append(BoxRow(second, box, (), float(noise.uniform(0.7, 0.95))))
    return truth, found


def _draw(
    config: SyntheticConfig, split: str, index: int
) -> tuple[np.random.Generator, list[int], list[Track], list[list[int]]]:
    """A clip's generator and the first things drawn from it: digits, their tracks and actions."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index, 1])
    digits = load_digits(split)
    rows, tracks, actions = [], [], []
    for _ in range(int(rng.choice(_NUMBERS))):
        rows.append(draw_digit(digits, rng))
        track, done = _draw_track(config, rng)
        tracks.append(track)
        actions.append(done)
    return rng, rows, tracks, actions


def _draw_track(config: SyntheticConfig, rng: np.random.Generator) -> tuple[Track, list[int]]:
    """What one digit does in each segment, and where that leads it."""
    centre = rng.uniform(_MARGIN, 1 - _MARGIN, size=2)
    side = config.object_size * rng.uniform(0.85, 1.15)
    angle = rng.uniform(-0.2, 0.2)
    passed = (np.arange(config.num_frames) + 1.0) / config.num_frames
    parts, done = [], []
    for _ in range(config.num_segments):
        amount = rng.uniform(0.75, 1.25)
        zoom = math.exp(math.log(config.zoom) * amount)
        ends = {
            number: centre + config.travel * amount * np.array(way)
            for number, way in _SHIFTS.items()
        }
        can = [k for k, end in ends.items() if np.all((end > _MARGIN) & (end < 1 - _MARGIN))]
        can += [4, 5, 8]
        can += [6] if side * zoom <= _SIDES[1] * config.object_size else []
        can += [7] if side / zoom >= _SIDES[0] * config.object_size else []
        action = int(rng.choice(can))
        end = ends.get(action, centre)
        growth = {6: math.log(zoom), 7: -math.log(zoom)}.get(action, 0.0)
        turn = {4: 1, 5: -1}.get(action, 0) * math.radians(config.rotation_degrees) * amount
        parts.append(
            (
                centre + passed[:, None] * (end - centre),
                side * np.exp(growth * passed),
                angle + turn * passed,
            )
        )
        centre, side, angle = end, side * math.exp(growth), angle + turn
        done.append(action)
    return Track(*(np.concatenate(values) for values in zip(*parts, strict=True))), done


def _box(track: Track) -> tuple[float, float, float, float]:
    """The square around the first pose of a track, cut at the frame's borders."""
    (x, y), half = track.centre[0], track.side[0] / 2
    sides: Array = np.clip([x - half, y - half, x + half, y + half], 0.0, 1.0)
    x1, y1, x2, y2 = (round(float(value), 4) for value in sides)
    return x1, y1, x2, y2


def shaken(box: tuple[float, ...], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box beside another one, at an overlap of 0.6 or more."""
    while True:
        width, height = box[2] - box[0], box[3] - box[1]
        x, y = rng.uniform(-0.15, 0.15, size=2) * (width, height)
        grow = rng.uniform(0.85, 1.15)
        middle = np.array([box[0] + box[2], box[1] + box[3]]) / 2 + (x, y)
        half = np.array([width, height]) / 2 * grow
        low, high = np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
        common = np.prod(np.maximum(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0.0))
        if common / (np.prod(high - low) + width * height - common) >= 0.6:
            x1, y1, x2, y2 = (round(float(value), 4) for value in (*low, *high))
            return x1, y1, x2, y2
