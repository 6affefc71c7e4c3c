from __future__ import annotations

import pytest
import torch
from tests.models.tiny import ENCODER, IMAGE_ENCODER, clips
from torch import nn
from torch.testing import assert_close

from vjepa.models import EncoderConfig
from vjepa.models.embedding import PatchEmbed, gather_patches, patchify, token_grid, unpatchify


def test_patches_are_time_major_and_hold_channel_frame_row_column() -> None:
    video = clips(2, frames=4, size=8)
    patches = patchify(video, 2, 4)
    assert patches.shape == (2, 2 * 2 * 2, 3 * 2 * 4 * 4)
    t, row, column = 1, 0, 1
    wanted = video[1, :, 2 * t : 2 * t + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    assert_close(patches[1, (t * 2 + row) * 2 + column], wanted.flatten(), atol=0, rtol=0)


def test_unpatchify_inverts() -> None:
    video = torch.randn(2, 3, 4, 8, 12)
    grid = token_grid(video.shape, 2, 4)
    assert grid == (2, 2, 3)
    assert torch.equal(unpatchify(patchify(video, 2, 4), grid, 2, 4), video)


def test_gathered_patches_equal_the_chosen_rows() -> None:
    video = clips(3)
    indices = torch.tensor([[31, 0, 7], [5, 5, 6], [16, 15, 1]])
    batch = torch.arange(3)[:, None]
    chosen = patchify(video, 2, 4)[batch, indices]
    assert torch.equal(gather_patches(video, 2, 4, batch, indices), chosen)


def test_non_contiguous_video_gives_the_same() -> None:
    frames_first = clips(2).transpose(1, 2).contiguous()
    video = frames_first.transpose(1, 2)
    assert torch.equal(patchify(video, 2, 4), patchify(video.contiguous(), 2, 4))


def test_embedding_is_the_convolution() -> None:
    video = clips(2)
    embed = PatchEmbed(ENCODER)
    assert_close(embed(video), embed.proj(video).flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    images = clips(2, frames=1)
    embed = PatchEmbed(IMAGE_ENCODER)
    assert embed.proj.weight.shape == (24, 3, 4, 4)
    wanted = embed.proj(images[:, :, 0]).flatten(2).transpose(1, 2)
    assert_close(embed(images), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 3, 8, 8), (2, 3, 4, 9, 8), (2, 3, 0, 8, 8)])
def test_videos_that_are_not_whole_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="video"):
        patchify(torch.zeros(shape), 2, 4)


class _Adapter(nn.Module):
    """A low-rank adapter round a layer, as libraries for fine-tuning make it of a convolution."""

    def __init__(self, layer: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        kind = type(layer).__mro__[1]
        self.base_layer = layer
        self.a = kind(3, 2, layer.kernel_size, stride=layer.stride, bias=False)
        self.b = kind(2, layer.out_channels, 1, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.b(self.a(x))


@pytest.mark.parametrize(("config", "frames"), [(ENCODER, 4), (IMAGE_ENCODER, 1)])
def test_adapters_and_hooks_on_the_embedding_take_effect(
    config: EncoderConfig, frames: int
) -> None:
    video, embed = clips(2, frames=frames), PatchEmbed(config)
    plain = embed(video)
    adapter = _Adapter(embed.proj)
    embed.proj = adapter
    whole = adapter(video if frames > 1 else video[:, :, 0])
    wanted = whole.flatten(2).transpose(1, 2)
    assert not torch.allclose(wanted, plain, atol=1e-3)
    assert_close(embed(video), wanted, atol=1e-5, rtol=0)
    rows, tokens = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 9])
    assert_close(embed(video, rows, tokens), wanted[rows, tokens], atol=1e-5, rtol=0)
    embed(video).sum().backward()
    assert adapter.a.weight.grad is not None
    adapter.register_forward_hook(lambda _, __, out: 2 * out)
    assert_close(embed(video, rows, tokens), 2 * wanted[rows, tokens], atol=1e-5, rtol=0)
