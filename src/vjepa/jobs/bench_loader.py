"""How fast training clips are read from videos: what `vjepa bench loader` measures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field

from vjepa.config import config_dataclass, from_dict
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import ClipLoader, LoaderConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video.info import STAGE_LISTENERS, Stage
from vjepa.jobs.bench_encode import BenchReport, machine_name
from vjepa.runtime.process import set_num_threads
from vjepa.training.schedules import Count


@config_dataclass
class BenchConfig:
    """What is measured."""

    manifest: Path
    """The videos, as `vjepa data index` lists them."""
    split: str | None = None
    """Only this split; null: all rows."""
    batch_size: Count = 16
    """Clips of a batch."""
    batches: Count = 8
    """Batches that are timed."""
    warmup_batches: Annotated[int, Field(ge=0)] = 2
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
        if self.loader.frame_cache_gigabytes > 0:
            raise ValueError(
                "loader: frame_cache_gigabytes must be 0, this measures reading without a cache"
            )


class MeasuringClock:
    """Sums up the CPU time of this thread by stage, in `seconds`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, in stage ``rest``."""
        self.seconds: dict[Stage, float] = dict.fromkeys(get_args(Stage), 0.0)
        self._stage: Stage = "rest"
        self._since = time.thread_time()

    def enter(self, stage: Stage) -> None:
        """Add the time since the last call to the stage that ends."""
        now = time.thread_time()
        self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now


def run(config: BenchConfig) -> BenchReport:
    """Read clips in this process, stage by stage, and then through worker processes.

    Raises:
        UserError: The manifest cannot be used.
    """
    config = from_dict(BenchConfig, config)
    set_num_threads(1)
    manifest = Manifest.open(config.manifest).select(config.split)
    clock = MeasuringClock()
    STAGE_LISTENERS.append(clock.enter)
    try:
        here = _read(config, manifest, num_workers=0, clock=clock)
    finally:
        STAGE_LISTENERS.remove(clock.enter)
    total = sum(clock.seconds.values())
    shares = {stage: round(seconds / total, 4) for stage, seconds in clock.seconds.items()}
    frames, size = config.clip.num_frames, config.transform.crop_size
    pixels = 3 * frames * size * size
    values = {
        "benchmark": "loader",
        "machine": machine_name(),
        "cpus": os.cpu_count(),
        "manifest": str(config.manifest),
        "videos": len(manifest),
        "one_process": here,
        "share_of_cpu_time": shares,
        "workers": None,
        "queue_bytes_per_clip": {"pixels": pixels},
    }
    lines = [
        f"{here['clips']} clips of {frames} frames, cut to {size} x {size} pixels, one thread:",
        "  " + _speed(here),
        "  share of CPU time: " + ", ".join(f"{name} {part:.1%}" for name, part in shares.items()),
    ]
    num_bad = here["bad_videos"]
    if workers := config.loader.num_workers:
        pooled = _read(config, manifest, workers, None)
        values["workers"] = {"number": workers, **pooled}
        lines += [f"through {workers} worker processes:", "  " + _speed(pooled)]
        num_bad += pooled["bad_videos"]
    lines.append(f"queue: {pixels / 1e6:.2f} MB of pixels a clip")
    if num_bad:
        lines.append(f"{num_bad} videos could not be read; see `vjepa data check --deep`")
    return BenchReport(lines=tuple(lines), values=values)


def _read(
    config: BenchConfig, manifest: Manifest, num_workers: int, clock: MeasuringClock | None
) -> dict[str, Any]:
    """Time batches in the steady state: the queue is as full at the end as at the beginning.

    CPU time is that of this process and its workers together.
    """
    settings = replace(config.loader, num_workers=num_workers)
    ahead = config.loader.prefetch_batches + 2 if num_workers else 0
    timed = range(config.warmup_batches, config.warmup_batches + config.batches)
    sizes = (config.batch_size, config.seed)
    with ClipLoader([manifest], None, config.clip, config.transform, settings, *sizes) as loader:
        batches = loader.batches(0, timed.stop + ahead)
        for _ in range(config.warmup_batches):
            next(batches)
        if clock is not None:
            clock.reset()
        cpu, wall = _cpu_seconds(loader.worker_ids), time.perf_counter()
        read = [next(batches) for _ in timed]
        wall_seconds = time.perf_counter() - wall
        after = _cpu_seconds(loader.worker_ids)
        if clock is not None:
            clock.enter("rest")
    clips = len(read) * config.batch_size
    known = cpu is not None and after is not None
    return {
        "clips": clips,
        "bad_videos": sum(batch.num_bad for batch in read),
        "clips_per_core_second": round(clips / (after - cpu), 2) if known else None,
        "clips_per_second": round(clips / wall_seconds, 2),
    }


def _speed(values: Mapping[str, Any]) -> str:
    clock, per_core = values["clips_per_second"], values["clips_per_core_second"]
    said = "" if per_core is None else f"{per_core:.1f} clips/s per core (CPU time), "
    return f"{said}{clock:.1f} clips/s by the clock"


def _cpu_seconds(worker_ids: Sequence[int]) -> float | None:
    """CPU time so far of this process and some others; None where the system does not tell."""
    total = time.process_time()
    for worker in worker_ids:
        stat = Path(f"/proc/{worker}/stat")
        if not stat.is_file():
            return None
        # The name, in brackets, may hold spaces; times in ticks are the 14th and 15th field.
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
