"""Pixel prediction: the comparison of the paper's Table 1 (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vjepa.masking import TokenMasks
from vjepa.models import Encoder, ModelConfig, Predictor, patchify
from vjepa.tasks.feature_prediction import normalise_features
from vjepa.tasks.health import PredictionHealth, mask_counts, representation_health, spread
from vjepa.tasks.task import BatchPart, StepOutput, target_summand

_PATCH_EPS = 1e-6


class PixelPrediction(nn.Module):
    """Predict the pixels of masked tokens from the visible ones.

    The same masks, context encoder and predictor as feature prediction; but the predictor's output
    is as wide as a token's pixels, and the target is those pixels, normalised to mean 0 and
    variance 1 within each token's patch. The loss is the mean squared error. There is no target
    encoder, so the encoder itself is evaluated.

    Args:
        config: Sizes of encoder and predictor.

    Attributes:
        config: As given.
        encoder: The context encoder, trained.
        predictor: Trained; its output has one number for each pixel and channel of a patch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.predictor = Predictor(
            config.encoder, config.predictor, out_width=config.encoder.patch_values
        )

    @property
    def encoder_for_evaluation(self) -> Encoder:
        """The encoder: what frozen evaluation uses."""
        return self.encoder

    def trainable(self) -> dict[str, nn.Module]:
        """The trained modules by name, in the optimiser's order."""
        return {"encoder": self.encoder, "predictor": self.predictor}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """None: nothing follows as a moving average."""
        return []

    def forward(
        self, clips: Tensor, masks: Sequence[TokenMasks], part: BatchPart | None = None
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: One for each mask kind, over the clips' token grid, on the clips' device.
            part: What part of a batch these are; loss and metrics then are summands of the batch's.
                None: the whole.

        Returns:
            The loss (mean over masks of the mean over masked tokens and pixels; in count mode
            packed the mean runs over all masked tokens of the batch), and as metrics the loss of
            each mask kind (``loss/mask_0``, ...).
        """
        targets = self.targets(clips)
        losses = []
        for kind, mask in enumerate(masks):
            error = self.predict(clips, mask, kind) - mask.gather_target(targets)
            losses.append(target_summand(error.square().mean(), part, kind))
        metrics = {f"loss/mask_{kind}": part.detach() for kind, part in enumerate(losses)}
        return StepOutput(loss=torch.stack(losses).mean(), metrics=metrics)

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """Normalised pixels of all tokens: float32 [B, N, C*tubelet*patch*patch]."""
        size = self.config.encoder
        return normalise_patches(patchify(clips.float(), size.tubelet_size, size.patch_size))

    def predict(self, clips: Tensor, mask: TokenMasks, kind: int) -> Tensor:
        """Predicted pixels of the masked tokens: float32 [B, M, pixels], or packed [U, pixels].

        Args:
            clips: float [B, C, T, H, W], normalised.
            mask: Context and target tokens.
            kind: Place of the mask kind, which chooses the mask token.
        """
        predicted = self.predictor(
            self.encoder(clips, mask.context, offsets=mask.context_offsets),
            mask.context,
            mask.target,
            kind,
            context_offsets=mask.context_offsets,
            target_offsets=mask.target_offsets,
        )
        return predicted.float()

    @torch.no_grad()
    def health(self, clips: Tensor, masks: Sequence[TokenMasks]) -> dict[str, Tensor]:
        """Whether the features stay rich; costs about one forward pass.

        Rank and cosine are those of the encoder's features of whole clips, so that they compare
        with feature prediction; what is explained is pixels.

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: As in :meth:`forward`.

        Returns:
            float32 scalars, explained in :mod:`vjepa.tasks.health`.
        """
        targets = self.targets(clips)
        features = normalise_features(self.encoder(clips))
        prediction = PredictionHealth(targets)
        for kind, mask in enumerate(masks):
            prediction.add(self.predict(clips, mask, kind), mask)
        return {
            "target_std": spread(targets),
            "context_std": spread(features),
            **representation_health(features),
            **prediction.summary(),
            **mask_counts(masks, targets),
        }


def normalise_patches(patches: Tensor) -> Tensor:
    """Mean 0 and variance 1 within each token: float [..., pixels] -> the same shape.

    A patch of one colour becomes zeros.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / torch.sqrt(variance + _PATCH_EPS)
