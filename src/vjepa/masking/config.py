"""What is hidden from the context encoder, as configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vjepa.config import config_dataclass

CountMode = Literal["prefix", "fixed", "packed"]
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Count = Annotated[int, Field(ge=1)]


@config_dataclass
class MaskConfig:
    """One mask kind. The default is the paper's short-range mask (section 3.2)."""

    kind: Literal["multiblock", "tube"] = "multiblock"
    """`multiblock`: a union of blocks; `tube`: single places, hidden over the whole clip."""
    num_blocks: _Count = 8
    """Blocks in a mask; they may overlap. Kind multiblock only."""
    spatial_scale: tuple[float, float] = (0.15, 0.15)
    """Area of one block as a share of the frame, drawn between these two. Kind multiblock only."""
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    """Length of one block as a share of the clip, drawn between these two. Kind multiblock only."""
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    """Height / width of a block, drawn between these two. Kind multiblock only."""
    tube_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the places of a frame that is hidden; 0, with `context_frames`, hides the future
    alone. Kind tube only."""
    context_frames: _Count | None = None
    """Causal masks: only the first so many frames may be seen; all later tokens are targets."""
    max_context_tokens: _Count | None = None
    """Never show the context encoder more tokens of a clip than this."""
    context_fraction: _Fraction | None = None
    """Count mode fixed: context tokens as a share of all; null: the mean of the authors' counts."""
    target_fraction: _Fraction | None = None
    """Count mode fixed: target tokens as a share of all; null: the mean of the authors' counts."""

    def __post_init__(self) -> None:
        for name in ("spatial_scale", "temporal_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two rising numbers in (0, 1], got {low}, {high}")
        low, high = self.aspect_ratio
        if not 0 < low <= high:
            raise ValueError(f"aspect_ratio must be two rising numbers above 0, got {low}, {high}")
        if (self.context_fraction or 0) + (self.target_fraction or 0) > 1:
            both = f"context_fraction {self.context_fraction} and target_fraction"
            raise ValueError(f"{both} {self.target_fraction} must not sum to more than 1")
        blocks = ("num_blocks", "spatial_scale", "temporal_scale", "aspect_ratio")
        for name in blocks if self.kind == "tube" else ("tube_ratio",):
            if getattr(self, name) != getattr(MaskConfig, name):
                raise ValueError(f"{name} is not read by kind {self.kind}; leave it out")


SHORT_RANGE = MaskConfig()
"""The paper's short-range mask: 8 blocks of 15 % of the frame each."""

LONG_RANGE = MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7))
"""The paper's long-range mask: 2 blocks of 70 % of the frame each."""


@config_dataclass
class MaskingConfig:
    """All masks of a clip and how their tokens are counted. The default is the paper's pair."""

    masks: tuple[MaskConfig, ...] = (SHORT_RANGE, LONG_RANGE)
    """Mask kinds; every clip is masked once by each, and the target encoding is shared."""
    count: CountMode = "prefix"
    """`prefix`: every clip cut to the batch's smallest count, keeping the earliest tokens, as the
    authors' released code does; `fixed`: the same number for every clip at any batch size, chosen
    at random from what the blocks leave; `packed`: nothing cut, variable lengths."""

    def __post_init__(self) -> None:
        if not self.masks:
            raise ValueError("masks must name at least one mask kind")
        for number, mask in enumerate(self.masks):
            for name in ("context_fraction", "target_fraction"):
                if self.count != "fixed" and getattr(mask, name) is not None:
                    raise ValueError(
                        f"masks[{number}].{name} is used by count fixed only, but count is "
                        f"{self.count}"
                    )
