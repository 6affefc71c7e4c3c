"""Videos inside tar files: written as WebDataset wants them, read where they lie."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tests.data.video_files import SPECS, write_image, write_video

from vjepa.data.clips.dataset import load_clip
from vjepa.data.manifest.storage import Member, member_at, write_shard
from vjepa.data.video.decode import decode_clip
from vjepa.data.video.info import DecodeError
from vjepa.data.video.inspect import inspect_file

_NAMES = ("h264_gop12.mp4", "h264_vfr.mkv", "mpeg2.ts", "vp9.webm", "animation.gif")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    made = [write_video(folder / name, SPECS[name]) for name in _NAMES]
    return [*made, write_image(folder / "picture.png")]


@pytest.fixture
def members(videos: list[Path], tmp_path: Path) -> list[Member]:
    entries = [(path.stem, path, {"label": path.stem}) for path in videos]
    return write_shard(tmp_path / "s.tar", entries)


def test_every_kind_of_file_is_read_as_if_it_stood_alone(
    videos: list[Path], members: list[Member]
) -> None:
    for path, member in zip(videos, members, strict=True):
        alone, inside = inspect_file(str(path)), inspect_file(member.address)
        assert inside.ok, (path, inside.reason)
        assert inside.bytes == alone.bytes
        for name in ("num_frames", "fps", "width", "height", "codec", "start_pts", "kind"):
            assert getattr(inside, name) == getattr(alone, name)
        assert np.array_equal(inside.keyframe_pts, alone.keyframe_pts)
        wanted = [0, 37, 12, 50] if alone.kind == "video" else [0]
        expected, found = decode_clip(alone, wanted), decode_clip(inside, wanted)
        assert np.array_equal(expected.frames, found.frames)
        assert np.array_equal(expected.times, found.times)
        assert inspect_file(member.address, deep=True).ok
    assert load_clip(members[0].address, stride=1).frames.shape == (16, 3, 48, 80)


def test_the_shard_is_an_ordinary_tar_and_always_the_same(
    videos: list[Path], members: list[Member], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "s.tar") as tar:
        names = tar.getnames()
        for path, member in zip(videos, members, strict=True):
            assert tar.extractfile(member.name).read() == path.read_bytes()
            assert tar.getmember(member.name).offset_data == member.offset
            assert json.load(tar.extractfile(f"{path.stem}.json")) == {"label": path.stem}
    assert names[:2] == ["h264_gop12.mp4", "h264_gop12.json"]
    entries = [(path.stem, path, {"label": path.stem}) for path in videos]
    write_shard(tmp_path / "again.tar", entries)
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "s.tar").read_bytes()


def test_webdataset_reads_it(videos: list[Path], members: list[Member], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [path.stem for path in videos]
    assert samples[0]["mp4"] == videos[0].read_bytes()
    assert json.loads(samples[1]["json"]) == {"label": "h264_vfr"}


def test_addresses() -> None:
    member = Member("/d/a!b.tar", 512, 99, "x!1+2.mp4")
    assert member_at(member.address) == member
    stored = Member("s3://bucket/a.tar", 1536, 7, "x.mp4")
    assert member_at(stored.address) == stored
    for path in ("/d/a.tar", "/d/a.tar/x.mp4", "/d/a!1+2/x.mp4", "/d/a.tar!1+2/", "/d/x.mp4"):
        assert member_at(path) is None


def test_a_shard_that_changed_is_refused(members: list[Member], tmp_path: Path) -> None:
    info = inspect_file(members[1].address)
    shard = tmp_path / "s.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: members[1].offset + 10])
    with pytest.raises(DecodeError, match="shorter than the index says"):
        decode_clip(info, [0])
    shard.write_bytes(bytes(512) + whole)
    with pytest.raises(DecodeError, match="holds another file at this place"):
        decode_clip(info, [0])
    shard.unlink()
    with pytest.raises(DecodeError, match="No such file"):
        decode_clip(info, [0])
    assert not inspect_file(members[1].address).ok


@pytest.mark.parametrize("length", [10, 10**9])
def test_a_wrong_length_cannot_reach_beyond_the_member(
    members: list[Member], length: int, tmp_path: Path
) -> None:
    wrong = replace(members[0], length=length)
    info = inspect_file(wrong.address)
    assert not info.ok
    assert "shard" in str(info.reason)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "a.b", "", "-" * 5, "ü", "a" * 99, "a b", "a\n"]
)
def test_names_that_could_do_harm_are_not_written(
    name: str, videos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="name must"):
        write_shard(tmp_path / "bad.tar", [(name, videos[0], {})])
    assert list(tmp_path.iterdir()) == []


def test_object_storage(members: list[Member], videos: list[Path], tmp_path: Path) -> None:
    """Shards and plain files under an address give the same pixels."""
    base = f"memory://{tmp_path.name}"
    with fsspec.open(f"{base}/s.tar", "wb") as file:
        file.write((tmp_path / "s.tar").read_bytes())
    with fsspec.open(f"{base}/a.mp4", "wb") as file:
        file.write(videos[0].read_bytes())
    expected = decode_clip(str(videos[0]), [3, 50]).frames
    there = replace(members[0], shard=f"{base}/s.tar")
    assert np.array_equal(decode_clip(there.address, [3, 50]).frames, expected)
    assert np.array_equal(decode_clip(f"{base}/a.mp4", [3, 50]).frames, expected)
    assert inspect_file(f"{base}/picture.mp4").reason
