"""V-JEPA's objective: predict the target encoder's features of what is hidden (paper, section 3).

    minimise  | P(E(x), mask) - stop_gradient(T(y)) |_1,   T = moving average of E
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.masking import TokenMasks
from vjepa.models import VJEPA, Encoder, ModelConfig
from vjepa.objectives.step_output import StepOutput

_TARGET_NORM_EPS = 1e-5
_DEVIATION_EPS = 1e-4


class FeaturePrediction(nn.Module):
    """The L1 regression of layer-normed target features at the masked tokens.

    Attributes:
        model: Context encoder, target encoder, predictor.
        config: The model's sizes.
    """

    def __init__(
        self, model: VJEPA, loss_exponent: float = 1.0, variance_coefficient: float = 0.0
    ) -> None:
        """Take the model.

        Args:
            model: Trained in place.
            loss_exponent: p of mean(|error|^p) / p; the paper's L1 is p = 1.
            variance_coefficient: Weight of mean(relu(1 - deviation of the predictions over
                tokens)); the paper uses none.
        """
        super().__init__()
        self.model = model
        self._exponent = loss_exponent
        self._variance_coefficient = variance_coefficient

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self.model.config

    @property
    def encoder_for_evaluation(self) -> Encoder:
        """The target encoder, which the paper evaluates (section 4)."""
        return self.model.target_encoder

    def trainable(self) -> dict[str, nn.Module]:
        """The trained modules in the optimiser's order."""
        return {"encoder": self.model.encoder, "predictor": self.model.predictor}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The target encoder follows the context encoder."""
        return [(self.model.encoder, self.model.target_encoder)]

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """Contextualised targets: every token of the whole clip, layer-normed without weights.

        Args:
            clips: float [B, C, T, H, W].

        Returns:
            float [B, N, D], no gradient.
        """
        features = self.model.target_encoder(clips)
        return functional.layer_norm(features, features.shape[-1:], eps=_TARGET_NORM_EPS)

    def predict(self, clips: Tensor, masks: TokenMasks, kind: int) -> Tensor:
        """The predictor's output at the target tokens under one mask kind.

        Args:
            clips: float [B, C, T, H, W].
            masks: The tokens shown and the tokens asked for.
            kind: Place of the mask kind, which chooses the mask token.

        Returns:
            float [B, M, D], or packed [U, D].
        """
        context = self.model.encoder(clips, masks.context, offsets=masks.context_offsets)
        return self.model.predictor(
            context,
            masks.context,
            masks.target,
            kind,
            context_offsets=masks.context_offsets,
            target_offsets=masks.target_offsets,
        )

    def forward(self, clips: Tensor, masks: Sequence[TokenMasks]) -> StepOutput:
        """The loss, averaged over mask kinds with equal weight.

        Args:
            clips: float [B, C, T, H, W], normalised.
            masks: One for each mask kind. Packed masks average over all masked tokens of the
                batch, so a clip counts as much as it has target tokens.

        Returns:
            ``loss``; metrics ``loss/<kind>``, and counts of context and target tokens.
        """
        targets = self.targets(clips)
        metrics: dict[str, Tensor] = {}
        losses = []
        for kind, mask in enumerate(masks):
            predicted = self.predict(clips, mask, kind)
            loss = self._distance(predicted, mask.gather_target(targets))
            metrics[f"loss/mask_{kind}"] = loss.detach()
            metrics[f"tokens/context_{kind}"] = torch.tensor(mask.num_context_mean)
            metrics[f"tokens/target_{kind}"] = torch.tensor(mask.num_target_mean)
            losses.append(loss + self._variance_term(predicted))
        return StepOutput(torch.stack(losses).mean(), metrics)

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        error = (predicted - target).abs()
        if self._exponent == 1.0:
            return error.mean()
        return error.pow(self._exponent).mean() / self._exponent

    def _variance_term(self, predicted: Tensor) -> Tensor | float:
        if self._variance_coefficient == 0.0:
            return 0.0
        deviation = (predicted.var(dim=-2) + _DEVIATION_EPS).sqrt()
        return self._variance_coefficient * functional.relu(1.0 - deviation).mean()
