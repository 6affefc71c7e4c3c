"""Training batches of cached features: a pure function of (seed, step).

The samples form one endless stream of reshuffled passes over the data; batch k takes the next
`batch_size` of them. So no sample is dropped at the end of a pass, every batch has the same size,
and a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.counter_random import permute
from vjepa.evaluation.features import FeatureSet


@dataclass(frozen=True)
class FeatureBatch:
    """One batch of a probe's training.

    Attributes:
        step: Number of the update that uses it, from 0.
        ordinals: int64 [B], the samples' numbers in the endless stream.
        places: int64 [B], places in the feature set.
        tokens: [B, N, D], as stored.
        labels: int64 [B].
    """

    step: int
    ordinals: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of samples B."""
        return len(self.places)


class FeatureBatches:
    """Gives the batches of any range of steps."""

    def __init__(
        self,
        features: FeatureSet,
        places: NDArray[np.int64],
        labels: NDArray[np.int64],
        batch_size: int,
        seed: int,
    ) -> None:
        """Take the training part of a feature set.

        Args:
            features: Token maps.
            places: int64 [n], places in `features` to train on.
            labels: int64 [n], their class numbers.
            batch_size: Samples per update; at most n are taken, so that no batch holds one twice
                while another is not in it.
            seed: Of the order.

        Raises:
            ValueError: There is nothing to train on, or lengths differ.
        """
        if len(places) == 0 or len(places) != len(labels):
            raise ValueError(f"places: {len(places)} of them with {len(labels)} labels")
        self._features, self._places, self._labels = features, places, labels
        self._seed = seed
        self.batch_size = min(batch_size, len(places))

    def steps_for(self, epochs: float) -> int:
        """Updates that make up so many passes over the data, rounded up, at least one."""
        return max(1, math.ceil(epochs * len(self._places) / self.batch_size))

    def order(self, step: int) -> NDArray[np.int64]:
        """Which of the n training samples batch `step` (from 0) takes: int64 [B]."""
        count = len(self._places)
        stream = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs, inside = np.divmod(stream, count)
        samples = np.empty_like(stream)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            samples[now] = permute(inside[now], count, self._seed, "probe", int(epoch))
        return samples

    def batches(self, start_step: int, stop_step: int) -> Iterator[FeatureBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`."""
        for step in range(start_step, stop_step):
            samples = self.order(step)
            places = self._places[samples]
            yield FeatureBatch(
                step=step,
                ordinals=np.arange(step * self.batch_size, (step + 1) * self.batch_size),
                places=places,
                tokens=self._features.gather(places),
                labels=torch.from_numpy(self._labels[samples]),
            )

    def close(self) -> None:
        """Nothing is held open."""
