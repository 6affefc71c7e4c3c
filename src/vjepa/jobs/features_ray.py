"""Features by the workers of a Ray cluster (extra ``ray``): many machines, one shared folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vjepa.data.video_info import VideoInfo
from vjepa.errors import UserError
from vjepa.jobs.features import EncodedFile, FeatureWorker
from vjepa.jobs.features_config import FeaturesConfig
from vjepa.runtime.threads import prevent_openmp_spinning, set_num_threads

_FILES_AT_ONCE = 16
"""Files handed to a worker in one piece: few enough to share evenly, enough to fill batches."""


def encode_on_ray(
    config: FeaturesConfig,
    out: Path,
    infos: Sequence[VideoInfo],
    names: Sequence[str | None],
    todo: Sequence[int],
) -> Iterator[EncodedFile]:
    """Encode files on Ray; as :meth:`vjepa.jobs.features.FeatureWorker.encode`, in any order.

    A Ray that is running (``RAY_ADDRESS``, or :func:`ray.init` before) is used; else one is started
    on this machine and ended with the job.

    Args:
        config: The job.
        out: Folder of the features; every machine must see it under this path.
        infos, names: All files and where their features go.
        todo: Places among them to encode.

    Yields:
        What was done, as it comes.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        # Ray reports its use over the network unless told not to before it is imported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UserError("engine: ray is not installed: pip install 'open-vjepa[ray]'") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield from _share_out(ray, config, out.absolute(), infos, names, todo)
    finally:
        if is_ours:
            ray.shutdown()


def _share_out(
    ray: Any,
    config: FeaturesConfig,
    out: Path,
    infos: Sequence[VideoInfo],
    names: Sequence[str | None],
    todo: Sequence[int],
) -> Iterator[EncodedFile]:
    uses_gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    actor = ray.remote(num_cpus=1, num_gpus=1 if uses_gpu else 0)(_RayWorker)
    size = max(1, min(_FILES_AT_ONCE, -(-len(todo) // config.ray_workers)))
    chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
    workers = [
        actor.remote(config, out, f"{number:02d}-")
        for number in range(min(config.ray_workers, len(chunks)))
    ]
    waiting = {}
    idle = list(workers)
    while chunks or waiting:
        while chunks and idle:
            chunk, worker = chunks.pop(0), idle.pop()
            job = worker.encode.remote(
                [infos[place] for place in chunk], [names[place] for place in chunk]
            )
            waiting[job] = (chunk, worker)
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        chunk, worker = waiting.pop(ready)
        idle.append(worker)
        for found in ray.get(ready):
            yield EncodedFile(chunk[found.place], found.record, found.windows)


class _RayWorker:
    """One process with its own encoder."""

    def __init__(self, config: FeaturesConfig, out: Path, name: str) -> None:
        prevent_openmp_spinning()
        set_num_threads(config.num_threads or 1)
        self._worker = FeatureWorker(config, out, name)

    def encode(self, infos: Sequence[VideoInfo], names: Sequence[str | None]) -> list[EncodedFile]:
        """Encode files; places count these."""
        done = list(self._worker.encode(infos, names, range(len(infos))))
        self._worker.flush()
        return done
