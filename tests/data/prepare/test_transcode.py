"""Encoding anew: the right frames, times, sizes and key frames."""

from __future__ import annotations

import errno
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.data.video_files import (
    SPECS,
    Spec,
    decode_all,
    numbers_of,
    write_image,
    write_image_folder,
    write_truncated,
    write_video,
)

from vjepa.data.prepare import matching, storing
from vjepa.data.prepare.config import MatchConfig, Order, Part, TranscodeConfig
from vjepa.data.prepare.storing import (
    encode,
    encode_order,
    output_size,
    output_suffix,
    taken_frames,
)
from vjepa.data.video.decode import decode_clip
from vjepa.data.video.info import DecodeError, LimitsConfig, VideoInfo
from vjepa.data.video.inspect import inspect_file

_WHOLE = Part()


def _encode(source: Path, target: Path, part: Part = _WHOLE, **config: object) -> VideoInfo:
    encode(inspect_file(str(source)), part, target, TranscodeConfig(**config))
    return inspect_file(str(target))


@pytest.mark.parametrize(
    "name",
    ["h264_gop12.mp4", "h264_vfr.mp4", "mpeg2.ts", "vp9_odd.webm", "h264.avi", "h264_audio.mp4"],
)
def test_every_frame_is_kept_at_its_time(name: str, tmp_path: Path) -> None:
    source = write_video(tmp_path / name, SPECS[name])
    before = inspect_file(str(source))
    after = _encode(source, tmp_path / "out.mp4")
    assert after.num_frames == before.num_frames
    assert numbers_of(decode_all(str(tmp_path / "out.mp4"))[:30]) == list(range(30))
    wanted = [0, 17, 31, before.num_frames - 1]
    times = decode_clip(before, wanted).times
    assert np.allclose(decode_clip(after, wanted).times, times, atol=2e-3)
    assert after.codec == "h264"
    assert after.start_pts == 0
    assert np.diff(after.keyframe_index).max() <= 12


@pytest.mark.parametrize(("name", "degrees"), [("rotated90.mp4", 90), ("mirrored.mp4", 0)])
def test_turned_videos_are_written_upright(name: str, degrees: int, tmp_path: Path) -> None:
    source = write_video(tmp_path / name, SPECS[name])
    before, after = inspect_file(str(source)), _encode(source, tmp_path / "out.mp4")
    assert before.rotation == degrees
    assert after.rotation == 0
    assert (after.width, after.height) == (before.width, before.height)
    apart = decode_all(before)[:3].astype(int) - decode_all(after)[:3]
    assert np.abs(apart).mean() < 6


def test_windows_hold_their_frames(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=100, gop=250))
    after = _encode(source, tmp_path / "out.mp4", Part(1.0, 2.0))
    assert numbers_of(decode_all(after)) == list(range(25, 50))
    assert after.fps == pytest.approx(25)


def test_a_lower_rate_takes_the_frame_shown_at_each_moment(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=100))
    after = _encode(source, tmp_path / "out.mp4", fps=10.0)
    assert after.num_frames == 40
    assert after.fps == pytest.approx(10)
    assert numbers_of(decode_all(after)[:8]) == [0, 2, 5, 7, 10, 12, 15, 17]
    info = inspect_file(str(source))
    assert np.array_equal(taken_frames(info, Part(), TranscodeConfig(fps=60), None), np.arange(100))


def _write_at(path: Path, times: list[float]) -> Path:
    """A video whose frames are shown at these seconds."""
    pts = [round(1000 * seconds) for seconds in times]
    return write_video(path, Spec(num_frames=len(pts), pts=pts, time_base=Fraction(1, 1000)))


_SLOW_THEN_FAST = [*(np.arange(12) * 0.5), *(5.54 + np.arange(40) * 0.04)]
_FAST_THEN_SLOW = [*(np.arange(40) * 0.04), *(1.6 + np.arange(12) * 0.5)]
_WITH_A_PAUSE = [*(np.arange(25) * 0.04), *(31 + np.arange(25) * 0.04)]


@pytest.mark.parametrize("times", [_SLOW_THEN_FAST, _FAST_THEN_SLOW, _WITH_A_PAUSE])
@pytest.mark.parametrize("part", [Part(0, 1), Part(0.3, 5), Part(5.6, 7.06), Part(1.5), Part()])
def test_parts_of_a_variable_rate_hold_what_is_shown_then(
    times: list[float], part: Part, tmp_path: Path
) -> None:
    source = _write_at(tmp_path / "a.mkv", times)
    shown = [n for n, t in enumerate(times) if part.start - 1e-6 <= t < part.end - 1e-6]
    shown = shown or [max(n for n, t in enumerate(times) if t <= part.start)]
    after = _encode(source, tmp_path / "out.mp4", part)
    assert numbers_of(decode_all(after)) == shown
    expected = np.array(times)[shown] - times[shown[0]]
    assert np.allclose(decode_clip(after, np.arange(len(shown))).times, expected, atol=2e-3)


@pytest.mark.parametrize("fps", [5.0, 10.0])
@pytest.mark.parametrize("times", [_SLOW_THEN_FAST, _FAST_THEN_SLOW, _WITH_A_PAUSE])
def test_a_lower_rate_of_a_variable_one_keeps_times(
    times: list[float], fps: float, tmp_path: Path
) -> None:
    """Where frames come fast they are thinned, where they come slowly all stay, at their time."""
    after = _encode(_write_at(tmp_path / "a.mkv", times), tmp_path / "out.mp4", fps=fps)
    numbers = numbers_of(decode_all(after))
    found = decode_clip(after, np.arange(after.num_frames)).times
    assert np.allclose(found, np.array(times)[numbers], atol=2e-3)
    slow = [n for n in range(len(times) - 1) if times[n + 1] - times[n] >= 0.4]
    assert set(slow) <= set(numbers)
    for moment in np.arange(0, times[-1], 1 / fps):
        shown = max(n for n, t in enumerate(times) if t <= moment + 1e-6)
        assert shown in numbers
    assert len(numbers) <= fps * (times[-1] - times[0]) + 1


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((1920, 1080), 320, (568, 320)),
        ((1080, 1920), 320, (320, 568)),
        ((320, 240), 320, (320, 240)),
        ((81, 47), None, (80, 48)),
        ((4000, 20), 16, (3200, 16)),
        ((3000, 1), None, (3000, 2)),
    ],
)
def test_sizes(size: tuple[int, int], short_side: int | None, expected: tuple[int, int]) -> None:
    info = VideoInfo(path="/a", width=size[0], height=size[1])
    assert output_size(info, TranscodeConfig(short_side=short_side)) == expected


def test_a_folder_of_images_becomes_a_video(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "clip", 30)
    after = _encode(folder, tmp_path / "out.mp4")
    assert numbers_of(decode_all(after)) == list(range(30))


def test_the_same_video_gives_the_same_file(tmp_path: Path) -> None:
    """Many times over: with x264's AVX-512 code one of some two hundred files differed."""
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=40))
    info, found = inspect_file(str(source)), set()
    for number in range(100):
        target = tmp_path / f"{number}.mp4"
        encode(info, _WHOLE, target, TranscodeConfig())
        found.add(target.read_bytes())
    assert len(found) == 1


def _order(source: Path, target: Path) -> Order:
    return Order("k", inspect_file(str(source)), Part(), str(target))


_TASK = partial(encode_order, TranscodeConfig(), LimitsConfig())


def test_the_task_answers_failures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=40))
    order = _order(source, tmp_path / "out" / "a.mp4")
    write_truncated(source, 0.5)
    answer = _TASK(order)
    assert list(answer) == ["failed"]
    assert answer["failed"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_finished_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its maker was killed after the file was complete and before that was noted."""
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=40))
    order = _order(source, tmp_path / "out" / "a.mp4")
    first = _TASK(order)["info"]
    source.unlink()
    assert _TASK(order)["info"]["mtime_ns"] == first["mtime_ns"]


def test_a_full_disk_is_not_the_videos_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vjepa.data.prepare.storing.encode", full)
    source = write_video(tmp_path / "a.mp4", Spec(num_frames=20))
    answer = _TASK(_order(source, tmp_path / "o.mp4"))
    assert answer == {"disk": "No space left on device"}


def test_copies_and_images_keep_their_bytes(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.webm", SPECS["vp9.webm"])
    image = write_image(tmp_path / "b.png")
    for source, mode in ((video, "copy"), (image, "h264")):
        config = TranscodeConfig(mode=mode)
        info = inspect_file(str(source))
        target = tmp_path / f"out{output_suffix(info, config)}"
        task = partial(encode_order, config, LimitsConfig())
        assert "info" in task(Order("k", info, Part(), str(target)))
        assert target.read_bytes() == source.read_bytes()
    folder = inspect_file(str(write_image_folder(tmp_path / "clip", 3)))
    with pytest.raises(DecodeError, match="cannot be copied"):
        output_suffix(folder, TranscodeConfig(mode="copy"))


def test_a_long_film_makes_progress_at_every_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout_seconds` is for what hangs, not for what is long."""
    said: list[None] = []
    for module in (storing, matching):
        monkeypatch.setattr(module, "going_on", lambda: said.append(None))
    source = write_video(tmp_path / "a.mp4")
    info = _encode(source, tmp_path / "out.mp4")
    assert len(said) == info.num_frames
    matching.take_fingerprint(info, _WHOLE, MatchConfig())
    hashed = len(matching.hashed_frames(info, _WHOLE, MatchConfig()))
    assert len(said) == info.num_frames + hashed
