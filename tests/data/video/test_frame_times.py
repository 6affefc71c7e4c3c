"""Clips by time of a video whose frames last unequally long."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.video_files import SPECS, VARIABLE_PTS, numbers_of, write_image, write_video

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.dataset import load_clip
from vjepa.data.clips.plan import ClipConfig, clip_indices, indices_from
from vjepa.data.clips.segments import segment_indices
from vjepa.data.loader.loader import ClipLoader, LoaderConfig
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video import decode
from vjepa.data.video.decode import frame_times
from vjepa.data.video.info import DecodeError
from vjepa.data.video.inspect import inspect_file
from vjepa.errors import UserError

TIMES = np.array(VARIABLE_PTS) / 1000
BY_TIME = ClipConfig(num_frames=4, stride=None, fps=3.0)


@pytest.fixture(scope="module", params=["h264_vfr.mp4", "h264_vfr.mkv"])
def video(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    return write_video(folder / request.param, SPECS[request.param])


def shown_at(seconds: np.ndarray) -> list[int]:
    """The plain rule: the last frame whose time has come."""
    return [int(np.flatnonzero(moment + 1e-6 >= TIMES)[-1]) for moment in seconds]


def test_times_are_those_of_the_packets(video: Path) -> None:
    info = inspect_file(str(video))
    np.testing.assert_allclose(frame_times(info), TIMES, atol=1e-9)


def test_the_packets_of_an_unchanged_file_are_read_once(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long file they take longer to read than a clip; and what is kept has a limit."""
    copy, seen, read = tmp_path / video.name, [], decode.read_packets
    monkeypatch.setattr(decode, "read_packets", lambda file: seen.append(file.path) or read(file))
    copy.write_bytes(video.read_bytes())
    for _ in range(3):
        np.testing.assert_allclose(frame_times(inspect_file(str(copy))), TIMES, atol=1e-9)
    assert seen == [str(copy)]
    os.utime(copy, ns=(1, 1))
    frame_times(inspect_file(str(copy)))
    assert len(seen) == 2, "it may have been replaced"
    monkeypatch.setattr(decode, "_MOST_KEPT", len(TIMES))
    other = tmp_path / f"other{video.suffix}"
    for number, path in enumerate((copy, other, copy)):
        other.write_bytes(video.read_bytes())
        frame_times(inspect_file(str(path)))
        assert len(seen) == 2 + number
        assert sum(map(len, decode._KEPT.values())) <= len(TIMES) or number == 0


def test_constant_rates_and_images_have_none(tmp_path: Path) -> None:
    for path in (write_video(tmp_path / "a.mp4"), write_image(tmp_path / "a.png")):
        assert frame_times(inspect_file(str(path))) is None


def test_a_file_with_other_frames_is_refused(video: Path) -> None:
    with pytest.raises(DecodeError, match="has changed since it was indexed"):
        frame_times(replace(inspect_file(str(video)), num_frames=50))


def test_each_moment_gives_the_frame_shown_then(video: Path) -> None:
    info = inspect_file(str(video))
    for start in (0.0, 0.37, 1.9, 4.05):
        clip = load_clip(video, num_frames=5, start_seconds=start, fps=2.5)
        wanted = shown_at(start + np.arange(5) / 2.5)
        assert numbers_of(clip.frames.permute(0, 2, 3, 1).numpy()) == wanted
    assert shown_at(np.arange(4) / 3) != (np.arange(4) / 3 * info.fps).astype(int).tolist()


def test_a_clip_by_stride_begins_with_the_frame_shown_then(video: Path) -> None:
    for start in (0.0, 1.9, 4.05):
        (first,) = shown_at(np.array([start]))
        exact = ClipConfig(num_frames=4, stride=2, sampling="exact")
        for offsets, clip in (
            ([0, 2, 5, 7], load_clip(video, 4, 2, start)),
            ([0, 2, 4, 6], load_clip(video, clip=exact, start_seconds=start)),
        ):
            shown = numbers_of(clip.frames.permute(0, 2, 3, 1).numpy())
            assert shown == [min(first + offset, 59) for offset in offsets]
    with pytest.raises(UserError, match="clip says it all"):
        load_clip(video, 4, clip=exact)


def test_any_start_is_equally_likely_in_time() -> None:
    fps = 59 / TIMES[-1]
    middle = [clip_indices(BY_TIME, 60, fps, u, TIMES)[0] for u in np.linspace(0, 0.999, 400)]
    seconds = np.linspace(0, 0.999, 400) * (60 - 3 * fps / 3) / fps
    assert middle == shown_at(seconds)


@pytest.mark.parametrize("length", [90, 20])
@pytest.mark.parametrize("short", ["repeat_last", "loop", "stretch"])
def test_even_times_change_nothing(short: str, length: int) -> None:
    times = np.arange(length) / 30
    config = ClipConfig(num_frames=6, stride=None, fps=5.0, short_video=short)
    equal = np.testing.assert_array_equal
    for u in (0.0, 0.31, 0.77):
        expected = clip_indices(config, length, 30.0, u)
        equal(clip_indices(config, length, 30.0, u, times), expected)
    expected = segment_indices(config, length, 30.0, 3)
    equal(segment_indices(config, length, 30.0, 3, times=times), expected)
    expected = indices_from(config, length, 30.0, 0.2)
    equal(indices_from(config, length, 30.0, 0.2, times), expected)


def test_a_stride_in_frames_ignores_times() -> None:
    strided = ClipConfig(num_frames=6)
    assert clip_indices(strided, 90, 30.0, 0.4, TIMES).tolist() == (
        clip_indices(strided, 90, 30.0, 0.4).tolist()
    )


def test_cached_frames_give_the_same_batches(video: Path, tmp_path: Path) -> None:
    manifest = Manifest.from_rows([ManifestRow(info=inspect_file(str(video)))], video.parent)
    cached = LoaderConfig(num_workers=0, frame_cache_gigabytes=1.0, frame_cache_folder=tmp_path)
    batches = []
    for config in (LoaderConfig(num_workers=0), cached):
        transform = TransformConfig(crop_size=16)
        with ClipLoader([manifest], None, BY_TIME, transform, config, 6, 3) as loader:
            batches.append(next(iter(loader.batches(0, 1))).clips)
    assert torch.equal(*batches)
