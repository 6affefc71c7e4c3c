"""Training batches of clips that are cut and encoded anew in every epoch: the paper's way.

The samples come in the same order as those of cached features, and the clip of a sample in epoch e
is the one that pass e of the cache holds: with as many cached passes as epochs both ways train on
the same features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.counter_random import permute
from vjepa.data.clips.dataset import EvaluationClips
from vjepa.data.clips.views import JoinSegments, ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.across_processes import join_clips, stacked_for_training
from vjepa.evaluation.frozen import BadVideo, ClipRows, FeatureSet, encode_rows
from vjepa.runtime.device import Precision


@dataclass(frozen=True)
class SampleOrder:
    """Which samples every batch takes.

    Attributes:
        count: Samples n.
        batch_size: Samples per update, at most n.
        seed: Of the order.
    """

    count: int
    batch_size: int
    seed: int

    def steps_for(self, epochs: float) -> int:
        """Updates that make up so many passes over the data, rounded up, at least one."""
        return max(1, math.ceil(epochs * self.count / self.batch_size))

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples of batch `step` (from 0) and the pass that each belongs to: int64 [B] twice."""
        stream = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs, inside = np.divmod(stream, self.count)
        samples = np.empty_like(stream)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            samples[now] = permute(inside[now], self.count, self.seed, "probe", int(epoch))
        return samples, epochs


def sample_order(count: int, batch_size: int, seed: int) -> SampleOrder:
    """The order of n samples, in batches of at most n.

    A batch larger than the data would hold one sample twice while another is not in it.
    """
    return SampleOrder(count, min(batch_size, count), seed)


@dataclass(frozen=True)
class FeatureBatch:
    """One batch of a probe's training.

    Attributes:
        step: Number of the update that uses it, from 0.
        ordinals: int64 [B], the samples' numbers in the endless stream.
        places: int64 [B], numbers of the samples.
        tokens: [B * P, N, D], as stored; P inputs of each video.
        labels: [B * P] int64, or [B * P, classes] float32 where a video has several labels.
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
        passes: Sequence[FeatureSet],
        places: NDArray[np.int64],
        targets: NDArray[np.int64] | NDArray[np.float32],
        batch_size: int,
        seed: int,
        *,
        num_segments: int = 1,
        join: JoinSegments = "tokens",
    ) -> None:
        """Take the training part of feature sets.

        Args:
            passes: K sets of token maps of the same videos, each seen through other random clips;
                epoch e takes number e modulo K.
            places: int64 [K, n], where each pass has the n training samples.
            targets: int64 [n], their class numbers; or float32 [n, classes].
            batch_size: Samples per update; at most n are taken.
            seed: Of the order.
            num_segments, join: How segments become the probe's input (:func:`join_clips`).

        Raises:
            ValueError: There is nothing to train on, or lengths differ.
        """
        if places.size == 0 or places.shape != (len(passes), len(targets)):
            raise ValueError(
                f"places: shape {places.shape} for {len(passes)} passes with {len(targets)} labels"
            )
        self._passes, self._places, self._targets = tuple(passes), places, targets
        self._num_segments, self._join = num_segments, join
        self.order = sample_order(len(targets), batch_size, seed)

    def batches(self, start_step: int, stop_step: int) -> Iterator[FeatureBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`."""
        size = self.order.batch_size
        for step in range(start_step, stop_step):
            samples, epochs = self.order.batch(step)
            tokens = join_clips(self._gather(samples, epochs), self._num_segments, self._join)
            inputs, labels = stacked_for_training(tokens, torch.from_numpy(self._targets[samples]))
            yield FeatureBatch(
                step=step,
                ordinals=np.arange(step * size, (step + 1) * size),
                places=samples,
                tokens=inputs,
                labels=labels,
            )

    def _gather(self, samples: NDArray[np.int64], epochs: NDArray[np.int64]) -> Tensor:
        """Token maps [B, R, N, D] of samples, each out of the pass of its epoch."""
        which = epochs % len(self._passes)
        present = np.unique(which)
        if len(present) == 1:
            taken = int(present[0])
            return self._passes[taken].gather(self._places[taken, samples])
        parts = [
            self._passes[taken].gather(self._places[taken, samples[which == taken]])
            for taken in present
        ]
        back = np.argsort(np.concatenate([np.flatnonzero(which == taken) for taken in present]))
        return torch.cat(parts)[torch.from_numpy(back)]

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class ClipBatch:
    """One batch of a probe's training on clips.

    Attributes:
        step: Number of the update that uses it, from 0.
        ordinals: int64 [b], the samples' numbers in the endless stream.
        rows: The clips of the videos that could be read.
        targets: [b] int64, or [b, classes] float32.
    """

    step: int
    ordinals: NDArray[np.int64]
    rows: ClipRows
    targets: Tensor

    def __len__(self) -> int:
        """The number of samples b."""
        return len(self.ordinals)


class ClipBatches:
    """Gives the batches of any range of steps.

    Attributes:
        order: Which samples every batch takes.
    """

    def __init__(
        self,
        source: EvaluationClips,
        rows: NDArray[np.int64],
        targets: NDArray[np.int64] | NDArray[np.float32],
        batch_size: int,
        seed: int,
    ) -> None:
        """Read nothing yet.

        Args:
            source: Cuts random clips.
            rows: int64 [n], manifest rows to train on.
            targets: int64 [n], their class numbers; or float32 [n, classes].
            batch_size: Samples per update; at most n are taken.
            seed: Of the order.

        Raises:
            ValueError: There is nothing to train on, or lengths differ.
        """
        if len(rows) == 0 or len(rows) != len(targets):
            raise ValueError(f"rows: {len(rows)} of them with {len(targets)} labels")
        self._source, self._rows, self._targets = source, rows, targets
        self._bad: dict[int, BadVideo] = {}
        self.order = sample_order(len(rows), batch_size, seed)

    @property
    def bad(self) -> tuple[BadVideo, ...]:
        """Videos that could not be read so far, in row order."""
        return tuple(self._bad[row] for row in sorted(self._bad))

    def batches(self, start_step: int, stop_step: int) -> Iterator[ClipBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed; or all of a batch
                are bad.
        """
        size = self.order.batch_size
        wanted = (self._requests(step) for step in range(start_step, stop_step))
        for step, read in enumerate(self._source.stream(wanted, 2 * size), start_step):
            samples, _ = self.order.batch(step)
            self._bad |= {video.row: video for video in read.bad}
            good = ~np.isin(self._rows[samples], [video.row for video in read.bad])
            if not good.any():
                raise UserError(f"{read.bad[0].path}: no video of this batch can be read")
            yield ClipBatch(
                step=step,
                ordinals=np.arange(step * size, (step + 1) * size)[good],
                rows=read,
                targets=torch.from_numpy(self._targets[samples[good]]),
            )

    def _requests(self, step: int) -> list[tuple[int, int]]:
        samples, epochs = self.order.batch(step)
        return list(zip(self._rows[samples].tolist(), epochs.tolist(), strict=True))

    def close(self) -> None:
        """End the worker processes."""
        self._source.close()


@dataclass(frozen=True)
class ClipEncoder:
    """Encodes training clips without autograd, once for all heads.

    Attributes:
        encoder: Frozen, on its device.
        view: How segments are joined.
        precision, storage: As the cache would hold the features.
        clips_per_call: Most clips in one forward call.
    """

    encoder: nn.Module
    view: ViewConfig
    precision: Precision
    storage: Precision
    clips_per_call: int

    def __call__(self, batch: ClipBatch, device: torch.device) -> tuple[Tensor, Tensor]:
        """The probe's inputs [b * P, N, D] and targets of a batch, on the device."""
        encoded = encode_rows(
            self.encoder,
            [batch.rows],
            device=device,
            precision=self.precision,
            storage=self.storage,
            clips_per_call=self.clips_per_call,
        )
        tokens = join_clips(encoded.tokens, self.view.num_segments, self.view.join)
        inputs, targets = stacked_for_training(tokens, batch.targets)
        return inputs.to(device), targets.to(device)
