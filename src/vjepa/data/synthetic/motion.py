"""The motions: where objects A and B are, how large and how turned, at every frame.

Positions and sizes are fractions of the frame's side; x grows to the right, y downwards; angles
are in radians, clockwise on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vjepa.data.synthetic.config import SyntheticConfig

_MARGIN = 0.16
_ATTEMPTS = 12
_DIRECTIONS = {
    "move_left": (-1.0, 0.0),
    "move_right": (1.0, 0.0),
    "move_up": (0.0, -1.0),
    "move_down": (0.0, 1.0),
}


@dataclass(frozen=True)
class Track:
    """The poses of one object.

    Attributes:
        centre: float64 `[T, 2]`, x and y of the object's centre.
        side: float64 `[T]`, side of the object's square.
        angle: float64 `[T]`, clockwise turn.
    """

    centre: NDArray[np.float64]
    side: NDArray[np.float64]
    angle: NDArray[np.float64]


def draw_tracks(
    config: SyntheticConfig, motion: str, rng: np.random.Generator
) -> tuple[Track, Track]:
    """Draw the tracks of A, which does `motion`, and of B, which stands still."""
    time = np.linspace(0.0, 1.0, config.num_frames)
    side_a, side_b = config.object_size * rng.uniform(0.85, 1.15, size=2)
    tilt_a, tilt_b = rng.uniform(-0.2, 0.2, size=2)
    if motion in _DIRECTIONS:
        centre = _straight_path(config, np.array(_DIRECTIONS[motion]), time, rng)
        place_b = _place_apart(centre, 0.75 * config.object_size, rng)
    elif motion in _MEETINGS:
        place_b = rng.uniform(0.35, 0.65, size=2)
        centre = _meeting_path(config, motion, place_b, time, rng)
    else:
        centre = np.broadcast_to(rng.uniform(0.25, 0.75, size=2), (config.num_frames, 2))
        place_b = _place_apart(centre, 0.75 * config.object_size, rng)
    still = np.zeros_like(time)
    turn = _signed(motion, "rotate_clockwise", "rotate_counterclockwise")
    growth = _signed(motion, "approach", "recede")
    amount = rng.uniform(0.75, 1.25)
    angle = tilt_a + turn * math.radians(config.rotation_degrees) * amount * time
    side = side_a * np.exp(growth * math.log(config.zoom) * amount * (time - 0.5))
    return (
        Track(np.array(centre), side, angle),
        Track(np.tile(place_b, (config.num_frames, 1)), side_b + still, tilt_b + still),
    )


def _signed(motion: str, positive: str, negative: str) -> int:
    return int(motion == positive) - int(motion == negative)


def _straight_path(
    config: SyntheticConfig,
    direction: NDArray[np.float64],
    time: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A straight path `[T, 2]` that stays inside the frame."""
    shift = direction * config.travel * rng.uniform(0.75, 1.25)
    low = _MARGIN + np.maximum(-shift, 0.0)
    high = 1.0 - _MARGIN - np.maximum(shift, 0.0)
    start = rng.uniform(np.minimum(low, high), np.maximum(low, high))
    return start + time[:, None] * shift


def _pass_in_front(time: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 - 2.0 * time


def _stop_at(time: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - time / 0.6, 0.0)


def _turn_back(time: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(1.0 - 2.0 * time)


_MEETINGS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "pass_in_front": _pass_in_front,
    "stop_at": _stop_at,
    "turn_back": _turn_back,
}
"""Place of A along its line at each time: 1 the start, 0 the meeting point."""


def _meeting_path(
    config: SyntheticConfig,
    motion: str,
    place_b: NDArray[np.float64],
    time: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A's path `[T, 2]` towards B: across it, up to its side, or nearly there and back."""
    heading = rng.uniform(0.0, 2.0 * math.pi)
    away = np.array([math.cos(heading), math.sin(heading)])
    length = config.travel * rng.uniform(0.75, 1.25)
    gap = 0.0 if motion == "pass_in_front" else 0.8 * config.object_size
    reach = 0.5 * length if motion == "pass_in_front" else 0.75 * length
    along = gap + reach * _MEETINGS[motion](time)
    return place_b + along[:, None] * away


def _place_apart(
    path: NDArray[np.float64], distance: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A place for B at `distance` or more from A's path, or the farthest of those tried."""
    tried = rng.uniform(_MARGIN, 1.0 - _MARGIN, size=(_ATTEMPTS, 2))
    gaps = np.linalg.norm(tried[:, None] - path[None], axis=-1).min(axis=1)
    far_enough = np.flatnonzero(gaps >= distance)
    return tried[far_enough[0]] if len(far_enough) else tried[int(gaps.argmax())]
