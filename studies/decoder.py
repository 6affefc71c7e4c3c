"""What the decoder's samples show: measured on clips whose every object is known.

The shipped demo model hides the future: from the first 4 frames of a clip it predicts features of
the last 4. Decoders learn to draw those; on test clips of the synthetic set what they draw is
compared with what came, and with simpler answers. Called again, it goes on.

    vjepa data synth --seed 1 --num_clips_train 6000 --num_clips_validation 200 \\
        --num_clips_test 600 --out DATA
    python studies/decoder.py --data DATA --out OUT

Results: docs/decoder.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vjepa.config import load_config
from vjepa.jobs.decode import DecodeConfig, build_task, train
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.masking import MaskSampler, TokenMasks
from vjepa.models import VJEPA, Decoder
from vjepa.tasks import Decoding
from vjepa.tasks.masked_prediction import normalise_features

SEEDS = (0, 1, 2)


class Regression(Decoding):
    """The same network without noise: it learns the mean of the pixels, given the features."""

    def inputs(self, batch: Any, part: int, parts: int) -> tuple[Any, ...]:
        """All at time 0, nothing of the noise, no features hidden."""
        clips, masks, size, noise, times, kept = super().inputs(batch, part, parts)
        return clips, masks, size, 0 * noise, 0 * times, torch.ones_like(kept)


class OfTrueFeatures(Decoding):
    """A decoder of what the target encoder says of the hidden tokens: no prediction is made."""

    def __init__(self, model: VJEPA, *rest: Any) -> None:
        super().__init__(model, *rest)
        self.target_encoder = model.target_encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, clips: Tensor, mask: TokenMasks, kind: int) -> Tensor:  # noqa: ARG002
        """The targets of pretraining."""
        return mask.gather_target(normalise_features(self.target_encoder(clips)))


def builder(cls: type[Decoding]) -> Callable[[DecodeConfig, VJEPA, PretrainConfig], Decoding]:
    """What makes a task of this class of a config."""

    def build(config: DecodeConfig, model: VJEPA, learnt_from: PretrainConfig) -> Decoding:
        sizes = model.config.encoder
        sampler = MaskSampler(learnt_from.masking, sizes.grid, sizes.tubelet_size, config.seed)
        decoder = Decoder(sizes, config.decoder)
        share, batch_size = config.no_features_share, config.data.batch_size
        return cls(model, decoder, share, config.seed, sampler, batch_size)

    return build


KINDS = {
    "samples": build_task,
    "regression": builder(Regression),
    "true": builder(OfTrueFeatures),
}


def train_all(data: Path, out: Path, jobs: list[tuple[str, int]], overrides: list[str]) -> None:
    """Train the decoders that are not there yet."""
    for kind, seed in jobs:
        config = load_config(
            DecodeConfig,
            ["demo"],
            [
                "model=demo",
                f"seed={seed}",
                f"data.sources.0.manifest={data / 'manifest.parquet'}",
                "data.sources.0.split=train",
                f"data.loader.frame_cache_folder={out / 'frames'}",
                *overrides,
            ],
            recipes="decode",
        )
        train(config, out / f"{kind}_{seed}", KINDS[kind])
