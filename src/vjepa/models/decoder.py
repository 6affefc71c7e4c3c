"""A generative decoder: from features of tokens, and their places, to pixels (paper, section 6).

The paper says no more of it than "conditional diffusion". Ours is flow matching in pixel space:
between noise e and the pixels x of a token lies, at time s from 0 to 1, the point
z = s x + (1 - s) e, which moves with the velocity x - e. The network sees the points of all hidden
tokens of a clip and names their *pixels*; the velocity follows as (x - z) / (1 - s), and that is
what is compared. To name the pixels and not the velocity is what lets a token be narrower than its
pixels (Li and He 2025, arXiv 2511.13720): noise has as many directions as numbers, pictures few.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.models.attention import Block, Mlp, init_layer
from vjepa.models.config import EncoderConfig, check_position_width
from vjepa.models.embedding import check_indices, position_code, sincos_1d
from vjepa.models.encoder import NORM_EPS
from vjepa.models.packing import Packing

_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]

CHANNELS = 3
"""Of what is decoded: red, green, blue, normalised as the encoder's input."""
LEAST_TIME_LEFT = 0.05
"""Where less time than this is left it counts as this much: 1 / (1 - s) has no bound."""
LAST_TIME = 0.9
"""From here samples go straight to the pixels that are named. Training hardly comes to later times:
with 0.95 in the demo's decoder samples had 1.36 times the contrast of the truth, with 0.9 0.98."""
_TIME_SCALE = 1000.0  # the code of numbers was made for places that are whole numbers apart


@config_dataclass
class DecoderConfig:
    """Sizes of the decoder; grid and patches are those of the encoder whose features it decodes."""

    width: _Count | None = None
    """Token width inside the decoder; null: three quarters of the encoder's, 160 to 768."""
    depth: _Count | None = None
    """Number of transformer blocks; null: as many as the encoder's, 4 to 12."""
    heads: _Count | None = None
    """Attention heads; must divide the width. Null: of 32 numbers each, from width 512 on of 64."""
    mlp_ratio: _Positive = 4.0
    """Hidden width of a block's MLP over the width."""

    def __post_init__(self) -> None:
        if self.width and self.heads and self.width % self.heads:
            raise ValueError(f"width: {self.width} must be a multiple of heads {self.heads}")
        if self.width and self.width % 2:
            raise ValueError(f"width: {self.width} must be even: sines and cosines come in pairs")

    def sizes_for(self, encoder: EncoderConfig) -> tuple[int, int, int]:
        """Width, depth and heads; what is null follows from the encoder's width and depth.

        So one of width 96 gets the size that the demo's recipe names, one of width 1024 (ViT-L)
        that of `vitl16_224`, which was chosen by its cost.
        """
        width = self.width or min(768, max(160, 32 * round(0.75 * encoder.width / 32)))
        most = max(1, width // (64 if width >= 512 else 32))
        heads = self.heads or next(h for h in range(most, 0, -1) if width % h == 0)
        depth = self.depth or min(12, max(4, encoder.depth))
        return width, depth, heads


class Decoder(nn.Module):
    """A transformer over the hidden tokens of a clip; of the visible ones it knows nothing.

    A token is the sum of its noisy pixels, its feature, its place and the time, each through a
    layer of its own. `encoder` are the sizes of the encoder whose features are decoded;
    `feature_width` numbers are given for a token (None: its width).
    """

    pos_embed: Tensor
    """Fixed position code, float32 [1, N, W]; a buffer that is not saved."""

    def __init__(
        self, encoder: EncoderConfig, config: DecoderConfig, feature_width: int | None = None
    ) -> None:
        super().__init__()
        width, depth, heads = self.sizes = config.sizes_for(encoder)
        check_position_width("decoder.width", width, encoder)
        self.encoder_config, self.config = encoder, config
        self.patch_values = CHANNELS * encoder.tubelet_size * encoder.patch_size**2
        self.pixel_embed = nn.Linear(self.patch_values, width)
        self.feature_embed = nn.Linear(feature_width or encoder.width, width)
        self.no_feature = nn.Parameter(torch.empty(width))
        self.time_embed = Mlp(width, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, round(width * config.mlp_ratio), NORM_EPS) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, self.patch_values)
        self.register_buffer("pos_embed", None, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew and recompute the position code, on the weights' device."""
        self.apply(init_layer)
        nn.init.zeros_(self.no_feature)
        self.reset_position_code()

    def reset_position_code(self) -> None:
        """Recompute the position code on the device and in the dtype of the weights."""
        weight = self.norm.weight
        code = position_code(self.encoder_config, self.sizes[0], weight.device)
        self.pos_embed = code.to(weight.dtype)

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        features: Tensor,
        places: Tensor,
        *,
        kept: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Name the pixels behind noisy ones.

        Args:
            noisy: The points z of the hidden tokens, float [B, M, P], or packed [U, P], with
                P = 3 * tubelet * patch * patch in the order of :func:`patchify`.
            time: How far they are from noise (0) to pixels (1), float, broadcast to [B, M] or [U].
            features: What the predictor says of these tokens, float [B, M, D], or packed [U, D].
            places: Their places, int64 [B, M], or packed [U].
            kept: bool, broadcast to [B, M] or [U]: False hides the features, for guidance.
            offsets: int64 [B+1] of the packed tokens.

        Returns:
            The pixels, normalised, float [B, M, P], or packed [U, P].
        """
        code = self.pos_embed[0]
        check_indices("places", places, len(code))
        feature = self.feature_embed(features)
        if kept is not None:
            feature = torch.where(kept[..., None], feature, self.no_feature.to(feature.dtype))
        moment = sincos_1d(_TIME_SCALE * time.reshape(-1), self.sizes[0]).to(code.dtype)
        moment = self.time_embed(moment).reshape(*time.shape, -1)
        tokens = self.pixel_embed(noisy) + feature + code[places] + moment
        packing = None if offsets is None else Packing.of(offsets, len(tokens), len(code))
        for block in self.blocks:
            tokens = block(tokens, packing)
        return self.proj(self.norm(tokens))

    @torch.no_grad()
    def sample(
        self,
        features: Tensor,
        places: Tensor,
        noise: Tensor,
        *,
        steps: int = 20,
        guidance: float = 1.0,
    ) -> Tensor:
        """Follow the velocity from noise [B, M, P] to pixels [B, M, P], normalised.

        The steps are Heun's: each goes with the mean of the velocities at its two ends, but for the
        last one, which goes from :data:`LAST_TIME` straight to the pixels that the network names.
        `guidance` g other than 1 takes x0 + g (x - x0) for those, where x0 are named without
        features (Ho and Salimans 2022): above 1 samples show more of what the features say, and
        vary less. `features` and `places` are as in :meth:`forward`.
        """
        if steps < 1:
            raise ValueError(f"steps: {steps} must be at least 1")

        def pixels(point: Tensor, time: float) -> Tensor:
            moment = torch.full((1, 1), time, device=point.device)
            named = self(point, moment, features, places).float()
            if guidance == 1.0:
                return named
            none = torch.zeros(1, 1, dtype=torch.bool, device=point.device)
            blind = self(point, moment, features, places, kept=none).float()
            return blind + guidance * (named - blind)

        point = noise
        times = [LAST_TIME * step / max(1, steps - 1) for step in range(steps)]
        for start, end in pairwise(times):
            first = (pixels(point, start) - point) / (1.0 - start)
            ahead = point + (end - start) * first
            second = (pixels(ahead, end) - ahead) / (1.0 - end)
            point = point + 0.5 * (end - start) * (first + second)
        return pixels(point, times[-1])
