"""Where the clips of an evaluated video are: S clips of T frames, of a video of L frames."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vjepa.data.clips.plan import (
    ClipConfig,
    checked_spacing,
    frames_at,
    reference_short,
    short_clip,
    uniform_places,
)

Placement = Literal["centre", "even", "random", "reference", "strided"]


def segment_indices(
    config: ClipConfig,
    num_frames_in_video: int,
    fps: float,
    num_segments: int,
    placement: Placement = "centre",
    u: NDArray[np.float64] | None = None,
    times: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Frames of the S clips that an evaluated video is seen through: random only where `u` says so.

    * ``centre``: the video is cut into S equal segments and each gives the clip around its middle,
      moved inside the video where it would stick out.
    * ``even``: the first clip starts with the video, the last ends with it, the others evenly
      between (one clip: the middle).
    * ``random``: each of the S segments gives a clip where its `u` says: anywhere inside the
      segment, or, where the segment is shorter than a clip, anywhere around it.
    * ``reference``: as the released evaluation. Segments longer than a clip each give a window, at
      their start or at a random place; otherwise the clips overlap, at (L - window) // (S - 1)
      frames from each other. Only for a `stride` with `sampling: reference`.
    * ``strided``: every stride-th frame of the video is listed; the first clip starts with the
      list, the last ends with it, the others between, rounded down in the list. The last frame of
      the list is held where it is too short. Only for a `stride`.

    With `sampling: uniform` the S clips take, of each of T parts, a frame at s / S of it; one clip
    the frame in its middle.

    A short video follows its policy and all S clips are the same; with ``reference``, ``strided``
    and `sampling: uniform` it is only told whether it is an error. `u`, float64 [S] in [0, 1), goes
    with ``random`` and, as in probe training, with ``reference``; all else as in
    :func:`clip_indices`. Returns int64 [S, T], each in [0, L).
    """
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    if placement == "reference":
        if config.stride is None or config.sampling != "reference":
            raise ValueError("placement reference needs a stride with sampling: reference")
        config.check_length(num_frames_in_video, config.num_frames * config.stride)
        return reference_segments(
            num_frames_in_video, config.num_frames, config.stride, num_segments, u=u
        )
    if config.sampling == "uniform":
        phases = np.arange(num_segments) + (0.5 * (num_segments == 1) if u is None else u)
        return uniform_places(config, num_frames_in_video, phases[:, None] / num_segments)
    if placement == "strided":
        if config.stride is None:
            raise ValueError("placement strided needs a stride")
        listed, count = np.arange(0, num_frames_in_video, config.stride), config.num_frames
        config.check_length(num_frames_in_video, (count - 1) * config.stride + 1)
        free, gaps = max(0, len(listed) - count), max(1, num_segments - 1)
        starts = np.arange(num_segments) * free // gaps if num_segments > 1 else [free // 2]
        return listed[np.minimum(np.add.outer(starts, np.arange(count)), len(listed) - 1)]
    if (u is None) == (placement == "random"):
        raise ValueError(
            f"placement {placement}: u belongs to random and reference, and only there"
        )
    spacing, shown = checked_spacing(config, num_frames_in_video, fps, times)
    if num_frames_in_video < spacing.window:
        clip = short_clip(config, spacing, num_frames_in_video, shown)
        return np.tile(clip, (num_segments, 1))
    latest = num_frames_in_video - spacing.window
    if u is not None:
        # Inside their segments, or around them where those are shorter than a clip.
        edges = np.arange(num_segments + 1) * (num_frames_in_video / num_segments)
        first = np.clip(edges[:-1], 0, latest)
        last = np.clip(edges[1:] - spacing.window, 0, latest)
        low, high = np.ceil(np.minimum(first, last)), np.floor(np.maximum(first, last))
        starts = np.minimum(low + np.floor(np.asarray(u) * (high - low + 1)), latest)
    elif placement == "centre" or num_segments == 1:
        middles = (np.arange(num_segments) + 0.5) * (num_frames_in_video / num_segments)
        starts = np.clip(middles - spacing.window / 2, 0, latest)
    else:
        starts = np.linspace(0, latest, num_segments)
    places = np.floor(starts)[:, None] + spacing.offsets
    return frames_at(places, num_frames_in_video, shown)


def reference_segments(
    num_frames_in_video: int,
    num_frames: int,
    stride: int,
    num_segments: int = 1,
    *,
    allow_overlap: bool = True,
    u: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Frames of S clips as the released code takes them, its rounding and corner cases included.

    The video is cut into S segments of L // S frames. A segment longer than num_frames * stride
    gives a window of that length; else, with overlap, one shared pattern that stops one frame
    before its end is moved over the video, and without overlap each segment is a short video of its
    own.

    Evaluation allows overlap, pretraining does not. `u` [S] in [0, 1) chooses random places of the
    windows; None starts each with its segment. Returns int64 [S, T].
    """
    window, segment = num_frames * stride, num_frames_in_video // num_segments
    shift = segment
    if segment > window:
        base = np.minimum(np.linspace(0, window, num_frames), window - 1)
    elif not allow_overlap:
        base = reference_short(segment, num_frames, stride)
    else:
        last = min(window, num_frames_in_video) - 1
        taken = last // stride
        base = np.concatenate([np.linspace(0, last, taken), np.full(num_frames - taken, last)])
        base = np.clip(base, 0, max(last - 1, 0))
        shift = max(0, num_frames_in_video - window) // max(1, num_segments - 1)
    starts = np.arange(num_segments, dtype=np.int64) * shift
    if u is not None and segment > window:
        starts = starts + np.floor(np.asarray(u) * (segment - window)).astype(np.int64)
    return starts[:, None] + base.astype(np.int64)[None, :]
