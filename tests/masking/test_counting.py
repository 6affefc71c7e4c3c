from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskConfig, MaskingConfig, MaskSampler
from vjepa.masking.counting import (
    TokenCounts,
    count_fixed,
    count_packed,
    count_prefix,
    mean_prefix_counts,
)
from vjepa.masking.drawing import DrawnMasks, token_keys

HIDDEN = np.array([[[0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 1]]], dtype=bool)  # one kind, two clips


def _drawn(hidden: np.ndarray = HIDDEN) -> DrawnMasks:
    words = np.arange(hidden.shape[0] * hidden.shape[1], dtype=np.uint64).reshape(hidden.shape[:2])
    return DrawnMasks(hidden.copy(), words)


def _keys(drawn: DrawnMasks) -> np.ndarray:
    return token_keys(drawn.key_words.reshape(-1), drawn.hidden.shape[-1])


@pytest.mark.parametrize(("limit", "context"), [(6, [[0, 3], [2, 4]]), (1, [[0], [2]])])
def test_prefix_keeps_the_first_tokens(limit: int, context: list[list[int]]) -> None:
    (masks,) = count_prefix(_drawn(), np.array([limit]))
    assert masks.context.tolist() == context
    assert masks.target.tolist() == [[1, 2, 5], [0, 1, 3]]


def test_packed_keeps_everything() -> None:
    (masks,) = count_packed(_drawn(), None, np.array([6]))
    assert masks.context.tolist() == [0, 3, 4, 2, 4]
    assert masks.target.tolist() == [1, 2, 5, 0, 1, 3, 5]
    assert masks.context_offsets is not None
    assert masks.target_offsets is not None
    assert masks.context_offsets.tolist() == [0, 3, 5]
    assert masks.target_offsets.tolist() == [0, 3, 7]


def test_packed_can_limit_the_context() -> None:
    drawn = _drawn()
    (masks,) = count_packed(drawn, _keys(drawn), np.array([2]))
    assert masks.context_offsets is not None
    assert masks.context_offsets.tolist() == [0, 2, 4]
    assert set(masks.context[:2].tolist()) < {0, 3, 4}
    assert masks.context[2:].tolist() == [2, 4]
    assert masks.target.tolist() == [1, 2, 5, 0, 1, 3, 5]


def _fixed(
    hidden: np.ndarray, keep: tuple[int, int], may_be_seen: int
) -> tuple[np.ndarray, np.ndarray]:
    drawn = _drawn(hidden)
    (masks,) = count_fixed(drawn, _keys(drawn), np.array(keep)[:, None], np.array([may_be_seen]))
    return masks.context.numpy(), masks.target.numpy()


def test_fixed_takes_subsets_of_each_side() -> None:
    context, target = _fixed(HIDDEN, (2, 3), 6)
    for clip in range(2):
        assert not HIDDEN[0, clip, context[clip]].any()
        assert HIDDEN[0, clip, target[clip]].all()


@pytest.mark.parametrize("keep", [(4, 2), (1, 5), (3, 3), (5, 1)])
def test_fixed_fills_up_without_overlap(keep: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    hidden = rng.random((1, 300, 6)) < 0.5
    context, target = _fixed(hidden, keep, 6)
    assert context.shape == (300, keep[0])
    assert target.shape == (300, keep[1])
    for clip in range(300):
        seen, wanted = set(context[clip]), set(target[clip])
        assert len(seen) == keep[0]
        assert len(wanted) == keep[1]
        assert not seen & wanted
        visible = set(np.flatnonzero(~hidden[0, clip]))
        # Nothing is borrowed from the other side that a side has itself.
        assert len(seen & visible) == min(len(visible), keep[0])
        assert len(wanted - visible) == min(6 - len(visible), keep[1])


def test_missing_tokens_are_drawn_evenly() -> None:
    hidden = np.ones((1, 6000, 6), dtype=bool)
    context, _ = _fixed(hidden, (2, 4), 6)
    numbers = np.bincount(context.ravel(), minlength=6)
    # Each token is taken with probability 1/3: 4 standard errors.
    assert np.abs(numbers - 2000).max() < 4 * np.sqrt(6000 * 2 / 9)


def test_causal_context_is_filled_up_from_the_early_tokens_only() -> None:
    hidden = np.ones((1, 200, 6), dtype=bool)
    context, target = _fixed(hidden, (2, 4), 3)
    assert context.max() == 2
    assert {tuple(row) for row in context} == {(0, 1), (0, 2), (1, 2)}
    assert all(not set(a) & set(b) for a, b in zip(context, target, strict=True))


PAIR = (SHORT_RANGE, LONG_RANGE)


@pytest.mark.parametrize(
    ("side", "counts"), [(14, ((366, 753), (105, 1098))), (24, ((1297, 2313), (418, 3331)))]
)
def test_the_papers_masks_have_the_authors_counts(side: int, counts: tuple) -> None:
    assert mean_prefix_counts(PAIR, (8, side, side), 2) == counts


def test_what_only_counting_reads_changes_nothing() -> None:
    masks = tuple(
        replace(mask, max_context_tokens=7, context_fraction=0.1, target_fraction=0.2)
        for mask in PAIR
    )
    assert mean_prefix_counts(masks, (8, 14, 14), 2) == mean_prefix_counts(PAIR, (8, 14, 14), 2)


def test_estimate_agrees_with_the_measured_counts() -> None:
    """Blocks span the clip, so the shares at one time step are those measured at eight."""
    estimated = mean_prefix_counts(PAIR, (1, 14, 14), 2)
    shares = np.array(estimated) / 196
    assert shares == pytest.approx(np.array([[0.2335, 0.4805], [0.0669, 0.7002]]), abs=0.02)


def test_estimate_is_the_mean_of_prefix_batches_of_24() -> None:
    grid = (4, 4, 4)
    counts = mean_prefix_counts(PAIR, grid, 2)
    sampler = MaskSampler(MaskingConfig(count="prefix"), grid, 2, seed=9)
    found = np.array(
        [
            [[m.context.shape[1], m.target.shape[1]] for m in sampler.sample(ordinals, batch)]
            for batch, ordinals in enumerate(np.arange(24 * 200).reshape(200, 24))
        ]
    )
    error = found.std(axis=0) * np.sqrt(1 / 200 + 1 / 128)
    wanted = np.array([(count.context, count.target) for count in counts])
    assert (np.abs(found.mean(axis=0) - wanted) < 4 * error + 0.5).all()


def test_estimate_is_the_same_every_time() -> None:
    mask = MaskConfig(num_blocks=4, spatial_scale=(0.1, 0.3), temporal_scale=(0.5, 1.0))
    first = mean_prefix_counts((mask,), (4, 6, 6), 2)
    assert first == mean_prefix_counts((mask,), (4, 6, 6), 2)
    assert first[0].context + first[0].target <= 144


def test_tubes_have_their_exact_counts() -> None:
    (counts,) = mean_prefix_counts((MaskConfig(kind="tube", tube_ratio=0.75),), (8, 14, 14), 2)
    assert counts == TokenCounts(49 * 8, 147 * 8)
