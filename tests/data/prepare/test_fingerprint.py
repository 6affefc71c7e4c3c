"""Fingerprints of copies agree, those of others do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.data.prepare.copies import remux, scene, write

from vjepa.data.prepare.config import MatchConfig
from vjepa.data.prepare.fingerprint import (
    Fingerprint,
    FingerprintOrder,
    FingerprintTask,
    hashed_frames,
    take_fingerprint,
)
from vjepa.data.prepare.inputs import Part
from vjepa.data.prepare.matching import frame_share
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import probe

_MATCH = MatchConfig()
_WHOLE = Part()


def _print(path: Path, part: Part = _WHOLE, match: MatchConfig = _MATCH) -> Fingerprint:
    return take_fingerprint(probe(str(path)), part, match)


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
    assert "No such file" in str(FingerprintTask(_MATCH)(FingerprintOrder(missing, Part())))
