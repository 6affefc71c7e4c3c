"""Which frames a clip takes: by stride, by time, short videos, evaluation segments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.data.clips.plan import ClipConfig, clip_indices
from vjepa.data.clips.segments import segment_indices

spacings = st.one_of(
    st.fixed_dictionaries(
        {"stride": st.integers(1, 9), "sampling": st.sampled_from(["reference", "exact"])}
    ),
    st.fixed_dictionaries({"stride": st.none(), "fps": st.floats(0.5, 60)}),
    st.fixed_dictionaries({"stride": st.none(), "clip_seconds": st.floats(0.1, 20)}),
)
policies = st.sampled_from(["repeat_last", "loop", "stretch"])


@settings(max_examples=200, deadline=None)
@given(
    spacings, policies, st.integers(1, 20), st.integers(1, 400), st.floats(1, 120), st.floats(0, 1)
)
def test_indices_are_in_range_and_rise_where_the_video_is_long(
    spacing, policy, num_frames, length, rate, u
):
    config = ClipConfig(num_frames=num_frames, short_video=policy, **spacing)
    indices = clip_indices(config, length, rate, min(u, np.nextafter(1, 0)))
    assert indices.shape == (num_frames,)
    assert indices.dtype == np.int64
    assert 0 <= indices.min()  # noqa: SIM300
    assert indices.max() < length
    if policy != "loop":
        assert (np.diff(indices) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(
    spacings,
    policies,
    st.integers(1, 9),
    st.integers(1, 400),
    st.floats(1, 120),
    st.sampled_from(["centre", "even"]),
)
def test_segments_are_in_range_and_in_order(spacing, policy, segments, length, rate, placement):
    config = ClipConfig(num_frames=8, short_video=policy, **spacing)
    clips = segment_indices(config, length, rate, segments, placement)
    assert clips.shape == (segments, 8)
    assert clips.min() >= 0
    assert clips.max() < length
    assert (np.diff(clips[:, 0]) >= 0).all()


@pytest.mark.parametrize("rate", [10.0, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 120.0])
def test_sampling_by_time_takes_the_frame_shown_at_each_moment(rate: float) -> None:
    config = ClipConfig(num_frames=8, stride=None, fps=5.0)
    indices = clip_indices(config, round(rate * 4), rate, 0.0)
    moments = np.arange(8) / 5.0
    shown_from, shown_until = indices / rate, (indices + 1) / rate
    assert (shown_from <= moments + 1e-6).all()
    assert (moments < shown_until + 1e-6).all()


def test_both_ways_of_sampling_by_time_agree() -> None:
    by_rate = ClipConfig(num_frames=8, stride=None, fps=4.0)
    by_length = ClipConfig(num_frames=8, stride=None, clip_seconds=2.0)
    for u in (0.0, 0.3, 0.99):
        np.testing.assert_array_equal(
            clip_indices(by_rate, 300, 29.97, u), clip_indices(by_length, 300, 29.97, u)
        )


def test_a_whole_number_of_frames_per_step_is_met_exactly() -> None:
    config = ClipConfig(num_frames=16, stride=None, fps=25 / 3)
    np.testing.assert_array_equal(clip_indices(config, 100, 25.0, 0.0), np.arange(16) * 3)


def test_starts_cover_the_whole_range() -> None:
    u = np.linspace(0, 1, 2000, endpoint=False)
    reference = ClipConfig(num_frames=4, stride=2)
    starts = {int(clip_indices(reference, 12, 30.0, value)[0]) for value in u}
    assert starts == {0, 1, 2, 3}  # window 8 of 12 frames; the last start is left out
    exact = ClipConfig(num_frames=4, stride=2, sampling="exact")
    clips = [clip_indices(exact, 12, 30.0, value) for value in u]
    assert {int(clip[0]) for clip in clips} == {0, 1, 2, 3, 4, 5}
    assert max(int(clip[-1]) for clip in clips) == 11
    assert all((np.diff(clip) == 2).all() for clip in clips)
    by_time = ClipConfig(num_frames=4, stride=None, fps=15.0)
    starts = {int(clip_indices(by_time, 12, 30.0, value)[0]) for value in u}
    assert starts == {0, 1, 2, 3, 4, 5}


def test_short_videos_follow_their_policy() -> None:
    def take(policy: str, **spacing) -> list[int]:
        config = ClipConfig(num_frames=6, short_video=policy, **spacing)
        return clip_indices(config, 4, 10.0, 0.7).tolist()

    exact = {"stride": 2, "sampling": "exact"}
    assert take("repeat_last", **exact) == [0, 2, 3, 3, 3, 3]
    assert take("loop", **exact) == [0, 2, 0, 2, 0, 2]
    assert take("stretch", **exact) == [0, 0, 1, 2, 2, 3]
    assert take("repeat_last", stride=None, fps=5.0) == [0, 2, 3, 3, 3, 3]
    assert take("loop", stride=None, fps=10.0) == [0, 1, 2, 3, 0, 1]
    assert take("repeat_last", stride=2) == [0, 3, 3, 3, 3, 3]
    with pytest.raises(ValueError, match="4 frames, a clip takes 12"):
        take("error", stride=2)


@pytest.mark.parametrize(
    ("placement", "sampling", "takes"),
    [("reference", "reference", 32), ("strided", "exact", 29), ("centre", "uniform", 8)],
)
def test_a_short_video_is_an_error_wherever_its_clips_are(
    placement: str, sampling: str, takes: int
) -> None:
    config = ClipConfig(num_frames=8, sampling=sampling, short_video="error")
    assert segment_indices(config, takes, 30.0, 2, placement).shape == (2, 8)
    message = f"{takes - 1} frames, a clip takes {takes}"
    with pytest.raises(ValueError, match=message):
        segment_indices(config, takes - 1, 30.0, 2, placement)
    with pytest.raises(ValueError, match=message):
        clip_indices(config, takes - 1, 30.0, 0.5)


def test_a_still_image_is_repeated() -> None:
    for spacing in ({"stride": 4}, {"stride": None, "fps": 4.0}):
        assert clip_indices(ClipConfig(**spacing), 1, 0.0, 0.5).tolist() == [0] * 16


def test_centre_and_even_segments() -> None:
    config = ClipConfig(num_frames=4, stride=2, sampling="exact")  # 7 frames
    assert segment_indices(config, 101, 30.0, 1)[0].tolist() == [47, 49, 51, 53]
    assert segment_indices(config, 100, 30.0, 2)[:, 0].tolist() == [21, 71]
    even = segment_indices(config, 100, 30.0, 3, "even")
    assert even[:, 0].tolist() == [0, 46, 93]
    assert even[-1, -1] == 99
    assert segment_indices(config, 101, 30.0, 1, "even").tolist() == [[47, 49, 51, 53]]
    overlapping = segment_indices(config, 9, 30.0, 4)
    assert overlapping[:, 0].tolist() == [0, 0, 2, 2]


def test_reference_segments_at_random_places() -> None:
    config = ClipConfig()
    u = np.array([0.0, 0.5])
    clips = segment_indices(config, 300, 30.0, 2, "reference", u)
    assert clips[:, 0].tolist() == [0, 150 + 43]  # segments of 150 frames hold 86 starts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fps": 4.0}, "fps: exactly one of stride, fps and clip_seconds .* stride and fps"),
        ({"stride": None}, "stride: exactly one .* found none"),
        ({"fps": 4.0, "clip_seconds": 1.0, "stride": None}, "fps and clip_seconds"),
        ({"num_frames": 0}, "num_frames must be above 0"),
        ({"stride": None, "fps": 4.0, "sampling": "exact"}, "sampling: exact .* but fps is set"),
    ],
)
def test_impossible_configs_name_their_field(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        ClipConfig(**fields)


def test_bad_calls_are_refused() -> None:
    by_time = ClipConfig(stride=None, fps=4.0)
    with pytest.raises(ValueError, match="no frames"):
        clip_indices(by_time, 0, 30.0, 0.5)
    with pytest.raises(ValueError, match="rate is unknown"):
        clip_indices(by_time, 10, 0.0, 0.5)
    with pytest.raises(ValueError, match="num_segments"):
        segment_indices(by_time, 10, 30.0, 0)
    with pytest.raises(ValueError, match="needs a stride"):
        segment_indices(by_time, 10, 30.0, 1, "reference")
    with pytest.raises(ValueError, match="u belongs to random and reference"):
        segment_indices(by_time, 10, 30.0, 1, "centre", np.zeros(1))


@settings(max_examples=150, deadline=None)
@given(spacings, policies, st.integers(1, 9), st.integers(1, 400), st.floats(1, 120), st.integers())
def test_random_segments_lie_in_or_around_their_segment(
    spacing, policy, segments, length, rate, seed
):
    config = ClipConfig(num_frames=8, short_video=policy, **spacing)
    u = np.random.default_rng(abs(seed)).random(segments)
    clips = segment_indices(config, length, rate, segments, "random", u)
    assert clips.shape == (segments, 8)
    assert clips.min() >= 0
    assert clips.max() < length
    edges = np.arange(segments + 1) * length / segments
    for clip, low, high in zip(clips, edges[:-1], edges[1:], strict=True):
        if (clip != clips[0]).any() and clip[-1] - clip[0] < high - low - 1:
            assert clip[0] >= low - 1
            assert clip[-1] <= high


def test_random_windows_cover_their_segment() -> None:
    config = ClipConfig(num_frames=4, stride=2, sampling="exact")  # seven frames
    places = [
        segment_indices(config, 40, 30.0, 2, "random", np.full(2, u))[:, 0]
        for u in np.linspace(0, 0.999, 50)
    ]
    starts = np.stack(places)
    assert sorted(set(starts[:, 0].tolist())) == list(range(14))
    assert sorted(set(starts[:, 1].tolist())) == list(range(20, 34))
