"""The views of an evaluated video: segments in time, crops in space."""

from __future__ import annotations

from typing import Literal

from vjepa.config import config_dataclass
from vjepa.data.clips.crops import Resize

JoinSegments = Literal["tokens", "average"]


@config_dataclass
class ViewConfig:
    """The views of a video: S segments in time, V crops in space (the paper's 16 x S x V)."""

    crop_size: int = 224
    """Height and width of the crop, in pixels."""
    short_side: int | None = None
    """Length that the frame's short side is brought to first, in pixels; null, as in the paper's
    evaluation: 256/224 of `crop_size` with one view, `crop_size` itself with several."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""
    num_segments: int = 1
    """S: the video is cut into so many equal segments, each gives a clip. Clips overlap where a
    video is shorter than S clips; one shorter than a clip follows `data.clip.short_video`."""
    num_views: int = 1
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
        for name in ("crop_size", "num_segments", "num_views"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(
                f"short_side: {self.short_side} is smaller than crop_size {self.crop_size}"
            )

    @property
    def clips_per_video(self) -> int:
        """Clips of an evaluated video: R = V * S; number r = v * S + s."""
        return self.num_views * self.num_segments
