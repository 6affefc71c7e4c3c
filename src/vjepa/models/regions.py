"""Features of boxes in a clip: tokens of some layers, averaged over time, cut out (section 4)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.models.config import EncoderConfig
from vjepa.models.preprocess import may_look


@config_dataclass
class RegionConfig:
    """How a box becomes a vector. The defaults are the paper's way, as SlowFast's code has it."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Blocks, counted from 0, whose outputs are joined, each after the final norm; null: the last
    and the three of every second before it (of a ViT-L 17, 19, 21, 23, which the paper's text, from
    1, calls 18, 20, 22, 24); of fewer than eight blocks, and of `levels`, the last four."""
    size: Annotated[int, Field(ge=1)] = 7
    """A box is sampled at so many places along each side."""
    pool: Literal["max", "mean"] = "max"
    """What is taken of these places."""
    aligned: bool = True
    """Whether the sides of a box are shifted by half a token, as they should be; torchvision's
    default, and VideoMAE's, is not."""

    def layers_of(self, encoder: EncoderConfig) -> tuple[int, ...]:
        """The layers of an encoder; ValueError: it lacks one of them, or one is named twice."""
        possible = encoder.levels or tuple(range(encoder.depth))
        if self.layers is None:
            step = 2 if encoder.depth >= 8 and not encoder.levels else 1
            return possible[::-step][:4][::-1]
        if not self.layers or sorted({*self.layers} & {*possible}) != sorted(self.layers):
            raise ValueError(
                f"layers: {list(self.layers)} must be some of the encoder's blocks "
                f"{encoder.levels or f'0 .. {encoder.depth - 1}'}, each once"
            )
        return self.layers

    def width(self, encoder: EncoderConfig) -> int:
        """Numbers of a box's vector."""
        return encoder.width * len(self.layers_of(encoder))


def region_features(
    encoder: nn.Module,
    video: Tensor,
    boxes: Tensor,
    how: RegionConfig,
    branch_scale: Tensor | None = None,
) -> Tensor:
    """The vectors of boxes: float32 [M, layers * D], of a video float [B, C, T, H, W], normalised.

    `boxes` are float [M, 5]: the clip's number, and x1, y1, x2, y2 in its pixels; `branch_scale` is
    as :class:`vjepa.models.Encoder` takes it.
    """
    from torchvision.ops import roi_align  # not needed where no box is

    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise ValueError(f"boxes must be [M, 5]: clip, x1, y1, x2, y2, got {[*boxes.shape]}")
    if may_look(boxes):  # below, a clip that is not there is read from foreign memory
        numbers = boxes[:, 0]
        if not bool(boxes.isfinite().all() and torch.isin(numbers, torch.arange(len(video))).all()):
            raise ValueError(
                f"boxes: numbers must be finite, and clips among 0 .. {len(video) - 1}, got clips "
                f"{numbers.unique().tolist()[:8]}"
            )
    config = encoder.config
    assert isinstance(config, EncoderConfig)
    layers, patch = how.layers_of(config), config.patch_size
    if layers == (config.depth - 1,) and branch_scale is None:
        tokens = encoder(video)  # which an image model of another library can do, too
    else:
        more = {} if branch_scale is None else {"branch_scale": branch_scale}
        tokens = torch.cat(encoder(video, layers=layers, **more), dim=-1)
    rows, columns = video.shape[-2] // patch, video.shape[-1] // patch
    maps = tokens.float().unflatten(1, (-1, rows, columns)).mean(dim=1).movedim(-1, 1)
    # sampling_ratio 0: as many samples in a place as it has tokens.
    cut = roi_align(maps, boxes.float(), how.size, 1 / patch, 0, how.aligned)
    return cut.amax(dim=(2, 3)) if how.pool == "max" else cut.mean(dim=(2, 3))
