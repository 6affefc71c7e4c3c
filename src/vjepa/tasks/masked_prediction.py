"""What the pretraining tasks share: masks, and the encoder and predictor that work under them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import Encoder, ModelConfig, Predictor
from vjepa.runtime.device import to_device
from vjepa.runtime.distributed import ProcessGroup
from vjepa.tasks.health import first_clips
from vjepa.tasks.task import Output, Task, slice_of_part

TARGET_NORM_EPS = 1e-5
"""Epsilon of the normalisation of targets (the encoder's own norms use 1e-6)."""


@dataclass(frozen=True)
class BatchSize:
    """What a whole batch holds, over all micro-batches and processes: a loss is divided by it."""

    clips: int
    targets: tuple[int, ...]
    """Masked tokens of each mask kind."""
    directions: Tensor | None = None
    """Those in which SIGReg looks at the batch, float32 [M, D]."""
    context_weight: float | None = None
    """Of the visible tokens in this update, for dense prediction."""

    @classmethod
    def of(cls, masks: Sequence[TokenMasks], clips: int | None = None) -> BatchSize:
        """Of a batch of `clips` (None: as many as the masks'), from its masks' shapes.

        Some of its clips' masks will do if all have equally many tokens.
        """
        held = masks[0].batch_size
        clips = clips or held
        return cls(clips, tuple(mask.target.numel() * clips // held for mask in masks))

    def mean(self, errors: Tensor, kind: int) -> Tensor:
        """Summand of the batch's mean error: [..., D] of masked tokens of a kind -> scalar."""
        return errors.sum() / (self.targets[kind] * errors.shape[-1])


class BatchMasks:
    """Masks of whole batches of so many clips, drawn once for all parts of a batch."""

    def __init__(self, sampler: MaskSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self._drawn_for, self._masks = (-1, b""), tuple[TokenMasks, ...]()

    def part(
        self, batch: Any, part: int, parts: int, device: torch.device
    ) -> tuple[Tensor, tuple[TokenMasks, ...], BatchSize]:
        """Clips uint8 and masks of micro-batch `part` of `parts` on the device, and the size."""
        drawn, first = self._draw(batch)
        here = slice_of_part(len(batch.ordinals), part, parts)
        masks = tuple(kind.slice(first + here.start, first + here.stop) for kind in drawn)
        size = BatchSize.of(drawn, self.batch_size)
        return to_device(batch.clips[here], device), on_device(masks, device), size

    def _draw(self, batch: Any) -> tuple[tuple[TokenMasks, ...], int]:
        """Masks of a batch, and the index among them of this process's first clip."""
        ordinals = batch.step * self.batch_size + np.arange(self.batch_size)
        if self.sampler.counts is not None:  # fixed: they depend on nothing else in the batch
            ordinals = np.asarray(batch.ordinals)  # a tensor will do
        first = int(batch.ordinals[0] - ordinals[0])
        own = ordinals[max(0, first) : first + len(batch.ordinals)]
        if not np.array_equal(own, batch.ordinals):
            raise ValueError(
                f"batch.ordinals: {batch.ordinals} are not in order among {ordinals[0]} .. "
                f"{ordinals[-1]}, the samples of step {batch.step} of the task's batch_size "
                f"{self.batch_size}; number them so, or use count: fixed"
            )
        if (which := (batch.step, ordinals.tobytes())) != self._drawn_for:
            self._drawn_for, self._masks = which, self.sampler.sample(ordinals, batch.step)
        return self._masks, first


def on_device(masks: Sequence[TokenMasks], device: torch.device) -> tuple[TokenMasks, ...]:
    """Masks with their indices on a device."""
    return tuple(kind.map(lambda indices: to_device(indices, device)) for kind in masks)


def check_grid(clips: Tensor, encoder: Encoder) -> None:
    """ValueError: clips [B, C, T, H, W] have other tokens than the model's, which masks number."""
    if (grid := encoder.patch_embed.grid(clips.shape)) != encoder.config.grid:
        of = f"{grid} tokens (t, h, w), but the model's are {encoder.config.grid}"
        raise ValueError(f"batch.clips: {tuple(clips.shape)} have {of}; cut them to its size")


class MaskedPrediction(Task):
    """Predicts something of the hidden tokens of a clip from the visible ones.

    Masks are a pure function of the samples' ordinals. Where the masks of a clip depend on the
    others (count mode prefix), or the weight of a clip does (packed), every process draws those of
    the whole batch and takes its part. So neither gradient accumulation nor the number of processes
    changes what is hidden or what it counts.

    The `sampler` draws the masks; without one ``forward`` is given them. `batch_size` are the clips
    of the whole batch, over all processes.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoder: Encoder,
        predictor: Predictor,
        sampler: MaskSampler | None = None,
        batch_size: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.predictor = encoder, predictor
        self._drawn = None if sampler is None else BatchMasks(sampler, batch_size)

    def encode(self, clips: Tensor, mask: TokenMasks) -> Tensor:
        """The context tokens' features, of all levels that the predictor takes side by side."""
        levels = self.encoder.config.levels if self.predictor.config.levels > 1 else None
        seen = self.encoder(clips, mask.context, offsets=mask.context_offsets, layers=levels)
        return torch.cat(seen, dim=-1) if isinstance(seen, list) else seen

    def predict(self, context: Tensor, mask: TokenMasks, kind: int) -> Tensor:
        """What the masked tokens are thought to be: float32 [B, M, D], or packed [U, D].

        `context` is :meth:`encode`'s; the number of the mask kind chooses the mask token, unless
        the model has one for all.
        """
        kind = self.predictor.config.mask_token(kind)
        offsets = {"context_offsets": mask.context_offsets, "target_offsets": mask.target_offsets}
        return self.predictor(context, mask.context, mask.target, kind, **offsets).float()

    @abstractmethod
    def forward(
        self, clips: Tensor, masks: Sequence[TokenMasks], size: BatchSize | None = None
    ) -> Output:
        """The loss, and as terms that of each mask kind (``loss/mask_0``, ...).

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: One for each mask kind, over the clips' token grid, on the clips' device.
            size: Of the batch that these are a part of; None: they are all of it.
        """

    def inputs(
        self, batch: Any, part: int, parts: int
    ) -> tuple[Tensor, tuple[TokenMasks, ...], BatchSize]:
        """Clips float32 [b, C, T, H, W] and masks on the device, and the size of the whole batch.

        A batch has ``clips`` (uint8 [B, C, T, H, W]), ``ordinals`` and ``step``.
        """
        check_grid(batch.clips, self.encoder)
        clips, masks, size = self._own_masks.part(batch, part, parts, self.device)
        return self.encoder.normalise(clips), masks, size

    def health(self, batch: Any, count: int, group: ProcessGroup) -> Mapping[str, Tensor]:
        """As :meth:`health_of` says, of the first `count` clips of the whole batch."""
        sampler, size = self._own_masks.sampler, self._own_masks.batch_size
        count = min(count, size)
        drawn = count if sampler.counts is not None else size
        masks = sampler.sample(batch.step * size + np.arange(drawn), batch.step)
        clips = first_clips(batch, count, self.device, group)
        first = on_device([kind.slice(0, count) for kind in masks], self.device)
        return self.health_of(self.encoder.normalise(clips), first)

    @abstractmethod
    def health_of(self, clips: Tensor, masks: Sequence[TokenMasks]) -> dict[str, Tensor]:
        """Whether the features stay rich: float32 scalars, for about the cost of a forward pass.

        Of normalised clips and their masks; :mod:`vjepa.tasks.health` says what they mean.
        """

    @property
    def _own_masks(self) -> BatchMasks:
        assert self._drawn is not None, "a task that draws its masks needs a sampler"
        return self._drawn


def normalise_features(features: Tensor) -> Tensor:
    """LayerNorm over the features without scale and shift: [..., D] -> float32 [..., D]."""
    return F.layer_norm(features.float(), features.shape[-1:], eps=TARGET_NORM_EPS)
