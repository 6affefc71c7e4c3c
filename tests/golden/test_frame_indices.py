"""The frames a clip takes against the reference implementation's own lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vjepa.data.clips.plan import ClipConfig, clip_indices
from vjepa.data.clips.segments import reference_segments, segment_indices


@pytest.fixture(scope="module")
def cases(golden_dir: Path) -> list[dict]:
    found = json.loads((golden_dir / "frame_indices.json").read_text())["cases"]
    assert len(found) == 31
    return found


def _stride(case: dict) -> int:
    """A case by duration fixes its step from seconds and frame rate, rounded down."""
    if "duration_s" in case:
        return int(case["duration_s"] * case["fps"] / case["frames_per_clip"])
    return case["frame_step"]


def test_deterministic_cases_are_equal_frame_for_frame(cases: list[dict]) -> None:
    checked = 0
    for case in cases:
        segment = case["video_frames"] // case["num_clips"]
        random = case["random_window"] and segment > case["frames_per_clip"] * _stride(case)
        if random:
            continue
        ours = reference_segments(
            case["video_frames"],
            case["frames_per_clip"],
            _stride(case),
            case["num_clips"],
            allow_overlap=case["allow_overlap"],
        )
        np.testing.assert_array_equal(ours, case["indices"], err_msg=str(case))
        checked += 1
    assert checked == 28


def test_random_windows_have_the_reference_length_and_spacing(cases: list[dict]) -> None:
    windows = [
        case
        for case in cases
        if case["random_window"] and case["num_clips"] == 1 and case["video_frames"] > 64
    ]
    assert len(windows) == 3
    for case in windows:
        config = ClipConfig(num_frames=case["frames_per_clip"], stride=case["frame_step"])
        expected = np.array(case["indices"][0])
        for u in (0.0, 0.4, 0.999999):
            ours = clip_indices(config, case["video_frames"], 30.0, u)
            np.testing.assert_array_equal(ours - ours[0], expected - expected[0])
            assert 0 <= ours[0] <= case["video_frames"] - 65


def test_pretraining_clips_follow_the_single_clip_cases(cases: list[dict]) -> None:
    singles = [
        case
        for case in cases
        if case["num_clips"] == 1 and not case["random_window"] and not case["allow_overlap"]
    ]
    assert len(singles) >= 12
    for case in singles:
        config = ClipConfig(num_frames=case["frames_per_clip"], stride=case["frame_step"])
        ours = clip_indices(config, case["video_frames"], 30.0, 0.0)
        np.testing.assert_array_equal(ours, case["indices"][0], err_msg=str(case))


def test_evaluation_segments_follow_the_overlapping_cases(cases: list[dict]) -> None:
    overlapping = [case for case in cases if case["allow_overlap"] and not case["random_window"]]
    assert len(overlapping) == 11
    for case in overlapping:
        config = ClipConfig(num_frames=case["frames_per_clip"], stride=case["frame_step"])
        ours = segment_indices(config, case["video_frames"], 30.0, case["num_clips"], "reference")
        np.testing.assert_array_equal(ours, case["indices"], err_msg=str(case))
