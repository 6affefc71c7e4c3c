"""How the time of an update grows with tokens, width and batch: measured at small sizes, fitted.

Run from the repository: ``python benchmarks/fit_scaling.py``. CPU seconds of updates of many small
models are fitted by

    seconds = a * linear operations + b * attention scores + c * kept numbers + d * weights
              + e * blocks passed

(least relative squares, no negative coefficient). Two models as deep as ViT-B and ViT-L, with many
times the operations of the small ones, are not fitted but predicted: the error of that is what the
fit is worth. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.jobs.pretrain_room import mask_tokens
from vjepa.masking import MaskingConfig, MaskSampler
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.models.operations import MaskTokens, count_parameters, update_operations
from vjepa.tasks import FeaturePrediction
from vjepa.training import EmaConfig, OptimConfig, TrainingConfig, build_learner, train_step

TERMS = ("linear operations", "attention scores", "kept numbers", "weights", "blocks passed")
# Width, depth, pixels a side, batch; patches of 16 pixels, 8 frames. Chosen so that each term is
# large in some size where the others are small.
SIZES = (
    (192, 2, 64, 1),
    (192, 2, 64, 16),
    (192, 2, 224, 2),
    (192, 12, 64, 1),
    (384, 2, 64, 16),
    (384, 2, 128, 8),
    (384, 2, 224, 2),
    (384, 12, 64, 1),
    (768, 2, 64, 1),
    (768, 2, 64, 16),
    (768, 2, 128, 4),
    (768, 2, 224, 1),
    (768, 6, 64, 1),
    (1024, 2, 64, 1),
    (1024, 2, 128, 4),
)
PREDICTED = ((768, 12, 224, 1), (1024, 24, 224, 1))


@dataclass(frozen=True)
class Size:
    """One model with its batch."""

    config: ModelConfig
    batch: int

    @classmethod
    def of(cls, width: int, depth: int, pixels: int, batch: int) -> Size:
        """From a row of SIZES; the predictor is half as wide and as deep."""
        heads = width // 32
        encoder = EncoderConfig(
            width=width, depth=depth, heads=heads, image_size=pixels, num_frames=8
        )
        predictor = PredictorConfig(width=width // 2, depth=depth, heads=heads // 2 or 1)
        return cls(ModelConfig(encoder=encoder, predictor=predictor), batch)


def terms(size: Size, masks: list[MaskTokens]) -> NDArray[np.float64]:
    """What the time is made of, in the order of TERMS."""
    encoder, predictor = size.config.encoder, size.config.predictor
    total = update_operations(size.config, masks, size.batch).total
    heads = predictor.heads or encoder.heads
    lengths = [(m.context, m.context + m.target) for m in masks]
    # Passes over (tokens, width, heads, depth): forward counts 1, backward 2.
    passes = [(encoder.num_tokens, encoder.width, encoder.heads, encoder.depth, 1)]
    passes += [(c, encoder.width, encoder.heads, encoder.depth, 3) for c, _ in lengths]
    passes += [(j, predictor.width, heads, predictor.depth, 3) for _, j in lengths]
    in_attention = sum(d * k * 4 * n**2 * w for n, w, _, d, k in passes)
    scores = sum(d * k * h * n**2 for n, _, h, d, k in passes)
    kept = sum(d * k * n * w for n, w, _, d, k in passes)
    in_encoder, in_predictor = count_parameters(size.config)
    weights = 2 * in_encoder + in_predictor
    blocks = sum(d * k for *_, d, k in passes)
    batch = size.batch
    return np.array([total - batch * in_attention, batch * scores, batch * kept, weights, blocks])


def measure(size: Size, rounds: int) -> tuple[NDArray[np.float64], float]:
    """Terms and CPU seconds (the smallest of some updates, which others disturb least)."""
    torch.manual_seed(0)
    encoder = size.config.encoder
    training = TrainingConfig(device="cpu", precision="bfloat16", num_threads=1)
    learner = build_learner(
        FeaturePrediction(VJEPA(size.config)), OptimConfig(), EmaConfig(), training
    )
    sampler = MaskSampler(MaskingConfig(count="fixed"), encoder.grid, encoder.tubelet_size, seed=0)
    masks = sampler.sample(np.arange(size.batch), 0)
    clips = torch.randn(size.batch, 3, 8, encoder.image_size, encoder.image_size)
    seconds = []
    for update in range(1, rounds + 2):
        started = time.process_time()
        train_step(learner, [(clips, masks)], update)
        seconds.append(time.process_time() - started)
    return terms(size, mask_tokens(masks)), min(seconds[1:])


def fit(table: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of TERMS, none negative, by least relative squares."""
    scale = table.max(axis=0)
    relative = table / scale / seconds[:, None]
    found, used = np.zeros(len(scale)), np.ones(len(scale), dtype=bool)
    while used.any():
        found[:] = 0.0
        found[used] = np.linalg.lstsq(relative[:, used], np.ones(len(seconds)))[0]
        if (found >= 0).all():
            break
        used[found.argmin()] = False
    return found / scale


def main() -> None:
    """Measure, fit, predict the largest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = [measure(Size.of(*row), rounds) for row in (*SIZES, *PREDICTED)]
    table, seconds = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    fitted = slice(0, len(SIZES))
    coefficients = fit(table[fitted], seconds[fitted])
    guesses = table @ coefficients
    print(f"{'width depth pixels batch':<26} {'ms':>8} {'fit ms':>8}")
    for row, real, guess in zip((*SIZES, *PREDICTED), seconds, guesses, strict=True):
        print(f"{' '.join(map(str, row)):<26} {real * 1e3:>8.1f} {guess * 1e3:>8.1f}")
    errors = guesses / seconds - 1
    print(
        json.dumps(
            {
                "benchmark": "scaling",
                "seconds_per": dict(zip(TERMS, (float(c) for c in coefficients), strict=True)),
                "median_relative_error": round(float(np.median(np.abs(errors[fitted]))), 3),
                "predicted_over_measured": [
                    round(1 + float(error), 3) for error in errors[len(SIZES) :]
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
