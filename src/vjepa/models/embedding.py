"""Patches of a video to vectors, and fixed sine-cosine codes of where they were.

A 1-D code of width d at position x is sin(x w_j), j < d/2, followed by cos(x w_j), with
w_j = 10000^(-2j/d), computed in float64. Codes of a grid put the axes side by side; positions count
tokens from 0. Codes are fixed: never trained, never saved.

The embedding is a strided convolution in the equations (paper, section 3: d filters of 2 x 16 x 16,
stride the same). Stride equal to kernel means that no pixel is used twice, so it is computed here
as one matrix product over gathered patches, and only over the patches that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vjepa.models.config import EncoderConfig
from vjepa.models.preprocess import may_look


def sincos_1d(positions: Tensor, width: int) -> Tensor:
    """The 1-D code at positions [n] of any dtype: float64 [n, width], sines, then cosines."""
    if width % 2:
        raise ValueError(f"width: {width} must be even: sines and cosines come in pairs")
    exponents = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[:, None] * 10000.0 ** (-2.0 * exponents / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_3d(
    grid: tuple[int, int, int], width: int, split: Literal["uniform", "half"] = "uniform"
) -> Tensor:
    """The code of a video grid: columns [time | height | width], rows time-major.

    "uniform" gives each axis 2*ceil(D/6) columns and cuts the result to D (D = 1024: 342 each, the
    last two columns lost); all released models use it. "half" gives D/2 to time and D/4 to each
    side. float64 [t*h*w, D] on the CPU.
    """
    if split == "uniform":
        part = 2 * -(-width // 6)
        widths = (part, part, part)
    else:
        widths = (width // 2, width // 4, width // 4)
    return _grid_code(grid, widths)[:, :width]


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """The code of an image grid: columns [height | width], D/2 each, rows row-major.

    float64 [h*w, D] on the CPU; D is a multiple of 4.
    """
    return _grid_code(grid, (width // 2, width // 2))


def _grid_code(grid: Sequence[int], widths: Sequence[int]) -> Tensor:
    """The codes of a grid's axes side by side, so many columns each, the last axis the fastest."""
    counts = [torch.arange(size, device="cpu") for size in grid]
    places = torch.meshgrid(*counts, indexing="ij")
    tables = [sincos_1d(count, width) for count, width in zip(counts, widths, strict=True)]
    return torch.cat([t[place.flatten()] for t, place in zip(tables, places, strict=True)], dim=1)


def position_code(config: EncoderConfig, width: int, device: torch.device) -> Tensor:
    """The position code for an encoder's own grid, float32 [1, N, width]."""
    if device.type == "meta":
        return torch.empty(1, config.num_tokens, width, device=device)
    if config.is_image_model:
        code = sincos_2d(config.grid[1:], width)
    else:
        code = sincos_3d(config.grid, width, config.position_split)
    return code[None].to(torch.float32).to(device)


def resample_position_code(
    code: Tensor, grid: tuple[int, int, int], new_grid: tuple[int, int, int], *, is_image: bool
) -> Tensor:
    """Stretch a code [1, t*h*w, D] over another grid, as the authors do for other input sizes.

    Trilinear for video; for images each time step by itself, bicubic over its sides (t is the same
    in both grids). Half-pixel centres, no antialiasing. The target size is given, not a scale
    factor, so that no grid comes out one short.
    """
    volume = code.to(torch.float32).reshape(1, *grid, code.shape[-1]).permute(0, 4, 1, 2, 3)
    if is_image:
        steps = volume[0].transpose(0, 1)
        steps = F.interpolate(steps, size=new_grid[1:], mode="bicubic", align_corners=False)
        volume = steps.transpose(0, 1)[None]
    else:
        volume = F.interpolate(volume, size=new_grid, mode="trilinear", align_corners=False)
    return volume.flatten(2).transpose(1, 2).contiguous().to(code.dtype)


def check_indices(name: str, indices: Tensor, num_tokens: int) -> None:
    """Refuse what does not name tokens of a grid; out of range is found on the CPU only."""
    kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
    if kind not in (torch.int64, torch.int32):
        remedy = ""
        if kind in (torch.bool, torch.uint8) and indices.ndim == 2:
            remedy = ": of a mask [B, N] with as many in each row, mask.nonzero()[:, 1].view(B, -1)"
        raise ValueError(f"{name} is {kind}; it is a tensor of numbers of tokens, int64{remedy}")
    if not indices.numel():
        raise ValueError(f"{name} names no token: shape {tuple(indices.shape)}")
    if may_look(indices):
        low, high = (int(end) for end in indices.aminmax())
        if low < 0 or high >= num_tokens:
            raise ValueError(
                f"{name} lies between {low} and {high}, but the tokens of the grid are numbered "
                f"0 to {num_tokens - 1}; for clips of another size give the predictor their grid"
            )


def token_grid(
    video_shape: Sequence[int], tubelet_size: int, patch_size: int
) -> tuple[int, int, int]:
    """The token grid (t, h, w) of a video of shape [B, C, T, H, W] in whole patches."""
    if len(video_shape) != 5 or 0 in video_shape:
        shape = tuple(video_shape)
        raise ValueError(f"video must be [B, C, T, H, W], none of them 0, got shape {shape}")
    frames, height, width = video_shape[2:]
    if frames % tubelet_size or height % patch_size or width % patch_size:
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

    The other pixels of the video [B, C, T, H, W] are not copied. `clip_index` int64 is the row of
    the batch for each wanted token; it broadcasts with `token_indices` int64 [...] in 0..N-1.
    """
    _, height, width = token_grid(video.shape, tubelet_size, patch_size)
    time = torch.div(token_indices, height * width, rounding_mode="floor")
    place = token_indices % (height * width)
    row = torch.div(place, width, rounding_mode="floor")
    view = _patch_view(video, tubelet_size, patch_size)
    return view[clip_index, time, row, place % width].flatten(-4)


def _convolve(
    conv: nn.Conv2d | nn.Conv3d, patches: Tensor, otherwise: Callable[[Tensor], Tensor]
) -> Tensor:
    """A convolution of inputs as large as its kernel, [M, C, ...] -> [M, D, 1, ...], by a product.

    That is many times faster than torch's own, which other sizes get.
    """
    if patches.shape[1:] != conv.weight.shape[1:]:
        return otherwise(patches)
    tokens = F.linear(patches.flatten(1), conv.weight.flatten(1), conv.bias)
    return tokens.reshape(*tokens.shape, *(1,) * (patches.ndim - 2))


class _PatchConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, super().forward)


class _PatchConv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, super().forward)


class PatchEmbed(nn.Module):
    """Tubelets or patches to tokens.

    `proj` is a convolution with stride = kernel, weight [D, C, tubelet, patch, patch], or
    [D, C, patch, patch] for an image model. It is called as a module with patches
    [M, C, tubelet, patch, patch], so hooks, adapters and whatever replaces it take effect.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tubelet_size = config.tubelet_size
        self.patch_size = config.patch_size
        patch = (config.patch_size, config.patch_size)
        self.proj: nn.Conv2d | nn.Conv3d
        if config.is_image_model:
            self.proj = _PatchConv2d(config.channels, config.width, patch, stride=patch)
        else:
            kernel = (config.tubelet_size, *patch)
            self.proj = _PatchConv3d(config.channels, config.width, kernel, stride=kernel)
        self._shape = self.proj.weight.shape[1:]

    def init_weights(self, std: float) -> None:
        """Draw the convolution anew."""
        if not self.proj.weight.is_meta:
            nn.init.normal_(self.proj.weight, std=std)

    def grid(self, video_shape: Sequence[int]) -> tuple[int, int, int]:
        """The token grid of a video [B, C, T, H, W]."""
        return token_grid(video_shape, self.tubelet_size, self.patch_size)

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
        alone = patches.reshape(-1, *self._shape).to(self.proj.weight.dtype)
        return self.proj(alone).reshape(*patches.shape[:-1], -1)
