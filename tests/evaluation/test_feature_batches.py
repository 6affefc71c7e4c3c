from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.evaluation.feature_batches import FeatureBatches
from vjepa.evaluation.features import FeatureSet


def _features(count: int) -> FeatureSet:
    tokens = torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, 2, 3)
    rows = np.arange(count, dtype=np.int64)
    return FeatureSet((tokens.clone(),), rows, tuple(f"v{i}.mp4" for i in range(count)))


def _batches(count: int = 10, batch_size: int = 4, seed: int = 0) -> FeatureBatches:
    places = np.arange(0, 2 * count, 2, dtype=np.int64)
    return FeatureBatches(_features(2 * count), places, places // 2 % 3, batch_size, seed)


def test_every_pass_sees_every_sample_once_whatever_the_batch_size() -> None:
    provider = _batches()
    stream = np.concatenate([batch.places for batch in provider.batches(0, 5)])
    assert len(stream) == 20
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(0, 20, 2))
    assert first.tolist() != second.tolist()


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    whole = list(_batches().batches(0, 6))
    resumed = list(_batches().batches(4, 6))
    assert [batch.step for batch in resumed] == [4, 5]
    for left, right in zip(whole[4:], resumed, strict=True):
        assert np.array_equal(left.places, right.places)
        assert torch.equal(left.tokens, right.tokens)
    other = next(_batches(seed=1).batches(0, 1))
    assert not np.array_equal(other.places, whole[0].places)


def test_tokens_and_labels_belong_to_the_places() -> None:
    batch = next(_batches().batches(1, 2))
    assert torch.equal(batch.tokens[:, 0, 0], torch.from_numpy(batch.places).float())
    assert torch.equal(batch.labels, torch.from_numpy(batch.places // 2 % 3))
    assert len(batch) == 4


def test_a_batch_is_never_larger_than_the_data() -> None:
    provider = _batches(count=3, batch_size=256)
    assert sorted(next(provider.batches(0, 1)).places) == [0, 2, 4]
    assert provider.steps_for(20) == 20
    assert _batches(count=10, batch_size=4).steps_for(1) == 3
    assert _batches().steps_for(0.01) == 1


def test_nothing_to_train_on() -> None:
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="places"):
        FeatureBatches(_features(2), empty, empty, 4, 0)
