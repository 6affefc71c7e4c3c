"""Perceptual hashes of frames: near for copies, far for others."""

from __future__ import annotations

import numpy as np
from tests.data.prepare.copies import scene

from vjepa.data.prepare.fingerprint import (
    distances,
    grey_thumbnail,
    hash_thumbnail,
    is_informative,
)


def _hash(frame: np.ndarray) -> np.uint64:
    return np.uint64(hash_thumbnail(grey_thumbnail(frame)))


def test_a_thumbnail_is_the_mean_of_equal_parts() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    grey = frame @ np.array([0.299, 0.587, 0.114])
    expected = grey.reshape(32, 2, 32, 3).mean(axis=(1, 3))
    assert np.allclose(grey_thumbnail(frame), expected, atol=1e-3)
    flat = np.full((47, 81, 3), 130, dtype=np.uint8)
    assert np.allclose(grey_thumbnail(flat), 130, atol=1e-3)
    assert not is_informative(grey_thumbnail(flat))
    assert grey_thumbnail(np.zeros((5, 7, 3), dtype=np.uint8)).shape == (32, 32)


def test_brightness_contrast_and_noise_change_few_bits() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        frame = scene(seed, 1)[0]
        assert is_informative(grey_thumbnail(frame))
        noisy = (frame * 0.7 + 30 + rng.normal(0, 8, frame.shape)).clip(0, 255).astype(np.uint8)
        assert distances(_hash(frame), _hash(noisy)) <= 6
        assert distances(_hash(frame), _hash(frame.repeat(2, axis=1))) <= 4


def test_other_pictures_and_mirrors_are_far() -> None:
    frames = [scene(seed, 1)[0] for seed in range(20)]
    hashes = np.array([_hash(frame) for frame in frames])
    apart = distances(hashes[:, None], hashes[None])[~np.eye(20, dtype=bool)]
    assert apart.min() > 10
    assert 28 < apart.mean() < 36
    assert distances(_hash(frames[0]), _hash(frames[0][:, ::-1])) > 10


def test_a_hash_is_64_bits_and_about_half_are_set() -> None:
    hashes = [int(_hash(scene(seed, 1)[0])) for seed in range(20)]
    assert all(0 <= value < 1 << 64 for value in hashes)
    assert all(28 <= value.bit_count() <= 33 for value in hashes)
