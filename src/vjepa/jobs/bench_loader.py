"""How fast training clips are read from videos: what `vjepa bench loader` measures."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

from vjepa.config import config_dataclass
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.cut import VideoJob
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import ClipBatch, ClipLoader, LoaderConfig
from vjepa.data.loader.prefetch import ClipOrder
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.stage_clock import NO_CLOCK, STAGES, MeasuringClock, Stage, StageClock
from vjepa.jobs.bench_encode import BenchReport, machine_name
from vjepa.runtime.process import set_num_threads

_CHANNELS = 3


@config_dataclass
class BenchConfig:
    """What is measured."""

    manifest: Path
    """The videos, as `vjepa data index` lists them."""
    split: str | None = None
    """Only this split; null: all rows."""
    batch_size: int = 16
    """Clips of a batch."""
    batches: int = 8
    """Batches that are timed."""
    warmup_batches: int = 2
    """Batches before that, while processes start and caches fill."""
    seed: int = 0
    """Of the order of videos, the places of clips and the crops."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """Which frames a clip takes."""
    transform: TransformConfig = field(default_factory=TransformConfig)
    """Crop, resize and flip."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Worker processes, prefetching, limits for bad videos."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.warmup_batches < 0:
            raise ValueError(f"warmup_batches: must not be negative, got {self.warmup_batches}")
        if self.loader.frame_cache_gigabytes > 0:
            raise ValueError(
                "loader: frame_cache_gigabytes must be 0, this measures reading without a cache"
            )


@dataclass(frozen=True)
class Reading:
    """What a number of batches took.

    Attributes:
        clips: How many clips they held.
        num_bad: Videos that could not be read and were replaced.
        wall_seconds: On the clock.
        cpu_seconds: CPU time of this process and its workers together; None where it is unknown.
        last: One of the batches.
    """

    clips: int
    num_bad: int
    wall_seconds: float
    cpu_seconds: float | None
    last: ClipBatch

    @property
    def clips_per_second(self) -> float:
        """By the clock."""
        return self.clips / self.wall_seconds

    @property
    def clips_per_core_second(self) -> float | None:
        """By CPU time: clips a second that one core reads; None where CPU time is unknown."""
        return None if self.cpu_seconds is None else self.clips / self.cpu_seconds


def run(config: BenchConfig) -> BenchReport:
    """Read clips in this process, stage by stage, and then through worker processes.

    Raises:
        UserError: The manifest cannot be used.
    """
    set_num_threads(1)
    manifest = Manifest.open(config.manifest).select(config.split)
    clock = MeasuringClock()
    here = _read(config, manifest, num_workers=0, clock=clock)
    total = sum(clock.seconds.values())
    shares = {stage: clock.seconds[stage] / total for stage in STAGES}
    workers = config.loader.num_workers
    pooled = _read(config, manifest, workers, NO_CLOCK) if workers else None
    pixels = math.prod((_CHANNELS, config.clip.num_frames, *[config.transform.crop_size] * 2))
    message = _message_bytes(manifest, here.last, config.clip.clips_per_video)
    values = {
        "benchmark": "loader",
        "machine": machine_name(),
        "cpus": os.cpu_count(),
        "manifest": str(config.manifest),
        "videos": len(manifest),
        "one_process": _values(here),
        "share_of_cpu_time": {stage: round(share, 4) for stage, share in shares.items()},
        "workers": None if pooled is None else {"number": workers, **_values(pooled)},
        "queue_bytes_per_clip": {"pixels": pixels, "messages": round(message)},
    }
    return BenchReport(lines=tuple(_lines(config, here, shares, pooled, message)), values=values)


def _read(config: BenchConfig, manifest: Manifest, num_workers: int, clock: StageClock) -> Reading:
    """Time batches in the steady state: the queue is as full at the end as at the beginning."""
    settings = replace(config.loader, num_workers=num_workers)
    ahead = config.loader.prefetch_batches + 2 if num_workers else 0
    timed = range(config.warmup_batches, config.warmup_batches + config.batches)
    with ClipLoader(
        [manifest],
        None,
        config.clip,
        config.transform,
        settings,
        config.batch_size,
        config.seed,
    ) as loader:
        loader.clock = clock
        batches = loader.batches(0, timed.stop + ahead)
        for _ in range(config.warmup_batches):
            next(batches)
        if isinstance(clock, MeasuringClock):
            clock.reset()
        cpu, wall = _cpu_seconds(loader.worker_ids), time.perf_counter()
        read = [next(batches) for _ in timed]
        wall_seconds = time.perf_counter() - wall
        after = _cpu_seconds(loader.worker_ids)
        clock.enter("rest")
    return Reading(
        clips=len(read) * config.batch_size,
        num_bad=sum(batch.num_bad for batch in read),
        wall_seconds=wall_seconds,
        cpu_seconds=None if cpu is None or after is None else after - cpu,
        last=read[-1],
    )


def _cpu_seconds(worker_ids: Sequence[int]) -> float | None:
    """CPU time so far of this process and some others; None where the system does not tell."""
    total = time.process_time()
    for worker in worker_ids:
        stat = Path(f"/proc/{worker}/stat")
        if not stat.is_file():
            return None
        # The name, in brackets, may hold spaces; times in ticks are the 14th and 15th field.
        fields = stat.read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _message_bytes(manifest: Manifest, batch: ClipBatch, clips_per_video: int) -> float:
    """Mean size of what a worker is told, for each clip of a batch, in bytes."""
    starts = np.flatnonzero(np.diff(batch.ordinals // clips_per_video, prepend=-1))
    total = 0
    for ordinals in np.split(batch.ordinals, starts[1:]):
        row = int(batch.rows[ordinals[0] - batch.ordinals[0], 1])
        job = VideoJob(0, 0, 0, row, 0, 0, ordinals)
        total += len(ForkingPickler.dumps((0, ClipOrder(0, job, manifest.row(row)))))
    return total / len(batch.ordinals)


def _values(reading: Reading) -> dict[str, float | int | None]:
    per_core = reading.clips_per_core_second
    return {
        "clips": reading.clips,
        "bad_videos": reading.num_bad,
        "clips_per_core_second": None if per_core is None else round(per_core, 2),
        "clips_per_second": round(reading.clips_per_second, 2),
    }


def _lines(
    config: BenchConfig,
    here: Reading,
    shares: Mapping[Stage, float],
    pooled: Reading | None,
    message: float,
) -> list[str]:
    size, frames = config.transform.crop_size, config.clip.num_frames
    lines = [f"{here.clips} clips of {frames} frames, cut to {size} x {size} pixels, one thread:"]
    lines.append("  " + _speed(here))
    parts = ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
    lines.append(f"  share of CPU time: {parts}")
    if pooled is not None:
        lines.append(f"through {config.loader.num_workers} worker processes:")
        lines.append("  " + _speed(pooled))
    megabytes = _CHANNELS * frames * size * size / 1e6
    lines.append(f"queue: {megabytes:.2f} MB of pixels and {message:.0f} bytes of messages a clip")
    num_bad = here.num_bad + (0 if pooled is None else pooled.num_bad)
    if num_bad:
        lines.append(f"{num_bad} videos could not be read; see `vjepa data check`")
    return lines


def _speed(reading: Reading) -> str:
    clock, per_core = f"{reading.clips_per_second:.1f} clips/s by the clock", ""
    if reading.clips_per_core_second is not None:
        per_core = f"{reading.clips_per_core_second:.1f} clips/s per core (CPU time), "
    return per_core + clock
