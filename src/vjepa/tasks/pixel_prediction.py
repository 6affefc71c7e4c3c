"""Pixel prediction: the comparison of the paper's Table 1 (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import Encoder, ModelConfig, Predictor, patchify
from vjepa.tasks.health import mask_counts, prediction_health, representation_health, spread
from vjepa.tasks.masked_prediction import BatchSize, MaskedPrediction, normalise_features
from vjepa.tasks.task import Output

_PATCH_EPS = 1e-6


class PixelPrediction(MaskedPrediction):
    """Predict the pixels of masked tokens from the visible ones.

    The same masks, context encoder and predictor as feature prediction; but the predictor's output
    is as wide as a token's pixels, and the target is those pixels, normalised to mean 0 and
    variance 1 within each token's patch. The loss is the mean squared error. There is no target
    encoder, so the encoder itself is evaluated.
    """

    def __init__(
        self, config: ModelConfig, sampler: MaskSampler | None = None, batch_size: int = 0
    ) -> None:
        encoder = Encoder(config.encoder)
        width = config.encoder.patch_values
        predictor = Predictor(config.encoder, config.predictor, out_width=width)
        super().__init__(config, encoder, predictor, sampler, batch_size)

    def forward(
        self, clips: Tensor, masks: Sequence[TokenMasks], size: BatchSize | None = None
    ) -> Output:
        """The mean over masks of the mean over masked tokens (of the whole batch) and pixels."""
        size = size or BatchSize.of(masks)
        targets = self.targets(clips)
        losses = []
        for kind, mask in enumerate(masks):
            predicted = self.predict(self.encode(clips, mask), mask, kind)
            error = predicted - mask.gather_target(targets)
            losses.append(size.mean(error.square(), kind))
        terms = {f"loss/mask_{kind}": part.detach() for kind, part in enumerate(losses)}
        return Output(torch.stack(losses).mean(), terms)

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """Normalised pixels of all tokens: float32 [B, N, C*tubelet*patch*patch]."""
        size = self.config.encoder
        return normalise_patches(patchify(clips.float(), size.tubelet_size, size.patch_size))

    @torch.no_grad()
    def health_of(self, clips: Tensor, masks: Sequence[TokenMasks]) -> dict[str, Tensor]:
        """Of the encoder's features of whole clips; what is explained is pixels."""
        targets = self.targets(clips)
        features = normalise_features(self.encoder(clips))
        predictions = (
            (self.predict(self.encode(clips, mask), mask, kind), mask)
            for kind, mask in enumerate(masks)
        )
        return {
            "target_std": spread(targets),
            "context_std": spread(features),
            **representation_health(features),
            **prediction_health(targets, predictions),
            **mask_counts(masks, targets),
        }


def normalise_patches(patches: Tensor) -> Tensor:
    """Mean 0 and variance 1 within each token: float [..., pixels] -> the same shape.

    A patch of one colour becomes zeros.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / torch.sqrt(variance + _PATCH_EPS)
