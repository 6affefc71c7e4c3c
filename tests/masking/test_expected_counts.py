from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vjepa.masking import LONG_RANGE, SHORT_RANGE, MaskConfig, MaskingConfig, MaskSampler
from vjepa.masking.counting import TokenCounts, mean_prefix_counts

PAIR = (SHORT_RANGE, LONG_RANGE)


def test_the_papers_masks_at_224_have_the_authors_counts() -> None:
    counts = mean_prefix_counts(PAIR, (8, 14, 14), 2)
    assert counts == (TokenCounts(366, 753), TokenCounts(105, 1098))


def test_the_papers_masks_at_384_have_the_authors_counts() -> None:
    counts = mean_prefix_counts(PAIR, (8, 24, 24), 2)
    assert counts == (TokenCounts(1297, 2313), TokenCounts(418, 3331))


def test_what_only_counting_reads_changes_nothing() -> None:
    masks = tuple(
        replace(mask, max_context_tokens=7, context_fraction=0.1, target_fraction=0.2)
        for mask in PAIR
    )
    assert mean_prefix_counts(masks, (8, 14, 14), 2) == mean_prefix_counts(PAIR, (8, 14, 14), 2)


def test_estimate_agrees_with_the_measured_counts() -> None:
    """Blocks span the clip, so the shares at one time step are those measured at eight."""
    estimated = mean_prefix_counts(PAIR, (1, 14, 14), 2)
    assert estimated[0].context == pytest.approx(0.2335 * 196, abs=0.02 * 196)
    assert estimated[0].target == pytest.approx(0.4805 * 196, abs=0.02 * 196)
    assert estimated[1].context == pytest.approx(0.0669 * 196, abs=0.02 * 196)
    assert estimated[1].target == pytest.approx(0.7002 * 196, abs=0.02 * 196)


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
