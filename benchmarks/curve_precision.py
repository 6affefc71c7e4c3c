"""Does a training curve in bfloat16 differ from one in float32 by more than chance does?

Run from the repository: ``python benchmarks/curve_precision.py``. A small model is trained for 300
updates on drifting random textures: in float32 and in bfloat16 with equal weights, clips and masks,
and in float32 with other clips and masks. The last line is JSON with the mean absolute difference
of the smoothed losses: of precision, and of chance.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vjepa.masking import MaskingConfig, MaskSampler
from vjepa.models import VJEPA, EncoderConfig, ModelConfig, PredictorConfig
from vjepa.runtime.device import Precision
from vjepa.tasks import FeaturePrediction
from vjepa.training import EmaConfig, OptimConfig, TrainingConfig, build_learner, train_step

ENCODER = EncoderConfig(
    width=96, depth=3, heads=3, image_size=32, num_frames=8, patch_size=8, patch_init_std=0.2
)
PREDICTOR = PredictorConfig(width=48, depth=2)
BATCH, FRAMES, SIDE, SMOOTH = 16, 8, 32, 20


def textures(generator: torch.Generator) -> Tensor:
    """Clips float32 [B, 3, T, H, W] of smooth noise that drifts by a speed of its own."""
    noise = torch.randn(BATCH, 3, 12, 12, generator=generator)
    wide = F.interpolate(noise, size=(80, 80), mode="bilinear")
    speeds = torch.randint(-3, 4, (BATCH, 2), generator=generator).tolist()
    clips = torch.empty(BATCH, 3, FRAMES, SIDE, SIDE)
    for clip, (down, right) in enumerate(speeds):
        for frame in range(FRAMES):
            top, left = 24 + frame * down, 24 + frame * right
            clips[clip, :, frame] = wide[clip, :, top : top + SIDE, left : left + SIDE]
    return clips


def losses(precision: Precision, data_seed: int, steps: int) -> np.ndarray:
    """The loss of every update; weights are the same whatever the precision and data."""
    torch.manual_seed(0)
    model = VJEPA(ModelConfig(encoder=ENCODER, predictor=PREDICTOR))
    optim = OptimConfig(
        steps=steps, warmup_steps=steps // 10, start_lr=1e-5, peak_lr=1e-3, final_lr=1e-5
    )
    training = TrainingConfig(device="cpu", precision=precision, num_threads=1)
    learner = build_learner(FeaturePrediction(model), optim, EmaConfig(), training)
    sampler = MaskSampler(MaskingConfig(count="fixed"), ENCODER.grid, 2, seed=data_seed)
    generator = torch.Generator().manual_seed(data_seed)
    curve = []
    for update in range(1, steps + 1):
        masks = sampler.sample(np.arange(BATCH) + update * BATCH, update)
        values = train_step(learner, [(textures(generator), masks)], update)
        curve.append(values.values["loss"])
    return torch.stack(curve).double().numpy()


def main() -> None:
    """Train three times and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    runs = {
        "float32": losses("float32", 1, steps),
        "bfloat16": losses("bfloat16", 1, steps),
        "float32, other clips": losses("float32", 2, steps),
    }
    kernel = np.ones(SMOOTH) / SMOOTH
    smooth = {name: np.convolve(curve, kernel, mode="valid") for name, curve in runs.items()}
    exact = smooth["float32"]
    for name, curve in smooth.items():
        print(f"{name:<22} first {curve[0]:.4f}  last {curve[-1]:.4f}")
    values = {
        "benchmark": "precision curve",
        "steps": steps,
        "last": {name: round(float(curve[-1]), 5) for name, curve in smooth.items()},
        "difference_of_precision": round(float(np.abs(smooth["bfloat16"] - exact).mean()), 6),
        "difference_of_chance": round(
            float(np.abs(smooth["float32, other clips"] - exact).mean()), 6
        ),
    }
    print(json.dumps(values))


if __name__ == "__main__":
    main()
