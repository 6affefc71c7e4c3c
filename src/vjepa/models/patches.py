"""Cutting a video into patches and embedding them.

The embedding is a strided convolution in the equations (paper, section 3: d filters of 2 x 16 x 16,
stride the same). Stride equal to kernel means that no pixel is used twice, so it is computed here
as one matrix product over gathered patches, and only over the patches that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.models.config import EncoderConfig


def token_grid(
    video_shape: Sequence[int], tubelet_size: int, patch_size: int
) -> tuple[int, int, int]:
    """The token grid (t, h, w) of a video of shape [B, C, T, H, W] in whole patches."""
    if len(video_shape) != 5:
        raise ValueError(f"video must be [B, C, T, H, W], got shape {tuple(video_shape)}")
    frames, height, width = video_shape[2:]
    if frames % tubelet_size or height % patch_size or width % patch_size or 0 in video_shape[2:]:
        raise ValueError(
            f"video of {frames} frames, {height} x {width} pixels is not whole tubelets of "
            f"{tubelet_size} frames and patches of {patch_size} pixels"
        )
    return (frames // tubelet_size, height // patch_size, width // patch_size)


def _patch_view(video: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """A view [B, t, h, w, C, tubelet, patch, patch]; nothing is copied."""
    view = video.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size))
    return view.unflatten(2, (-1, tubelet_size)).permute(0, 2, 4, 6, 1, 3, 5, 7)


def patchify(video: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """Cut a video [B, C, T, H, W] into the pixels of its tokens.

    The result is [B, N, C*tubelet*patch*patch], tokens time-major (index = (t*h + row)*w + column),
    inside a token the order is channel, frame, row, column.
    """
    token_grid(video.shape, tubelet_size, patch_size)
    return _patch_view(video, tubelet_size, patch_size).flatten(4).flatten(1, 3)


def unpatchify(
    patches: Tensor, grid: tuple[int, int, int], tubelet_size: int, patch_size: int
) -> Tensor:
    """The inverse of :func:`patchify`, for a grid (t, h, w)."""
    blocks = patches.unflatten(2, (-1, tubelet_size, patch_size, patch_size)).unflatten(1, grid)
    video = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return video.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def gather_patches(
    video: Tensor, tubelet_size: int, patch_size: int, clip_index: Tensor, token_indices: Tensor
) -> Tensor:
    """The pixels of chosen tokens, [..., C*tubelet*patch*patch] as in :func:`patchify`.

    The other pixels of the video [B, C, T, H, W] are not copied.

    Args:
        clip_index: int64, row of the batch for each wanted token; broadcasts with `token_indices`.
        token_indices: int64 [...] in 0..N-1.
    """
    _, height, width = token_grid(video.shape, tubelet_size, patch_size)
    time = torch.div(token_indices, height * width, rounding_mode="floor")
    place = token_indices % (height * width)
    row = torch.div(place, width, rounding_mode="floor")
    view = _patch_view(video, tubelet_size, patch_size)
    return view[clip_index, time, row, place % width].flatten(-4)


class PatchEmbed(nn.Module):
    """Tubelets or patches to tokens.

    `proj` is a convolution with stride = kernel, of which only weight and bias are used, so that
    the weight has its shape: [D, C, tubelet, patch, patch], or [D, C, patch, patch] for an image
    model.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tubelet_size = config.tubelet_size
        self.patch_size = config.patch_size
        patch = config.patch_size
        self.proj: nn.Conv2d | nn.Conv3d
        if config.is_image_model:
            self.proj = nn.Conv2d(config.channels, config.width, patch, stride=patch)
        else:
            kernel = (config.tubelet_size, patch, patch)
            self.proj = nn.Conv3d(config.channels, config.width, kernel, stride=kernel)

    def forward(
        self, video: Tensor, clip_index: Tensor | None = None, token_indices: Tensor | None = None
    ) -> Tensor:
        """Embed all tokens, [B, N, D], or only those of :func:`gather_patches`, [..., D]."""
        if token_indices is None or clip_index is None:
            patches = patchify(video, self.tubelet_size, self.patch_size)
        else:
            patches = gather_patches(
                video, self.tubelet_size, self.patch_size, clip_index, token_indices
            )
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
