"""Validation lists of every form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data.clip_files import make_manifest

from vjepa.data.prepare.config import ExcludeConfig, MatchConfig
from vjepa.data.prepare.matching import read_exclusion, video_id
from vjepa.errors import UserError

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


def test_the_authors_of_data_sets_lists(tmp_path: Path) -> None:
    kinetics = 'label,youtube_id,time_start,time_end,split\n"a, b",abc,1,11,val\nx,def,2,12,val\n'
    assert _ids(tmp_path / "kinetics.csv", kinetics) == ["abc", "def"]
    something = json.dumps([{"id": "74225", "template": "x"}, {"id": 3}])
    assert _ids(tmp_path / "validation.json", something) == ["74225", "3"]


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
        ("a.json", "{", "cannot be read as a list of videos"),
        ("a.json", '[{"x": 1}]', "an entry without `id`"),
        ("a.parquet", "x", "cannot be read"),
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
