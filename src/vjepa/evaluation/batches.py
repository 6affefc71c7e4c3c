"""Training batches of a probe: features that were made before, or clips cut and encoded anew.

Both ways take the samples in the same order, and the clip of a sample in epoch e is the one that
pass e of the features holds: with as many passes as epochs both train on the same features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.counter_random import permute
from vjepa.data.clips.dataset import BadVideo, EvaluationClips
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.evaluate import join_clips
from vjepa.evaluation.frozen import FeatureExtractor, FeatureSet

Wanted = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of the manifest and the pass that each is wanted from, int64 [b] twice."""
Read = Callable[[Iterable[Wanted]], Iterator[FeatureSet]]
"""Features of wanted rows, in their order; rows that cannot be read are listed as bad."""


@dataclass(frozen=True)
class SampleOrder:
    """Which of `count` samples every batch takes.

    At most `count` a batch: a larger one would hold one sample twice while another is not in it.
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


@dataclass(frozen=True)
class ProbeBatch:
    """One batch of a probe's training; P inputs of each of B videos.

    Attributes:
        ordinals: int64 [B], the samples' numbers in the endless stream.
        samples: int64 [B], numbers of the samples among the training rows.
        tokens: [B * P, N, D], as stored.
        labels: [B * P] int64, or [B * P, classes] float32 where a video has several labels.
    """

    ordinals: NDArray[np.int64]
    samples: NDArray[np.int64]
    tokens: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.samples)


class ProbeBatches:
    """Gives the batches of any range of steps."""

    def __init__(
        self,
        read: Read,
        rows: NDArray[np.int64],
        targets: NDArray[np.int64] | NDArray[np.float32],
        batch_size: int,
        seed: int,
        view: ViewConfig,
    ) -> None:
        """Read nothing yet.

        `rows` int64 [n] are trained on; `targets` are their class numbers int64 [n], or float32
        [n, classes]; `view` says how segments become the probe's input.
        """
        if len(rows) == 0 or len(rows) != len(targets):
            raise ValueError(f"rows: {len(rows)} of them with {len(targets)} labels")
        self._read, self._rows, self._targets, self._view = read, rows, targets, view
        self._bad: dict[int, BadVideo] = {}
        self.order = SampleOrder(len(rows), min(batch_size, len(rows)), seed)

    @property
    def bad(self) -> tuple[BadVideo, ...]:
        """Videos that could not be read so far, in row order."""
        return tuple(self._bad[row] for row in sorted(self._bad))

    def batches(self, start_step: int, stop_step: int) -> Iterator[ProbeBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`."""
        size, view = self.order.batch_size, self._view
        orders, later = itertools.tee(map(self.order.batch, range(start_step, stop_step)))
        found = self._read((self._rows[samples], epochs) for samples, epochs in later)
        steps = range(start_step, stop_step)
        for step, (samples, _), part in zip(steps, orders, found, strict=True):
            self._bad |= {video.row: video for video in part.bad}
            good = ~np.isin(self._rows[samples], [video.row for video in part.bad])
            if not good.any():
                raise UserError(f"{part.bad[0].path}: no video of this batch can be read")
            tokens = join_clips(part.tokens, view.num_segments, view.join)
            labels = torch.from_numpy(self._targets[samples[good]])
            yield ProbeBatch(
                ordinals=np.arange(step * size, (step + 1) * size)[good],
                samples=samples[good],
                # Every input of a video is a sample with the video's label.
                tokens=tokens.flatten(0, 1),
                labels=torch.repeat_interleave(labels, tokens.shape[1], dim=0),
            )


def read_passes(passes: Sequence[FeatureSet], wanted: Iterable[Wanted]) -> Iterator[FeatureSet]:
    """Features that are there: epoch e takes pass number e modulo K of K passes."""
    for rows, epochs in wanted:
        which = epochs % len(passes)
        present = np.unique(which)
        parts = [passes[taken].gather(rows[which == taken]) for taken in present]
        back = np.argsort(np.concatenate([np.flatnonzero(which == taken) for taken in present]))
        tokens = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.from_numpy(back)]
        yield FeatureSet((tokens,), rows)


def read_clips(
    extractor: FeatureExtractor, clips: EvaluationClips, ahead: int, wanted: Iterable[Wanted]
) -> Iterator[FeatureSet]:
    """Clips that are cut and encoded now; at most `ahead` videos wait to be used."""
    requests = (list(zip(rows.tolist(), epochs.tolist(), strict=True)) for rows, epochs in wanted)
    return map(extractor.encode, clips.stream(requests, ahead))
