"""A table of positions that comes with the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vjepa.jobs.pretrain import PretrainConfig
from vjepa.models import VJEPA, Encoder, EncoderConfig, ModelConfig

_SIZES = EncoderConfig(
    width=24, depth=1, heads=2, image_size=32, num_frames=4, patch_size=8, position="given"
)


def _encoder(position: str = "given") -> Encoder:
    encoder = Encoder(replace(_SIZES, position=position)).eval()
    encoder.pos_embed = torch.randn(1, 2 * 4 * 4, 24)
    return encoder


def test_it_is_saved_and_kept() -> None:
    encoder = _encoder()
    table = encoder.pos_embed.clone()
    assert torch.equal(encoder.state_dict()["pos_embed"], table)
    encoder.init_weights()
    assert torch.equal(encoder.pos_embed, table)


@torch.no_grad()
def test_a_shorter_clip_has_its_first_rows_and_another_size_is_refused() -> None:
    encoder = _encoder()
    clip = torch.randn(1, 3, 2, 32, 32)
    shorter = Encoder(replace(_SIZES, num_frames=2)).eval()
    shorter.load_state_dict(encoder.state_dict() | {"pos_embed": encoder.pos_embed[:, :16]})
    assert torch.equal(encoder(clip), shorter(clip))
    for shape in ((1, 3, 8, 32, 32), (1, 3, 4, 40, 40), (1, 3, 4, 32, 40)):
        with pytest.raises(ValueError, match="not stretched"):
            encoder(torch.randn(shape))


@torch.no_grad()
def test_stretched_it_leaves_time_alone() -> None:
    encoder = _encoder("given_stretched")
    steps = torch.tensor([1.0, -2.0])[:, None, None].expand(2, 16, 24)
    encoder.pos_embed = steps.reshape(1, 32, 24).clone()
    wide = encoder.rebuilt_for(image_size=48, num_frames=4)
    assert wide.pos_embed.shape == (1, 2 * 36, 24)
    torch.testing.assert_close(wide.pos_embed[0, :36], torch.ones(36, 24))
    torch.testing.assert_close(wide.pos_embed[0, 36:], torch.full((36, 24), -2.0))
    clip = torch.randn(1, 3, 4, 48, 48)
    assert torch.equal(encoder(clip), wide(clip))
    assert encoder(torch.randn(1, 3, 2, 16, 40)).shape == (1, 10, 24)
    with pytest.raises(ValueError, match="not stretched"):
        encoder(torch.randn(1, 3, 8, 32, 32))


def test_it_is_no_start_for_a_training() -> None:
    """Though a checkpoint of one that was trained further is described by the same sizes."""
    model = ModelConfig(encoder=_SIZES)
    with pytest.raises(ValueError, match="comes with weights of others"):
        VJEPA(model)
    with pytest.raises(ValueError, match=r"model\.encoder\.position: given: comes with"):
        PretrainConfig(model=model)
