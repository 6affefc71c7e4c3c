"""The rival of Table 1: the same model predicts the pixels of what is hidden."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.masking import TokenMasks
from vjepa.models import Encoder, ModelConfig, Predictor, patchify
from vjepa.objectives.step_output import StepOutput

_PATCH_EPS = 1e-6


class PixelPrediction(nn.Module):
    """Mean squared error on pixels that are normalised patch by patch (paper, Table 1).

    Attributes:
        encoder: The context encoder; also what is evaluated, since there is no moving average.
        predictor: As in feature prediction, but with as many outputs as a patch has numbers.
        config: The model's sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build with fresh weights."""
        super().__init__()
        sizes = config.encoder
        self.config = config
        self.encoder = Encoder(sizes)
        numbers = sizes.channels * sizes.tubelet_size * sizes.patch_size**2
        self.predictor = Predictor(sizes, config.predictor, out_width=numbers)

    @property
    def encoder_for_evaluation(self) -> Encoder:
        """The trained encoder."""
        return self.encoder

    def trainable(self) -> dict[str, nn.Module]:
        """The trained modules in the optimiser's order."""
        return {"encoder": self.encoder, "predictor": self.predictor}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """No module follows another."""
        return []

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """Pixels of every token, each with mean 0 and variance 1 over its numbers.

        Args:
            clips: float [B, C, T, H, W].

        Returns:
            float [B, N, C*tubelet*patch*patch].
        """
        sizes = self.config.encoder
        patches = patchify(clips, sizes.tubelet_size, sizes.patch_size)
        return functional.layer_norm(patches, patches.shape[-1:], eps=_PATCH_EPS)

    def forward(self, clips: Tensor, masks: Sequence[TokenMasks]) -> StepOutput:
        """The loss, averaged over mask kinds with equal weight.

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: One for each mask kind.

        Returns:
            ``loss``, and metrics ``loss/<kind>``.
        """
        targets = self.targets(clips)
        metrics: dict[str, Tensor] = {}
        losses = []
        for kind, mask in enumerate(masks):
            context = self.encoder(clips, mask.context, offsets=mask.context_offsets)
            predicted = self.predictor(
                context,
                mask.context,
                mask.target,
                kind,
                context_offsets=mask.context_offsets,
                target_offsets=mask.target_offsets,
            )
            loss = functional.mse_loss(predicted, mask.gather_target(targets))
            metrics[f"loss/mask_{kind}"] = loss.detach()
            losses.append(loss)
        return StepOutput(torch.stack(losses).mean(), metrics)
