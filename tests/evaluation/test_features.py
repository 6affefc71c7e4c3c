from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.evaluation.frozen import BadVideo, ClipRows, FeatureSet, encode_clips, encode_rows
from vjepa.models import Encoder, EncoderConfig, normalise_clip

CPU = torch.device("cpu")
TINY = EncoderConfig(
    width=12, depth=1, heads=2, image_size=16, num_frames=4, patch_size=8, tubelet_size=2
)


def _encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(TINY)


def _clips(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, 3, 4, 16, 16), dtype=torch.uint8, generator=generator)


def _set(sizes: list[int]) -> FeatureSet:
    total = sum(sizes)
    tokens = torch.randn(total, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    rows = np.arange(total, dtype=np.int64) * 2
    return FeatureSet(tokens.split(sizes), rows, tuple(f"v{row}.mp4" for row in rows))


def test_encoding_is_the_frozen_encoder_on_normalised_clips() -> None:
    encoder, clips = _encoder().train(), _clips(3)
    batches = [
        ClipRows(np.array([0, 1]), clips[:2]),
        ClipRows(np.array([3]), clips[2:], (BadVideo(2, "v2.mp4", "truncated"),)),
    ]
    seen: list[int] = []
    got = encode_rows(
        encoder, batches, device=CPU, precision="float32", storage="float32", on_batch=seen.append
    )
    expected = torch.cat(
        [encoder(normalise_clip(clips[:2, 0])), encoder(normalise_clip(clips[2:, 0]))]
    )
    assert torch.equal(got.tokens[:, 0], expected.detach())
    assert got.tokens.shape == (3, 1, 8, 12)
    assert not got.tokens.requires_grad
    assert got.rows.tolist() == [0, 1, 3]
    assert got.bad == (BadVideo(2, "v2.mp4", "truncated"),)
    assert seen == [2, 2]  # bad ones count as dealt with
    assert encoder.training  # left as it was


def test_precision_and_storage() -> None:
    encoder, clips = _encoder(), _clips(2)
    exact = encode_clips(encoder, clips[:, 0], CPU, "float32")
    rough = encode_clips(encoder, clips[:, 0], CPU, "bfloat16")
    assert rough.dtype == torch.float32
    assert 0 < float((exact - rough).abs().max()) < 0.1
    batches = [ClipRows(np.array([0, 1]), clips)]
    kept = encode_rows(encoder, batches, device=CPU, precision="float32", storage="bfloat16")
    assert torch.equal(kept.tokens[:, 0], exact.to(torch.bfloat16))


def test_several_clips_of_a_video_are_encoded_each_on_its_own() -> None:
    encoder = _encoder()
    clips = _clips(6).view(2, 3, 3, 4, 16, 16)
    rows = [ClipRows(np.array([0, 1]), clips)]
    got = encode_rows(
        encoder, rows, device=CPU, precision="float32", storage="float32", clips_per_call=4
    )
    assert got.tokens.shape == (2, 3, 8, 12)
    alone = encode_clips(encoder, clips[1, 2][None], CPU, "float32")[0]
    assert torch.allclose(got.tokens[1, 2], alone, atol=1e-6)


def test_no_readable_clip_gives_an_empty_span() -> None:
    batches = [ClipRows(np.empty(0, np.int64), _clips(0), (BadVideo(0, "v", "bad"),))]
    got = encode_rows(_encoder(), batches, device=CPU, precision="float32", storage="float32")
    assert got.tokens.shape == (0, 0, 0, 0)
    assert len(got.rows) == 0


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1, 1, 5]])
def test_gather_across_shards(sizes: list[int]) -> None:
    features = _set(sizes)
    places = np.array([6, 0, 3, 3, 2], dtype=np.int64)
    assert torch.equal(features.gather(places), features.tokens[torch.from_numpy(places)])
    assert torch.allclose(features.pooled(), features.tokens.mean(dim=(1, 2)))
    assert len(features) == 7


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        FeatureSet((torch.zeros(2, 1, 1),), np.arange(3), ("a", "b", "c"))
