"""Our training step beside a plain one: the same weights, clips and masks, in one process.

Run from the repository, for example::

    python benchmarks/bench_step.py                                  CPU: Ti, S, B, several batches
    python benchmarks/bench_step.py --gpu                            ViT-L and ViT-H, compiled
    python benchmarks/bench_step.py --case vits16:2:1 --rounds 9

The steps take turns, so that whatever else the machine does meets both alike; medians over the
rounds and their ratio are printed, and one line of JSON. The plain step is ``plain_step.py``.
Tokens are those of count mode `prefix` at this batch, which cuts as the authors' code does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace

import torch
from plain_step import PlainTrainer

from vjepa.jobs import bench_step
from vjepa.jobs.bench_step import BenchConfig
from vjepa.masking import MaskingConfig
from vjepa.models import VJEPA, normalise_clip
from vjepa.models.operations import update_operations
from vjepa.objectives import FeaturePrediction
from vjepa.runtime.device import DeviceSetup
from vjepa.training import (
    Learner,
    MicroBatch,
    TrainingConfig,
    ema_momentum,
    learning_rate,
    train_step,
    weight_decay,
)

CPU_CASES = ("vitti16:2:1", "vits16:1:1", "vits16:4:1", "vits16:2:2", "vitb16:1:1", "vitb16:2:2")
GPU_CASES = ("vitl16:24:224", "vitl16:48:224", "vith16:24:224", "vith16:10:384")


@dataclass(frozen=True)
class Pair:
    """Both ways to take one step."""

    config: BenchConfig
    learner: Learner
    plain: PlainTrainer
    batch: bench_step.SyntheticBatch

    def ours(self, number: int) -> None:
        """Our step, which leaves its loss on the device."""
        micro = MicroBatch((normalise_clip(self.batch.clips), self.batch.masks), 1.0)
        train_step(self.learner, [micro], number)

    def theirs(self, number: int) -> None:
        """The plain step with the same schedules; it reads its loss."""
        optim, ema = self.learner.optim, self.learner.ema
        assert ema is not None
        self.plain.step(
            normalise_clip(self.batch.clips),
            self.batch.masks,
            rate=learning_rate(number, optim),
            decay=weight_decay(number, optim),
            momentum=ema_momentum(number, ema, optim),
        )


def build(config: BenchConfig) -> Pair:
    """Ours and the plain step with equal weights."""
    learner = bench_step.build(config)
    objective = learner.objective
    assert isinstance(objective, FeaturePrediction)
    model: VJEPA = objective.model
    setup = learner.setup
    plain = PlainTrainer(model, setup.device, bfloat16=setup.precision == "bfloat16")
    return Pair(config, learner, plain, bench_step.synthetic_batch(config, setup.device))


def measure(pair: Pair, rounds: int, warmup: int) -> dict[str, object]:
    """Medians of interleaved steps."""
    setup = pair.learner.setup
    ways = {"ours": pair.ours, "plain": pair.theirs}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    used: dict[str, list[float]] = {name: [] for name in ways}
    memory, held = dict.fromkeys(ways, 0), 0
    for number in range(1, warmup + rounds + 1):
        for name, step in ways.items():
            if setup.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            cpu, clock = time.process_time(), time.perf_counter()
            step(number)
            bench_step.wait(setup.device)
            if number > warmup:
                wall[name].append(time.perf_counter() - clock)
                used[name].append(time.process_time() - cpu)
            if setup.device.type == "cuda":
                # Both ways' weights and moments are held all the time: what a step adds counts.
                added = torch.cuda.max_memory_allocated() - held
                memory[name] = max(memory[name], added)
    return _row(pair, wall, used, memory, setup)


def _row(
    pair: Pair,
    wall: dict[str, list[float]],
    used: dict[str, list[float]],
    memory: dict[str, int],
    setup: DeviceSetup,
) -> dict[str, object]:
    config, batch = pair.config, pair.batch
    operations = update_operations(
        config.sizes, bench_step.mask_tokens(batch.masks), config.batch_size
    ).total
    ours, plain = (statistics.median(wall[name]) for name in ("ours", "plain"))
    ratios = [b / a for a, b in zip(wall["ours"], wall["plain"], strict=True)]
    row: dict[str, object] = {
        "model": config.model,
        "image_size": config.image_size,
        "batch": config.batch_size,
        "threads": torch.get_num_threads(),
        "precision": setup.precision,
        "compile": config.training.compile,
        "ours_ms": round(ours * 1e3, 1),
        "plain_ms": round(plain * 1e3, 1),
        "ratio": round(statistics.median(ratios), 3),
        "ours_tflops": round(operations / ours / 1e12, 4),
        "matmul_tflops": round(bench_step.matmul_rate(setup) / 1e12, 4),
    }
    if setup.device.type == "cuda":
        row |= {f"{name}_added_gb": round(memory[name] / 1e9, 2) for name in memory}
    else:
        cpu = {name: statistics.median(times) for name, times in used.items()}
        row |= {f"{name}_cpu_ms": round(value * 1e3, 1) for name, value in cpu.items()}
        row["cpu_ratio"] = round(cpu["plain"] / cpu["ours"], 3)
    return row


def config_of(case: str, precision: str, *, gpu: bool, compiled: bool) -> BenchConfig:
    """The config of ``model:batch:threads`` (CPU) or ``model:batch:pixels`` (GPU)."""
    model, batch, last = case.split(":")
    training = TrainingConfig(
        device="cuda" if gpu else "cpu",
        precision=precision,  # ty: ignore[invalid-argument-type]
        compile=compiled,
        num_threads=None if gpu else int(last),
    )
    config = BenchConfig(
        model=model,  # ty: ignore[invalid-argument-type]
        batch_size=int(batch),
        masking=MaskingConfig(count="prefix"),
        training=training,
    )
    return replace(config, image_size=int(last)) if gpu else config


def main() -> None:
    """Measure every case and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--case", action="append", help="model:batch:threads, or with --gpu :pixels"
    )
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile our blocks (GPU: always)")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    compiled = args.compile or args.gpu
    cases = args.case or (GPU_CASES if args.gpu else CPU_CASES)
    rows = []
    for case in cases:
        config = config_of(case, args.precision, gpu=args.gpu, compiled=compiled)
        row = measure(build(config), args.rounds, args.warmup)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(json.dumps({"benchmark": "step against plain", "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
