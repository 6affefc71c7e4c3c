from __future__ import annotations

import numpy as np
import pytest

from vjepa.masking.counting import count_fixed, count_packed, count_prefix
from vjepa.masking.drawing import DrawnMasks, TokenKeys

HIDDEN = np.array([[[0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 0, 1]]], dtype=bool)  # one kind, two clips


def _drawn(hidden: np.ndarray = HIDDEN) -> DrawnMasks:
    words = np.arange(hidden.shape[0] * hidden.shape[1], dtype=np.uint64).reshape(hidden.shape[:2])
    return DrawnMasks(hidden.copy(), hidden.sum(axis=-1), words)


def _keys(drawn: DrawnMasks) -> np.ndarray:
    return TokenKeys(drawn.hidden.shape[-1])(drawn.key_words.reshape(-1))


def test_prefix_keeps_the_first_tokens() -> None:
    (masks,) = count_prefix(_drawn(), np.array([6]))
    assert masks.context.tolist() == [[0, 3], [2, 4]]
    assert masks.target.tolist() == [[1, 2, 5], [0, 1, 3]]


def test_prefix_can_limit_the_context() -> None:
    (masks,) = count_prefix(_drawn(), np.array([1]))
    assert masks.context.tolist() == [[0], [2]]
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
