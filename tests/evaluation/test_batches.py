from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import BadVideo
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import ProbeBatches, read_passes
from vjepa.evaluation.frozen import FeatureSet


def _features(count: int, offset: float = 0.0, clips: int = 1) -> FeatureSet:
    """Of rows 0, 2, 4, ...; every token holds the row's number."""
    rows = 2 * np.arange(count, dtype=np.int64)
    numbers = torch.from_numpy(rows).float() + offset
    tokens = numbers[:, None, None, None].expand(count, clips, 2, 3)
    return FeatureSet((tokens.clone(),), rows)


def _batches(
    count: int = 10, batch_size: int = 4, seed: int = 0, passes: int = 1, **view: Any
) -> ProbeBatches:
    clips = view.get("num_segments", 1)
    sets = [_features(count, 100.0 * number, clips) for number in range(passes)]
    rows = sets[0].rows
    read = partial(read_passes, sets)
    return ProbeBatches(read, rows, np.arange(count) % 3, batch_size, seed, ViewConfig(**view))


def test_every_pass_sees_every_sample_once_whatever_the_batch_size() -> None:
    provider = _batches()
    stream = np.concatenate([batch.samples for batch in provider.batches(0, 5)])
    assert len(stream) == 20
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    whole = list(_batches().batches(0, 6))
    resumed = list(_batches().batches(4, 6))
    assert [batch.ordinals[0] for batch in resumed] == [16, 20]
    for batch in whole:
        assert torch.equal(batch.tokens[:, 0, 0], torch.from_numpy(2 * batch.samples).float())
        assert torch.equal(batch.labels, torch.from_numpy(batch.samples % 3))
        assert len(batch) == 4
    for left, right in zip(whole[4:], resumed, strict=True):
        assert np.array_equal(left.samples, right.samples)
        assert torch.equal(left.tokens, right.tokens)
    other = next(_batches(seed=1).batches(0, 1))
    assert not np.array_equal(other.samples, whole[0].samples)


def test_a_batch_is_never_larger_than_the_data() -> None:
    provider = _batches(count=3, batch_size=256)
    assert sorted(next(provider.batches(0, 1)).samples) == [0, 1, 2]
    assert provider.steps_for(20) == 20
    assert _batches(count=10, batch_size=4).steps_for(1) == 3
    assert _batches().steps_for(0.01) == 1


def test_nothing_to_train_on() -> None:
    none = np.empty(0, dtype=np.int64)
    read = partial(read_passes, [_features(2)])
    with pytest.raises(ValueError, match="rows"):
        ProbeBatches(read, none, none, 4, 0, ViewConfig())
    with pytest.raises(ValueError, match="1 labels"):
        ProbeBatches(read, np.arange(2), np.zeros(1, np.int64), 4, 0, ViewConfig())


def test_every_epoch_reads_the_pass_of_its_number() -> None:
    for batch in _batches(count=5, passes=2).batches(0, 5):
        for ordinal, sample, value in zip(
            batch.ordinals, batch.samples, batch.tokens[:, 0, 0].tolist(), strict=True
        ):
            assert value == 2 * sample + 100.0 * (ordinal // 5 % 2)


def test_segments_are_joined_or_are_samples_of_their_own() -> None:
    joined = next(_batches(4, 2, num_segments=3).batches(0, 1))
    assert joined.tokens.shape == (2, 6, 3)
    apart = next(_batches(4, 2, num_segments=3, join="average").batches(0, 1))
    assert apart.tokens.shape == (6, 2, 3)
    assert apart.labels.tolist() == np.repeat(apart.samples % 3, 3).tolist()
    assert len(apart) == 2


def test_videos_that_cannot_be_read_leave_the_batch() -> None:
    def read(wanted):
        for rows, _ in wanted:
            good = rows[rows != 6]
            bad = (BadVideo(6, "v6.mp4", "truncated"),) if len(good) < len(rows) else ()
            yield FeatureSet((_features(10).gather(good),), good, bad)

    provider = ProbeBatches(read, _features(10).rows, np.arange(10), 4, 0, ViewConfig())
    seen = list(provider.batches(0, 5))
    assert sorted(np.concatenate([batch.samples for batch in seen]).tolist()) == sorted(
        2 * [0, 1, 2, 4, 5, 6, 7, 8, 9]
    )
    for batch in seen:
        assert batch.labels.tolist() == batch.samples.tolist()
        assert len(batch.ordinals) == len(batch)
    assert [video.row for video in provider.bad] == [6]
    alone = ProbeBatches(read, np.array([6]), np.array([0]), 4, 0, ViewConfig())
    with pytest.raises(UserError, match=r"v6\.mp4: no video of this batch can be read"):
        next(alone.batches(0, 1))
