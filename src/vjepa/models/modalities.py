"""Patches of an encoder that tells images from videos (V-JEPA 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vjepa.models.config import EncoderConfig
from vjepa.models.embedding import PatchEmbed

VECTOR_STD = 1e-6
"""Of fresh vectors of a modality."""


class ModalityPatchEmbed(PatchEmbed):
    """An input of one frame is an image, with patches of its own; every other one is a video.

    To each token the learnt vector of its modality is added. A picture repeated to two frames is a
    video, with other features.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.image = PatchEmbed(replace(config, tubelet_size=1, modalities=False))
        # As the authors keep them: weight decay takes what has more than one dimension.
        self.video_vector = nn.Parameter(torch.zeros(1, 1, config.width))
        self.image_vector = nn.Parameter(torch.zeros(1, 1, config.width))

    def init_weights(self, std: float) -> None:
        """Draw the convolutions and the vectors anew."""
        super().init_weights(std)
        self.image.init_weights(std)
        for vector in (self.video_vector, self.image_vector):
            nn.init.normal_(vector, std=VECTOR_STD)

    def grid(self, video_shape: Sequence[int]) -> tuple[int, int, int]:
        """The token grid of a video, or of an image, which has one step of time."""
        is_image = len(video_shape) == 5 and video_shape[2] == 1
        return self.image.grid(video_shape) if is_image else super().grid(video_shape)

    def forward(
        self, video: Tensor, clip_index: Tensor | None = None, token_indices: Tensor | None = None
    ) -> Tensor:
        """Embed as :class:`PatchEmbed`, float [B, C, T, H, W]; T = 1 is an image."""
        if video.shape[2] == 1:
            return self.image(video, clip_index, token_indices) + self.image_vector.flatten()
        return super().forward(video, clip_index, token_indices) + self.video_vector.flatten()
