from __future__ import annotations

import pytest
import torch
from tests.models.tiny import ENCODER, IMAGE_ENCODER, clips
from torch.testing import assert_close

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
