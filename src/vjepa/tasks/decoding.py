"""Decoding: what a frozen predictor says of hidden tokens becomes pixels (paper, section 6)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vjepa.counter_random import derive_seed, uniforms
from vjepa.errors import UserError
from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA, patchify
from vjepa.models.decoder import CHANNELS, LEAST_TIME_LEFT, Decoder
from vjepa.runtime.device import to_device
from vjepa.tasks.feature_prediction import FeaturePrediction
from vjepa.tasks.health import mask_counts, prediction_health
from vjepa.tasks.masked_prediction import BatchSize, MaskedPrediction
from vjepa.tasks.task import Output, slice_of_part

_TIME_MEAN, _TIME_DEVIATION = -0.8, 0.8  # of the logit of the time: mostly noise (Li and He 2025)


class Decoding(MaskedPrediction):
    """Learn to draw the pixels of hidden tokens given what the predictor says of them.

    Encoder and predictor are frozen. The decoder is given the predicted features of the hidden
    tokens and their places, and nothing else of the clip. With x the pixels of a clip's hidden
    tokens, e noise, and z = s x + (1 - s) e::

        loss = mean over masks, hidden tokens and pixels of ((D(z, s, features) - x) / (1 - s))^2

    which is the squared error of the velocity x - e (:mod:`vjepa.models.decoder`). The logit of s
    is normal with mean -0.8 and deviation 0.8. Noise and time follow from (seed, ordinal), as the
    masks do. Samples are drawn with `average`, the moving average of the decoder.

    From a share of the clips the features are hidden, so that it can be sampled with guidance.
    `sampler` and `batch_size` are as for :class:`MaskedPrediction`.
    """

    def __init__(
        self,
        model: VJEPA,
        decoder: Decoder,
        no_features_share: float = 0.1,
        seed: int = 0,
        sampler: MaskSampler | None = None,
        batch_size: int = 0,
    ) -> None:
        model.requires_grad_(False).eval()
        super().__init__(model.config, model.encoder, model.predictor, sampler, batch_size)
        self.decoder = decoder
        self.average = copy.deepcopy(decoder).requires_grad_(False)
        self._no_features_share, self._seed = no_features_share, seed

    def saved_modules(self) -> dict[str, nn.Module]:
        """The decoder and its average; the frozen model is where it was."""
        return {"decoder": self.decoder, "average": self.average}

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The average follows the decoder."""
        return [(self.decoder, self.average)]

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        """As for every masked prediction, and noise [b, N, P], times and kept [b, mask kinds]."""
        clips, masks, size = super().inputs(batch, part, parts)
        ordinals = batch.ordinals[slice_of_part(len(batch.ordinals), part, parts)]
        drawn = uniforms(self._seed, "decoder", ordinals, 2 * len(masks))
        chosen, hidden = np.split(drawn, 2, axis=1)
        normal = torch.special.ndtri(torch.from_numpy(chosen))
        times = torch.sigmoid(_TIME_MEAN + _TIME_DEVIATION * normal).float()
        kept = torch.from_numpy(hidden >= self._no_features_share)
        noise = [self._noise(int(ordinal)) for ordinal in ordinals]
        times, kept = (to_device(x, self.device) for x in (times, kept))
        return clips, masks, size, torch.stack(noise), times, kept

    def _noise(self, ordinal: int) -> Tensor:
        shape = self.config.encoder.num_tokens, self.decoder.patch_values
        return token_noise(shape, derive_seed(self._seed, "decoder noise", ordinal), self.device)

    def forward(  # ty: ignore[incompatible-method-override]
        self,
        clips: Tensor,
        masks: Sequence[TokenMasks],
        size: BatchSize,
        noise: Tensor,
        times: Tensor,
        kept: Tensor,
    ) -> Output:
        """The loss, and as terms that of each mask kind; arguments as :meth:`inputs` gives them."""
        pixels, losses = self.pixels(clips), []
        for kind, mask in enumerate(masks):
            features, rows = self.features(clips, mask, kind), mask.target_rows()
            wanted, time = mask.gather_target(pixels), times[:, kind][rows]
            near = time[..., None]
            noisy = near * wanted + (1 - near) * mask.gather_target(noise)
            named = self.decoder(
                *(noisy, time, features, mask.target),
                kept=kept[:, kind][rows],
                offsets=mask.target_offsets,
            )
            error = (named.float() - wanted) / (1 - near).clamp(min=LEAST_TIME_LEFT)
            losses.append(size.mean(error.square(), kind))
        terms = {f"loss/mask_{kind}": part.detach() for kind, part in enumerate(losses)}
        return Output(torch.stack(losses).mean(), terms)

    def pixels(self, clips: Tensor) -> Tensor:
        """The pixels of all tokens, normalised: float32 [B, N, P] of clips [B, C, T, H, W]."""
        size = self.config.encoder
        return patchify(clips[:, :CHANNELS].float(), size.tubelet_size, size.patch_size)

    @torch.no_grad()
    def features(self, clips: Tensor, mask: TokenMasks, kind: int) -> Tensor:
        """What the decoder is given: the predictions, float32 [B, M, D], or packed [U, D]."""
        return self.predict(self.encode(clips, mask), mask, kind)

    @torch.no_grad()
    def health_of(self, clips: Tensor, masks: Sequence[TokenMasks]) -> dict[str, Tensor]:
        """Of the mean that the average names of pure noise: how much of the pixels it explains."""
        pixels = self.pixels(clips)
        noise = [self._noise(number) for number in range(len(clips))]
        named = []
        for kind, mask in enumerate(masks):
            features = self.features(clips, mask, kind)
            noisy = mask.gather_target(torch.stack(noise))
            time = torch.zeros_like(noisy[..., 0])
            offsets = mask.target_offsets
            guess = self.average(noisy, time, features, mask.target, offsets=offsets)
            named.append((guess.float(), mask))
        return {**prediction_health(pixels, named), **mask_counts(masks, pixels)}


def predicted_features(model: VJEPA, clips: Tensor, mask: TokenMasks, kind: int = 0) -> Tensor:
    """What is predicted at the hidden tokens: float32 [B, M, D], or packed [U, D].

    `clips` are normalised. With several levels of the encoder (V-JEPA 2.1) D is of all of them.
    """
    task = FeaturePrediction(model)
    return task.predict(task.encode(clips, mask), mask, kind)


def require_own_targets(model: VJEPA) -> None:
    """Refuse a model that was trained towards another encoder (distilled V-JEPA 2.1).

    Raises:
        UserError: It is one.
    """
    told = model.predictor.predictor_proj.out_features
    own = model.config.encoder.width * model.config.predictor.levels
    if told != own:
        raise UserError(
            f"this model predicts {told} numbers a token, and its encoder gives {own}: it was "
            "trained towards another encoder, so there is nothing to compare with"
        )


def token_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Normal noise that follows from the seed (and the kind of device): float32 of a shape."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)
