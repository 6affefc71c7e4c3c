"""The order of samples is pure, with exact shares, without replacement; over manifests, too."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.data.loader.sampler import BLOCK, SampleOrder, VideoSources
from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.errors import UserError

sources = st.lists(st.integers(1, 40), min_size=1, max_size=5)
seeds = st.integers(0, 2**40)


@settings(max_examples=40, deadline=None)
@given(sources, seeds, st.integers(1, 4), st.integers(0, 3000), st.integers(1, 200), st.randoms())
def test_any_subset_in_any_order_gives_the_same_samples(lengths, seed, clips, start, count, random):
    order = SampleOrder(lengths, lengths, seed, clips)
    ordinals = np.arange(start, start + count)
    whole = order.at(ordinals)
    shuffled = list(range(count))
    random.shuffle(shuffled)
    part = SampleOrder(lengths, lengths, seed, clips).at(ordinals[shuffled][: count // 2 + 1])
    for name in ("sources", "rows", "clips", "slots"):
        expected = getattr(whole, name)[shuffled][: count // 2 + 1]
        np.testing.assert_array_equal(getattr(part, name), expected)


@settings(max_examples=40, deadline=None)
@given(sources, seeds, st.integers(1, 3))
def test_each_source_deals_every_row_once_per_pass(lengths, seed, clips):
    order = SampleOrder(lengths, lengths, seed, clips)
    samples = order.at(np.arange(0, 6 * BLOCK * clips, clips))
    for source, length in enumerate(lengths):
        rows = samples.rows[samples.sources == source]
        for first in range(0, len(rows) - length + 1, length):
            assert sorted(rows[first : first + length]) == list(range(length))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.001, 100.0), min_size=2, max_size=6), seeds, st.integers(1, 40))
def test_shares_are_exact_at_every_block(weights, seed, blocks):
    order = SampleOrder([1000] * len(weights), weights, seed)
    counts = np.bincount(order.at(np.arange(blocks * BLOCK)).sources, minlength=len(weights))
    expected = np.array(weights) / sum(weights) * blocks * BLOCK
    # Each halving of the list rounds once: three halvings of six sources, each off by at most one.
    assert np.abs(counts - expected).max() <= 2.0


def test_a_weight_of_zero_is_never_drawn() -> None:
    drawn = SampleOrder([5, 5, 5], [1.0, 0.0, 3.0], seed=1).at(np.arange(4 * BLOCK))
    assert np.bincount(drawn.sources, minlength=3).tolist() == [BLOCK, 0, 3 * BLOCK]


def test_without_weights_every_video_is_equally_likely() -> None:
    order = SampleOrder([10, 30], [10, 30], seed=3)
    drawn = order.at(np.arange(40 * BLOCK))
    counts = np.bincount(drawn.sources * 30 + drawn.rows, minlength=60)
    assert set(counts[:10]) | set(counts[30:]) == {BLOCK}


def test_sources_are_mixed_inside_a_block() -> None:
    drawn = SampleOrder([100, 100], [1, 1], seed=3).at(np.arange(BLOCK)).sources
    runs = int((np.diff(drawn) != 0).sum()) + 1
    assert 90 < runs < 170  # alternating would be 256, one after the other 2, random about 128


def test_passes_and_seeds_differ() -> None:
    order = SampleOrder([50], [50], seed=3)
    first, second = order.at(np.arange(50)).rows, order.at(np.arange(50, 100)).rows
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, SampleOrder([50], [50], seed=4).at(np.arange(50)).rows)
    assert not np.array_equal(first, np.arange(50))


def test_clips_of_one_video_stand_side_by_side() -> None:
    samples = SampleOrder([7, 9], [7, 9], seed=0, clips_per_video=3).at(np.arange(30))
    for name in ("sources", "rows", "slots"):
        groups = getattr(samples, name).reshape(10, 3)
        assert (groups == groups[:, :1]).all()
    assert samples.clips.tolist() == [0, 1, 2] * 10


def test_replacements_are_pure_and_stay_in_the_source() -> None:
    order = SampleOrder([4, 1000], [4, 1000], seed=9)
    drawn = [order.replacement(slot, 1, attempt) for slot in range(50) for attempt in (1, 2)]
    assert drawn == [order.replacement(slot, 1, a) for slot in range(50) for a in (1, 2)]
    assert min(drawn) >= 0
    assert max(drawn) < 1000
    assert len(set(drawn)) > 80
    assert {order.replacement(slot, 0, 1) for slot in range(60)} == {0, 1, 2, 3}


def test_ten_million_rows_cost_no_memory() -> None:
    order = SampleOrder([10_000_000, 3_000_000], [1.0, 2.0], seed=0)
    tracemalloc.start()
    samples = order.at(np.arange(2_000_000_000, 2_000_003_072))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
    assert len(np.unique(samples.rows[samples.sources == 0])) > 900


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, float("inf")]])
def test_bad_weights_are_refused(weights) -> None:
    with pytest.raises(UserError, match="must not be negative and not all 0"):
        SampleOrder([3, 4], weights, seed=0)


def _manifest(
    weights: Sequence[float],
    ok: Sequence[bool] | None = None,
    labels: Sequence[str | None] | None = None,
) -> Manifest:
    rows = [
        ManifestRow(
            info=VideoInfo(path=f"/v{number}.mp4", ok=ok is None or ok[number], num_frames=9),
            weight=weight,
            labels={} if labels is None else {"kind": labels[number]},
        )
        for number, weight in enumerate(weights)
    ]
    return Manifest.from_rows(rows, Path("/"))


def _counts(sources: VideoSources, blocks: int = 8) -> list[np.ndarray]:
    places = sources.locate(sources.order(0, 1).at(np.arange(blocks * BLOCK)))
    return [
        np.bincount(places[places[:, 0] == number, 1], minlength=len(manifest))
        for number, manifest in enumerate(sources.manifests)
    ]


def test_unusable_rows_are_never_drawn() -> None:
    sources = VideoSources([_manifest([1.0] * 8, ok=[True, False] * 4)], None)
    assert _counts(sources)[0].tolist() == [2 * BLOCK, 0] * 4


def test_weights_inside_a_manifest_and_between_manifests() -> None:
    inner = _manifest([1.0, 1.0, 3.0, 3.0])
    plain = _manifest([1.0] * 8)
    (counts,) = _counts(VideoSources([inner], None))
    assert counts.tolist() == [BLOCK, BLOCK, 3 * BLOCK, 3 * BLOCK]
    first, second = _counts(VideoSources([inner, plain], [1.0, 1.0]))
    assert (first.sum(), second.sum()) == (4 * BLOCK, 4 * BLOCK)
    assert first.tolist() == [BLOCK // 2, BLOCK // 2, 3 * BLOCK // 2, 3 * BLOCK // 2]
    first, second = _counts(VideoSources([plain, plain], None))
    assert np.ptp(np.concatenate([first, second])) <= 1


def test_labels_of_several_manifests_share_their_classes() -> None:
    first = _manifest([1.0] * 3, labels=["10", "9", "9"])
    second = _manifest([1.0] * 3, labels=["2", None, "10"], ok=[True, False, True])
    sources = VideoSources([first, second], None, label="kind")
    assert sources.class_names == ["2", "9", "10"]
    labels = sources.labels(np.array([[0, 0], [0, 1], [1, 0], [1, 2]]))
    assert labels is not None
    assert labels.tolist() == [2, 1, 0, 2]
    assert VideoSources([first], None).labels(np.array([[0, 0]])) is None


def test_bad_sets_are_refused() -> None:
    with pytest.raises(UserError, match="no source of videos"):
        VideoSources([], None)
    with pytest.raises(UserError, match="none of its 2 videos can be used; see `vjepa data check"):
        VideoSources([_manifest([1.0] * 2, ok=[False, False])], None)
    with pytest.raises(UserError, match="all of its usable videos have weight 0"):
        VideoSources([_manifest([0.0] * 2), _manifest([1.0])], [1.0, 1.0])
    with pytest.raises(UserError, match="70 different row weights, at most 64"):
        VideoSources([_manifest(np.linspace(1, 2, 70).tolist())], None)
    with pytest.raises(UserError, match="1 of 2 usable rows have no label 'kind'"):
        VideoSources([_manifest([1.0] * 2, labels=["a", None])], None, label="kind")
