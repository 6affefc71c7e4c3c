"""Drawing: textured background, digits and discs, blended frame by frame.

Images are float32 in 0 to 1, `T H W C`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vjepa.data.synthetic.motion import Track

Image = NDArray[np.float32]

_FLICKER_CELLS = 5


def draw_background(
    num_frames: int,
    size: int,
    contrast: float,
    grain: int,
    pan: NDArray[np.float64],
    rng: np.random.Generator,
) -> Image:
    """Draw smooth coloured noise that slides by `pan` (x, y; fractions of the side) over the clip.

    Returns:
        float32 `[T, size, size, 3]`.
    """
    time = np.linspace(0.0, 1.0, num_frames)
    margin = np.abs(pan)
    offset = time[:, None] * pan + np.maximum(-pan, 0.0)
    axes = np.arange(size) / size
    columns, rows = axes + offset[:, :1], axes + offset[:, 1:]
    frames = np.zeros((num_frames, size, size, 3), dtype=np.float32)
    for cells, share in ((max(2, round(0.4 * grain)), 0.75), (grain, 0.66)):
        counts = np.ceil((1.0 + margin[::-1]) * cells).astype(int) + 2
        noise = rng.standard_normal((counts[0], counts[1], 1)) * 0.85
        noise = noise + rng.standard_normal((counts[0], counts[1], 3)) * 0.5
        frames += share * _sample_grid(noise.astype(np.float32), rows * cells, columns * cells)
    level = 0.35
    return np.clip(level + contrast * frames, 0.0, 1.0).astype(np.float32)


def add_disturbance(frames: Image, flicker: float, noise: float, rng: np.random.Generator) -> None:
    """Add what no one can predict to `frames` `[T, H, W, 3]` in place: flicker and grain."""
    num_frames, size = frames.shape[:2]
    if flicker > 0:
        cells = _FLICKER_CELLS
        grid = rng.standard_normal((num_frames, cells + 1, cells + 1, 3), dtype=np.float32)
        weights = _linear_weights((np.arange(size) / size * cells)[None], cells + 1)[0]
        frames += flicker * np.einsum("yh,thwc,xw->tyxc", weights, grid, weights, optimize=True)
    if noise > 0:
        frames += noise * rng.standard_normal(frames.shape, dtype=np.float32)


def _sample_grid(noise: Image, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Image:
    """Sample `noise` `[h, w, 3]` linearly at `rows` `[T, H]` times `columns` `[T, W]`."""
    return np.einsum(
        "tyh,thxc->tyxc",
        _linear_weights(rows, noise.shape[0]),
        np.einsum("txw,hwc->thxc", _linear_weights(columns, noise.shape[1]), noise),
    )


def _linear_weights(places: NDArray[np.float64], count: int) -> Image:
    """Hat functions: weight `[T, N, count]` of each grid line at each of `places` `[T, N]`."""
    distance = np.abs(places[..., None] - np.arange(count))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def digit_coverage(digit: Image, track: Track, size: int) -> Image:
    """Coverage `[T, size, size]`, 0 to 1, of a `[8, 8]` digit that follows `track`."""
    u, v = _object_coordinates(track, size)
    cells = digit.shape[0]
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
    return np.clip(2.0 * ink - 0.4, 0.0, 1.0)


def disc_coverage(track: Track, size: int) -> Image:
    """Coverage `[T, size, size]`, 0 to 1, of a disc that follows `track`."""
    u, v = _object_coordinates(track, size)
    edge = (0.5 - np.sqrt(u * u + v * v)) * track.side[:, None, None].astype(np.float32) * size
    return np.clip(edge + 0.5, 0.0, 1.0)


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


def paint(frames: Image, coverage: Image, colour: NDArray[np.float64]) -> None:
    """Paint `colour` `[3]` over `frames` `[T, H, W, 3]` in place, as far as `coverage` says."""
    frames += coverage[..., None] * (colour.astype(np.float32) - frames)
