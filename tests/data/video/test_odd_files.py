"""Files that say what is not true give the frames and times of decoding them whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from av.packet import Packet
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.video import odd_files
from tests.data.video_files import SPECS, Spec, decode_by_pyav, numbers_of, write_video

from vjepa.data.manifest.index import check_manifest
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.decode import decode_clip, decode_frames, frame_times
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file
from vjepa.data.video.stamps import display_times

VP8 = {"deadline": "realtime", "b": "500k"}
H265 = {"x265-params": "log-level=none:pools=none"}
NO_B = Spec(b_frames=0)
EVEN = np.arange(60) / 25


def check(path: Path, times: np.ndarray | None = None) -> VideoInfo:
    """Every frame alone, and some together, are those of decoding the file from its start."""
    info = inspect_file(str(path), deep=True)
    assert info.ok, info.reason
    whole = decode_by_pyav(str(path))
    assert info.num_frames == len(whole)
    few = np.random.default_rng(0).choice(len(whole), (20, 4))
    for numbers in [*np.arange(len(whole))[:, None], *np.sort(few)]:
        np.testing.assert_array_equal(decode_frames(info, numbers), whole[numbers])
    shown = decode_clip(info, np.arange(len(whole))).times
    assert np.all(np.diff(shown) > 0)
    if times is not None:
        np.testing.assert_allclose(shown, times, atol=0.021)  # a repeated one may be moved
        assert info.fps == pytest.approx((len(times) - 1) / times[-1], rel=0.02)
    if (listed := frame_times(info)) is not None:
        np.testing.assert_allclose(listed, shown, atol=1e-9)
    return info


def flag(which: Callable[[int], bool]) -> Callable[[int, Packet], None]:
    def change(number: int, packet: Packet) -> None:
        packet.is_keyframe = which(number)

    return change


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("a.mp4", Spec(codec="libx265", options=H265)),
        ("a.wmv", Spec(codec="wmv2", b_frames=0)),
        ("a.avi", Spec(codec="cinepak", pix_fmt="rgb24", b_frames=0)),
        ("a.flv", Spec(codec="flv", b_frames=0)),
    ],
)
@pytest.mark.parametrize("every", [1, 7])
def test_a_flag_is_an_entry_point_only_if_the_picture_is(tmp_path, name, spec, every):
    source = write_video(tmp_path / f"true_{name}", spec)
    true = inspect_file(str(source))
    false = flag(lambda number: number % every == 0)
    info = check(odd_files.remuxed(source, tmp_path / name, false), EVEN)
    keys = [0, *(key for key in true.keyframe_index[1:].tolist() if every == 1)]
    assert set(keys) <= set(info.keyframe_index.tolist()) <= set(true.keyframe_index.tolist())
    if spec.codec != "flv":  # whose headers are not read: it is tried
        assert "key-frame flags are wrong" in info.note


def test_tables_of_key_frames_that_are_wrong(tmp_path):
    whole = Spec(codec="mpeg4", b_frames=0, gop=20)
    info = check(odd_files.flag_all(write_video(tmp_path / "a.mp4", whole)), EVEN)
    assert info.keyframe_index.tolist() == [0, 20, 40]
    spec = Spec(codec="msmpeg4", b_frames=0, gop=20)
    info = check(odd_files.flag_others(write_video(tmp_path / "a.avi", spec), 8), EVEN)
    assert info.keyframe_index.tolist() == [0, 40]


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_packets_that_show_nothing_are_no_frames(tmp_path, codec):
    def hide(number: int, packet: Packet) -> Packet | None:
        if number not in (1, 30, 31):
            return None
        data = bytearray(bytes(packet))
        data[0] &= 0xEF if codec == "libvpx" else 0xFD
        hidden = Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    options = SPECS["vp8.webm" if codec == "libvpx" else "vp9.webm"].options
    source = write_video(tmp_path / "a.webm", Spec(codec=codec, b_frames=0, options=options))
    path = odd_files.remuxed(source, tmp_path / "hidden.webm", hide)
    check(path, np.delete(EVEN, [1, 30, 31]))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_two_fields_are_one_frame(tmp_path, name):
    info = check(odd_files.write_fields(tmp_path / name, 40), np.arange(40) / 25)
    assert info.keyframe_index.tolist() == [0, 10, 20, 30]
    assert info.reading == "counted"


@pytest.mark.parametrize(
    "spec",
    [
        Spec(options={"x264-params": "open-gop=1:keyint=15:b-adapt=0"}),
        Spec(codec="libx265", options=H265),
        Spec(codec="mpeg2video", b_frames=2),
    ],
)
def test_decoding_times_that_are_too_late(tmp_path, spec):
    path = write_video(tmp_path / "a.ts", replace(spec, container="mpegts"))
    info = check(odd_files.delay_decoding(path, 18000), EVEN)
    assert info.num_keyframes > 3
    assert "decoding times are wrong" in info.note


@pytest.mark.parametrize("repeated", [[30], [12, 24], [30, 31, 32], [59]])
@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_repeated_timestamps_move_no_other(tmp_path, name, repeated):
    spec = SPECS["vp9.webm"] if name == "a.webm" else NO_B
    source = write_video(tmp_path / f"true_{name}", spec)
    change = odd_files.repeat_stamps(repeated)
    info = check(odd_files.remuxed(source, tmp_path / name, change), EVEN)
    assert info.num_keyframes >= 3  # it can still be sought in


def test_a_timestamp_far_off(tmp_path):
    def change(number: int, packet: Packet) -> None:
        packet.pts += 50_000 * (number == 30)

    check(
        odd_files.remuxed(write_video(tmp_path / "b.mkv", NO_B), tmp_path / "a.mkv", change), EVEN
    )


HOUR = 25 * 3600


@pytest.mark.parametrize(
    ("first", "second"),
    [(Spec(), Spec(pts=range(HOUR, HOUR + 60))), (Spec(pts=range(HOUR, HOUR + 60)), Spec())],
)
def test_a_clock_that_starts_anew_leaves_no_gap(tmp_path, first, second):
    info = check(odd_files.joined(tmp_path / "a.ts", first, second), np.arange(120) / 25)
    assert info.duration_seconds == pytest.approx(4.8, rel=0.02)


def test_a_joined_stream_whose_clock_lies_before_the_first_keeps_its_frames(tmp_path):
    path = odd_files.joined(tmp_path / "a.ts", Spec(pts=range(7, 67)), Spec(rate=50), Spec())
    assert check(path).num_frames == 180


@pytest.mark.parametrize(
    ("name", "spec", "fps"),
    [
        ("lapse.ts", Spec(container="mpegts", pts=range(0, 18_000, 300)), 1 / 12),
        ("fast.mkv", Spec(rate=2000), 2000),
        ("fast.webm", Spec(codec="libvpx", b_frames=0, rate=3000, options=VP8), 3000),
        ("raw.mpg", Spec(codec="mpeg1video", container="mpeg1video", b_frames=2), 25),
        ("raw.m4v", Spec(codec="mpeg4", container="m4v", b_frames=2), 25),
    ],
)
def test_slow_and_fast_clocks_and_none(tmp_path, name, spec, fps):
    info = check(write_video(tmp_path / name, spec))
    assert info.fps == pytest.approx(fps, rel=0.04)
    times = decode_clip(info, np.arange(60)).times
    np.testing.assert_allclose(times, np.arange(60) / fps, atol=max(0.001, 0.1 / fps))


@pytest.mark.parametrize(
    "spec",
    [
        Spec(),
        Spec(codec="mpeg2video", b_frames=2),
        Spec(codec="libx265", options=H265),
        Spec(container="h264"),  # no timestamps at all
    ],
)
def test_joined_streams_whose_times_overlap_are_sought_by_place(tmp_path, fed, spec):
    path = tmp_path / "a.ts"
    if spec.container is None:
        odd_files.joined(path, spec, spec)
    else:
        path.write_bytes(2 * write_video(tmp_path / "part", spec).read_bytes())
    info = check(path, np.arange(120) / 25)
    assert info.reading == "placed"
    assert info.num_keyframes > 8
    fed.clear()
    assert numbers_of(decode_frames(info, [70, 115])) == [10, 55]
    assert len(fed) < 50  # of 120
    # As it stands in a manifest of before.
    start = {"keyframe_pts": info.keyframe_pts[:1], "keyframe_index": info.keyframe_index[:1]}
    counted = replace(info, reading="counted", **start)
    assert numbers_of(decode_frames(counted, [70, 115])) == [10, 55]
    assert not check_manifest(Manifest.from_rows([ManifestRow(info=counted)], tmp_path)).bad


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("a.hevc", Spec(codec="libx265", container="hevc", options=H265)),
        ("a.h264", Spec(container="h264", options={"x264-params": "open-gop=1:keyint=12"})),
    ],
)
def test_open_groups_without_timestamps_are_sought_by_place(tmp_path, fed, name, spec):
    info = check(write_video(tmp_path / name, replace(spec, num_frames=120)))
    assert (info.num_frames, info.reading) == (120, "placed")
    assert info.num_keyframes > 8
    fed.clear()
    assert numbers_of(decode_frames(info, [70, 115])) == [70, 115]
    assert len(fed) < 60


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("a.flv", NO_B),
        ("b.flv", Spec()),  # the jump leaves two of its frames without a timestamp
        ("a.mkv", Spec()),
        ("a.mp4", Spec()),
    ],
)
def test_a_clock_that_jumps_by_an_hour_leaves_the_usual_rate(tmp_path, name, spec):
    pts = [*range(30), *range(30 + HOUR, 60 + HOUR)]
    info = check(write_video(tmp_path / name, replace(spec, pts=pts)), EVEN)
    assert "timestamps" in info.note
    # A picture every hour is no jump.
    slow = write_video(
        tmp_path / f"slow_{name}", replace(NO_B, num_frames=6, pts=range(0, 6 * HOUR, HOUR))
    )
    assert inspect_file(str(slow)).fps == pytest.approx(1 / 3600)


def test_a_gap_in_a_recording_is_kept(tmp_path):
    pts = [*range(30), *range(30 + 1000, 60 + 1000)]
    info = check(write_video(tmp_path / "a.mkv", Spec(pts=pts)), np.array(pts) / 25)
    assert not info.constant_rate


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(1, 90), min_size=40, max_size=60),
    repeated=st.sets(st.integers(1, 39), max_size=4),
    splices=st.sets(st.sampled_from([10, 30]), max_size=2),
    back=st.booleans(),
)
def test_times_rise_and_good_ones_stay(steps, repeated, splices, back):
    true = np.cumsum([0, *steps])
    stamps, shift = true.copy(), np.zeros(len(true), np.int64)
    for place in splices:
        shift[place:] += -100_000 if back else 100_000
    wrong = {place for place in repeated if place not in splices and place + 1 not in splices}
    for place in sorted(wrong):
        stamps[place] = stamps[place - 1]
    times = display_times(stamps + shift, Fraction(1, 1000), may_splice=True)
    assert np.all(np.diff(times) > 0)
    if not splices:
        good = [place for place in range(len(true)) if place not in wrong]
        # Where steps are a tick long, frames between two good ones may push the next one on.
        assert np.abs(times[good] - true[good]).max() <= len(wrong)
    assert times[-1] - times[0] <= true[-1] + 90 * len(splices) + 5
    if not wrong and not splices:
        np.testing.assert_array_equal(times, true)


@pytest.mark.parametrize(
    ("name", "streams", "number", "size"),
    [
        ("a.mp4", [("libx264", 40, 60, False), ("libx264", 80, 40, True)], 1, 80),
        ("a.mkv", [("libx264", 80, 60, False), ("libx264", 80, 40, True)], 1, 80),
        ("a.mkv", [("libx264", 80, 60, True), ("libx264", 40, 40, False)], 0, 80),
        ("a.mp4", [("mjpeg", 80, 1, True), ("libx264", 40, 40, True)], 1, 40),
        ("a.mkv", [("mjpeg", 80, 1, True), ("libx264", 40, 40, False)], 1, 40),
    ],
)
def test_the_stream_that_a_player_shows(tmp_path, name, streams, number, size):
    info = inspect_file(str(odd_files.write_streams(tmp_path / name, *streams)), deep=True)
    assert (info.ok, info.stream, info.width) == (True, number, size)
    assert info.num_frames == streams[number][2]
    assert info.note == f"of 2 video streams, number {number} is read"
    assert numbers_of(decode_frames(info, [0, 39])) == [100 * number, 100 * number + 39]
    # Rows of an older manifest, which took the first stream, still do.
    assert numbers_of(decode_frames(replace(info, stream=None), [0])) == [0]


def test_a_last_frame_that_an_edit_list_holds_is_no_truncation(tmp_path):
    spec = Spec(pts=[*range(-33, 18), 118, 120], num_frames=53, b_frames=0)
    path = write_video(tmp_path / "a.mp4", spec)
    info = check(path)
    assert (info.num_frames, info.duration_seconds) == (20, pytest.approx(120 / 25, rel=0.1))
    moved = replace(spec, muxer_options={"movflags": "faststart"})
    data = write_video(path, moved).read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    assert "truncated" in (inspect_file(str(path)).reason or "")


def test_a_turn_that_is_said_at_key_frames_holds_until_the_next(tmp_path):
    source = write_video(tmp_path / "a.mkv", Spec(num_frames=40))
    turned = odd_files.turned_by_key_frames(source, tmp_path / "a.ts")
    info = inspect_file(str(turned), deep=True)
    assert (info.ok, info.rotation, info.width, info.height) == (True, 90, 48, 80)
    expected = np.rot90(decode_by_pyav(str(turned)), axes=(1, 2))
    for numbers in ([0, 1, 17, 39], [5], [30]):
        np.testing.assert_array_equal(decode_frames(info, numbers), expected[numbers])
    upright = write_video(tmp_path / "b.ts", Spec(num_frames=20, container="mpegts")).read_bytes()
    turned.write_bytes(upright + turned.read_bytes())
    info = inspect_file(str(turned))
    assert info.rotation == 0
    top = decode_frames(info, [19, 21, 25])[:, :5].max(axis=(1, 2, 3))
    assert (top > 127).all()  # 19 upright; 1 and 5 turned: the lowest bit is uppermost


def test_alpha_is_found_by_a_tag_in_any_case(tmp_path):
    options = {"crf": "4", "b": "0", "cpu-used": "8"}
    spec = Spec(codec="libvpx-vp9", pix_fmt="yuva420p", b_frames=0, num_frames=5, alpha=128)
    source = write_video(tmp_path / "a.webm", replace(spec, options=options))
    path = odd_files.remuxed(source, tmp_path / "b.webm", lambda *_: None, ALPHA_MODE="1")
    np.testing.assert_array_equal(decode_frames(str(path), [4]), decode_frames(str(source), [4]))
    assert 100 < decode_frames(str(path), [1])[0, :, 60:].max() < 150  # 255, half transparent


def test_h264_without_timestamps_is_counted_and_sought_in(tmp_path, fed):
    spec = Spec(num_frames=300, gop=12, options={"x264-params": "scenecut=0"})
    path = write_video(tmp_path / "a.avi", spec)
    info = check(path, np.arange(300) / 25)
    assert info.num_keyframes == 25
    fed.clear()
    assert numbers_of(decode_frames(info, [290])) == [290]
    assert len(fed) < 20


DROPPED = np.delete(np.arange(79), [1, 2, 9, 25, 26, 27, 40, 63])


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        Spec(codec="mpeg4", b_frames=2),
        Spec(options={"x264-params": "scenecut=0"}),
        Spec(options={"x264-params": "scenecut=0:b-adapt=0:b-pyramid=none"}, b_frames=7),
        NO_B,
        Spec(codec="mjpeg", pix_fmt="yuvj420p", b_frames=0),
    ],
)
@pytest.mark.parametrize("slots", [DROPPED, np.delete(np.arange(72), 35), np.arange(71) * 2])
def test_frames_of_an_avi_are_shown_by_the_chunk_with_which_they_come_out(
    tmp_path, spec, slots, has_index
):
    """An AVI says of dropped frames only by empty chunks, in the order of decoding."""
    spec = replace(spec, num_frames=71, pts=slots.tolist(), time_base=Fraction(1, 25))
    path = write_video(tmp_path / "a.avi", spec)
    info = inspect_file(str(path if has_index else odd_files.without_index(path)))
    clip = decode_clip(info, np.arange(71))
    assert numbers_of(clip.frames) == list(range(71))
    np.testing.assert_allclose(clip.times, slots / 25, atol=1e-9)
    listed = frame_times(info)
    assert (listed is None) == (slots[1] == 2)
    np.testing.assert_allclose(
        np.arange(71) / info.fps if listed is None else listed, slots / 25, atol=1e-9
    )


@pytest.mark.parametrize("has_header", [True, False])
def test_two_pictures_in_one_packet(tmp_path, has_header):
    options = {"flags": "bitexact"}  # it does not say that FFmpeg made it
    spec = Spec(codec="mpeg4", b_frames=2, options=options)
    for num_frames in (60, 61):  # of 60, FFmpeg's timestamps swap the last two
        source = write_video(tmp_path / "a.avi", replace(spec, num_frames=num_frames))
        path = odd_files.pack_pictures(source, tmp_path / "b.avi", has_header)
        info = check(path, np.arange(num_frames) / 25)
        assert info.reading == ("counted" if num_frames == 60 else "stamps")
        keys = info.keyframe_index.tolist()
        assert keys == [0] if has_header else keys[:5] == [0, 12, 24, 36, 48]


def test_an_old_manifest_is_read_and_found_out(tmp_path, caplog):
    path = odd_files.flag_all(write_video(tmp_path / "a.mp4", Spec(codec="mpeg4", b_frames=0)))
    good = inspect_file(str(write_video(tmp_path / "b.mp4", NO_B)))
    found = inspect_file(str(path))
    numbers = np.arange(60)
    believed = replace(found, keyframe_pts=numbers * 512 + found.start_pts, keyframe_index=numbers)
    rows = [ManifestRow(info=info) for info in (believed, good)]
    file = tmp_path / "m.parquet"
    Manifest.from_rows(rows, tmp_path).write(file)
    columns = ["frame_pts", "reading", "stream", "note"]
    pq.write_table(pq.read_table(file).drop_columns(columns), file)
    with caplog.at_level("WARNING"):
        old = Manifest.open(file)
    assert "made by an older version" in caplog.text
    assert old.row(1).stream is None
    assert numbers_of(decode_frames(old.row(1), [7, 40])) == [7, 40]
    assert check_manifest(old).num_unverified == 2
    report = check_manifest(old, deep=True)
    assert [bad.row for bad in report.bad] == [0]
    assert "index it again" in report.bad[0].reason
    new = Manifest.from_rows([ManifestRow(info=info) for info in (found, good)], tmp_path)
    assert check_manifest(new, deep=True).bad == ()


def test_new_columns_are_kept(tmp_path):
    path = odd_files.joined(tmp_path / "a.ts", Spec(), Spec(pts=range(HOUR, HOUR + 60)))
    info = inspect_file(str(path))
    Manifest.from_rows([ManifestRow(info=info)], tmp_path).write(tmp_path / "m.parquet")
    row = Manifest.open(tmp_path / "m.parquet").row(0)
    assert (row.reading, row.stream, row.note) == (info.reading, info.stream, info.note)
    np.testing.assert_array_equal(row.frame_pts, info.frame_pts)
    assert len(row.frame_pts) == 120
