"""Multi-block masks in count mode prefix against the reference's recorded distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vjepa.counter_random import uniforms
from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskConfig, MaskingConfig, MaskSampler
from vjepa.masking.drawing import BlockKinds

KINDS = {"short": SHORT_RANGE, "long": LONG_RANGE}
BATCHES = {1: 2000, 8: 400, 24: 200, 64: 100}
STEPS = 8


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "masks_stats.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("pixels", [64, 224, 384])
@pytest.mark.parametrize("kind", KINDS)
def test_block_size_for_aspect_ratio(recorded: dict[str, Any], pixels: int, kind: str) -> None:
    grid = (STEPS, pixels // 16, pixels // 16)
    rows = recorded["block_size_for_aspect_ratio"]["rows"][f"{pixels}_{kind}"]
    assert len(rows) == 31
    scale = KINDS[kind].spatial_scale
    for aspect, *size in rows:
        mask = MaskConfig(num_blocks=1, spatial_scale=scale, aspect_ratio=(aspect, aspect))
        assert BlockKinds([mask], grid).sizes(np.zeros((1, 3)))[0, 0].tolist() == size, aspect


@pytest.mark.parametrize("kind", KINDS)
def test_block_size_for_the_reference_draws(recorded: dict[str, Any], kind: str) -> None:
    draws = np.array(recorded["first_uniform_draws_by_seed"]["rows"])
    sizes = BlockKinds([KINDS[kind]], (STEPS, 14, 14)).sizes(draws)[0]
    wanted = recorded["per_mask"][kind]["first_64_block_sizes_by_seed"][: len(draws)]
    assert sizes[:, 1:].tolist() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_block_size_histogram(recorded: dict[str, Any], kind: str) -> None:
    draws = 20_000
    sizes = BlockKinds([KINDS[kind]], (STEPS, 14, 14)).sizes(uniforms(0, "h", np.arange(draws), 3))
    names, numbers = np.unique([f"{h}x{w}" for _, h, w in sizes[0]], return_counts=True)
    found = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    histogram = recorded["per_mask"][kind]["block_hxw_histogram"]
    total = sum(histogram.values())
    assert set(found) == set(histogram)
    for name, number in histogram.items():
        share = found[name] / draws
        error = np.sqrt(share * (1 - share) * (1 / total + 1 / draws))
        assert abs(number / total - share) < 4 * error, name


def _close(ours: NDArray[np.float64], wanted: float, wanted_error: float | None = None) -> None:
    """The mean over our batches against a recorded mean, within 4 standard errors of both."""
    error = ours.std(ddof=1) / np.sqrt(len(ours))
    other = error if wanted_error is None else wanted_error
    assert abs(ours.mean() - wanted) < 4 * np.hypot(error, other), (ours.mean(), wanted, error)


def _standard_error(entry: dict[str, float]) -> float:
    return entry["std"] / np.sqrt(entry["n"])


@pytest.mark.parametrize("batch", BATCHES)
def test_counts_and_survival(recorded: dict[str, Any], batch: int) -> None:
    calls = BATCHES[batch]
    sampler = MaskSampler(MaskingConfig(), (STEPS, 14, 14), 2, seed=5)
    hidden = np.empty((2, calls, batch, STEPS), dtype=np.int64)
    kept = {name: np.zeros((2, calls, STEPS)) for name in ("context", "target")}
    for call in range(calls):
        ordinals = np.arange(call * batch, (call + 1) * batch)
        hidden[:, call] = sampler.full(ordinals, call).sum(axis=(-2, -1))
        for place, masks in enumerate(sampler.sample(ordinals, call)):
            for name, counts in kept.items():
                steps = getattr(masks, name).numpy().ravel() // 196
                counts[place, call] = np.bincount(steps, minlength=STEPS)
    for place, kind in enumerate(KINDS):
        stats = recorded["per_mask"][kind][f"batch_{batch}"]
        masked = hidden[place].sum(axis=-1) / 1568
        before = stats["before_truncation"]
        # Samples of a batch share their block size, so batches are counted, not samples; the
        # record has no spread over batches, so ours stands in for it.
        _close(masked.mean(axis=1), before["masked_ratio"]["mean"])
        _close(1 - masked.mean(axis=1), before["context_kept_ratio"]["mean"])
        if batch == 1:
            continue
        after = stats["after_truncation"]
        for name, recorded_name in (("context", "context_kept_ratio"), ("target", "target_ratio")):
            share = kept[name][place].sum(axis=-1) / (batch * 1568)
            entry = after[recorded_name]
            _close(share, entry["mean"], _standard_error(entry))
            available = hidden[place].sum(axis=1)
            if name == "context":
                available = batch * 196 - available
            survival = stats[f"{name}_survival_by_tubelet"]
            for step in range(STEPS):
                _close_ratio(kept[name][place, :, step], available[:, step], survival[step], batch)


def _close_ratio(
    kept: NDArray[np.float64], available: NDArray[np.int64], wanted: float, batch: int
) -> None:
    """A ratio of sums over batches, with the standard error of a ratio estimate, on both sides."""
    ratio = kept.sum() / available.sum()
    residual = kept - ratio * available
    error = residual.std(ddof=1) / available.mean() / np.sqrt(len(kept))
    # Where a loss is so rare that one side may not have met it: the tokens of one clip.
    rare = 1 / (len(kept) * batch)
    assert abs(ratio - wanted) < 4 * np.sqrt(2) * error + rare, (ratio, wanted, error)


def test_counts_at_384(recorded: dict[str, Any]) -> None:
    sampler = MaskSampler(MaskingConfig(), (STEPS, 24, 24), 2, seed=5)
    counts = np.array(
        [
            [[m.context.shape[1], m.target.shape[1]] for m in sampler.sample(ordinals, call)]
            for call, ordinals in enumerate(np.arange(2000).reshape(200, 10))
        ]
    )
    for place, kind in enumerate(KINDS):
        stats = recorded["at_384"][kind]
        for side, name in enumerate(("context_kept_ratio_after", "target_ratio_after")):
            share = counts[:, place, side] / 4608
            _close(share, stats[name]["mean"], _standard_error(stats[name]))


def test_causal_example(recorded: dict[str, Any]) -> None:
    limit = recorded["causal_example"]["max_context_tubelets"]
    mask = MaskConfig(context_frames=12)
    (drawn,) = MaskSampler(MaskingConfig(masks=(mask,)), (STEPS, 14, 14), 2, 0).sample(
        np.arange(1), 0
    )
    assert drawn.context.max() < limit * 196
    assert drawn.context.max() // 196 == recorded["causal_example"]["context_max_tubelet"]
    assert set(range(limit * 196, 1568)) <= set(drawn.target[0].tolist())


def test_random_tube_example(recorded: dict[str, Any]) -> None:
    example = recorded["random_tube_example"]
    mask = MaskConfig(kind="tube", tube_ratio=example["ratio"])
    (drawn,) = MaskSampler(MaskingConfig(masks=(mask,)), (STEPS, 14, 14), 2, 0).sample(
        np.arange(4), 0
    )
    assert drawn.context.shape == (4, example["context_len"])
    assert drawn.target.shape == (4, example["target_len"])
    assert (np.unique(drawn.context[0].numpy() % 196).size) == example["spatial_kept"]
