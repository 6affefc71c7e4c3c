"""load_clip: one clip of one file, for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.clip_files import write_video

from vjepa.data.clips.load import load_clip
from vjepa.data.video.decode import decode_frames
from vjepa.errors import UserError


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
    for start in (4.0, -0.1):
        with pytest.raises(UserError, match=r"start_seconds .* runs from 0 to 4 s"):
            load_clip(video, start_seconds=start)
    with pytest.raises(UserError, match=r"missing\.mp4.*give another file"):
        load_clip(tmp_path / "missing.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(UserError, match=r"text\.mp4"):
        load_clip(text)
    with pytest.raises(UserError, match="load_clip: num_frames must be above 0"):
        load_clip(video, num_frames=0)
