"""How many clips a second detection takes, and how much memory: frozen vectors, and end to end.

    python benchmarks/bench_detection.py --gpu --model vitl16 --batch 16 --size 256x448
    python benchmarks/bench_detection.py --model vitt16 --batch 2 --size 64x96

Clips of noise with three boxes each, no decoding: what the device does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from vjepa.models import PRESETS, Encoder, RegionConfig, region_features
from vjepa.runtime.process import resident_bytes
from vjepa.tasks import Detection
from vjepa.training import OptimConfig, TrainingConfig, build_learner, train_step

_BOXES = 3
_CLASSES = 80


def main() -> None:
    """Time both and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--model", choices=sorted(PRESETS), default="vitl16")
    parser.add_argument("--batch", type=int, default=16, help="clips of a call")
    parser.add_argument("--size", default="256x448", help="height x width in pixels")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    device = "cuda" if args.gpu else "cpu"
    precision = "bfloat16" if args.gpu else "float32"
    height, width = map(int, args.size.split("x"))
    encoder, how = Encoder(PRESETS[args.model]).to(device), RegionConfig()
    count = args.batch * _BOXES
    clips = torch.randint(0, 256, (args.batch, 3, 16, height, width), dtype=torch.uint8)
    corners = torch.rand(count, 2) * torch.tensor([width, height]) / 2
    owner = torch.arange(args.batch).repeat_interleave(_BOXES)[:, None]
    boxes = torch.cat([owner, corners, corners + torch.tensor([width, height]) / 3], dim=1)
    found: dict[str, float | str] = {"model": args.model, "size": args.size, "device": device}

    def encode() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=args.gpu):
            video = encoder.normalise(clips.to(device))
            region_features(encoder.eval(), video, boxes.to(device), how)

    found |= _timed("frozen", encode, args.steps, args.batch, device)
    head = nn.Linear(how.width(encoder.config), _CLASSES)
    optim = OptimConfig(steps=1000, warmup_steps=0, clip_norm=None)
    training = TrainingConfig(device=device, precision=precision)
    learner = build_learner(
        Detection(head, encoder.train(), how, layer_decay=0.75), optim, None, training
    )
    batch = SimpleNamespace(
        ordinals=np.arange(args.batch),
        clips=clips,
        boxes=boxes,
        labels=(torch.rand(count, _CLASSES) < 0.03).float(),
        count=count,
    )

    def update() -> None:
        train_step(learner, [learner.task.inputs(batch, 0, 1)], 1)

    found |= _timed("end_to_end", update, args.steps, args.batch, device)
    print(json.dumps(found))


def _timed(name: str, work: object, steps: int, clips: int, device: str) -> dict[str, float]:
    assert callable(work)
    work()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(steps):
        work()
    memory = resident_bytes()
    if device == "cuda":
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated()
    rate = steps * clips / (time.perf_counter() - began)
    print(f"{name}: {rate:.1f} clips/s, {memory / 1e9:.2f} GB")
    return {f"{name}_clips_per_second": round(rate, 2), f"{name}_gigabytes": round(memory / 1e9, 3)}


if __name__ == "__main__":
    main()
