"""Feature prediction: the paper's objective, section 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA, Encoder, Predictor
from vjepa.runtime.device import to_device
from vjepa.tasks.health import (
    mask_counts,
    parameter_distance,
    prediction_health,
    representation_health,
    spread,
)
from vjepa.tasks.masked_prediction import BatchSize, MaskedPrediction, normalise_features
from vjepa.tasks.sigreg import NUM_DIRECTIONS, draw_directions, sigreg
from vjepa.tasks.task import Output

_VARIANCE_EPS = 1e-4


class FeaturePrediction(MaskedPrediction):
    """Predict the target encoder's features of masked tokens from the visible ones.

    For a clip y, a mask with context tokens x, and all masks of the clip::

        loss = mean over masks, masked tokens and features of |P(E(x)) - stop_grad(LN(T(y)))|

    T, the target encoder, sees the whole clip once for all masks; its features pass a LayerNorm
    without scale and shift before the masked ones are taken (so the authors' released code does,
    where the paper is silent). A loss exponent p other than 1 gives mean(|error|^p) / p.

    In count mode packed the mean runs over all masked tokens of the batch, so a clip counts by its
    number of masked tokens; with equal counts that is the mean of the clips' means.

    A penalty on predictions that hardly vary over a clip's masked tokens, the mean over clips and
    features of relu(1 - standard deviation), is added with the weight `variance_coefficient`; the
    authors' code has it with weight 0. With a `sigreg_coefficient` so is SIGReg, the distance of
    the context tokens' features, over the batch, from Gaussian ones (:mod:`vjepa.tasks.sigreg`), in
    directions that follow from the `seed` and the step.

    With a `teacher`, an encoder that was trained before, perhaps another width, its features are
    the targets, and nothing follows anything (SALT, arXiv 2509.24317): they cannot collapse, and
    losses of different updates mean the same. It must see the same input in the same token grid.
    """

    def __init__(
        self,
        model: VJEPA,
        loss_exponent: float = 1.0,
        variance_coefficient: float = 0.0,
        sampler: MaskSampler | None = None,
        batch_size: int = 0,
        teacher: Encoder | None = None,
        sigreg_coefficient: float = 0.0,
        seed: int = 0,
    ) -> None:
        predictor = model.predictor
        if teacher is not None:
            if (teacher.config.grid, teacher.config.input) != (
                model.config.encoder.grid,
                model.config.encoder.input,
            ):
                raise ValueError(
                    f"the teacher sees a grid of {teacher.config.grid} tokens and "
                    f"{teacher.config.input}, the student {model.config.encoder.grid} and "
                    f"{model.config.encoder.input}: they must be the same"
                )
            width = teacher.config.width
            predictor = Predictor(model.config.encoder, model.config.predictor, out_width=width)
        super().__init__(model.config, model.encoder, predictor, sampler, batch_size)
        self._has_teacher = teacher is not None
        if teacher is None:
            self.target_encoder = model.target_encoder
        else:
            self.teacher = teacher.requires_grad_(requires_grad=False)
        self._exponent = loss_exponent
        self._variance_coefficient = variance_coefficient
        self._sigreg_coefficient, self._seed = sigreg_coefficient, seed
        self.compares_samples = sigreg_coefficient > 0

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The target encoder follows the encoder, unless there is a teacher."""
        return [] if self._has_teacher else [(self.encoder, self.target_encoder)]

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        """As of every masked prediction; with SIGReg the size has its directions."""
        clips, masks, size = super().inputs(batch, part, parts)
        if self._sigreg_coefficient:
            width = self.config.encoder.width
            drawn = draw_directions(NUM_DIRECTIONS, width, self._seed, batch.step)
            size = replace(size, directions=to_device(drawn, self.device))
        return clips, masks, size

    def forward(
        self, clips: Tensor, masks: Sequence[TokenMasks], size: BatchSize | None = None
    ) -> Output:
        """The loss, and as terms that of each mask kind (``loss/mask_0``, ...) and penalties."""
        size = size or BatchSize.of(masks)
        targets = self.targets(clips)
        losses, penalties, distances = [], [], []
        for kind, mask in enumerate(masks):
            context = self.encode(clips, mask)
            predicted = self.predict(context, mask, kind)
            error = (predicted - mask.gather_target(targets)).abs()
            if self._exponent != 1:
                error = error**self._exponent / self._exponent
            losses.append(size.mean(error, kind))
            if self._variance_coefficient:
                lacking = lacking_variance(predicted, mask)
                penalties.append(lacking.sum() / (size.clips * lacking.shape[-1]))
            if size.directions is not None:
                tokens = context.flatten(0, -2)
                distances.append(sigreg(tokens, size.directions, self.group))
        loss = torch.stack(losses).mean()
        terms = {f"loss/mask_{kind}": part.detach() for kind, part in enumerate(losses)}
        if penalties:
            penalty = torch.stack(penalties).mean()
            loss = loss + self._variance_coefficient * penalty
            terms["variance_penalty"] = penalty.detach()
        if distances:
            distance = torch.stack(distances).mean()
            loss = loss + self._sigreg_coefficient * distance
            terms["sigreg"] = distance.detach()
        return Output(loss, terms)

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """Normalised target features of all tokens: float32 [B, N, D]."""
        source = self.teacher if self._has_teacher else self.target_encoder
        return normalise_features(source(clips))

    @torch.no_grad()
    def health_of(self, clips: Tensor, masks: Sequence[TokenMasks]) -> dict[str, Tensor]:
        """Of targets, context and predictions; with a teacher of the encoder, not of targets."""
        targets = self.targets(clips)
        features = normalise_features(self.encoder(clips)) if self._has_teacher else targets
        contexts = [self.encode(clips, mask) for mask in masks]
        spreads = [spread(normalise_features(context)) for context in contexts]
        predictions = (
            (self.predict(context, mask, kind), mask)
            for kind, (context, mask) in enumerate(zip(contexts, masks, strict=True))
        )
        report = {
            "target_std": spread(features),
            "context_std": torch.stack(spreads).mean(),
            **representation_health(features),
            **prediction_health(targets, predictions),
            **mask_counts(masks, targets),
        }
        if not self._has_teacher:
            distance = parameter_distance(self.encoder, self.target_encoder)
            report["teacher_student_distance"] = distance
        return report

    def alarm(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Whether the features seem to collapse; never with a teacher, whose targets stay."""
        return None if self._has_teacher else super().alarm(history)


def lacking_variance(predicted: Tensor, mask: TokenMasks) -> Tensor:
    """relu(1 - standard deviation over a clip's masked tokens): [B, M, D] or [U, D] -> [B, D].

    A clip with a single masked token has no spread and gives nearly 1.
    """
    if mask.target_offsets is None:
        variance = predicted.var(dim=1, correction=min(1, predicted.shape[1] - 1))
    else:
        rows = mask.target_rows()
        lengths = mask.target_offsets.diff()[:, None]
        zeros = predicted.new_zeros(mask.batch_size, predicted.shape[-1])
        means = zeros.index_add(0, rows, predicted) / lengths
        squares = zeros.index_add(0, rows, (predicted - means[rows]).square())
        variance = squares / (lengths - 1).clamp(min=1)
    return F.relu(1 - torch.sqrt(variance + _VARIANCE_EPS))
