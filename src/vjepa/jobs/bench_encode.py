"""The speed of the frozen encoder on clips in memory, and what all benchmarks share."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from vjepa.config import config_dataclass, from_dict
from vjepa.models import PRESETS, Encoder, EncoderConfig, ModelConfig
from vjepa.models.operations import NO_PREDICTOR, update_operations
from vjepa.runtime.device import (
    DeviceName,
    Precision,
    compile_blocks,
    seed_torch,
    set_up_device,
    to_device,
)
from vjepa.runtime.process import set_num_threads
from vjepa.runtime.progress import Progress
from vjepa.training.schedules import Count

ModelName = Literal["vitt16", "vits16", "vitb16", "vitl16", "vith16", "vitg16"]


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of one of the ``vjepa bench`` commands: for people, and as plain values."""

    lines: tuple[str, ...]
    values: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join((*self.lines, json.dumps(self.values)))


@config_dataclass
class BenchModelConfig:
    """Which encoder is measured, and on which clips."""

    model: ModelName = "vitl16"
    """Size of the encoder; weights are random, and the predictor of an update is the paper's (12
    blocks, 384 wide)."""
    image_size: Count = 224
    """Side of a clip, in pixels."""
    num_frames: Count = 16
    """Frames of a clip."""

    def __post_init__(self) -> None:
        _ = self.encoder  # refuses sizes that are not whole patches

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder's sizes."""
        own = PRESETS[self.model]
        return replace(own, image_size=self.image_size, num_frames=self.num_frames)


@config_dataclass
class BenchConfig(BenchModelConfig):
    """What is measured."""

    batch_size: Count = 8
    """Clips per call."""
    calls: Count = 5
    """Calls that are timed; the median counts."""
    warmup_calls: Annotated[int, Field(ge=0)] = 2
    """Calls before that, which compile and fill caches."""
    precision: Precision = "float32"
    """Of matrix products and attention."""
    compile: bool = False
    """Compile the encoder's blocks."""
    device: DeviceName = "auto"
    """Where to compute; `auto` takes a GPU when there is one."""
    num_threads: Count | None = None
    """CPU threads of torch; null: torch's choice."""


def run(config: BenchConfig) -> BenchReport:
    """Time the encoder.

    Raises:
        UserError: The device or the compiler is not there.
    """
    config = from_dict(BenchConfig, config)
    threads = set_num_threads(config.num_threads)
    setup = set_up_device(config.device, config.precision)
    sizes = config.encoder
    with torch.random.fork_rng(devices=[]):
        seed_torch(0, "bench encode")
        encoder = Encoder(sizes).eval().requires_grad_(False).to(setup.device)
    if config.compile:
        compile_blocks([encoder])
    clips = random_clips(config.batch_size, sizes)

    def encode(number: int) -> None:
        with torch.no_grad(), setup.autocast():
            encoder(encoder.normalise(to_device(clips, setup.device)))
        progress.update(number)

    with Progress("calls", config.warmup_calls + config.calls) as progress:
        walls, cpus = time_calls(encode, setup.device, config.calls, config.warmup_calls)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
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


def machine_name() -> str:
    """The processor as the system names it, for the record beside a measured number."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def random_clips(batch_size: int, sizes: EncoderConfig) -> torch.Tensor:
    """uint8 [B, 3, T, S, S], the same at every call."""
    shape = (batch_size, 3, sizes.num_frames, sizes.image_size, sizes.image_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def encoder_flops(config: EncoderConfig) -> float:
    """Floating point operations of one clip: matrix products and attention, 2 for each product."""
    model = ModelConfig(encoder=config, predictor=NO_PREDICTOR)
    return update_operations(model, [], batch_size=1).target_encoder


def time_calls(
    call: Callable[[int], object], device: torch.device, calls: int, warmup: int
) -> tuple[list[float], list[float]]:
    """Time each of several calls, waiting for the device; `call` gets its number, from 1.

    Returned are `calls` wall-clock times, and as many CPU times of the whole process, which other
    processes do not disturb; in seconds.
    """
    wall, cpu = [], []
    for number in range(1, warmup + calls + 1):
        wait(device)
        started, started_cpu = time.perf_counter(), time.process_time()
        call(number)
        wait(device)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    return wall[warmup:], cpu[warmup:]


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
