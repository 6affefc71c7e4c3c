"""Where the time of a training step goes: ours beside the plain one, by kind of operation.

Run from the repository, for example::

    python benchmarks/profile_step.py --case vits16:1:1              model:batch:threads
    python benchmarks/profile_step.py --case vitl16:24:224 --gpu     model:batch:pixels

One step of each way is profiled after two that warm up, each way in a process of its own. Times are
those of an operation itself, without what it calls; on a GPU, of its kernels. Profiling costs some
time of its own. The longest operations are listed with what called them, since a name such as
``fill_`` alone does not say whose it is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import Counter
from multiprocessing.connection import Connection

import torch
from bench_step import WAYS, config_of, steps
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from vjepa.jobs.bench_encode import wait
from vjepa.runtime import device as device_module

# The first kind of which a word is part of the operation's name.
KINDS = (
    ("fused by the compiler", ("triton",)),
    ("attention as one operation", ("attention", "flash", "fmha", "cudnn")),
    ("attention, products", ("aten::bmm", "aten::baddbmm")),
    ("softmax and its gradient", ("softmax",)),
    ("convolution", ("conv",)),
    ("matrix products", ("aten::mm", "aten::addmm", "gemm", "nvjet", "cutlass", "xmma")),
    (
        "optimiser, average, norms",
        ("adam", "lerp", "vector_norm", "foreach", "multi_tensor", "sqrt", "addc"),
    ),
    ("copies and casts", ("copy", "cat", "memcpy", "to_copy")),
    ("GELU, LayerNorm, additions", ("gelu", "layer_norm", "add", "sum", "mul")),
)


def kind_of(name: str) -> str:
    """The kind of an operation."""
    small = name.lower()
    return next((kind for kind, words in KINDS if any(w in small for w in words)), "other")


def callers(event: FunctionEvent) -> str:
    """An operation and what called it, innermost first."""
    names, parent = [event.name], event.cpu_parent
    while parent is not None and len(names) < 4:
        names.append(parent.name[:40])
        parent = parent.cpu_parent
    return " < ".join(names)


def work(way: str, case: str, precision: str, gpu: bool, pipe: Connection) -> None:
    """Profile one step of one way; sends milliseconds by kind and by operation with its callers."""
    if way == "plain":
        # Only our way changes the allocator.
        device_module.keep_freed_memory = lambda: False  # ty: ignore[invalid-assignment]
    config = config_of(case, precision, gpu=gpu, compiled=gpu)
    step = steps(way, config)
    device = torch.device("cuda" if gpu else "cpu")
    for number in (1, 2):
        step(number)
    wait(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as found:
        step(3)
        wait(device)
    kinds, operations = Counter[str](), Counter[str]()
    for event in found.events() or []:
        on_cpu = event.device_type == DeviceType.CPU
        took = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3
        # A kernel is listed twice: as itself, and as the time of the operation that launched it.
        if on_cpu:
            operations[callers(event)] += took
        if on_cpu != gpu and not event.is_user_annotation:
            kinds[kind_of(event.name)] += took
    pipe.send((dict(kinds), operations.most_common(12)))


def main() -> None:
    """Profile both ways; print tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", required=True, help="model:batch:threads, with --gpu :pixels")
    parser.add_argument("--gpu", action="store_true", help="ours compiled, as bench_step.py --gpu")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    kinds: dict[str, dict[str, float]] = {}
    for way in WAYS:
        near, far = context.Pipe()
        process = context.Process(target=work, args=(way, args.case, args.precision, args.gpu, far))
        process.start()
        far.close()
        kinds[way], longest = near.recv()
        process.join()
        print(f"{way}: the longest operations, ms, each with what called it")
        for name, milliseconds in longest:
            print(f"  {milliseconds:9.1f}  {name}")
    print("| ms | plain | ours |\n|---|---:|---:|")
    for kind in [*(kind for kind, _ in KINDS), "other"]:
        plain, ours = kinds["plain"].get(kind, 0.0), kinds["ours"].get(kind, 0.0)
        print(f"| {kind} | {plain:.0f} | {ours:.0f} |")
    print(f"| all | {sum(kinds['plain'].values()):.0f} | {sum(kinds['ours'].values()):.0f} |")
    print(json.dumps({"benchmark": "profile of a step", "case": args.case, "ms": kinds}))


if __name__ == "__main__":
    main()
