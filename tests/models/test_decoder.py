"""The decoder: packed as alone, samples that end where the network points, guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.tiny import ENCODER, shaken
from torch import Tensor
from torch.testing import assert_close

from vjepa.models import Decoder, DecoderConfig, InputConfig, normalise_clip, to_pixels
from vjepa.models.decoder import LAST_TIME

CONFIG = DecoderConfig(width=24, depth=2, heads=3)
PATCH = 3 * 2 * 4 * 4


def test_sizes_that_are_not_named_follow_from_the_encoder() -> None:
    def sizes(of: int, blocks: int, **named: int) -> tuple[int, int, int]:
        encoder = replace(ENCODER, width=of, depth=blocks, heads=1)
        return DecoderConfig(**named).sizes_for(encoder)

    assert sizes(96, 3) == (160, 4, 5), "configs/decode/demo.yaml"
    assert sizes(1024, 24) == (768, 12, 12), "configs/decode/vitl16_224.yaml"
    assert sizes(384, 12) == (288, 12, 9)
    assert sizes(96, 3, width=128) == (128, 4, 4)
    assert sizes(96, 3, width=36, depth=2, heads=2) == (36, 2, 2)
    assert sizes(96, 3, width=70) == (70, 4, 2)


def _decoder() -> Decoder:
    torch.manual_seed(0)
    return shaken(Decoder(ENCODER, CONFIG))


def _inputs(count: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    places = torch.stack([torch.randperm(32, generator=generator)[:tokens] for _ in range(count)])
    noisy = torch.randn(count, tokens, PATCH, generator=generator)
    return noisy, torch.randn(count, tokens, 24, generator=generator), places


def test_packed_clips_are_decoded_as_alone() -> None:
    decoder, (noisy, features, places) = _decoder(), _inputs(2, 9)
    time, kept = torch.tensor([0.2, 0.7]), torch.tensor([True, False])
    lengths = [9, 4]
    alone = [
        decoder(
            noisy[b, None, :n],
            time[b].reshape(1, 1),
            features[b, None, :n],
            places[b, None, :n],
            kept=kept[b].reshape(1, 1),
        )[0]
        for b, n in enumerate(lengths)
    ]
    flat = [
        torch.cat([part[b, :n] for b, n in enumerate(lengths)])
        for part in (noisy, features, places)
    ]
    rows = torch.tensor([0] * 9 + [1] * 4)
    packed = decoder(
        *(flat[0], time[rows], flat[1], flat[2]), kept=kept[rows], offsets=torch.tensor([0, 9, 13])
    )
    assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_everything_that_is_given_matters_and_hidden_features_do_not() -> None:
    decoder, (noisy, features, places) = _decoder(), _inputs(1, 6)
    time, hidden = torch.full((1, 1), 0.5), torch.zeros(1, 1, dtype=torch.bool)
    usual = decoder(noisy, time, features, places)
    for other in (
        decoder(noisy + 1, time, features, places),
        decoder(noisy, time + 0.2, features, places),
        decoder(noisy, time, features + 1, places),
        decoder(noisy, time, features, (places + 1) % 32),
    ):
        assert not torch.allclose(usual, other, atol=1e-3)
    blind = decoder(noisy, time, features, places, kept=hidden)
    assert_close(blind, decoder(noisy, time, -features, places, kept=hidden))


class _Known(Decoder):
    """Names the same pixels whatever it is given; others without features."""

    def forward(
        self, noisy: Tensor, *_: Tensor, kept: Tensor | None = None, **__: object
    ) -> Tensor:
        return torch.full_like(noisy, 3.0 if kept is None else 1.0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sample_ends_in_the_pixels_that_are_named(steps: int) -> None:
    decoder, (noise, features, places) = _Known(ENCODER, CONFIG), _inputs(2, 5)
    sample = decoder.sample(features, places, noise, steps=steps)
    assert_close(sample, torch.full_like(noise, 3.0))
    guided = decoder.sample(features, places, noise, steps=steps, guidance=2.0)
    assert_close(guided, torch.full_like(noise, 1.0 + 2.0 * (3.0 - 1.0)))


class _Gaussian(Decoder):
    """The exact answer where pixels are normal with mean 2 and deviation 0.5 each."""

    def forward(self, noisy: Tensor, time: Tensor, *_: Tensor, **__: object) -> Tensor:
        s = time[..., None]
        gain = 0.25 * s / (0.25 * s**2 + (1 - s) ** 2)
        return 2.0 + gain * (noisy - 2.0 * s)


def test_samples_have_the_distribution_that_the_pixels_have() -> None:
    """From noise to mean 2 and deviation 0.5, less what the straight last step loses."""
    decoder = _Gaussian(ENCODER, CONFIG)
    noise = torch.randn(1, 32, PATCH, generator=torch.Generator().manual_seed(0))
    left = (0.5**2 * LAST_TIME**2 + (1 - LAST_TIME) ** 2) ** 0.5
    wanted = 0.5**2 * LAST_TIME / left  # 0.488
    for steps, off in ((6, 0.03), (32, 0.008)):
        sample = decoder.sample(torch.zeros(1, 32, 24), torch.arange(32)[None], noise, steps=steps)
        assert_close(float(sample.mean()), 2.0, atol=0.02, rtol=0)
        assert_close(float(sample.std()), wanted, atol=off, rtol=0)


@pytest.mark.parametrize("how", [InputConfig(), InputConfig(mean=(0.1, 0.2, 0.3))])
def test_pixels_come_back_from_what_the_encoder_is_given(how: InputConfig) -> None:
    clips = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    assert torch.equal(to_pixels(normalise_clip(clips, how=how), how), clips)
    both = InputConfig(content="rgb_and_change")
    assert torch.equal(to_pixels(normalise_clip(clips, how=both), both), clips)
