"""Our training step beside a plain one: the same weights, clips and masks, in one process.

Run from the repository, for example::

    python benchmarks/bench_step.py                                  CPU: Ti, S, B, several batches
    python benchmarks/bench_step.py --gpu                            ViT-L and ViT-H, compiled
    python benchmarks/bench_step.py --case vits16:2:1 --rounds 9

Each way is a process of its own, as it would be in use, and their steps take turns, so that
whatever else the machine does meets both alike; medians over the rounds and their ratio are
printed, and one line of JSON. The plain step is ``plain_step.py``.
Tokens are those of count mode `prefix` at this batch, which cuts as the authors' code does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch
from plain_step import PlainTrainer

from vjepa.jobs import bench_step
from vjepa.jobs.bench_encode import wait
from vjepa.jobs.bench_step import BenchConfig
from vjepa.jobs.pretrain_room import mask_tokens
from vjepa.masking import MaskingConfig
from vjepa.models import normalise_clip
from vjepa.models.operations import update_operations
from vjepa.runtime import device as device_module
from vjepa.runtime.process import set_num_threads
from vjepa.tasks import FeaturePrediction
from vjepa.training import TrainingConfig, train_step
from vjepa.training.schedules import ema_momentum, learning_rate, weight_decay

CPU_CASES = ("vitt16:2:1", "vits16:1:1", "vits16:4:1", "vits16:2:2", "vitb16:1:1", "vitb16:2:2")
GPU_CASES = ("vitl16:24:224", "vitl16:48:224", "vith16:24:224", "vith16:10:384")


WAYS = ("ours", "plain")


@dataclass(frozen=True)
class Sample:
    """One step of one way."""

    wall: float
    cpu: float
    peak_bytes: int
    """What the process held at most: on a GPU of its memory, on a CPU resident."""


def steps(way: str, config: BenchConfig) -> Callable[[int], None]:
    """The training step of one way, on weights, clips and masks that are equal for both."""
    learner = bench_step.build(config)
    setup = learner.setup
    clips, masks = bench_step.synthetic_batch(config, setup.device)
    if way == "ours":

        def ours(number: int) -> None:
            train_step(learner, [(normalise_clip(clips), masks)], number)

        return ours
    optim, ema = learner.optim, learner.ema
    assert ema is not None
    task = learner.task
    assert isinstance(task, FeaturePrediction)
    plain = PlainTrainer(task, setup.device, bfloat16=setup.precision == "bfloat16")

    def theirs(number: int) -> None:
        plain.step(
            normalise_clip(clips),
            masks,
            rate=learning_rate(number, optim),
            decay=weight_decay(number, optim),
            momentum=ema_momentum(number, ema, optim),
        )

    return theirs


def work(way: str, config: BenchConfig, pipe: Connection) -> None:
    """A process that takes a step for each number it is sent, until it is sent None."""
    if way == "plain":
        # Only our way changes the allocator.
        device_module.keep_freed_memory = lambda: False  # ty: ignore[invalid-assignment]
    step = steps(way, config)
    device = torch.device("cuda" if config.training.device == "cuda" else "cpu")
    while (number := pipe.recv()) is not None:
        cpu, clock = time.process_time(), time.perf_counter()
        step(number)
        wait(device)
        used = time.process_time() - cpu
        pipe.send(Sample(time.perf_counter() - clock, used, bench_step.peak_memory(device)))


def measure(config: BenchConfig, rounds: int, warmup: int) -> dict[str, object]:
    """Interleaved steps of two processes, one for each way; medians."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for way in WAYS:
        pipes[way], far = context.Pipe()
        workers.append(context.Process(target=work, args=(way, config, far), daemon=True))
        workers[-1].start()
        far.close()
    samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
    for number in range(1, warmup + rounds + 1):
        for way in WAYS:
            pipes[way].send(number)
            sample = pipes[way].recv()
            if number > warmup:
                samples[way].append(sample)
    for way, worker in zip(WAYS, workers, strict=True):
        pipes[way].send(None)
        worker.join()
    return _row(config, samples)


def _row(config: BenchConfig, samples: dict[str, list[Sample]]) -> dict[str, object]:
    setup = config.training.set_up_device()
    set_num_threads(config.training.num_threads)
    _, masks = bench_step.synthetic_batch(config, torch.device("cpu"))
    tokens = mask_tokens(masks)
    operations = update_operations(config.sizes, tokens, config.batch_size).total
    wall = {way: statistics.median(s.wall for s in samples[way]) for way in WAYS}
    cpu = {way: statistics.median(s.cpu for s in samples[way]) for way in WAYS}
    pairs = list(zip(samples["ours"], samples["plain"], strict=True))
    row: dict[str, object] = {
        "model": config.model,
        "image_size": config.image_size,
        "batch": config.batch_size,
        "threads": torch.get_num_threads(),
        "precision": setup.precision,
        "compile": config.training.compile,
        **{f"{way}_ms": round(wall[way] * 1e3, 1) for way in WAYS},
        "ratio": round(statistics.median(b.wall / a.wall for a, b in pairs), 3),
        "ours_tflops": round(operations / wall["ours"] / 1e12, 4),
        "matmul_tflops": round(bench_step.matmul_rate(setup) / 1e12, 4),
        **{f"{way}_peak_gb": round(samples[way][-1].peak_bytes / 1e9, 2) for way in WAYS},
    }
    if setup.device.type == "cpu":
        row |= {f"{way}_cpu_ms": round(cpu[way] * 1e3, 1) for way in WAYS}
        row["cpu_ratio"] = round(statistics.median(b.cpu / a.cpu for a, b in pairs), 3)
        # What a busy machine disturbs least.
        least = {way: min(s.cpu for s in samples[way]) for way in WAYS}
        row |= {f"{way}_least_cpu_ms": round(least[way] * 1e3, 1) for way in WAYS}
        row["least_cpu_ratio"] = round(least["plain"] / least["ours"], 3)
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
    parser.add_argument("--warmup", type=int, help="steps first (1; 3 if compiled)")
    args = parser.parse_args()
    compiled = args.compile or args.gpu
    warmup = args.warmup or (3 if compiled else 1)
    cases = args.case or (GPU_CASES if args.gpu else CPU_CASES)
    rows = []
    for case in cases:
        config = config_of(case, args.precision, gpu=args.gpu, compiled=compiled)
        row = measure(config, args.rounds, warmup)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(json.dumps({"benchmark": "step against plain", "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
