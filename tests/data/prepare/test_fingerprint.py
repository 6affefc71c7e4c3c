"""Hashes of frames and fingerprints of videos: near for copies, far for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.data.prepare.copies import remux, scene, write

from vjepa.data.prepare.config import MatchConfig, Order, Part
from vjepa.data.prepare.matching import (
    Fingerprint,
    fingerprint,
    frame_share,
    grey_thumbnail,
    hash_thumbnail,
    hashed_frames,
    is_informative,
    take_fingerprint,
)
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file

_MATCH = MatchConfig()
_WHOLE = Part()


def _print(path: Path, part: Part = _WHOLE, match: MatchConfig = _MATCH) -> Fingerprint:
    return take_fingerprint(inspect_file(str(path)), part, match)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original") / "a.mp4", scene(1))


def test_another_container_is_the_same_content(original: Path, tmp_path: Path) -> None:
    again = remux(original, tmp_path / "b.mkv")
    assert again.read_bytes() != original.read_bytes()
    assert _print(again).content == _print(original).content


@pytest.mark.parametrize(
    "change", [{"crf": 40}, {"size": (48, 36)}, {"size": (160, 60)}, {"codec": "mpeg4"}, {"gop": 5}]
)
def test_another_encoding_looks_the_same(change: dict, original: Path, tmp_path: Path) -> None:
    again = _print(write(tmp_path / "b.mp4", scene(1), **change))
    mine = _print(original)
    assert again.content != mine.content
    assert frame_share(mine.frames, again.frames, _MATCH.hash_bits) > 0.8


def test_another_frame_rate_looks_the_same(original: Path, tmp_path: Path) -> None:
    again = _print(write(tmp_path / "b.mp4", scene(1)[::2], rate=6))
    assert frame_share(_print(original).frames, again.frames, _MATCH.hash_bits) > 0.8


def test_another_video_looks_different(original: Path, tmp_path: Path) -> None:
    other = _print(write(tmp_path / "b.mp4", scene(2)))
    assert frame_share(_print(original).frames, other.frames, _MATCH.hash_bits) == 0


def test_a_clip_is_found_in_its_video(tmp_path: Path) -> None:
    """Where the picture moves slowly: frames are hashed at other moments than in the video."""
    slow = [scene(seed, speed=0.02) for seed in (5, 6, 7)]
    long = write(tmp_path / "long.mp4", np.concatenate(slow))
    clip = write(tmp_path / "clip.mp4", slow[1], crf=35)
    share = frame_share(_print(long).frames, _print(clip).frames, _MATCH.hash_bits)
    assert share >= _MATCH.hash_share


def test_parts_have_prints_of_their_own(original: Path) -> None:
    first, second = _print(original, Part(0, 2)), _print(original, Part(2, 4))
    assert first.content != second.content
    assert not np.array_equal(first.frames, second.frames)


def test_empty_frames_say_nothing(tmp_path: Path) -> None:
    black = write(tmp_path / "black.mp4", np.zeros((24, 48, 64, 3), dtype=np.uint8))
    assert len(_print(black).frames) == 0


def test_pictures_are_not_decoded_when_nobody_asks(original: Path) -> None:
    assert len(_print(original, match=MatchConfig(by_pictures=False)).frames) == 0


def test_which_frames() -> None:
    info = VideoInfo(path="/a", num_frames=300, fps=30.0, duration_seconds=10.0)
    assert hashed_frames(info, Part(), _MATCH).tolist() == [15 + 30 * k for k in range(10)]
    short = VideoInfo(path="/a", num_frames=40, fps=20.0, duration_seconds=2.0)
    assert len(hashed_frames(short, Part(), _MATCH)) == 8
    long = VideoInfo(path="/a", num_frames=72000, fps=20.0, duration_seconds=3600.0)
    assert len(hashed_frames(long, Part(), _MATCH)) == 128
    one = VideoInfo(path="/a", num_frames=1, fps=1.0, duration_seconds=1.0)
    assert hashed_frames(one, Part(), _MATCH).tolist() == [0]


def test_json_and_failures(original: Path, tmp_path: Path) -> None:
    mine = _print(original)
    again = Fingerprint.from_json(mine.to_json())
    assert again.content == mine.content
    assert np.array_equal(again.frames, mine.frames)
    missing = VideoInfo(path=str(tmp_path / "no.mp4"), num_frames=5, fps=1.0)
    assert "No such file" in fingerprint(_MATCH, Order("k", missing, Part()))["failed"]


def _hash(frame: np.ndarray) -> np.uint64:
    return np.uint64(hash_thumbnail(grey_thumbnail(frame)))


def _distances(left: np.ndarray | np.uint64, right: np.ndarray | np.uint64) -> np.ndarray:
    """Numbers of bits that differ."""
    return np.bitwise_count(left ^ right).astype(np.int64)


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
        assert _distances(_hash(frame), _hash(noisy)) <= 6
        assert _distances(_hash(frame), _hash(frame.repeat(2, axis=1))) <= 4


def test_other_pictures_and_mirrors_are_far() -> None:
    frames = [scene(seed, 1)[0] for seed in range(20)]
    hashes = np.array([_hash(frame) for frame in frames])
    apart = _distances(hashes[:, None], hashes[None])[~np.eye(20, dtype=bool)]
    assert apart.min() > 10
    assert 28 < apart.mean() < 36
    assert _distances(_hash(frames[0]), _hash(frames[0][:, ::-1])) > 10


def test_a_hash_is_64_bits_and_about_half_are_set() -> None:
    hashes = [int(_hash(scene(seed, 1)[0])) for seed in range(20)]
    assert all(0 <= value < 1 << 64 for value in hashes)
    assert all(28 <= value.bit_count() <= 33 for value in hashes)
