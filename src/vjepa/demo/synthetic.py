"""A synthetic labelled video: real handwritten digits that move over textured backgrounds.

A clip is a pure function of the settings, the split and its index. Two independent labels stand on
it: `motion` (what object A does) and `appearance` (which digit A is). It is made by a simulator and
says so: never report it as camera footage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.errors import UserError

MOTION_CLASSES: tuple[str, ...] = (
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "rotate_clockwise",
    "rotate_counterclockwise",
    "approach",
    "recede",
    "pass_in_front",
    "stop_at",
    "turn_back",
)
"""What object A does; the last three relate it to the bystander B."""

APPEARANCE_CLASSES: tuple[str, ...] = tuple(f"digit_{digit}" for digit in range(10))
"""Which handwritten digit object A is."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.3, 0.3),
    "yellow": (1.0, 1.0, 0.3),
    "green": (0.35, 1.0, 0.35),
    "cyan": (0.3, 1.0, 1.0),
    "blue": (0.4, 0.5, 1.0),
    "pink": (1.0, 0.4, 1.0),
}
"""Shares of red, green and blue that a set with colours takes of a light colour."""

SPLITS: tuple[str, ...] = ("train", "validation", "test")
"""Splits share no digit image: a test digit was never seen in training."""


@config_dataclass
class SyntheticConfig:
    """Everything that decides the pixels and the labels of a synthetic set.

    The defaults are the setting of the demo. Lengths and speeds are fractions of the frame's
    side, so that the same clip can be drawn at any size.
    """

    num_clips_train: Annotated[int, Field(ge=0)] = 12000
    """Clips in the training split."""
    num_clips_validation: Annotated[int, Field(ge=0)] = 500
    """Clips in the validation split."""
    num_clips_test: Annotated[int, Field(ge=0)] = 1500
    """Clips in the test split."""
    num_frames: Annotated[int, Field(ge=2)] = 8
    """Frames in a clip."""
    size: Annotated[int, Field(ge=16)] = 40
    """Height and width of a frame in pixels; even, since yuv420p demands it."""
    fps: Annotated[int, Field(ge=1)] = 8
    """Frames per second written into the files."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Clip `index` of a split is a pure function of this seed, the split and the index."""
    num_distractors: Annotated[int, Field(ge=0)] = 2
    """Coloured discs that drift across the frame without meaning anything."""
    object_size: Annotated[float, Field(ge=0.1, le=0.5)] = 0.36
    """Mean side of the digits A and B."""
    travel: Annotated[float, Field(ge=0.1, le=0.6)] = 0.42
    """Mean distance that A covers in a clip in which it moves."""
    rotation_degrees: Annotated[float, Field(ge=10, le=360)] = 130.0
    """Mean angle by which A turns in a clip in which it rotates."""
    zoom: Annotated[float, Field(ge=1.1, le=4)] = 2.0
    """Mean ratio of A's largest to its smallest size in a clip in which it approaches."""
    background_contrast: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Standard deviation of the background's texture, of a range of 0 to 1."""
    background_speed: Annotated[float, Field(ge=0, le=2)] = 0.3
    """Largest distance by which the background pans in a clip."""
    background_grain: Annotated[int, Field(ge=2)] = 10
    """Cells of the background's finer texture along the frame's side."""
    flicker: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of smooth texture that is new in every frame, like light on water:
    it cannot be predicted, and it covers everything."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of a camera's grain, new in every pixel of every frame."""
    boxes: bool = False
    """A set for detection instead: several digits a clip, each with a box, its digit and what it
    does, in AVA's files. Give it larger frames (`--size 64 --object_size 0.25 --travel 0.26`)."""
    colours: bool = False
    """Digits in six colours (red, yellow, green, cyan, blue, pink) in place of any light one, and
    a third label: which of them A has. B's is drawn without regard to it."""
    num_segments: Annotated[int, Field(ge=1)] = 3
    """With `boxes`: a clip is so many times `num_frames` long; in each part every digit does
    something else, and the middle of each is a key frame."""

    def __post_init__(self) -> None:
        if self.size % 2:
            raise ValueError(f"size must be even, got {self.size}")
        if self.boxes and self.colours:
            raise ValueError("colours: a set with boxes has none; leave one of the two out")
        if not self.boxes and self.num_segments != SyntheticConfig.num_segments:
            raise ValueError(
                "num_segments: is of a set with boxes; give --boxes true, or leave it out"
            )

    def num_clips(self, split: str) -> int:
        """Number of clips of one split."""
        numbers = (self.num_clips_train, self.num_clips_validation, self.num_clips_test)
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        return numbers[SPLITS.index(split)]


Array = NDArray[np.float64]
Image = NDArray[np.float32]

_MARGIN = 0.16
_ATTEMPTS = 12
_DIRECTIONS = {
    "move_left": (-1.0, 0.0),
    "move_right": (1.0, 0.0),
    "move_up": (0.0, -1.0),
    "move_down": (0.0, 1.0),
}
_MEETINGS = {
    "pass_in_front": lambda time: 1.0 - 2.0 * time,
    "stop_at": lambda time: np.maximum(1.0 - time / 0.6, 0.0),
    "turn_back": lambda time: np.abs(1.0 - 2.0 * time),
}
"""Place of A along its line at each time: 1 the start, 0 the meeting point."""


@dataclass(frozen=True)
class Track:
    """The poses of one object; lengths are fractions of the frame's side."""

    centre: Array
    """[T, 2], x and y."""
    side: Array
    """[T]."""
    angle: Array
    """[T], clockwise, in radians."""


def draw_tracks(
    config: SyntheticConfig, motion: str, rng: np.random.Generator
) -> tuple[Track, Track]:
    """Draw the tracks of A, which does `motion`, and of B, which stands still."""
    time = np.linspace(0.0, 1.0, config.num_frames)
    side_a, side_b = config.object_size * rng.uniform(0.85, 1.15, size=2)
    tilt_a, tilt_b = rng.uniform(-0.2, 0.2, size=2)
    if motion in _DIRECTIONS:
        # Straight, and inside the frame all the time.
        shift = np.array(_DIRECTIONS[motion]) * config.travel * rng.uniform(0.75, 1.25)
        low = _MARGIN + np.maximum(-shift, 0.0)
        high = 1.0 - _MARGIN - np.maximum(shift, 0.0)
        start = rng.uniform(np.minimum(low, high), np.maximum(low, high))
        centre = start + time[:, None] * shift
        place_b = _place_apart(centre, 0.75 * config.object_size, rng)
    elif motion in _MEETINGS:
        # Towards B: across it, up to its side, or nearly there and back.
        place_b = rng.uniform(0.35, 0.65, size=2)
        heading = rng.uniform(0.0, 2.0 * math.pi)
        length = config.travel * rng.uniform(0.75, 1.25)
        crosses = motion == "pass_in_front"
        gap, reach = (0.0, 0.5) if crosses else (0.8 * config.object_size, 0.75)
        along = gap + reach * length * _MEETINGS[motion](time)
        centre = place_b + along[:, None] * np.array([math.cos(heading), math.sin(heading)])
    else:
        centre = np.tile(rng.uniform(0.25, 0.75, size=2), (config.num_frames, 1))
        place_b = _place_apart(centre, 0.75 * config.object_size, rng)
    turn = {"rotate_clockwise": 1, "rotate_counterclockwise": -1}.get(motion, 0)
    growth = {"approach": 1, "recede": -1}.get(motion, 0)
    amount = rng.uniform(0.75, 1.25)
    angle = tilt_a + turn * math.radians(config.rotation_degrees) * amount * time
    side = side_a * np.exp(growth * math.log(config.zoom) * amount * (time - 0.5))
    still = Track(
        np.tile(place_b, (config.num_frames, 1)),
        np.full_like(time, side_b),
        np.full_like(time, tilt_b),
    )
    return Track(centre, side, angle), still


def _place_apart(path: Array, distance: float, rng: np.random.Generator) -> Array:
    """A place for B at `distance` or more from A's path, or the farthest of those tried."""
    tried = rng.uniform(_MARGIN, 1.0 - _MARGIN, size=(_ATTEMPTS, 2))
    gaps = np.linalg.norm(tried[:, None] - path[None], axis=-1).min(axis=1)
    far_enough = np.flatnonzero(gaps >= distance)
    return tried[far_enough[0]] if len(far_enough) else tried[int(gaps.argmax())]


_GREY_MAXIMUM = 16
_PARTS = {"train": (0.0, 0.7), "validation": (0.7, 0.8), "test": (0.8, 1.0)}


@dataclass(frozen=True)
class DigitSet:
    """Digit images of one split."""

    images: Image
    """[N, 8, 8], 0 (paper) to 1 (ink)."""
    labels: NDArray[np.int64]
    """[N], the digit."""
    ids: NDArray[np.int64]
    """[N], row of the image in `digits.npz`: the identity of the object."""


@cache
def load_digits(split: str) -> DigitSet:
    """Load the digits of `split`; splits are disjoint and hold every class in equal shares."""
    with (resources.files("vjepa.demo") / "digits.npz").open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    first, last = _PARTS[split]
    chosen = []
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        chosen.append(rows[round(first * len(rows)) : round(last * len(rows))])
    ids = np.sort(np.concatenate(chosen))
    return DigitSet(images[ids].astype(np.float32) / _GREY_MAXIMUM, labels[ids], ids)


def draw_scene(
    config: SyntheticConfig, rng: np.random.Generator, num_frames: int
) -> tuple[Image, list[Track]]:
    """Background and distractors `[T, H, W, 3]`, 0 to 1: smooth noise that slides, and discs.

    And the tracks of the discs.
    """
    size, grain = config.size, config.background_grain
    time = np.linspace(0.0, 1.0, num_frames)
    pan = rng.uniform(-1.0, 1.0, size=2) * config.background_speed  # x, y over the clip
    offset = time[:, None] * pan + np.maximum(-pan, 0.0)
    axis = np.arange(size) / size
    columns, rows = axis + offset[:, :1], axis + offset[:, 1:]
    frames = np.zeros((num_frames, size, size, 3), dtype=np.float32)
    for cells, share in ((max(2, round(0.4 * grain)), 0.75), (grain, 0.66)):
        height, width = np.ceil((1.0 + np.abs(pan[::-1])) * cells).astype(int) + 2
        noise = rng.standard_normal((height, width, 1)) * 0.85
        noise = (noise + rng.standard_normal((height, width, 3)) * 0.5).astype(np.float32)
        across = np.einsum("txw,hwc->thxc", _linear_weights(columns * cells, width), noise)
        frames += share * np.einsum("tyh,thxc->tyxc", _linear_weights(rows * cells, height), across)
    frames = np.clip(0.35 + config.background_contrast * frames, 0.0, 1.0).astype(np.float32)
    discs = []
    for _ in range(config.num_distractors):
        start = rng.uniform(0.0, 1.0, size=2)
        shift = rng.uniform(-1.0, 1.0, size=2) * config.travel
        side = np.full_like(time, rng.uniform(0.12, 0.25))
        track = Track(start + time[:, None] * shift, side, np.zeros_like(time))
        u, v = _object_coordinates(track, size)
        edge = (0.5 - np.sqrt(u * u + v * v)) * track.side[:, None, None].astype(np.float32) * size
        paint(frames, np.clip(edge + 0.5, 0.0, 1.0), rng.uniform(0.1, 0.8, size=3))
        discs.append(track)
    return frames, discs


def _linear_weights(places: Array, count: int) -> Image:
    """Hat functions: weight `[T, N, count]` of each grid line at each of `places` `[T, N]`."""
    distance = np.abs(places[..., None] - np.arange(count))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def disturb(frames: Image, config: SyntheticConfig, rng: np.random.Generator) -> None:
    """Add what no one can predict to `frames` `[T, H, W, 3]` in place: flicker and grain."""
    num_frames, size = frames.shape[:2]
    if config.flicker > 0:
        lines = 6
        grid = rng.standard_normal((num_frames, lines, lines, 3), dtype=np.float32)
        weights = _linear_weights((np.arange(size) / size * (lines - 1))[None], lines)[0]
        smooth = np.einsum("yh,thwc,xw->tyxc", weights, grid, weights, optimize=True)
        frames += config.flicker * smooth
    if config.noise > 0:
        frames += config.noise * rng.standard_normal(frames.shape, dtype=np.float32)


def digit_coverage(digit: Image, track: Track, size: int) -> Image:
    """Coverage `[T, size, size]`, 0 to 1, of a `[8, 8]` digit that follows `track`."""
    cells = digit.shape[0]
    # Half its diagonal and its soft border: beyond there is nothing to compute.
    reach = (0.5 + 0.5 / cells) * math.sqrt(2) * track.side[:, None]
    low = np.floor((track.centre - reach).min(axis=0) * size).clip(0, size).astype(int)
    high = np.ceil((track.centre + reach).max(axis=0) * size).clip(0, size).astype(int)
    window = (slice(None), slice(low[1], high[1]), slice(low[0], high[0]))
    u, v = (x[window] for x in _object_coordinates(track, size))
    padded = np.pad(digit, 1)
    column = np.clip((u + 0.5) * cells + 0.5, 0.0, cells + 0.999)
    row = np.clip((v + 0.5) * cells + 0.5, 0.0, cells + 0.999)
    left, top = column.astype(np.int32), row.astype(np.int32)
    across, down = column - left, row - top
    flat, stride = padded.ravel(), cells + 2
    corner = top * stride + left
    upper = flat[corner] * (1 - across) + flat[corner + 1] * across
    lower = flat[corner + stride] * (1 - across) + flat[corner + stride + 1] * across
    ink = upper * (1 - down) + lower * down
    coverage = np.zeros((len(track.side), size, size), dtype=ink.dtype)
    coverage[window] = np.clip(2.0 * ink - 0.4, 0.0, 1.0)
    return coverage


def _object_coordinates(track: Track, size: int) -> tuple[Image, Image]:
    """Pixel centres in the object's own frame, in which it fills -0.5 to 0.5: two `[T, H, W]`."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    centre = track.centre.astype(np.float32)
    side = track.side.astype(np.float32)
    x = axis[None, None, :] - centre[:, 0, None, None]
    y = axis[None, :, None] - centre[:, 1, None, None]
    cosine = (np.cos(track.angle) / side).astype(np.float32)[:, None, None]
    sine = (np.sin(track.angle) / side).astype(np.float32)[:, None, None]
    return cosine * x + sine * y, cosine * y - sine * x


def paint(frames: Image, coverage: Image, colour: Array) -> None:
    """Paint `colour` `[3]` over `frames` `[T, H, W, 3]` in place, as far as `coverage` says."""
    rows, columns = (np.flatnonzero(coverage.any(axis=axis)) for axis in ((0, 2), (0, 1)))
    if len(rows):
        part = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        frames[part] += coverage[part][..., None] * (colour.astype(np.float32) - frames[part])


@dataclass(frozen=True)
class SyntheticClip:
    """A drawn clip and everything that is known about it."""

    frames: NDArray[np.uint8]
    """[T, H, W, 3], RGB."""
    motion: str
    appearance: str
    centre_a: Array
    """[T, 2], x and y, fractions of the frame's side."""
    centre_b: Array


def render_clip(config: SyntheticConfig, split: str, index: int) -> SyntheticClip:
    """Draw clip `index` of `split`; the same arguments always give the same pixels."""
    rng, motion, row_a = _draw_labels(config, split, index)
    digits = load_digits(split)
    row_b = draw_digit(digits, rng)
    track_a, track_b = draw_tracks(config, motion, rng)
    frames, _ = draw_scene(config, rng, config.num_frames)
    colours = draw_colours(config, split, index)
    for row, track, colour in ((row_b, track_b, colours[1]), (row_a, track_a, colours[0])):
        coverage = digit_coverage(digits.images[row], track, config.size)
        paint(frames, coverage, rng.uniform(0.6, 1.0, size=3) * COLOURS.get(colour, 1.0))
    disturb(frames, config, rng)
    return SyntheticClip(
        frames=np.clip(frames * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8),
        motion=motion,
        appearance=APPEARANCE_CLASSES[digits.labels[row_a]],
        centre_a=track_a.centre,
        centre_b=track_b.centre,
    )


def clip_labels(config: SyntheticConfig, split: str, index: int) -> tuple[str, ...]:
    """The motion and the appearance of a clip, and with colours A's, without drawing it."""
    _, motion, row_a = _draw_labels(config, split, index)
    appearance = APPEARANCE_CLASSES[load_digits(split).labels[row_a]]
    return motion, appearance, *draw_colours(config, split, index)[: int(config.colours)]


def draw_colours(config: SyntheticConfig, split: str, index: int) -> tuple[str, str]:
    """The names of A's and B's colours; empty in a set without colours."""
    if not config.colours:
        return "", ""
    # A stream of its own: with colours, too, all else is drawn as without.
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index, 2])
    first, second = rng.integers(len(COLOURS), size=2)
    return tuple(COLOURS)[first], tuple(COLOURS)[second]


def _draw_labels(
    config: SyntheticConfig, split: str, index: int
) -> tuple[np.random.Generator, str, int]:
    """A clip's random generator, and the first things drawn from it: its motion and digit A."""
    count = config.num_clips(split)
    if not 0 <= index < count:
        raise UserError(f"clip {index} of split {split!r}: it has {count} clips")
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    motion = MOTION_CLASSES[rng.integers(len(MOTION_CLASSES))]
    return rng, motion, draw_digit(load_digits(split), rng)


def draw_digit(digits: DigitSet, rng: np.random.Generator) -> int:
    """Draw a class first, so that classes are equally frequent, then one of its images."""
    digit = rng.integers(len(APPEARANCE_CLASSES))
    return int(rng.choice(np.flatnonzero(digits.labels == digit)))


EVENTS = ("vanishes", "jumps", "turns back", "stops", "other digit", "other colour")
"""What cannot be, planted in a clip: a digit that moves straight beside one that stands still, over
a panning background, does at some frame what its past does not tell. In the twin of the clip it
goes on; until then both are the same."""


def render_event(
    config: SyntheticConfig, number: int, event: str | None
) -> tuple[NDArray[np.uint8], int]:
    """Clip `number` of test digits with an event, or None: frames [T, H, W, 3], and its frame.

    The event is at a frame drawn from T/2 to 3T/4.
    """
    rng, digits = np.random.default_rng(number), load_digits("test")
    motion = tuple(_DIRECTIONS)[rng.integers(len(_DIRECTIONS))]
    first, still, other = rng.integers(len(digits.images), size=3)
    moving, standing = draw_tracks(config, motion, rng)
    when = int(rng.integers(config.num_frames // 2, config.num_frames * 3 // 4 + 1))
    frames, _ = draw_scene(config, rng, config.num_frames)
    colours = rng.uniform(0.6, 1.0, size=(2, 3))
    if config.colours:
        colours *= rng.choice(list(COLOURS.values()), size=2)
    paint(frames, digit_coverage(digits.images[still], standing, config.size), colours[0])
    centre = moving.centre.copy()
    if event == "jumps":
        centre[when:] += np.where(centre[when] > 0.5, -0.35, 0.35)
    elif event == "turns back":
        back = np.maximum(2 * (when - 1) - np.arange(when, len(centre)), 0)
        centre[when:] = moving.centre[back]
    elif event == "stops":
        centre[when:] = centre[when - 1]
    track = Track(centre, moving.side, moving.angle)
    coverage = digit_coverage(digits.images[first], track, config.size)
    if event == "vanishes":
        coverage[when:] = 0
    elif event == "other digit":
        while digits.labels[other] == digits.labels[first]:
            other = (other + 1) % len(digits.images)
        coverage[when:] = digit_coverage(digits.images[other], track, config.size)[when:]
    paint(frames[:when], coverage[:when], colours[1])
    after = colours[1][::-1] * (0.3, 1, 1) if event == "other colour" else colours[1]
    paint(frames[when:], coverage[when:], np.asarray(after))
    return np.clip(frames * 255 + 0.5, 0, 255).astype(np.uint8), when
