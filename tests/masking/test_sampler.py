from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vjepa.errors import UserError
from vjepa.masking import (
    LONG_RANGE,
    SHORT_RANGE,
    MaskConfig,
    MaskingConfig,
    MaskSampler,
    TokenMasks,
)

COUNTS = ("prefix", "fixed", "packed")


def _range(low: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, 0.9), st.floats(low, 0.9)).map(lambda p: (min(p), max(p)))


FRAMES = st.one_of(st.none(), st.integers(1, 4))
BLOCKS = st.builds(
    MaskConfig,
    num_blocks=st.integers(1, 4),
    spatial_scale=_range(0.05),
    temporal_scale=st.one_of(st.just((1.0, 1.0)), _range(0.2)),
    aspect_ratio=_range(0.3),
    context_frames=FRAMES,
)
TUBES = st.builds(
    MaskConfig,
    kind=st.just("tube"),
    tube_ratio=st.one_of(st.just(0.0), st.floats(0.2, 0.8)),
    context_frames=FRAMES,
)
MASKS = st.one_of(BLOCKS, BLOCKS, TUBES)
GRIDS = st.tuples(st.integers(2, 4), st.integers(2, 6), st.integers(2, 6))
CASES = {
    "masks": st.lists(MASKS, min_size=1, max_size=3).map(tuple),
    "grid": GRIDS,
    "batch": st.integers(1, 6),
    "seed": st.integers(0, 2**40),
}


def _sampler(count: str, masks: tuple[MaskConfig, ...], grid: tuple[int, ...], seed: int):
    try:
        return MaskSampler(MaskingConfig(masks=masks, count=count), grid, 2, seed)
    except UserError:
        assume(False)


def _sides(masks: TokenMasks, clip: int) -> tuple[list[int], list[int]]:
    own = masks.sample(clip)
    return own.context[0].tolist(), own.target[0].tolist()


def _equal(first: TokenMasks, second: TokenMasks) -> bool:
    return torch.equal(first.context, second.context) and torch.equal(first.target, second.target)


@pytest.mark.parametrize("count", COUNTS)
@settings(max_examples=40, deadline=None)
@given(**CASES)
def test_context_and_target_of_a_clip(count, masks, grid, batch, seed) -> None:
    sampler = _sampler(count, masks, grid, seed)
    num_tokens = grid[0] * grid[1] * grid[2]
    ordinals = np.arange(seed % 1000, seed % 1000 + batch)
    pictures = sampler.full(ordinals, 3)
    assert pictures.shape == (len(masks), batch, *grid)
    hidden = pictures.reshape(len(masks), batch, num_tokens)
    drawn = sampler.sample(ordinals, 3)
    assert len(drawn) == len(masks)
    for kind, (mask, config) in enumerate(zip(drawn, masks, strict=True)):
        assert mask.context.dtype == mask.target.dtype == torch.int64
        assert mask.batch_size == batch
        assert mask.is_packed == (count == "packed")
        for clip in range(batch):
            context, target = _sides(mask, clip)
            assert context
            assert target
            assert context == sorted(set(context)), "ascending, no token twice"
            assert target == sorted(set(target))
            assert not set(context) & set(target)
            assert min(context + target) >= 0
            assert max(context + target) < num_tokens
            if config.context_frames is not None:
                steps = max(1, config.context_frames // 2)
                assert max(context) < steps * grid[1] * grid[2]
            visible = np.flatnonzero(~hidden[kind, clip]).tolist()
            covered = np.flatnonzero(hidden[kind, clip]).tolist()
            if count == "packed":
                assert (context, target) == (visible, covered)
            if count == "prefix":
                assert context == visible[: len(context)]
                assert target == covered[: len(target)]
            if count == "fixed" and len(visible) >= len(context):
                assert set(context) <= set(visible)
            if count == "fixed" and len(covered) >= len(target):
                assert set(target) <= set(covered)
    if count == "prefix":
        for kind, mask in enumerate(drawn):
            assert mask.context.shape[1] == int((~hidden[kind]).sum(axis=-1).min())
            assert mask.target.shape[1] == int(hidden[kind].sum(axis=-1).min())


@pytest.mark.parametrize("count", COUNTS)
@settings(max_examples=15, deadline=None)
@given(**CASES)
def test_same_arguments_same_masks(count, masks, grid, batch, seed) -> None:
    ordinals = np.arange(batch) * 7
    first, second = (_sampler(count, masks, grid, seed) for _ in range(2))
    second.sample(ordinals + 1, 0)  # what was drawn before does not matter
    pairs = zip(first.sample(ordinals, 5), second.sample(ordinals, 5), strict=True)
    assert all(_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("count", ["fixed", "packed"])
@settings(max_examples=25, deadline=None)
@given(**CASES)
def test_a_clip_does_not_depend_on_its_batch(count, masks, grid, batch, seed) -> None:
    sampler = _sampler(count, masks, grid, seed)
    ordinals = np.arange(40, 40 + batch)
    together = sampler.sample(ordinals, 0)
    for clip in range(batch):
        alone = sampler.sample(ordinals[clip : clip + 1], 1)
        for whole, single in zip(together, alone, strict=True):
            assert _sides(whole, clip) == _sides(single, 0)


@settings(max_examples=15, deadline=None)
@given(**CASES)
def test_fixed_counts_are_static(masks, grid, batch, seed) -> None:
    sampler = _sampler("fixed", masks, grid, seed)
    shapes = {
        tuple((m.context.shape[1], m.target.shape[1]) for m in sampler.sample(ordinals, step))
        for step, ordinals in enumerate(np.arange(10 * batch).reshape(10, batch))
    }
    assert shapes == {tuple((c.context, c.target) for c in sampler.counts)}


@pytest.mark.parametrize("count", COUNTS)
def test_seed_and_ordinal_matter(count: str) -> None:
    masks = (SHORT_RANGE, LONG_RANGE)
    first = MaskSampler(MaskingConfig(masks=masks, count=count), (4, 8, 8), 2, 0)
    other = MaskSampler(MaskingConfig(masks=masks, count=count), (4, 8, 8), 2, 1)
    ordinals = np.arange(6)
    assert (first.full(ordinals, 0) != other.full(ordinals, 0)).any(axis=(2, 3, 4)).all()
    assert (first.full(ordinals, 0) != first.full(ordinals + 6, 0)).any(axis=(2, 3, 4)).any()


def test_one_token_is_enough() -> None:
    """A context of exactly one token, which is all that some blocks leave."""
    mask = MaskConfig(num_blocks=6, spatial_scale=(0.2, 0.2))
    for count in COUNTS:
        sampler = MaskSampler(MaskingConfig(masks=(mask,), count=count), (1, 2, 2), 1, 0)
        counts = set()
        for batch in range(20):
            (drawn,) = sampler.sample(np.arange(3) + 3 * batch, batch)
            counts |= {len(_sides(drawn, clip)[0]) for clip in range(3)}
        assert min(counts) == 1


def test_fixed_fractions_are_shares_of_all_tokens() -> None:
    mask = MaskConfig(context_fraction=0.25, target_fraction=0.5)
    sampler = MaskSampler(MaskingConfig(masks=(mask,), count="fixed"), (4, 4, 4), 2, 0)
    (drawn,) = sampler.sample(np.arange(5), 0)
    assert drawn.context.shape == (5, 16)
    assert drawn.target.shape == (5, 32)
    tiny = MaskConfig(context_fraction=0.001, target_fraction=0.001)
    sampler = MaskSampler(MaskingConfig(masks=(tiny,), count="fixed"), (4, 4, 4), 2, 0)
    (drawn,) = sampler.sample(np.arange(5), 0)
    assert drawn.context.shape == drawn.target.shape == (5, 1)


def test_fixed_takes_more_context_than_the_blocks_leave() -> None:
    mask = MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7), context_fraction=0.6)
    masks = (MaskConfig(**{**vars(mask), "target_fraction": 0.4}),)
    sampler = MaskSampler(MaskingConfig(masks=masks, count="fixed"), (4, 8, 8), 2, 0)
    ordinals = np.arange(50)
    hidden = sampler.full(ordinals, 0).reshape(50, 256)
    (drawn,) = sampler.sample(ordinals, 0)
    borrowed = np.zeros(4)
    for clip in range(50):
        context, target = _sides(drawn, clip)
        assert sorted(context + target) == list(range(256))
        visible = set(np.flatnonzero(~hidden[clip]))
        assert visible <= set(context)
        for token in set(context) - visible:
            borrowed[token // 64] += 1
    # Borrowed tokens come from all time steps alike.
    assert np.abs(borrowed / borrowed.sum() - 0.25).max() < 4 * np.sqrt(0.1875 / borrowed.sum())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MaskConfig(context_fraction=0.5, context_frames=2), "context_fraction asks for 32 tokens"),
        (MaskConfig(context_fraction=0.7), "more than the grid's 64"),
    ],
)
def test_impossible_fixed_counts_are_refused(mask: MaskConfig, message: str) -> None:
    with pytest.raises(UserError, match=r"^masking\.masks\[0\].*" + message):
        MaskSampler(MaskingConfig(masks=(mask,), count="fixed"), (4, 4, 4), 2, 0)


def test_masks_that_cannot_be_drawn_are_refused_before_training() -> None:
    mask = MaskConfig(spatial_scale=(1.0, 1.0))
    for count in ("prefix", "packed"):
        with pytest.raises(UserError, match="use fewer or smaller blocks"):
            MaskSampler(MaskingConfig(masks=(mask,), count=count), (4, 4, 4), 2, 0)


@pytest.mark.parametrize("count", COUNTS)
def test_context_limit(count: str) -> None:
    masks = (MaskConfig(max_context_tokens=5), SHORT_RANGE)
    sampler = MaskSampler(MaskingConfig(masks=masks, count=count), (4, 6, 6), 2, 0)
    free = MaskSampler(MaskingConfig(count=count, masks=(SHORT_RANGE,) * 2), (4, 6, 6), 2, 0)
    limited, unlimited = sampler.sample(np.arange(4), 0), free.sample(np.arange(4), 0)
    for clip in range(4):
        context, target = _sides(limited[0], clip)
        assert len(context) == 5
        assert target == _sides(unlimited[0], clip)[1]
        if count != "fixed":
            assert set(context) <= set(_sides(unlimited[0], clip)[0])
    assert _equal(limited[1], unlimited[1])


@pytest.mark.parametrize("count", ["fixed", "packed"])
def test_no_bias_in_time(count: str) -> None:
    """Every tubelet keeps the same share of what the blocks leave and hide, unlike prefix."""
    sampler = MaskSampler(MaskingConfig(count=count), (8, 7, 7), 2, 0)
    ordinals = np.arange(400)
    hidden = sampler.full(ordinals, 0).reshape(2, 400, 8, 49)
    for kind, drawn in enumerate(sampler.sample(ordinals, 0)):
        for side, available in (("context", ~hidden[kind]), ("target", hidden[kind])):
            kept = np.zeros(8)
            for clip in range(400):
                tokens = getattr(drawn.sample(clip), side)[0].numpy()
                kept += np.bincount(tokens // 49, minlength=8)
            share = kept / available.sum(axis=(0, 2))
            if count == "packed":
                assert (share == 1).all()
            else:
                error = np.sqrt(share.mean() * (1 - share.mean()) / available.sum(axis=(0, 2)))
                assert (np.abs(share - share.mean()) < 4 * error).all()


def test_prefix_loses_the_end_of_the_clip() -> None:
    sampler = MaskSampler(MaskingConfig(), (8, 14, 14), 2, 0)
    short, _ = sampler.sample(np.arange(24), 0)
    steps = np.bincount(short.context.numpy().ravel() // 196, minlength=8)
    assert steps[:2].min() > 3 * steps[6:].max()
