"""The speed of the frozen encoder on clips in memory: what `vjepa bench encode` measures."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vjepa.config import config_dataclass
from vjepa.evaluation.frozen import encode_clips
from vjepa.jobs.probe.encoder import compile_encoder
from vjepa.models import PRESETS, Encoder, EncoderConfig
from vjepa.runtime.device import DeviceName, Precision, seed_torch, set_up_device
from vjepa.runtime.process import set_num_threads


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of one of the ``vjepa bench`` commands."""

    lines: tuple[str, ...]
    """For people."""
    values: dict[str, Any]
    """For programs: plain values that JSON can hold, with ``benchmark`` and ``machine``."""


def machine_name() -> str:
    """The processor as the system names it, for the record beside a measured number."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


PRESET_OF = {
    "vitti16": "vit_tiny",
    "vits16": "vit_small",
    "vitb16": "vit_base",
    "vitl16": "vit_large",
    "vith16": "vit_huge",
}
"""Presets by the names that the benchmarks share."""


@config_dataclass
class BenchConfig:
    """What is measured."""

    model: Literal["vitti16", "vits16", "vitb16", "vitl16", "vith16"] = "vitl16"
    """Size of the encoder; its weights are random."""
    image_size: int = 224
    """Side of a clip, in pixels."""
    num_frames: int = 16
    """Frames of a clip."""
    batch_size: int = 8
    """Clips per call."""
    calls: int = 5
    """Calls that are timed; the median counts."""
    warmup_calls: int = 2
    """Calls before that, which compile and fill caches."""
    precision: Precision = "float32"
    """Of matrix products and attention."""
    compile: bool = False
    """Compile the encoder's blocks."""
    device: DeviceName = "auto"
    """Where to compute; `auto` takes a GPU when there is one."""
    num_threads: int | None = None
    """CPU threads of torch; null: torch's choice."""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_frames", "batch_size", "calls"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.warmup_calls < 0:
            raise ValueError(f"warmup_calls: must not be negative, got {self.warmup_calls}")


@dataclass(frozen=True)
class Timing:
    """Seconds of the timed calls.

    Attributes:
        wall: Wall-clock time of each.
        cpu: CPU time of the whole process in each; other processes do not disturb it.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def run(config: BenchConfig) -> BenchReport:
    """Time the encoder.

    Raises:
        UserError: The device or the compiler is not there.
    """
    threads = set_num_threads(config.num_threads)
    setup = set_up_device(config.device, config.precision)
    sizes = replace(
        PRESETS[PRESET_OF[config.model]],
        image_size=config.image_size,
        num_frames=config.num_frames,
    )
    with torch.random.fork_rng(devices=[]):
        seed_torch(0, "bench encode")
        encoder = Encoder(sizes).eval().requires_grad_(False).to(setup.device)
    if config.compile:
        compile_encoder(encoder)
    shape = (config.batch_size, 3, config.num_frames, config.image_size, config.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    found = time_calls(
        encoder, clips, setup.device, config.precision, config.warmup_calls, config.calls
    )
    wall, cpu = statistics.median(found.wall), statistics.median(found.cpu)
    work = encoder_flops(sizes)
    values = {
        "benchmark": "encode",
        "machine": machine_name(),
        "device": setup.device.type,
        "torch": torch.__version__,
        "threads": threads,
        "model": config.model,
        "clip": [config.num_frames, config.image_size],
        "batch_size": config.batch_size,
        "precision": config.precision,
        "compile": config.compile,
        "clips_per_second": config.batch_size / wall,
        "clips_per_cpu_second": config.batch_size / cpu,
        "milliseconds_per_clip": 1000 * wall / config.batch_size,
        "gigaflop_per_clip": work / 1e9,
        "gigaflop_per_second": work * config.batch_size / wall / 1e9,
    }
    lines = (
        f"{config.model}, {config.num_frames} frames of {config.image_size} pixels, batch "
        f"{config.batch_size}, {config.precision}{', compiled' if config.compile else ''}, "
        f"{setup.device.type}, {threads} threads: {values['clips_per_second']:.3g} clips/s "
        f"({values['milliseconds_per_clip']:.4g} ms a clip)",
        f"{values['gigaflop_per_clip']:.4g} GFLOP a clip: {values['gigaflop_per_second']:.4g} "
        "GFLOP/s in matrix products and attention",
    )
    return BenchReport(lines=lines, values=values)


def time_calls(
    encoder: nn.Module,
    clips: torch.Tensor,
    device: torch.device,
    precision: Precision,
    warmup_calls: int,
    calls: int,
) -> Timing:
    """Time calls of a frozen encoder, from uint8 clips in memory to tokens.

    Args:
        encoder: On `device`.
        clips: uint8 [B, 3, T, S, S].
        device, precision: As for :func:`vjepa.evaluation.frozen.encode_clips`.
        warmup_calls: Calls that do not count.
        calls: Calls that do.
    """
    wall, cpu = [], []
    for call in range(warmup_calls + calls):
        start, start_cpu = time.perf_counter(), time.process_time()
        encode_clips(encoder, clips, device, precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if call >= warmup_calls:
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    return Timing(tuple(wall), tuple(cpu))


def encoder_flops(config: EncoderConfig) -> int:
    """Floating point operations of one clip: matrix products and attention, 2 for each product.

    Args:
        config: Sizes of the encoder.
    """
    n, d = config.num_tokens, config.width
    block = 4 * n * d * d + 2 * n * d * config.mlp_width + 2 * n * n * d
    return 2 * (config.depth * block + n * d * config.patch_values)
