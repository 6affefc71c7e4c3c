from __future__ import annotations

import resource
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.data.video_files import (
    SPECS,
    VARIABLE_PTS,
    Spec,
    VideoLibrary,
    barcode,
    decode_all,
    numbers_of,
    write_video,
    write_without_count,
)

import vjepa.data.video.decode as decode_module
from vjepa.data.video.decode import DecodeError, decode_clip, decode_frames, read_frames
from vjepa.data.video.inspect import inspect_file

TURNED = ("rotated90.mp4", "rotated180.mp4", "rotated270.mov", "mirrored.mp4")
UPRIGHT = tuple(name for name in SPECS if name not in TURNED)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory and open files are read from /proc"
)
# Frames before the edit list's start are in the file but not shown.
FIRST_NUMBER = {"h264_trimmed.mp4": 20}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VideoLibrary:
    return VideoLibrary(tmp_path_factory.mktemp("videos"))


def all_frames_by_pyav(path: str) -> list[np.ndarray]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", UPRIGHT)
def test_every_frame_of_every_kind_is_the_one_asked_for(library, name):
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
def test_few_frames_are_those_of_a_whole_reading(library, name):
    info = inspect_file(library.path(name))
    whole = decode_clip(info, np.arange(60))
    unsorted = [57, 3, 3, 31, 59, 0, 12, 11, 13, 57]
    for numbers in (range(0, 60, 4), [2, 3, 40, 59], unsorted, [0], [1], [26], [59]):
        clip = decode_clip(info, list(numbers))
        np.testing.assert_array_equal(clip.frames, whole.frames[numbers])
        np.testing.assert_array_equal(clip.times, whole.times[numbers])


@pytest.mark.parametrize(
    "name", ["h264_gop12.mp4", "h264_gop250.mp4", "h264_open_gop.mkv", "vp9.webm"]
)
@pytest.mark.parametrize("stride", [1, 4, 7])
def test_clips_are_pixel_identical_to_decoding_everything(library, name, stride):
    reference = all_frames_by_pyav(library.path(name))
    info = inspect_file(library.path(name))
    for start in range(0, info.num_frames - 7 * stride, 5):
        indices = start + stride * np.arange(8)
        frames = decode_frames(info, indices)
        for frame, index in zip(frames, indices, strict=True):
            np.testing.assert_array_equal(frame, reference[index])


def test_healthy_files_are_never_read_from_the_start(library, monkeypatch):
    def fail(info):
        raise AssertionError(f"{info.path}: frames were not found by their key frames")
        yield

    monkeypatch.setattr(decode_module, "_from_start", fail)
    for name in SPECS:
        # An intra-refresh stream has entry points that are none; h264 in AVI has no timestamps.
        if name not in ("h264_intra_refresh.mkv", "h264.avi"):
            decode_frames(inspect_file(library.path(name)), [3, 25, 26, 40, 58])


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "h264_open_gop.mkv", "h264.ts", "mpeg4.avi"])
def test_neighbouring_groups_are_read_without_a_jump(library, name, monkeypatch):
    def fail(self, pts):
        raise AssertionError("jumped")

    info = inspect_file(library.path(name))
    monkeypatch.setattr(decode_module._PacketReader, "_seek", fail)
    # Every group a run of its own: what was read of the next one must be kept.
    monkeypatch.setattr(decode_module, "_WORTH_A_JUMP", 0)
    for offset in (1, -1):
        wanted = info.keyframe_index[:5] + offset
        wanted = wanted[wanted >= 0]
        assert numbers_of(decode_frames(info, wanted)) == wanted.tolist()


def test_decodes_no_more_than_needed(library, monkeypatch):
    info = inspect_file(library.path("h264_gop12.mp4"))
    fed = []
    feed = decode_module.VideoFile.feed

    def counting_feed(self, packet):
        fed.append(packet)
        return feed(self, packet)

    monkeypatch.setattr(decode_module.VideoFile, "feed", counting_feed)
    decode_frames(info, [int(info.keyframe_index[4])])
    assert len([packet for packet in fed if packet is not None]) == 1
    fed.clear()
    decode_frames(info, info.keyframe_index[[2, 8]])
    assert len([packet for packet in fed if packet is not None]) == 2


def test_variable_rate_gives_exact_times(library):
    for name in ("h264_vfr.mp4", "h264_vfr.mkv"):
        info = inspect_file(library.path(name))
        assert not info.constant_rate
        clip = decode_clip(info, [0, 7, 58])
        expected = np.array(VARIABLE_PTS)[[0, 7, 58]] / 1000
        np.testing.assert_allclose(clip.times, expected, atol=1e-9)
        assert numbers_of(clip.frames) == [0, 7, 58]
        mean_rate = 59 / (VARIABLE_PTS[-1] / 1000)
        assert info.fps == pytest.approx(mean_rate)


def test_times_count_from_the_first_frame(library):
    for name in ("h264.ts", "h264_offset.mkv", "h264.avi"):
        info = inspect_file(library.path(name))
        np.testing.assert_allclose(decode_clip(info, [0, 25, 50]).times, [0, 1, 2], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "quarter_turns"), [("rotated90.mp4", 1), ("rotated180.mp4", 2), ("rotated270.mov", 3)]
)
def test_rotation_is_applied(library, name, quarter_turns):
    info = inspect_file(library.path(name))
    stored = all_frames_by_pyav(library.path(name))
    expected = np.stack([np.rot90(stored[number], quarter_turns) for number in (5, 44)])
    assert info.rotation == 90 * quarter_turns
    assert (info.width, info.height) == (expected.shape[2], expected.shape[1])
    np.testing.assert_array_equal(decode_frames(info, [5, 44]), expected)


def test_mirror_is_applied(library):
    info = inspect_file(library.path("mirrored.mp4"))
    stored = all_frames_by_pyav(library.path("mirrored.mp4"))
    np.testing.assert_array_equal(decode_frames(info, [9])[0], stored[9][:, ::-1])


def test_grey_becomes_three_equal_channels(library):
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
def test_alpha_is_laid_over_black(tmp_path, name, codec, pix_fmt):
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


def test_files_without_a_frame_count_are_counted(tmp_path, library):
    path = write_without_count(tmp_path / "no_count.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    info = inspect_file(str(path))
    assert (info.ok, info.num_frames) == (True, 60)
    assert numbers_of(decode_frames(info, [59, 0])) == [59, 0]
    assert inspect_file(library.path("h264.ts")).num_frames == 60


def test_one_frame(tmp_path):
    for name, spec in (("one.mp4", Spec(num_frames=1)), ("one.gif", SPECS["animation.gif"])):
        write_video(tmp_path / name, replace(spec, num_frames=1))
        info = inspect_file(str(tmp_path / name))
        assert (info.ok, info.num_frames) == (True, 1)
        assert info.fps > 0
        assert info.duration_seconds > 0
        assert decode_frames(info, [0, 0, 0]).shape == (3, info.height, info.width, 3)


def test_a_frame_size_that_changes_midway_is_scaled_to_the_first(tmp_path):
    parts = [
        write_video(tmp_path / f"{number}.ts", Spec(container="mpegts", size=size, num_frames=20))
        for number, size in enumerate([(80, 48), (160, 96)])
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = decode_all(str(joined))
    assert frames.shape[1:] == (48, 80, 3)
    assert numbers_of(frames)[:20] == list(range(20))


def test_a_path_alone_is_enough(library):
    frames = decode_frames(library.path("h264_gop12.mp4"), [99, 2])
    assert numbers_of(frames) == [99, 2]


def test_indices_that_do_not_exist(library):
    info = inspect_file(library.path("vp9.webm"))
    with pytest.raises(DecodeError, match=r"vp9\.webm.*frame 60 asked for, but it has 60") as error:
        decode_frames(info, [0, 60])
    assert error.value.path == info.path
    with pytest.raises(ValueError, match="indices"):
        decode_frames(info, [-1])
    with pytest.raises(ValueError, match="indices"):
        decode_frames(info, [])


def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    info = inspect_file(str(path))
    write_video(path, Spec(num_frames=9))
    with pytest.raises(DecodeError, match="changed since it was indexed"):
        decode_frames(info, [0])
    path.unlink()
    with pytest.raises(DecodeError, match="No such file"):
        decode_frames(info, [0])


def test_probe_of_a_good_file(library):
    info = inspect_file(library.path("h264_gop12.mp4"))
    assert info.codec == "h264"
    assert info.fps == pytest.approx(25)
    assert info.duration_seconds == pytest.approx(4)
    assert info.constant_rate
    assert info.time_base == Fraction(1, 12800)
    assert info.bytes == Path(info.path).stat().st_size
    assert info.keyframe_index[0] == 0
    np.testing.assert_array_equal(info.keyframe_pts, info.keyframe_index * 512 + info.start_pts)


def test_timestamps_that_cannot_be_trusted_give_no_index(library):
    assert inspect_file(library.path("h264.avi")).num_keyframes == 0
    # Every picture of a GIF builds on the one before it.
    assert inspect_file(library.path("animation.gif")).num_keyframes == 1


@needs_proc
def test_memory_stays_flat_over_many_opens(library):
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


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@needs_proc
def test_files_are_closed_also_after_errors(library, tmp_path):
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
