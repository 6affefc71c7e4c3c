"""Frames one after another: the right ones, in order, in memory that stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from tests.data.video_files import (
    SPECS,
    Spec,
    VideoLibrary,
    damage,
    numbers_of,
    write_image,
    write_image_folder,
    write_video,
)

import vjepa.data.video.decode as decode_module
from vjepa.data.video.container import VideoFile, to_rgb
from vjepa.data.video.decode import decode_clip, read_frames
from vjepa.data.video.info import DecodeError
from vjepa.data.video.inspect import inspect_file
from vjepa.data.video.packets import PacketSelector


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VideoLibrary:
    return VideoLibrary(tmp_path_factory.mktemp("stream"))


def _streamed(path: str, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    found = list(read_frames(inspect_file(path), np.array(numbers, dtype=np.int64)))
    return np.stack([one.image for one in found]), np.array([one.seconds for one in found])


WAYS = {
    "all": list(range(60)),
    "every fourth": list(range(0, 60, 4)),
    "a few, far apart": [2, 3, 40, 59],
    "repeated": [5, 5, 6, 6, 6, 30],
    "the last": [59],
}


def test_groups_of_pictures_that_nobody_wants_are_not_decoded(
    library: VideoLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.path("h264_gop12.mp4")  # 100 frames, a key frame every 12
    fed: list[int] = []
    original = VideoFile.feed

    def counting(self: VideoFile, packet: object) -> list:
        fed.append(packet is not None)
        return original(self, packet)  # ty: ignore[invalid-argument-type]

    info = inspect_file(path)
    monkeypatch.setattr(VideoFile, "feed", counting)
    frames = [one.image for one in read_frames(info, np.array([3, 90]))]
    assert numbers_of(np.stack(frames)) == [3, 90]
    assert sum(fed) <= 12  # of two groups of nine, what comes before the frame


@pytest.mark.parametrize("held_bytes", [0, 2000])
@pytest.mark.parametrize("name", SPECS)
def test_packets_are_not_held_back_for_long(
    library: VideoLibrary, name: str, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs end at a key frame; where that is far, or the size of the file unknown, they are cut."""
    path = library.path(name)
    info = replace(inspect_file(path), **({"bytes": 0} if held_bytes else {}))
    whole = decode_clip(path, np.arange(60))
    held: list[int] = []
    needed = PacketSelector.needed

    def counting(self: PacketSelector, packets: list, *rest: Any) -> list:
        held.append(sum(packet.size for packet in packets[:-1]))
        return needed(self, packets, *rest)

    monkeypatch.setattr(decode_module, "_HELD_BYTES", held_bytes)
    monkeypatch.setattr(PacketSelector, "needed", counting)
    for numbers in WAYS.values():
        found = list(read_frames(info, np.array(numbers)))
        assert np.array_equal(np.stack([one.image for one in found]), whole.frames[numbers])
        assert [one.seconds for one in found] == whole.times[numbers].tolist()
    assert max(held, default=0) <= held_bytes


def test_frames_that_come_out_of_order_are_put_in_order(
    library: VideoLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.path("h264_gop12.mp4")
    jump_to = decode_module._jump_to

    def shuffled(*arguments: Any) -> Iterator:
        frames = list(jump_to(*arguments))
        for start in range(0, len(frames), 9):
            yield from reversed(frames[start : start + 9])

    monkeypatch.setattr(decode_module, "_jump_to", shuffled)
    monkeypatch.setattr(decode_module, "_from_start", lambda _: iter(()))
    assert numbers_of(_streamed(path, WAYS["every fourth"])[0]) == WAYS["every fourth"]


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "vp9.webm"])
def test_a_file_that_cannot_be_sought_in_is_read_from_its_start(
    library: VideoLibrary, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_module._PacketReader, "_seek", lambda *_: False)
    for numbers in WAYS.values():
        assert numbers_of(_streamed(library.path(name), numbers)[0]) == numbers


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "h264.avi"])
def test_a_frame_that_cannot_be_converted_is_an_error_of_that_file(
    library: VideoLibrary, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg's own error would end a reading thread without a word."""
    path = library.path(name)
    converted: list[object] = []

    def failing(frame: av.VideoFrame, *rest: Any) -> np.ndarray:
        converted.append(frame)
        if len(converted) == 3:
            raise av.error.ExternalError(-1, "Generic error in an external library")
        return to_rgb(frame, *rest)

    monkeypatch.setattr(decode_module, "to_rgb", failing)
    given = []
    with pytest.raises(DecodeError, match=f"{name}.*external library") as error:
        given.extend(read_frames(inspect_file(path), np.arange(10)))
    assert error.value.path == path
    assert len(given) == 2


def test_still_images_and_folders(tmp_path: Path) -> None:
    frames, seconds = _streamed(str(write_image(tmp_path / "one.png", 9)), [0, 0, 0])
    assert numbers_of(frames) == [9, 9, 9]
    assert seconds.tolist() == [0, 0, 0]
    folder = write_image_folder(tmp_path / "frames", 40)
    frames, seconds = _streamed(str(folder), list(range(0, 40, 3)))
    assert numbers_of(frames) == list(range(0, 40, 3))
    assert seconds[-1] == pytest.approx(39 / 30)


def test_damage_in_the_middle_is_an_error_after_the_good_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", Spec(num_frames=60, b_frames=0))
    info = inspect_file(str(path))
    damage(path, 2, 3)
    first, after = info.keyframe_index[2:4].tolist()
    given = []
    stream = read_frames(info, np.arange(60))
    with pytest.raises(DecodeError, match="damaged file"):
        given.extend(one.image for one in stream)
    assert numbers_of(np.stack(given)) == list(range(first))
    far = [one.image for one in read_frames(info, np.array([0, after + 3]))]
    assert numbers_of(np.stack(far)) == [0, after + 3]


@pytest.mark.parametrize("numbers", [[3, 2], [-1, 0]])
def test_numbers_must_rise(library: VideoLibrary, numbers: list[int]) -> None:
    info = inspect_file(library.path("h264_no_b.mp4"))
    with pytest.raises(ValueError, match="must rise"):
        list(read_frames(info, np.array(numbers)))


def test_a_frame_after_the_end_is_refused(library: VideoLibrary) -> None:
    info = inspect_file(library.path("h264_no_b.mp4"))
    with pytest.raises(DecodeError, match="has 60 frames"):
        list(read_frames(info, np.array([60])))
