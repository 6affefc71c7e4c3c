"""Feature prediction of V-JEPA 2.1: several levels, and a loss on the visible tokens, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA
from vjepa.tasks.feature_prediction import FeaturePrediction
from vjepa.tasks.masked_prediction import BatchMasks, BatchSize, normalise_features
from vjepa.tasks.task import Output


class DensePrediction(FeaturePrediction):
    """Predict the target encoder's levels of masked tokens, and of the visible tokens themselves.

    With h the levels of the target encoder, each through a LayerNorm of its own without scale and
    shift, side by side (arXiv 2603.14482)::

        loss = mean over masks of mean |z_target - h_target|
             + weight * mean over masks of mean |z_context - h_context| / s

    where s of a visible token is the square root of its distance to the nearest masked one, in
    tokens along time, rows and columns, or 1. The weight rises from 0 to `context_weight` over the
    updates from `context_from_step` to `context_full_step`.

    With `images`, an update also sees a batch of images, each one frame with masks of its own, and
    the loss is (1 - share) of the clips' and `share` of the images', which is what processes of
    their own give, as the authors have them, in that proportion.

    Masks must have as many tokens in each clip (not `count: packed`).
    """

    def __init__(
        self,
        model: VJEPA,
        sampler: MaskSampler | None = None,
        batch_size: int = 0,
        *,
        context_weight: float = 0.5,
        context_from_step: int = 15_000,
        context_full_step: int = 30_000,
        by_distance: bool = True,
        images: BatchMasks | None = None,
        image_share: float = 0.5,
    ) -> None:
        super().__init__(model, sampler=sampler, batch_size=batch_size)
        self._images, self._image_share = images, image_share
        self._context_weight = context_weight
        self._rise = (context_from_step, context_full_step)
        self._by_distance = by_distance
        self._levels = model.config.encoder.levels if model.config.predictor.levels > 1 else ()

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        """As of feature prediction, the size with the weight of the visible tokens.

        With images another three such values follow: those of ``batch.images``.
        """
        clips, masks, size = super().inputs(batch, part, parts)
        weight = self.weight_at(batch.step + 1)
        found = clips, masks, replace(size, context_weight=weight)
        if self._images is None:
            return found
        pixels, masks, size = self._images.part(batch.images, part, parts, self.device)
        beside = replace(size, context_weight=weight)
        return *found, self.encoder.normalise(pixels), masks, beside

    def weight_at(self, update: int) -> float:
        """The weight of the visible tokens in update k, from 1."""
        start, end = self._rise
        risen = (update - start) / (end - start) if end > start else float(update >= start)
        return self._context_weight * min(1.0, max(0.0, risen))

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """The target encoder's levels, each normalised alone: float32 [B, N, levels * D]."""
        if not self._levels:
            return super().targets(clips)
        levels = self.target_encoder(clips, layers=self._levels)
        return torch.cat([normalise_features(level) for level in levels], dim=-1)

    def forward(
        self,
        clips: Tensor,
        masks: Sequence[TokenMasks],
        size: BatchSize | None = None,
        images: Tensor | None = None,
        image_masks: Sequence[TokenMasks] = (),
        image_size: BatchSize | None = None,
    ) -> Output:
        """The loss, and as terms that of each mask kind and of the visible tokens.

        Without a weight in the batch's size these have their full one. `images` are float
        [B, C, 1, H, W], with masks and size of their own.
        """
        found = self._loss_of(clips, masks, size)
        if images is None:
            return found
        still = self._loss_of(images, image_masks, image_size)
        loss = (1 - self._image_share) * found.loss + self._image_share * still.loss
        beside = {f"images/{name}": value for name, value in still.terms.items()}
        return Output(loss, found.terms | beside)

    def _loss_of(
        self, clips: Tensor, masks: Sequence[TokenMasks], size: BatchSize | None
    ) -> Output:
        """The loss on clips, or on images, and its terms."""
        size = size or BatchSize.of(masks)
        weight = self._context_weight if size.context_weight is None else size.context_weight
        targets, grid = self.targets(clips), self.encoder.patch_embed.grid(clips.shape)
        hidden, visible = [], []
        for kind, mask in enumerate(masks):
            if mask.is_packed:
                raise ValueError("masks must have equally many tokens in each clip (count: fixed)")
            both = self.predictor(
                self.encode(clips, mask),
                mask.context,
                mask.target,
                self.predictor.config.mask_token(kind),
                grid=grid,
                is_image=self.config.encoder.modalities and clips.shape[2] == 1,
                with_context=True,
            ).float()
            known, wanted = both.split([mask.context.shape[1], mask.target.shape[1]], dim=1)
            hidden.append(size.mean((wanted - mask.gather_target(targets)).abs(), kind))
            rows = torch.arange(len(targets), device=targets.device)[:, None]
            error = (known - targets[rows, mask.context]).abs()
            if self._by_distance:
                error = error / self.distance(mask)[..., None]
            count = size.clips * mask.context.shape[1] * error.shape[-1]
            visible.append(error.sum() / count)
        parts = torch.stack(hidden).mean(), torch.stack(visible).mean()
        terms = {f"loss/mask_{kind}": part.detach() for kind, part in enumerate(hidden)}
        terms["loss/context"] = parts[1].detach()
        return Output(parts[0] + weight * parts[1], terms)

    def distance(self, mask: TokenMasks) -> Tensor:
        """Square root of each visible token's distance to the nearest masked one: [B, K]."""
        _, height, width = self.config.encoder.grid

        def places(indices: Tensor) -> Tensor:
            rest = indices % (height * width)
            axes = [indices // (height * width), rest // width, rest % width]
            return torch.stack(axes, dim=-1).float()

        apart = torch.cdist(places(mask.context), places(mask.target))
        return apart.amin(dim=-1).sqrt()
