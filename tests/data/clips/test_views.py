from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.clip_files import write_video
from tests.evaluation.tiny_videos import make_set, with_bad_video, write_manifest

from vjepa.data import Manifest
from vjepa.data.clips.dataset import ClipViews, centre_view, load_clip
from vjepa.data.clips.key_frames import KeyFrameViewConfig, Moment, read_moments
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import VideoSource
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.data.loader.failures import FailedVideo
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import ManifestRow
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError

CLIP = ClipConfig(num_frames=4, stride=2, sampling="exact")
VIEW = ViewConfig(crop_size=24, short_side=24)
HERE = ReadingConfig(num_workers=0)


def _views(info: VideoInfo, view: ViewConfig, clip: ClipConfig = CLIP) -> np.ndarray:
    """The views of one video, uint8 [R, C, T, S, S]."""
    views = ClipViews(clip, view)
    out = torch.empty(views.clips_per_video, *views.shape, dtype=torch.uint8)
    views.cut(VideoSource(info), (0, 0), out)
    return out.numpy()


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("tiny_set"), {"train": 4, "test": 11})


def test_the_clip_is_the_centre_in_time_and_space(tiny_set: Path) -> None:
    info = Manifest.open(tiny_set).row(0)
    clips = _views(info, ViewConfig(crop_size=24, short_side=32))
    assert clips.shape == (1, 3, 4, 24, 24)
    clip = clips[0]
    # Ten frames, a clip spans seven: it starts at frame 1.
    frames = decode_frames(info, [1, 3, 5, 7])[:, 4:28, 4:28]
    assert np.array_equal(clip, frames.transpose(3, 0, 1, 2))


def test_batches_are_in_row_order_and_cover_the_data(tiny_set: Path) -> None:
    manifest = Manifest.open(tiny_set).select(split="test")
    with EvaluationClips(manifest, CLIP, VIEW, HERE) as clips:
        batches = list(clips.batches(0, len(clips), 4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(11))
    assert batches[2].clips.shape == (3, 1, 3, 4, 24, 24)
    single = _views(manifest.row(9), VIEW)
    assert np.array_equal(batches[2].clips[1].numpy(), single)


def test_chosen_rows_only(tiny_set: Path) -> None:
    manifest = Manifest.open(tiny_set).select(split="test")
    rows = np.array([1, 4, 10], dtype=np.int64)
    with EvaluationClips(manifest, CLIP, VIEW, HERE, rows=rows) as clips:
        batches = list(clips.batches(1, 3, 8))
    assert [batch.rows.tolist() for batch in batches] == [[4, 10]]


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [0.0, 0.1], ids=["workers", "frame cache"])
def test_other_ways_of_reading_give_the_same(
    tiny_set: Path, tmp_path: Path, gigabytes: float
) -> None:
    broken = with_bad_video(tiny_set, "test", tmp_path / "m.parquet")
    manifest = Manifest.open(tmp_path / "m.parquet").select(split="test")
    with EvaluationClips(manifest, CLIP, VIEW, HERE, on_bad_video="list") as clips:
        here = list(clips.batches(0, 7, 3))
    assert here[0].bad[0].path == broken
    reading = ReadingConfig(
        num_workers=1, frame_cache_gigabytes=gigabytes, frame_cache_folder=tmp_path / "frames"
    )
    with EvaluationClips(manifest, CLIP, VIEW, reading, on_bad_video="list") as clips:
        there = [*clips.batches(0, 6, 3), *clips.batches(6, 7, 3)]
    assert (tmp_path / "frames").exists() == (gigabytes > 0)
    assert [bad.path for bad in there[0].bad] == [broken]
    assert len(here) == len(there) == 3
    for left, right in zip(here, there, strict=True):
        assert np.array_equal(left.rows, right.rows)
        assert np.array_equal(left.clips.numpy(), right.clips.numpy())


def test_a_bad_video_is_an_error_or_listed_and_never_replaced(
    tiny_set: Path, tmp_path: Path
) -> None:
    broken = with_bad_video(tiny_set, "test", tmp_path / "m.parquet")
    manifest = Manifest.open(tmp_path / "m.parquet").select(split="test")
    with (
        EvaluationClips(manifest, CLIP, VIEW, HERE) as clips,
        pytest.raises(UserError, match=r"broken\.mp4: cannot be evaluated"),
    ):
        list(clips.batches(0, 11, 4))
    with EvaluationClips(manifest, CLIP, VIEW, HERE, on_bad_video="list") as clips:
        batches = list(clips.batches(0, 11, 4))
    assert batches[0].rows.tolist() == [1, 2, 3]
    assert [bad.path for bad in batches[0].bad] == [broken]
    assert batches[0].bad[0].row == 0


@pytest.mark.slow
def test_a_file_that_hangs_costs_itself_only(tiny_set: Path, tmp_path: Path) -> None:
    manifest = Manifest.open(tiny_set)
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it waits for a writer that never comes
    pipe = tmp_path / "pipe.mp4"
    hanging = replace(manifest.row(1), path=str(pipe), bytes=0)
    rows = [manifest.row(0), hanging]
    write_manifest([ManifestRow(info=info) for info in rows], tmp_path / "m.parquet")
    reading = ReadingConfig(num_workers=1, sample_timeout_seconds=2.0)
    opened = Manifest.open(tmp_path / "m.parquet")
    with EvaluationClips(opened, CLIP, VIEW, reading, on_bad_video="list") as clips:
        (batch,) = clips.batches(0, 2, 2)
    assert batch.rows.tolist() == [0]
    assert "did not end within 2 s" in batch.bad[0].reason
    assert batch.bad[0].kind == "hang"
    moment = Moment(hanging, 0.0, (CLIP, KeyFrameViewConfig(), 16), None)
    (late,) = read_moments([moment], readers=1, timeout_seconds=2.0)
    assert isinstance(late, FailedVideo)
    assert late.kind == "hang"


def test_videos_marked_bad_and_too_short_ones_are_failures(tiny_set: Path) -> None:
    info = Manifest.open(tiny_set).row(0)
    with pytest.raises(DecodeError, match="no video stream"):
        _views(replace(info, ok=False, reason="no video stream"), VIEW)
    long = ClipConfig(num_frames=16, stride=4, short_video="error")
    with pytest.raises(DecodeError, match="10 frames"):
        centre_view(info, long, VIEW)
    with pytest.raises(DecodeError, match="10 frames"):
        _views(info, VIEW, long)


def test_the_centre_view_of_a_file_and_of_its_frames_are_one(tiny_set: Path) -> None:
    info = Manifest.open(tiny_set).row(0)
    view = ViewConfig(crop_size=24, num_segments=2, num_views=3)
    wanted = _views(info, ViewConfig(crop_size=24))
    frames = decode_frames(info, range(info.num_frames))
    # As many frames as a clip has are the clip: the same frames, chosen beforehand.
    for source in (info, info.path, Path(info.path), frames, frames[[1, 3, 5, 7]]):
        found = centre_view(source, CLIP, view)
        assert found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), wanted[0].transpose(1, 0, 2, 3))
    by_time = ClipConfig(num_frames=4, stride=None, fps=2.0)
    as_given = centre_view(frames[:4], by_time, replace(view, placement="reference"))
    assert torch.equal(as_given, centre_view(frames[:4], CLIP, view))
    with pytest.raises(DecodeError, match="the frames given: the frame rate is unknown"):
        centre_view(frames, by_time, view)
    for wrong in (frames.astype(np.float32), frames[0], frames.transpose(0, 3, 1, 2), frames[:0]):
        with pytest.raises(UserError, match=r"uint8 \[T, H, W, 3\]"):
            centre_view(wrong, CLIP, view)


def test_a_short_side_below_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^short_side: 31 is smaller than crop_size 32"):
        ViewConfig(crop_size=32, short_side=31)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", num_frames=48)


def _frames(video: Path, indices: list[int]) -> torch.Tensor:
    return torch.from_numpy(decode_frames(str(video), indices)).permute(0, 3, 1, 2)


def test_the_default_is_the_clip_around_the_middle(video: Path) -> None:
    clip = load_clip(video, num_frames=4, stride=2)
    assert clip.frames.dtype == torch.uint8
    assert torch.equal(clip.frames, _frames(video, [20, 22, 25, 27]))
    np.testing.assert_allclose(clip.times, np.array([20, 22, 25, 27]) / 12)


def test_a_start_in_seconds(video: Path) -> None:
    clip = load_clip(str(video), num_frames=4, stride=2, start_seconds=1.5)
    assert torch.equal(clip.frames, _frames(video, [18, 20, 23, 25]))
    at_end = load_clip(video, num_frames=4, stride=2, start_seconds=3.5)
    np.testing.assert_allclose(at_end.times * 12, [42, 44, 47, 47], atol=1e-6)
    assert torch.equal(load_clip(video, 4, 2, 0).frames, _frames(video, [0, 2, 5, 7]))


def test_frames_by_time_take_the_place_of_the_stride(video: Path) -> None:
    clip = load_clip(video, num_frames=5, start_seconds=0.0, fps=3.0)
    np.testing.assert_allclose(clip.times, np.arange(5) / 3, atol=1e-6)


def test_bad_input_is_one_clear_line(video: Path, tmp_path: Path) -> None:
    for start in (4.0, -0.1, math.inf, math.nan):
        with pytest.raises(
            UserError, match=r"start_seconds .* runs from 0 to 4 s; give one of these"
        ):
            load_clip(video, start_seconds=start)
    for stride in (2, 4):
        with pytest.raises(UserError, match="load_clip: fps: exactly one of stride, fps and"):
            load_clip(video, stride=stride, fps=5)
    with pytest.raises(UserError, match=r"missing\.mp4.*give another file"):
        load_clip(tmp_path / "missing.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(UserError, match=r"text\.mp4"):
        load_clip(text)
    with pytest.raises(UserError, match="load_clip: num_frames must be above 0"):
        load_clip(video, num_frames=0)
    long = ClipConfig(num_frames=64, stride=4, short_video="error")
    with pytest.raises(UserError, match="has 48 frames, a clip takes 256"):
        load_clip(video, clip=long)
    by_number = ClipConfig(num_frames=4, stride=4, sampling="exact", short_video="error")
    by_time = ClipConfig(num_frames=4, stride=None, fps=3.0, short_video="error")
    for whole, last in ((by_number, 35), (by_time, 35)):
        assert load_clip(video, clip=whole, start_seconds=last / 12).times[-1] <= 47 / 12
        with pytest.raises(UserError, match=r"start_seconds .* frames from there on, a clip takes"):
            load_clip(video, clip=whole, start_seconds=(last + 5) / 12)
