"""Exactly the frames asked for, of every kind of file, without reading more than that needs."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from av.packet import Packet
from tests.data.video_files import (
    SPECS,
    VARIABLE_PTS,
    Spec,
    VideoLibrary,
    barcode,
    decode_all,
    decode_by_pyav,
    numbers_of,
    write_video,
    write_without_count,
)

import vjepa.data.video.decode as decode_module
import vjepa.data.video.packets as packets_module
from vjepa.data.video.container import open_video, to_rgb
from vjepa.data.video.decode import DecodeError, decode_clip, decode_frames, read_frames
from vjepa.data.video.inspect import inspect_file
from vjepa.data.video.packets import PacketSelector

TURNS = {
    "rotated90.mp4": (90, lambda image: np.rot90(image, 1)),
    "rotated180.mp4": (180, lambda image: np.rot90(image, 2)),
    "rotated270.mov": (270, lambda image: np.rot90(image, 3)),
    "mirrored.mp4": (0, lambda image: image[:, ::-1]),
}
# Frames before the edit list's start are in the file but not shown.
FIRST_NUMBER = {"h264_trimmed.mp4": 20}
RISING = (
    list(range(60)),
    list(range(0, 60, 4)),
    [2, 3, 40, 59],
    [5, 5, 6, 6, 6, 30],
    [0],
    [1],
    [26],
    [59],
)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory and open files are read from /proc"
)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in TURNS])
def test_every_frame_of_every_kind_is_the_one_asked_for(library: VideoLibrary, name: str) -> None:
    info = inspect_file(library.path(name))
    assert info.ok, info.reason
    first = FIRST_NUMBER.get(name, 0)
    expected = SPECS[name].num_frames - first
    assert info.num_frames == expected
    assert (info.width, info.height) == SPECS[name].size
    frames = decode_frames(info, np.arange(expected))
    assert frames.dtype == np.uint8
    assert frames.shape == (expected, info.height, info.width, 3)
    assert numbers_of(frames) == list(range(first, first + expected))


@pytest.mark.parametrize("name", SPECS)
def test_few_frames_are_those_of_a_whole_reading(library: VideoLibrary, name: str) -> None:
    info = inspect_file(library.path(name))
    whole = decode_clip(info, np.arange(60))
    for numbers in (*RISING[1:], [57, 3, 3, 31, 59, 0, 12, 11, 13, 57]):
        clip = decode_clip(info, numbers)
        np.testing.assert_array_equal(clip.frames, whole.frames[numbers])
        np.testing.assert_array_equal(clip.times, whole.times[numbers])


@pytest.mark.parametrize(
    "name", ["h264_gop12.mp4", "h264_gop250.mp4", "h264_open_gop.mkv", "vp9.webm"]
)
@pytest.mark.parametrize("stride", [1, 4, 7])
def test_clips_are_pixel_identical_to_decoding_everything(
    library: VideoLibrary, name: str, stride: int
) -> None:
    reference = decode_by_pyav(library.path(name))
    info = inspect_file(library.path(name))
    for start in range(0, info.num_frames - 7 * stride, 5):
        indices = start + stride * np.arange(8)
        np.testing.assert_array_equal(decode_frames(info, indices), reference[indices])


def test_healthy_files_are_never_read_from_the_start(library: VideoLibrary, monkeypatch) -> None:
    def fail(info):
        raise AssertionError(f"{info.path}: frames were not found by their key frames")
        yield

    monkeypatch.setattr(decode_module, "frames_from_start", fail)
    for name in SPECS:
        decode_frames(inspect_file(library.path(name)), [3, 25, 26, 40, 58])


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "h264_open_gop.mkv", "h264.ts", "mpeg4.avi"])
def test_neighbouring_groups_are_read_without_a_jump(
    library: VideoLibrary, name: str, monkeypatch
) -> None:
    def fail(self, pts):
        raise AssertionError("jumped")

    info = inspect_file(library.path(name))
    monkeypatch.setattr(packets_module.PacketReader, "_seek", fail)
    # Every group a run of its own: what was read of the next one must be kept.
    monkeypatch.setattr(packets_module, "WORTH_A_JUMP", 0)
    for offset in (1, -1):
        wanted = info.keyframe_index[:5] + offset
        wanted = wanted[wanted >= 0]
        assert numbers_of(decode_frames(info, wanted)) == wanted.tolist()


def test_decodes_no_more_than_needed(library: VideoLibrary, fed: list[Packet]) -> None:
    info = inspect_file(library.path("h264_gop12.mp4"))  # 100 frames, a key frame every 12
    keys = info.keyframe_index.tolist()
    # Of two groups in the middle, what comes before the frame.
    for numbers, most in (([keys[4]], 1), ([keys[2], keys[8]], 2), ([3, 90], 12)):
        fed.clear()
        assert numbers_of(decode_frames(info, numbers)) == numbers
        assert 0 < len(fed) <= most


@pytest.mark.parametrize("held_bytes", [0, 2000])
@pytest.mark.parametrize("name", SPECS)
def test_packets_are_not_held_back_for_long(
    library: VideoLibrary, name: str, held_bytes: int, monkeypatch
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

    monkeypatch.setattr(packets_module, "_HELD_BYTES", held_bytes)
    monkeypatch.setattr(PacketSelector, "needed", counting)
    for numbers in RISING:
        found = list(read_frames(info, np.array(numbers)))
        assert np.array_equal(np.stack([one.image for one in found]), whole.frames[numbers])
        assert [one.seconds for one in found] == whole.times[numbers].tolist()
    assert max(held, default=0) <= held_bytes


def test_frames_that_come_out_of_order_are_put_in_order(library: VideoLibrary, monkeypatch) -> None:
    jump_to = decode_module._jump_to

    def shuffled(*arguments: Any) -> Iterator:
        frames = list(jump_to(*arguments))
        for start in range(0, len(frames), 9):
            yield from reversed(frames[start : start + 9])

    monkeypatch.setattr(decode_module, "_jump_to", shuffled)
    monkeypatch.setattr(decode_module, "frames_from_start", lambda _: (frame for frame in ()))
    numbers = list(range(0, 60, 4))
    assert numbers_of(decode_frames(library.path("h264_gop12.mp4"), numbers)) == numbers


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "vp9.webm"])
def test_a_file_that_cannot_be_sought_in_is_read_from_its_start(
    library: VideoLibrary, name: str, monkeypatch
) -> None:
    monkeypatch.setattr(packets_module.PacketReader, "_seek", lambda *_: False)
    for numbers in RISING:
        assert numbers_of(decode_frames(library.path(name), numbers)) == numbers


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "h264.avi"])
def test_a_frame_that_cannot_be_converted_is_an_error_of_that_file(
    library: VideoLibrary, name: str, monkeypatch
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


@pytest.mark.parametrize("name", ["h264_vfr.mp4", "h264_vfr.mkv"])
def test_variable_rate_gives_exact_times(library: VideoLibrary, name: str) -> None:
    info = inspect_file(library.path(name))
    assert not info.constant_rate
    clip = decode_clip(info, [0, 7, 58])
    np.testing.assert_allclose(clip.times, np.array(VARIABLE_PTS)[[0, 7, 58]] / 1000, atol=1e-9)
    assert numbers_of(clip.frames) == [0, 7, 58]
    assert info.fps == pytest.approx(59 / (VARIABLE_PTS[-1] / 1000))


def test_times_count_from_the_first_frame(library: VideoLibrary) -> None:
    for name in ("h264.ts", "h264_offset.mkv", "h264.avi"):
        info = inspect_file(library.path(name))
        np.testing.assert_allclose(decode_clip(info, [0, 25, 50]).times, [0, 1, 2], atol=2e-3)


@pytest.mark.parametrize("name", TURNS)
def test_rotation_and_mirror_are_applied(library: VideoLibrary, name: str) -> None:
    info = inspect_file(library.path(name))
    rotation, turn = TURNS[name]
    expected = np.stack([turn(image) for image in decode_by_pyav(library.path(name))[[5, 44]]])
    assert info.rotation == rotation
    assert (info.height, info.width) == expected.shape[1:3]
    np.testing.assert_array_equal(decode_frames(info, [5, 44]), expected)


def test_grey_becomes_three_equal_channels(library: VideoLibrary) -> None:
    for name in ("h264_grey.mp4", "ffv1_grey.mkv"):
        frames = decode_frames(inspect_file(library.path(name)), [1, 21])
        np.testing.assert_array_equal(frames[..., 0], frames[..., 1])
        np.testing.assert_array_equal(frames[..., 0], frames[..., 2])


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("alpha.mkv", "ffv1", "bgra"),
        ("alpha.mov", "qtrle", "argb"),
        ("alpha.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_alpha_is_laid_over_black(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    options = {"crf": "4", "b": "0", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
    spec = Spec(codec=codec, pix_fmt=pix_fmt, b_frames=0, num_frames=30, alpha=128, options=options)
    info = inspect_file(str(write_video(tmp_path / name, spec)))
    frames = decode_frames(info, [29, 13])
    half = frames.shape[2] // 2
    for frame, number in zip(frames, (29, 13), strict=True):
        opaque, veiled = barcode(number)[:, :half], barcode(number)[:, half:]
        np.testing.assert_allclose(frame[4:20, : half - 2], opaque[4:20, :-2], atol=16)
        bright = veiled[4:20, :, 0].mean(axis=0) > 127
        inside = bright & np.roll(bright, 1) & np.roll(bright, -1)
        np.testing.assert_allclose(frame[4:20, half:][:, inside], 128, atol=16)


def test_files_without_a_frame_count_are_counted(tmp_path: Path) -> None:
    path = write_without_count(tmp_path / "no_count.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    info = inspect_file(str(path))
    assert (info.ok, info.num_frames) == (True, 60)
    assert numbers_of(decode_frames(info, [59, 0])) == [59, 0]


@pytest.mark.parametrize(("name", "like"), [("a.mp4", "h264_no_b.mp4"), ("a.gif", "animation.gif")])
def test_one_frame(tmp_path: Path, name: str, like: str) -> None:
    info = inspect_file(str(write_video(tmp_path / name, replace(SPECS[like], num_frames=1))))
    assert (info.ok, info.num_frames) == (True, 1)
    assert info.fps > 0
    assert info.duration_seconds > 0
    assert decode_frames(info, [0, 0, 0]).shape == (3, info.height, info.width, 3)


def test_a_frame_size_that_changes_midway_is_scaled_to_the_first(tmp_path: Path) -> None:
    joined = b""
    for size in ((80, 48), (160, 96)):
        spec = Spec(container="mpegts", size=size, num_frames=20)
        joined += write_video(tmp_path / "part.ts", spec).read_bytes()
    (tmp_path / "joined.ts").write_bytes(joined)
    frames = decode_all(str(tmp_path / "joined.ts"))
    assert frames.shape[1:] == (48, 80, 3)
    assert numbers_of(frames)[:20] == list(range(20))


def test_numbers_that_do_not_exist(library: VideoLibrary) -> None:
    info = inspect_file(library.path("vp9.webm"))
    with pytest.raises(DecodeError, match=r"vp9\.webm.*frame 60 asked for, but it has 60") as error:
        decode_frames(info, [0, 60])
    assert error.value.path == info.path
    for numbers in ([-1], []):
        with pytest.raises(ValueError, match="indices"):
            decode_frames(info, numbers)
    for numbers in ([3, 2], [-1, 0]):
        with pytest.raises(ValueError, match="must rise"):
            list(read_frames(info, np.array(numbers)))


def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    info = inspect_file(str(path))
    write_video(path, Spec(num_frames=9))
    with pytest.raises(DecodeError, match="changed since it was indexed"):
        decode_frames(info, [0])
    path.unlink()
    with pytest.raises(DecodeError, match="No such file"):
        decode_frames(info, [0])


def test_what_is_found_in_a_good_file(library: VideoLibrary) -> None:
    info = inspect_file(library.path("h264_gop12.mp4"), deep=True)
    assert info.ok
    assert info.codec == "h264"
    assert info.fps == pytest.approx(25)
    assert info.duration_seconds == pytest.approx(4)
    assert info.constant_rate
    assert info.time_base == Fraction(1, 12800)
    assert info.bytes == Path(info.path).stat().st_size
    assert info.keyframe_index[0] == 0
    np.testing.assert_array_equal(info.keyframe_pts, info.keyframe_index * 512 + info.start_pts)
    assert (info.reading, info.note, info.frame_pts.size) == ("stamps", "", 0)
    # Every picture of a GIF builds on the one before it.
    assert inspect_file(library.path("animation.gif")).num_keyframes == 1


@needs_proc
def test_memory_stays_flat_over_many_opens(library: VideoLibrary) -> None:
    info = inspect_file(library.path("h264_gop12.mp4"))

    def resident_kilobytes() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 1024

    for _ in range(30):
        decode_frames(info, [1, 50])
    before = resident_kilobytes()
    for _ in range(300):
        decode_frames(info, [1, 50])
    # A leak of one decoder (about 300 kB) per open would come to 90 MB.
    assert resident_kilobytes() - before < 15_000


@needs_proc
def test_files_are_closed_also_after_errors(library: VideoLibrary, tmp_path: Path) -> None:
    def open_files() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    text = tmp_path / "text.mp4"
    text.write_text("no video")
    info = inspect_file(library.path("vp9.webm"))
    before = open_files()
    for _ in range(5):
        decode_frames(info, [3])
        next(read_frames(info, np.arange(60)))  # and the rest is not wanted
        with pytest.raises(DecodeError):
            decode_frames(str(text), [0])
    assert open_files() == before


def test_a_file_is_closed_by_the_reader_and_not_by_the_garbage_collector(
    library: VideoLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal's handler raises while a file is closed is printed and swallowed there."""

    @contextmanager
    def interrupted(*args: Any) -> Iterator[Any]:
        with open_video(*args) as video:
            try:
                yield video
            finally:
                raise KeyboardInterrupt

    info = inspect_file(library.path("vp9.webm"))
    monkeypatch.setattr("vjepa.data.video.decode.open_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode_frames(info, [3])
