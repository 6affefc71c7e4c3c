"""Finding videos that show the same among many, and those of validation lists of every form."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.data.clip_files import make_manifest

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.prepare.config import ExcludeConfig, MatchConfig
from vjepa.data.prepare.matching import PictureIndex, frame_share, read_exclusion, video_id
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError


def _random(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    return rng.integers(0, 1 << 64, count, dtype=np.uint64)


def _flip(rng: np.random.Generator, frames: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """The frames with so many bits of each changed."""
    changed = frames.copy()
    for place in range(len(frames)):
        for bit in rng.choice(64, bits, replace=False):
            changed[place] ^= np.uint64(1) << np.uint64(bit)
    return changed


def test_share_of_alike_frames() -> None:
    rng = np.random.default_rng(0)
    long, other = _random(rng, 40), _random(rng, 10)
    clip = _flip(rng, long[10:20], 4)
    assert frame_share(clip, long, 4) == 1.0
    assert frame_share(long, clip, 4) == 1.0
    assert frame_share(clip, long, 3) == 0.0
    assert frame_share(np.concatenate([clip[:5], other[:5]]), long, 4) == 0.5
    assert frame_share(other, long, 6) == 0.0
    assert frame_share(long[:2], long, 6) == 0.0, "two frames say too little"


def test_copies_are_found_among_many_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    videos = [_random(rng, int(rng.integers(8, 40))) for _ in range(1000)]
    index = PictureIndex(videos)
    for video in range(0, 1000, 37):
        copy = _flip(rng, videos[video], 6)
        assert [found for found, _ in index.matches(copy, 6, 0.6)] == [video]
    assert not list(index.matches(_random(rng, 200), 6, 0.6))


def test_the_index_finds_what_comparing_every_pair_finds() -> None:
    rng = np.random.default_rng(2)
    videos = [_random(rng, 12) for _ in range(60)]
    for video in range(0, 60, 3):
        videos[video + 1] = np.concatenate([_flip(rng, videos[video][:9], 5), _random(rng, 3)])
    index = PictureIndex(videos)
    for number, frames in enumerate(videos):
        pairs = {other for other in range(60) if frame_share(frames, videos[other], 6) >= 0.6}
        assert {found for found, _ in index.matches(frames, 6, 0.6)} == pairs
        assert number in pairs


def test_frames_that_thousands_share_neither_match_nor_cost() -> None:
    rng = np.random.default_rng(3)
    title = _random(rng, 1)
    videos = [np.concatenate([title.repeat(4), _random(rng, 8)]) for _ in range(1000)]
    index = PictureIndex(videos)
    assert frame_share(videos[5], videos[6], 6) > 0.3
    assert list(index.matches(videos[5], 6, 0.3)) == [(5, 1.0)]


def test_nothing_to_compare_with() -> None:
    empty = PictureIndex([])
    assert not list(empty.matches(np.arange(5, dtype=np.uint64), 6, 0.5))
    one = PictureIndex([np.zeros(0, dtype=np.uint64)])
    assert not list(one.matches(np.arange(5, dtype=np.uint64), 6, 0.5))


_MATCH = MatchConfig()


def _ids(path: Path, text: str, **match: object) -> list[str]:
    path.write_text(text)
    return list(read_exclusion([ExcludeConfig(path=path)], MatchConfig(**match)).ids)


def test_ids_leave_out_kinetics_times() -> None:
    assert video_id("/k/abcdefghijk_000010_000020.mp4", _MATCH) == "abcdefghijk"
    assert video_id("s3://ht/abcdefghijk.webm", _MATCH) == "abcdefghijk"
    assert video_id("a_b-c_d_e_f", _MATCH) == "a_b-c_d_e_f"
    assert video_id("/x/lab7-0012.mp4", MatchConfig(id_pattern=r"lab\d-(?P<id>\d+)")) == "0012"


def test_text_lists(tmp_path: Path) -> None:
    assert _ids(tmp_path / "a.txt", "one\n\ntwo\n") == ["one", "two"]
    assert _ids(tmp_path / "b.csv", "/v/abc_000010_000020.mp4 17\n/v/de.mp4 3\n") == ["abc", "de"]
    assert _ids(tmp_path / "c.csv", "k1,5\nk2,6\n") == ["k1", "k2"]
    assert _ids(tmp_path / "d.txt", "/my videos/a b.mp4 17\n/v/c d.mp4,3\n") == ["a b", "c d"]
    assert _ids(tmp_path / "e.txt", "k1 riding a bike\nk2 3 7\n") == ["k1", "k2"]
    assert _ids(tmp_path / "f.csv", "a.mp4,video\nb.mp4,image\n") == ["a", "b"]


def test_the_authors_of_data_sets_lists(tmp_path: Path) -> None:
    kinetics = 'label,youtube_id,time_start,time_end,split\n"a, b",abc,1,11,val\nx,def,2,12,val\n'
    assert _ids(tmp_path / "kinetics.csv", kinetics) == ["abc", "def"]
    assert _ids(tmp_path / "rows.jsonl", '{"path": "/v/a.mp4"}\n{"id": 7}\n') == ["a", "7"]
    assert _ids(tmp_path / "half.csv", "id;label\nk1;a\nk2;b\n") == ["k1", "k2"]
    something = json.dumps([{"id": "74225", "template": "x"}, {"id": 3}])
    assert _ids(tmp_path / "validation.json", something) == ["74225", "3"]


def test_bad_videos_of_a_manifest_are_compared_by_id_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    logger = logging.getLogger("vjepa.data.prepare.matching")
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    rows = [
        ManifestRow(info=VideoInfo(path=f"/v/{n}.mp4", ok=n > 1, width=8, height=8, fps=1.0))
        for n in range(3)
    ]
    Manifest.from_rows(rows, tmp_path).write(tmp_path / "val.parquet")
    found = read_exclusion([ExcludeConfig(path=tmp_path / "val.parquet")], _MATCH)
    assert list(found.ids) == ["0", "1", "2"]
    assert "2 of its 3 videos cannot be read: only their ids are compared" in said[0]


def test_a_manifest_is_compared_in_every_way(tmp_path: Path) -> None:
    make_manifest(tmp_path, 2).write(tmp_path / "val.parquet")
    found = read_exclusion([ExcludeConfig(path=tmp_path / "val.parquet")], _MATCH)
    assert list(found.ids) == ["video_0", "video_1"]
    assert len(found.manifests) == 1
    without = read_exclusion(
        [ExcludeConfig(path=tmp_path / "val.parquet")], MatchConfig(by_id=False)
    )
    assert not without.ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no video"),
        ("a.json", "{", r"a\.json, row 1: not valid JSON"),
        ("a.json", '[{"x": 1}]', r"a\.json, entry 1: names no video; it needs id or"),
        ("a.parquet", "x", "cannot be read"),
        ("a.csv", "label,video\nx,abc\n", r"a\.csv: .*\(label,video\); name .* of ids 'id'"),
        ("a.csv", "label\tYouTube_ID\nx\tabc\n", "no column 'id' in its header"),
    ],
)
def test_bad_lists(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        _ids(tmp_path / name, text)


def test_lists_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_exclusion([ExcludeConfig(path=tmp_path / "x.txt")], _MATCH)
    (tmp_path / "y.txt").write_text("a\n")
    with pytest.raises(UserError, match="of a manifest only"):
        read_exclusion([ExcludeConfig(path=tmp_path / "y.txt", split="val")], _MATCH)
