"""From a batch of clips to the inputs of a pretraining objective."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vjepa.data.loader import ClipBatch
from vjepa.jobs.pretrain_config import PretrainConfig
from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import normalise_clip
from vjepa.objectives import BatchPart
from vjepa.runtime.device import to_device
from vjepa.runtime.distributed import Team
from vjepa.training.step import MicroBatch


class BatchPreparer:
    """Makes the objective's inputs: ``prepare`` and ``look`` of the training loop.

    Masks are a pure function of the samples' ordinals. Where the masks of a clip depend on the
    others (count mode prefix), or the weight of a clip does (packed), every process draws those of
    the whole batch and takes its part. So neither gradient accumulation nor the number of processes
    changes what is hidden or what it counts.
    """

    def __init__(self, config: PretrainConfig, team: Team | None = None) -> None:
        """Check the masks against the grid.

        Args:
            config: Gives masks, model, seed and the size of the whole batch.
            team: The processes that share a batch; None: this one alone.
        """
        encoder = config.model.encoder
        self._sampler = MaskSampler(config.masking, encoder.grid, encoder.tubelet_size, config.seed)
        self._draws_own_part = config.masking.count == "fixed"
        self._batch_size = config.data.batch_size
        self._team = team or Team()
        self._step, self._masks = -1, tuple[TokenMasks, ...]()

    def __call__(
        self, batch: ClipBatch, device: torch.device, micro: int, num_micro: int
    ) -> MicroBatch:
        """Part `micro` of `num_micro`: clips float32 [b, C, T, H, W] on `device`, masks, part."""
        size = len(batch.ordinals) // num_micro
        start, stop = micro * size, (micro + 1) * size
        drawn, first = self._drawn(batch)
        masks = tuple(kind.slice(first + start, first + stop) for kind in drawn)
        part = BatchPart.of(masks, drawn)
        if self._draws_own_part:
            share = size / self._batch_size
            part = BatchPart(share, (share,) * len(masks))
        clips = to_device(batch.clips[start:stop], device)
        on_device = _masks_to(masks, device)
        return MicroBatch((normalise_clip(clips), on_device, part), share=1.0)

    def look(
        self, batch: ClipBatch, device: torch.device, count: int
    ) -> tuple[Tensor, tuple[TokenMasks, ...]]:
        """The first `count` clips of the whole batch and their masks, the same in every process."""
        count = min(count, self._batch_size)
        if self._draws_own_part:
            ordinals = batch.step * self._batch_size + np.arange(count)
            masks = self._sampler.sample(ordinals, batch.step)
        else:
            masks = tuple(kind.slice(0, count) for kind in self._drawn(batch)[0])
        clips = self._first_clips(batch, device, count)
        return normalise_clip(clips), _masks_to(masks, device)

    def _drawn(self, batch: ClipBatch) -> tuple[tuple[TokenMasks, ...], int]:
        """Masks of the batch, and the place among them of this process's first clip."""
        whole = batch.step * self._batch_size + np.arange(self._batch_size)
        ordinals = batch.ordinals if self._draws_own_part else whole
        if batch.step != self._step:
            self._step, self._masks = batch.step, self._sampler.sample(ordinals, batch.step)
        return self._masks, int(batch.ordinals[0] - ordinals[0])

    def _first_clips(self, batch: ClipBatch, device: torch.device, count: int) -> Tensor:
        """uint8 [count, C, T, H, W], sent by the processes that hold them."""
        held = len(batch.clips)
        parts = []
        for rank in range(-(-count // held)):
            number = min(held, count - rank * held)
            clips = batch.clips[:number].to(device, copy=True)
            parts.append(self._team.send_(clips, rank))
        return torch.cat(parts)


def _masks_to(masks: tuple[TokenMasks, ...], device: torch.device) -> tuple[TokenMasks, ...]:
    return tuple(kind.map(lambda indices: to_device(indices, device)) for kind in masks)
