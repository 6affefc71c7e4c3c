"""Every kind of bad file is a finding with a path and a reason, never a crash."""

from __future__ import annotations

import gzip
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.data.video_files import (
    Spec,
    damage,
    decode_all,
    numbers_of,
    write_audio_only,
    write_huge_header,
    write_image,
    write_truncated,
    write_video,
)

from vjepa.data.video.container import VideoFile
from vjepa.data.video.decode import DecodeError, decode_frames, read_frames
from vjepa.data.video.info import LimitsConfig, VideoInfo
from vjepa.data.video.inspect import inspect_file


def make_bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    match kind:
        case "truncated":
            write_truncated(path, keep=0.8)
        case "truncated_before_its_table":
            write_truncated(path, spec=Spec(num_frames=30))
        case "zero_byte":
            path.touch()
        case "text":
            path.write_text("This is a text that somebody called a video.\n" * 100)
        case "picture":
            path.write_bytes(write_image(folder / "picture.png").read_bytes())
        case "play_list":
            inside = write_video(folder / "inside.ts", Spec(container="mpegts"))
            path.write_text(
                f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{inside}\n#EXT-X-ENDLIST\n"
            )
        case "script":
            write_video(folder / "inside.mp4")
            path.write_text("ffconcat version 1.0\nfile inside.mp4\n")
        case "audio_only":
            write_audio_only(path)
        case "huge":
            path = write_huge_header(folder / "huge.avi", 9_000)
        case "absurd":
            path = write_huge_header(folder / "absurd.avi", 100_000)
        case "folder":
            path = folder / "not_a_clip.mp4"
            path.mkdir()
        case "noise":
            path.write_bytes(np.random.default_rng(0).bytes(5000))
        case "header_only":
            write_video(path)
            path.write_bytes(path.read_bytes()[:40])
        case "fifo":
            os.mkfifo(path)
    return path


REASONS = {
    "truncated": "truncated: only 57 frames",
    "truncated_before_its_table": "truncated",
    "zero_byte": "empty file",
    "text": "not a video",
    "picture": "not a video",
    "play_list": "not a video",
    "script": "not a video",
    "audio_only": "no video stream .it has: audio",
    "huge": "9000 x 9000 pixels are above max_pixels",
    "absurd": "no frame size, or an impossible one",
    "folder": "a folder without images",
    "noise": "not a video",
    "header_only": "not a video",
    "missing": "No such file",
    "fifo": "no regular file",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_file_has_a_reason_and_its_path_is_in_the_error(kind, tmp_path):
    path = make_bad_file(kind, tmp_path)
    info = inspect_file(str(path))
    assert not info.ok
    assert info.path == str(path)
    with pytest.raises(DecodeError, match=REASONS[kind]) as error:
        decode_frames(str(path), [0])
    assert error.value.path == str(path)
    assert error.value.reason == info.reason
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind", ["truncated", "zero_byte", "text", "audio_only", "noise", "missing"]
)
def test_a_row_that_was_good_once_fails_with_a_decode_error(kind, tmp_path):
    good = inspect_file(str(write_video(tmp_path / "good.mp4", Spec(num_frames=100))))
    path = make_bad_file(kind, tmp_path)
    size = path.stat().st_size if path.exists() else good.bytes
    with pytest.raises(DecodeError) as error:
        decode_frames(replace(good, path=str(path), bytes=size), [95, 0])
    assert error.value.path == str(path)


def test_a_bad_row_is_not_even_opened(tmp_path):
    good = inspect_file(str(write_video(tmp_path / "good.mp4")))
    with pytest.raises(DecodeError, match="marked by hand"):
        decode_frames(replace(good, ok=False, reason="marked by hand"), [0])


def damaged(folder: Path, num_frames: int, first: int, last: int | None = None) -> VideoInfo:
    """What was found in a video, before its groups `first` to before `last` were overwritten."""
    path = write_video(folder / "a.mp4", Spec(num_frames=num_frames, b_frames=0))
    info = inspect_file(str(path))
    damage(path, first, info.num_keyframes if last is None else last)
    return info


def test_damage_in_the_middle_costs_only_the_damaged_frames(tmp_path):
    info = damaged(tmp_path, 60, 2, 3)
    lost, behind = info.keyframe_index[2:4].tolist()
    before, after = [0, lost - 1], [behind, 59]
    assert numbers_of(decode_frames(info, before + after)) == before + after
    with pytest.raises(DecodeError, match=f"frame {lost + 1} of 60 cannot be decoded"):
        decode_frames(info, [0, lost + 1, 59])
    given = []
    with pytest.raises(DecodeError, match="damaged file"):
        given.extend(one.image for one in read_frames(info, np.arange(60)))
    assert numbers_of(np.stack(given)) == list(range(lost))


def test_deep_inspection_finds_damage_in_the_middle(tmp_path):
    path = damaged(tmp_path, 60, 2, 3).path
    assert inspect_file(path).ok
    deep = inspect_file(path, deep=True)
    assert not deep.ok
    assert "of 60 frames damaged" in (deep.reason or "")


def test_a_few_frames_lost_at_the_end_are_replaced_by_the_last_good_one(tmp_path):
    info = damaged(tmp_path, 52, -1)
    lost = int(info.keyframe_index[-1])
    assert 52 - lost <= 8
    frames = decode_frames(info, [0, lost - 1, lost, 51])
    assert numbers_of(frames) == [0, lost - 1, lost - 1, lost - 1]


def test_a_long_lost_end_is_an_error(tmp_path):
    info = damaged(tmp_path, 60, 3)
    lost = int(info.keyframe_index[3])
    with pytest.raises(DecodeError, match=f"frame {lost + 5} of 60 cannot be decoded"):
        decode_frames(info, [0, lost + 5])


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [("a.mkv", "libx264", None), ("a.ts", "libx264", "mpegts"), ("a.mpg", "mpeg2video", "mpeg")],
)
def test_a_cut_stream_without_a_table_is_a_shorter_video(name, codec, container, tmp_path):
    spec = Spec(codec=codec, container=container, b_frames=0, num_frames=100)
    info = inspect_file(str(write_truncated(tmp_path / name, keep=0.5, spec=spec)))
    assert info.ok
    assert 10 < info.num_frames < 90
    numbers = numbers_of(decode_all(info.path))
    assert numbers[:-1] == list(range(info.num_frames - 1))


def test_limits(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", Spec(num_frames=60)))
    for limits, reason in (
        (LimitsConfig(max_pixels=80 * 48 - 1), "80 x 48 pixels are above max_pixels = 3839"),
        (LimitsConfig(max_frames=59), "more than max_frames = 59 frames"),
        (LimitsConfig(max_bytes=100), "above max_bytes = 100"),
    ):
        info = inspect_file(path, limits)
        assert not info.ok
        assert reason in (info.reason or "")
    exactly = LimitsConfig(max_pixels=80 * 48, max_frames=60, max_bytes=Path(path).stat().st_size)
    assert inspect_file(path, exactly).ok
    with pytest.raises(ValueError, match=r"^max_frames "):
        LimitsConfig(max_frames=0)


def test_a_stream_that_turns_out_larger_than_its_header_is_refused(tmp_path):
    path = write_video(tmp_path / "a.avi", Spec(codec="mpeg4", b_frames=0, size=(320, 240)))
    info = inspect_file(str(path), LimitsConfig(max_pixels=319 * 240))
    assert not info.ok


@pytest.mark.parametrize("suffix", [".mp4", ".jpg"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page in place of the file"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip; unpack it"),
        (b"PK\x03\x04 and so on", "a ZIP archive; unpack it"),
    ],
)
def test_what_lies_in_place_of_a_file_is_named(tmp_path, data, said, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    info = inspect_file(str(path))
    assert not info.ok
    assert said in info.reason


def test_a_folder_of_videos_with_a_picture_is_no_clip_of_one_picture(tmp_path):
    write_video(tmp_path / "a.mp4", Spec(num_frames=2))
    write_image(tmp_path / "cover.png")
    info = inspect_file(str(tmp_path))
    assert not info.ok
    assert info.reason == "videos with images beside them, no numbered frames; name the videos"
    (tmp_path / "cover.png").unlink()
    for number in range(3):
        write_image(tmp_path / f"{number}.png", number)
    assert inspect_file(str(tmp_path)).num_frames == 3


def test_metadata_that_is_not_text_does_not_matter(tmp_path):
    path = tmp_path / "a.avi"
    write_video(path, Spec(codec="mpeg4", b_frames=0))
    data = path.read_bytes()
    at = data.index(b"ISFT") + 8
    path.write_bytes(data[:at] + b"\xff\xfe\xfa" + data[at + 3 :])
    assert numbers_of(decode_frames(str(path), [7])) == [7]


def test_a_stream_that_appears_midway_does_not_end_the_reading():
    """PyAV then looks beyond its own list when all packets are read (here as a fake does)."""

    class Joined:
        def demux(self, stream):
            yield from (SimpleNamespace(size=size) for size in (3, 5))
            raise IndexError("list index out of range")

    video = VideoFile("joined.ts", Joined(), None, None)  # ty: ignore[invalid-argument-type]
    assert [packet.size for packet in video.packets()] == [3, 5]


def test_names_that_look_like_addresses_or_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "http:x.mp4", "%03d.mp4", "ein Video mit Ü.mp4"):
        write_video(Path("plain.mp4")).rename(name)
        assert numbers_of(decode_frames(name, [7])) == [7]


def test_decode_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DecodeError("/a/b.mp4", "broken")))
    known = (error.path, error.reason, str(error))
    assert known == ("/a/b.mp4", "broken", "/a/b.mp4: broken; give another file")
    changed = DecodeError("/a/b.mp4", "has changed; index it again")
    assert str(changed) == "/a/b.mp4: has changed; index it again", "one remedy, its own"
