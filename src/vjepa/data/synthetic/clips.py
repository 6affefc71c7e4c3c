"""One clip as a pure function of the settings, the split and the clip's index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vjepa.data.synthetic.config import (
    APPEARANCE_CLASSES,
    MOTION_CLASSES,
    SPLITS,
    SyntheticConfig,
)
from vjepa.data.synthetic.digits import DigitSet, load_digits
from vjepa.data.synthetic.motion import Track, draw_tracks
from vjepa.data.synthetic.rendering import (
    add_disturbance,
    digit_coverage,
    disc_coverage,
    draw_background,
    paint,
)
from vjepa.errors import UserError


@dataclass(frozen=True)
class SyntheticClip:
    """A drawn clip and everything that is known about it.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, RGB.
        motion: one of `MOTION_CLASSES`.
        appearance: one of `APPEARANCE_CLASSES`: the digit that A is.
        split: the split it belongs to.
        index: its index in that split.
        digit_a: row of A's image in the digit archive (the identity of the object).
        digit_b: row of B's image in the digit archive.
        centre_a: float64 `[T, 2]`, x and y of A's centre, fractions of the side.
        centre_b: float64 `[T, 2]`, the same of B.
    """

    frames: NDArray[np.uint8]
    motion: str
    appearance: str
    split: str
    index: int
    digit_a: int
    digit_b: int
    centre_a: NDArray[np.float64]
    centre_b: NDArray[np.float64]


def render_clip(config: SyntheticConfig, split: str, index: int) -> SyntheticClip:
    """Draw clip `index` of `split`; the same arguments always give the same pixels."""
    rng, motion, row_a = _draw_labels(config, split, index)
    digits = load_digits(split)
    row_b = _draw_digit(digits, rng)
    track_a, track_b = draw_tracks(config, motion, rng)
    frames = _draw_scene(config, rng)
    for row, track in ((row_b, track_b), (row_a, track_a)):
        coverage = digit_coverage(digits.images[row], track, config.size)
        paint(frames, coverage, _bright_colour(rng))
    add_disturbance(frames, config.flicker, config.noise, rng)
    return SyntheticClip(
        frames=np.clip(frames * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8),
        motion=motion,
        appearance=APPEARANCE_CLASSES[digits.labels[row_a]],
        split=split,
        index=index,
        digit_a=int(digits.ids[row_a]),
        digit_b=int(digits.ids[row_b]),
        centre_a=track_a.centre,
        centre_b=track_b.centre,
    )


def clip_labels(config: SyntheticConfig, split: str, index: int) -> tuple[str, str]:
    """The motion and the appearance of a clip, without drawing it."""
    _, motion, row_a = _draw_labels(config, split, index)
    return motion, APPEARANCE_CLASSES[load_digits(split).labels[row_a]]


def _draw_labels(
    config: SyntheticConfig, split: str, index: int
) -> tuple[np.random.Generator, str, int]:
    """A clip's random generator, and the first things drawn from it: its motion and digit A."""
    count = config.num_clips(split)
    if not 0 <= index < count:
        raise UserError(f"clip {index} of split {split!r}: it has {count} clips")
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    motion = MOTION_CLASSES[rng.integers(len(MOTION_CLASSES))]
    return rng, motion, _draw_digit(load_digits(split), rng)


def _draw_digit(digits: DigitSet, rng: np.random.Generator) -> int:
    """Draw a class first, so that classes are equally frequent, then one of its images."""
    digit = rng.integers(len(APPEARANCE_CLASSES))
    return int(rng.choice(np.flatnonzero(digits.labels == digit)))


def _draw_scene(config: SyntheticConfig, rng: np.random.Generator) -> NDArray[np.float32]:
    """Background and distractors `[T, H, W, 3]`, float32 in 0 to 1."""
    pan = rng.uniform(-1.0, 1.0, size=2) * config.background_speed
    frames = draw_background(
        config.num_frames,
        config.size,
        config.background_contrast,
        config.background_grain,
        pan,
        rng,
    )
    for _ in range(config.num_distractors):
        coverage = disc_coverage(_drifting_track(config, rng), config.size)
        paint(frames, coverage, rng.uniform(0.1, 0.8, size=3))
    return frames


def _drifting_track(config: SyntheticConfig, rng: np.random.Generator) -> Track:
    start = rng.uniform(0.0, 1.0, size=2)
    shift = rng.uniform(-1.0, 1.0, size=2) * config.travel
    time = np.linspace(0.0, 1.0, config.num_frames)
    side = np.full_like(time, rng.uniform(0.12, 0.25))
    return Track(start + time[:, None] * shift, side, np.zeros_like(time))


def _bright_colour(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform(0.6, 1.0, size=3)
