"""One update of fine-tuning on random clips: clips a second and memory, JSON on the last line.

``python benchmarks/bench_finetune.py --model vitl16 --clips 32 --gpu --compile``

The task is that of `vjepa finetune` with the values of Table 11 (mixing, drop path, layer-wise
rates); clips are there already, so that decoding and RandAugment are not measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.jobs.bench_encode import random_clips, time_calls
from vjepa.models import PRESETS, Encoder, LinearClassifier
from vjepa.tasks import FineTuning
from vjepa.training import OptimConfig, TrainingConfig, build_learner, train_step


@dataclass(frozen=True)
class Batch:
    """As the loader makes it."""

    ordinals: NDArray[np.int64]
    clips: Tensor
    labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(PRESETS), default="vitl16")
    parser.add_argument("--clips", type=int, default=32, help="a multiple of 4")
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gpu", action="store_true", help="bfloat16 on a GPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="keep blocks' inputs only")
    args = parser.parse_args()
    torch.manual_seed(0)
    encoder = Encoder(PRESETS[args.model])
    encoder.norm.requires_grad_(False)
    head = LinearClassifier(encoder.config.width, args.classes, norm=True, norm_eps=1e-6)
    task = FineTuning(encoder, head, batch_size=args.clips, drop_path=0.1, layer_decay=0.75)
    training = TrainingConfig(
        device="cuda" if args.gpu else "cpu",
        precision="bfloat16" if args.gpu else "float32",
        compile=args.compile,
        activation_checkpointing=args.checkpointing,
        num_threads=None if args.gpu else 1,
    )
    learner = build_learner(task, OptimConfig(clip_norm=None), None, training)
    ordinals = np.arange(args.clips)
    clips = random_clips(args.clips, encoder.config)
    batch = Batch(ordinals, clips, torch.from_numpy(ordinals % args.classes))

    def update(number: int) -> None:
        train_step(learner, [task.inputs(batch, 0, 1)], number)

    wall, cpu = time_calls(update, learner.setup.device, args.steps, 3)
    # On a CPU the processor's time, which other processes do not disturb.
    seconds = statistics.median(wall if args.gpu else cpu)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if args.gpu:
        memory = torch.cuda.max_memory_allocated() / 1e9
    print(
        json.dumps(
            {
                "model": args.model,
                "clips": args.clips,
                "seconds": seconds,
                "clips_per_second": args.clips / seconds,
                "gigabytes": memory,
            }
        )
    )


if __name__ == "__main__":
    main()
