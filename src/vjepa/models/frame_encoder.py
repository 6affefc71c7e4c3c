"""An image model as a video encoder: every frame alone (paper, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa.models.config import EncoderConfig


class FrameEncoder(nn.Module):
    """Encodes each frame on its own and joins the token maps in time; no time code is added.

    Attributes:
        image_encoder: Normalised images as clips of one frame, float [B, C, 1, H, W] -> tokens
            [B, h*w, D].
        config: Sizes as a protocol for videos sees them: one frame is one tubelet.
        frames_at_once: Most frames encoded in one call of the image encoder.
    """

    def __init__(
        self, image_encoder: nn.Module, config: EncoderConfig, frames_at_once: int = 256
    ) -> None:
        """Wrap an image encoder, whose sizes `config` gives (`num_frames` and tubelet are 1).

        Raises:
            ValueError: `config` is that of a video model.
        """
        super().__init__()
        if config.num_frames != 1 or config.tubelet_size != 1:
            raise ValueError("config: FrameEncoder takes an image model (num_frames 1, tubelet 1)")
        self.image_encoder = image_encoder
        self.config = config
        self.frames_at_once = frames_at_once

    def forward(self, video: Tensor) -> Tensor:
        """Encode clips.

        Args:
            video: float [B, C, T, H, W], normalised.

        Returns:
            [B, T*h*w, D], the tokens of frame 0 first.
        """
        batch, channels, frames, height, width = video.shape
        images = video.transpose(1, 2).reshape(batch * frames, channels, 1, height, width)
        parts = [self.image_encoder(some) for some in images.split(self.frames_at_once)]
        tokens = torch.cat(parts)
        return tokens.reshape(batch, frames * tokens.shape[1], tokens.shape[2])
