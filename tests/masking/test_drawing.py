from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vjepa.counter_random import random_bits
from vjepa.errors import UserError
from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskConfig, drawing
from vjepa.masking.drawing import DrawnMasks, MaskDrawer, Minimum, random_subset, token_keys


def _minimum(kinds: int, visible: int = 1, hidden: int = 1, *, required: bool = True) -> Minimum:
    return Minimum(
        visible=np.full(kinds, visible),
        hidden=np.full(kinds, hidden),
        max_draws=1001,
        required=required,
    )


def _draw(drawer: MaskDrawer, clips: int, minimum: Minimum, batch: int | None = None) -> DrawnMasks:
    sizes = None if batch is None else np.array([batch])
    return drawer.draw(np.arange(clips), sizes, minimum)


def test_tubes_hide_the_same_places_at_every_step() -> None:
    mask = MaskConfig(kind="tube", tube_ratio=0.9)
    drawn = _draw(MaskDrawer((mask,), (8, 14, 14), 2, 0), 50, _minimum(1))
    hidden = drawn.hidden.reshape(50, 8, 196)
    assert (hidden == hidden[:, :1]).all()
    assert (196 - hidden[:, 0].sum(axis=1) == 19).all()
    assert len({row.tobytes() for row in hidden[:, 0]}) == 50
    seen = (~hidden[:, 0]).sum(axis=0)
    assert seen.sum() == 50 * 19


def test_kinds_are_drawn_independently_but_for_the_size() -> None:
    tube = MaskConfig(kind="tube", tube_ratio=0.5)
    masks = (tube, SHORT_RANGE, tube, SHORT_RANGE)
    hidden = _draw(MaskDrawer(masks, (2, 8, 8), 2, 0), 30, _minimum(4)).hidden
    for first in range(4):
        for second in range(first):
            assert (hidden[first] != hidden[second]).any(axis=-1).all()


@pytest.mark.parametrize(("frames", "steps"), [(1, 1), (3, 1), (6, 3), (12, 6), (16, 8)])
def test_causal_masks_hide_every_later_token(frames: int, steps: int) -> None:
    mask = MaskConfig(context_frames=frames)
    drawn = _draw(MaskDrawer((SHORT_RANGE, mask), (8, 14, 14), 2, 0), 20, _minimum(2))
    hidden = drawn.hidden[1].reshape(20, 8, 196)
    assert hidden[:, steps:].all()
    assert (~hidden[:, :steps]).any(axis=(1, 2)).all()
    assert (~drawn.hidden[0].reshape(20, 8, 196)[:, 7]).any()


def test_a_context_beyond_the_clip_is_refused() -> None:
    with pytest.raises(UserError, match=r"masks\[0\]\.context_frames is 17, .* 16 frames"):
        MaskDrawer((MaskConfig(context_frames=17),), (8, 14, 14), 2, 0)


@pytest.mark.parametrize(("ratio", "kept"), [(0.99, 0), (0.0, 16)])
def test_a_tube_ratio_that_leaves_one_side_empty_is_refused(ratio: float, kept: int) -> None:
    for mask in (
        MaskConfig(kind="tube", tube_ratio=ratio),
        MaskConfig(kind="tube", tube_ratio=ratio, context_frames=8),
    ):
        with pytest.raises(UserError, match=rf"masks\[0\]\.tube_ratio {ratio} leaves {kept} of"):
            MaskDrawer((mask,), (4, 4, 4), 2, 0)


def test_no_tubes_and_a_limit_in_time_hide_the_future_alone() -> None:
    mask = MaskConfig(kind="tube", tube_ratio=0.0, context_frames=4)
    hidden = _draw(MaskDrawer((mask,), (4, 4, 4), 2, 0), 3, _minimum(1)).hidden
    assert not hidden[0, :, :32].any()
    assert hidden[0, :, 32:].all()


def test_an_empty_context_is_drawn_again() -> None:
    """On 4 x 4 places the long-range blocks cover everything every second time."""
    drawer = MaskDrawer((SHORT_RANGE, LONG_RANGE), (4, 4, 4), 2, 0)
    free = _draw(drawer, 500, _minimum(2, visible=0, hidden=0))
    empty = free.hidden.sum(axis=-1) == 64
    assert empty[1].mean() > 0.2
    drawn = _draw(drawer, 500, _minimum(2))
    assert (drawn.hidden.sum(axis=-1) < 64).all()
    assert (drawn.hidden[~empty] == free.hidden[~empty]).all(), "only what falls short is redrawn"


def test_a_block_that_leaves_nothing_is_an_error() -> None:
    mask = MaskConfig(spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0))
    drawer = MaskDrawer((SHORT_RANGE, mask), (4, 4, 4), 2, 0)
    with pytest.raises(UserError, match=r"masks\[1\]: none of 1001 draws on a grid of 4 x 4 x 4"):
        _draw(drawer, 3, _minimum(2), batch=0)
    assert _draw(drawer, 3, _minimum(2, required=False)).hidden.sum(axis=-1)[1].tolist() == [64] * 3


def test_a_hopeless_shared_size_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may share a block that covers everything; then clips draw sizes of their own."""
    mask = MaskConfig(num_blocks=1, spatial_scale=(0.5, 1.0), aspect_ratio=(1.0, 1.0))
    drawer = MaskDrawer((mask,), (2, 6, 6), 2, 0)
    for batch in range(60):
        assert (_draw(drawer, 4, _minimum(1), batch).hidden.sum(axis=-1) < 72).all()
    monkeypatch.setattr(drawing, "_OWN_SIZE_AFTER", 1000)
    with pytest.raises(UserError, match="none of 1001 draws"):
        drawer.draw(np.arange(60), np.arange(60), _minimum(1))


def test_a_shared_size_is_shared_and_follows_the_batch() -> None:
    mask = MaskConfig(num_blocks=1)
    drawer = MaskDrawer((mask,), (1, 14, 14), 1, 0)
    numbers = [_draw(drawer, 40, _minimum(1), batch).hidden.sum(axis=-1)[0] for batch in range(12)]
    assert all(len(set(row.tolist())) == 1 for row in numbers)
    assert len({int(row[0]) for row in numbers}) > 1
    own = _draw(drawer, 40, _minimum(1)).hidden.sum(axis=-1)[0]
    assert len(set(own.tolist())) > 1


def test_sizes_of_several_batches_at_once() -> None:
    drawer = MaskDrawer((SHORT_RANGE, LONG_RANGE), (2, 5, 5), 2, 0)
    ordinals = np.arange(12)
    together = drawer.draw(ordinals, np.array([7, 8]).repeat(6), _minimum(2))
    for place, batch in enumerate((7, 8)):
        part = slice(6 * place, 6 * place + 6)
        alone = drawer.draw(ordinals[part], np.array([batch]), _minimum(2))
        assert (alone.hidden == together.hidden[:, part]).all()


def _words(seed: int, rows: int) -> np.ndarray:
    return random_bits(seed, "test", np.arange(rows), 1)[:, 0]


def test_keys_of_a_row_are_distinct() -> None:
    keys = token_keys(_words(0, 20), 4608)
    assert keys.shape == (20, 4608)
    assert all(len(np.unique(row)) == 4608 for row in keys)
    assert len(np.unique(keys[:, 0])) == 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 200), st.floats(0.02, 1))
def test_takes_the_eligible_tokens_with_the_smallest_keys(
    seed: int, rows: int, num_tokens: int, density: float
) -> None:
    generator = np.random.default_rng(seed)
    eligible = generator.random((rows, num_tokens)) < density
    eligible[:, 0] = True
    counts = np.array([generator.integers(1, row.sum() + 1) for row in eligible])
    keys = token_keys(_words(seed, rows), num_tokens)
    chosen = random_subset(eligible, keys, counts)
    for row in range(rows):
        order = sorted(np.flatnonzero(eligible[row]), key=lambda token: keys[row, token])
        assert set(np.flatnonzero(chosen[row])) == set(order[: counts[row]])


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    eligible = np.ones((2, 5), dtype=bool)
    keys = token_keys(_words(0, 2), 5)
    with pytest.raises(ValueError, match="between 1 and"):
        random_subset(eligible, keys, np.array([1, count]))


def test_all_subsets_are_equally_likely() -> None:
    rows = 30_000
    eligible = np.zeros((rows, 9), dtype=bool)
    eligible[:, [0, 1, 4, 7, 8]] = True
    keys = token_keys(_words(3, rows), 9)
    chosen = random_subset(eligible, keys, np.full(rows, 2))
    found = Counter(tuple(np.flatnonzero(row)) for row in chosen)
    assert len(found) == math.comb(5, 2)
    expected = rows / 10
    chi_square = sum((number - expected) ** 2 / expected for number in found.values())
    assert chi_square < 27.9, found  # 9 degrees of freedom: exceeded once in 1 000 seeds
