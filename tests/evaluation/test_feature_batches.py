from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa.evaluation.batches import FeatureBatches
from vjepa.evaluation.frozen import FeatureSet


def _features(count: int, offset: float = 0.0, clips: int = 1) -> FeatureSet:
    numbers = torch.arange(count, dtype=torch.float32) + offset
    tokens = numbers[:, None, None, None].expand(count, clips, 2, 3)
    rows = np.arange(count, dtype=np.int64)
    return FeatureSet((tokens.clone(),), rows, tuple(f"v{i}.mp4" for i in range(count)))


def _batches(count: int = 10, batch_size: int = 4, seed: int = 0) -> FeatureBatches:
    places = np.arange(0, 2 * count, 2, dtype=np.int64)
    return FeatureBatches([_features(2 * count)], places[None], places // 2 % 3, batch_size, seed)


def test_every_pass_sees_every_sample_once_whatever_the_batch_size() -> None:
    provider = _batches()
    stream = np.concatenate([batch.places for batch in provider.batches(0, 5)])
    assert len(stream) == 20
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
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
    assert torch.equal(batch.tokens[:, 0, 0], torch.from_numpy(2 * batch.places).float())
    assert torch.equal(batch.labels, torch.from_numpy(batch.places % 3))
    assert len(batch) == 4


def test_a_batch_is_never_larger_than_the_data() -> None:
    provider = _batches(count=3, batch_size=256)
    assert sorted(next(provider.batches(0, 1)).places) == [0, 1, 2]
    assert provider.order.steps_for(20) == 20
    assert _batches(count=10, batch_size=4).order.steps_for(1) == 3
    assert _batches().order.steps_for(0.01) == 1


def test_nothing_to_train_on() -> None:
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="places"):
        FeatureBatches([_features(2)], empty[None], empty, 4, 0)
    with pytest.raises(ValueError, match="2 passes"):
        FeatureBatches([_features(2)] * 2, np.zeros((1, 2), np.int64), np.zeros(2, np.int64), 4, 0)


def test_every_epoch_reads_the_pass_of_its_number() -> None:
    places = np.stack([np.arange(5), np.arange(5)])
    passes = [_features(5), _features(5, offset=100.0)]
    provider = FeatureBatches(passes, places, np.arange(5), 4, 0)
    for batch in provider.batches(0, 5):
        for ordinal, place, value in zip(
            batch.ordinals, batch.places, batch.tokens[:, 0, 0].tolist(), strict=True
        ):
            assert value == place + 100.0 * (ordinal // 5 % 2)
    assert [batch.labels.tolist() for batch in provider.batches(1, 2)] == [
        batch.places.tolist() for batch in provider.batches(1, 2)
    ]


def test_segments_are_joined_or_are_samples_of_their_own() -> None:
    def batch(join):
        places, labels = np.arange(4)[None], np.arange(4)
        source = FeatureBatches(
            [_features(4, clips=3)], places, labels, 2, 0, num_segments=3, join=join
        )
        return next(source.batches(0, 1))

    assert batch("tokens").tokens.shape == (2, 6, 3)
    apart = batch("average")
    assert apart.tokens.shape == (6, 2, 3)
    assert apart.labels.tolist() == np.repeat(apart.places, 3).tolist()
    assert len(apart) == 2
