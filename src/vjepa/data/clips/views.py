"""The views of an evaluated video: segments in time, crops in space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import Resize, centre_of, short_side_size, usual_short_side
from vjepa.data.clips.plan import ClipConfig, ClipPlan, Placement, segment_indices
from vjepa.data.clips.source import Source
from vjepa.data.video.info import Box

JoinSegments = Literal["tokens", "average"]


@config_dataclass
class ViewConfig:
    """The views of a video: S segments in time, V crops in space (the paper's 16 x S x V)."""

    crop_size: Annotated[int, Field(ge=1)] = 224
    """Height and width of the crop, in pixels."""
    short_side: int | None = None
    """Length that the frame's short side is brought to first, in pixels; null, as in the paper's
    evaluation: 256/224 of `crop_size` with one view, `crop_size` itself with several."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""
    num_segments: Annotated[int, Field(ge=1)] = 1
    """S: the video is cut into so many equal segments, each gives a clip. Clips overlap where a
    video is shorter than S clips; one shorter than a clip follows `data.clip.short_video`."""
    num_views: Annotated[int, Field(ge=1)] = 1
    """V: crops of each clip. 1: the centre; more: evenly spaced along the long side. Training sees
    one crop."""
    join: JoinSegments = "tokens"
    """`tokens`: the token maps of a view's segments are given to the probe together, as in the
    paper; `average`: the probe sees each alone and its probabilities are averaged. Over crops
    probabilities are always averaged."""
    placement: Literal["centre", "even", "reference", "reference_random"] = "centre"
    """Where the clips of an evaluation are. `centre`: in the middle of each segment; `even`: from
    the video's first frame to its last; `reference`: at the start of each segment, as the released
    code with its random numbers at 0; `reference_random`: at a random place of each segment, which
    is what the released code does, here drawn once for each file name."""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(
                f"short_side: {self.short_side} is smaller than crop_size {self.crop_size}"
            )

    @property
    def clips_per_video(self) -> int:
        """Clips of an evaluated video: R = V * S; number r = v * S + s."""
        return self.num_views * self.num_segments


def segments_of(
    clip: ClipConfig, view: ViewConfig, source: Source, u: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Frames of the segments' clips: int64 [S, T], at random places where `u` [S] is given.

    ValueError: the video is too short, without frames, or of an unknown rate.
    """
    placement: Placement = "random" if u is not None else "centre"
    if view.placement == "even" and u is None:
        placement = "even"
    elif view.placement.startswith("reference"):
        placement = "reference"
        if u is None and view.placement == "reference_random":
            u = uniforms(0, f"evaluation/{Path(source.path).name}", 0, view.num_segments)
    times = source.times if clip.is_by_time else None
    return segment_indices(
        clip, source.num_frames, source.fps, view.num_segments, placement, u, times
    )


def plan_views(clip: ClipConfig, view: ViewConfig, source: Source) -> list[ClipPlan]:
    """Plans of the R = V * S clips of an evaluated video; clip r = v * S + s."""
    size = view.crop_size
    short = view.short_side or (usual_short_side(size) if view.num_views == 1 else size)
    resized = short_side_size(source.height, source.width, short)
    segments = segments_of(clip, view, source)
    return [
        ClipPlan(frames=frames, resize_to=resized, resize=view.resize, crop=crop)
        for crop in _crops(*resized, size, view.num_views)
        for frames in segments
    ]


def _crops(height: int, width: int, size: int, num_views: int) -> list[Box]:
    """The centre, or crops at 0, s, 2s, ... pixels along the long side, in the middle of the other.

    s = floor((long - S) / (V - 1)), as in the released code for V = 3.
    """
    if num_views == 1:
        return [centre_of(height, width, size)]
    step = (max(height, width) - size) // (num_views - 1)
    middle = round((min(height, width) - size) / 2)
    starts = [number * step for number in range(num_views)]
    if height > width:
        return [(start, middle, size, size) for start in starts]
    return [(middle, start, size, size) for start in starts]
