"""Clips with a planted event that cannot be, and their twins in which nothing happens.

A digit moves straight beside one that stands still, over a panning background. At some frame it
does something that its past does not tell; in the twin it goes on. Until then both are the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vjepa.demo.synthetic import (
    COLOURS,
    SyntheticConfig,
    Track,
    digit_coverage,
    draw_scene,
    draw_tracks,
    load_digits,
    paint,
)

EVENTS = ("vanishes", "jumps", "turns back", "stops", "other digit", "other colour")
_MOTIONS = ("move_left", "move_right", "move_up", "move_down")


def render_event(
    config: SyntheticConfig, number: int, event: str | None
) -> tuple[NDArray[np.uint8], int]:
    """Clip `number` of test digits with an event, or None: frames [T, H, W, 3], and its frame.

    The event is at a frame drawn from T/2 to 3T/4.
    """
    rng, digits = np.random.default_rng(number), load_digits("test")
    motion = _MOTIONS[rng.integers(len(_MOTIONS))]
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
