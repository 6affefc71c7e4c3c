"""What `vjepa data prepare` gains for training: clips per second of CPU time, three ways.

The same random clips are cut, as the training loader cuts them, from original files (their own
size, few key frames), from prepared files (short side, a key frame every 12 frames) and from the
same prepared videos in tar shards. The three take turns clip by clip in one process on one thread,
so that a busy machine slows all of them alike; CPU time is counted, not the clock.

    python benchmarks/bench_prepare.py                          # videos made here
    python benchmarks/bench_prepare.py --videos DIR --clips 300  # your own

The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.source import VideoSource
from vjepa.data.manifest.index import index_sources
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.prepare.config import MatchConfig, PrepareConfig, ShardConfig
from vjepa.jobs.prepare import prepare

_WAYS = ("original", "prepared files", "shards")


def _write_original(path: Path, seed: int, height: int, num_frames: int) -> None:
    """A long-GOP h264 video of textures that pan, as downloaded videos are encoded."""
    width = height * 16 // 9 // 2 * 2
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 4, width // 2, 3)).astype(np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 250
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"crf": "23", "preset": "fast"}
        for number in range(num_frames):
            left = number * (1 + seed % 4) % (texture.shape[1] - width)
            image = np.ascontiguousarray(texture[:height, left : left + width])
            noise = rng.integers(0, 12, image.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(np.clip(image // 2 + noise + 40, 0, 255), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _manifests(args: argparse.Namespace, folder: Path) -> dict[str, Manifest]:
    """The three forms of the same videos, rows in the same order."""
    source = args.videos
    if source is None:
        source = folder / "videos"
        source.mkdir()
        for number in range(args.count):
            _write_original(source / f"{number}.mp4", number, args.height, args.frames)
    original = index_sources([source], folder / "original.parquet", workers=1)
    config = PrepareConfig(
        deduplicate=False,
        match=MatchConfig(by_pictures=False),
        shards=ShardConfig(shuffle_seed=None, form="files"),
    )
    made = {"original": original.select()}
    for way, form in (("prepared files", "files"), ("shards", "tar")):
        shards = replace(config.shards, form=form)
        report = prepare(
            [folder / "original.parquet"], folder / form, replace(config, shards=shards), workers=1
        )
        made[way] = Manifest.open(report.manifest)
    return made


def _measure(made: dict[str, Manifest], num_clips: int, seed: int) -> dict[str, list[float]]:
    """CPU milliseconds of every clip, by way of reading; the ways take turns."""
    recipe = TrainingClips(ClipConfig(), TransformConfig(), seed, 8.0)
    out = torch.empty(1, 3, 16, 224, 224, dtype=torch.uint8)
    rows = np.random.default_rng(seed).integers(0, len(made["original"]), num_clips)
    times: dict[str, list[float]] = {way: [] for way in _WAYS}
    for ordinal, row in enumerate(rows.tolist()):
        for way in np.roll(_WAYS, ordinal % len(_WAYS)).tolist():
            started = time.process_time()
            recipe.cut(VideoSource(made[way].row(row)), np.array([ordinal]), out)
            times[way].append((time.process_time() - started) * 1e3)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder of original videos; default: made here")
    parser.add_argument("--count", type=int, default=4, help="videos made")
    parser.add_argument("--frames", type=int, default=600, help="frames of each")
    parser.add_argument("--height", type=int, default=720, help="their height in pixels")
    parser.add_argument("--clips", type=int, default=120, help="clips cut in each of the ways")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = _manifests(args, Path(folder))
        _measure(made, 3, args.seed + 1)
        times = _measure(made, args.clips, args.seed)
        sizes = {way: float(one.numeric("bytes").sum()) / 1e6 for way, one in made.items()}
    result = {
        way: {
            "cpu_ms_median": round(statistics.median(found), 2),
            "clips_per_cpu_second": round(1e3 * len(found) / sum(found), 2),
            "megabytes": round(sizes[way], 2),
        }
        for way, found in times.items()
    }
    base = result["original"]["clips_per_cpu_second"]
    for way, values in result.items():
        print(
            f"{way:15} {values['clips_per_cpu_second']:8.1f} clips/s of CPU time"
            f"  x {values['clips_per_cpu_second'] / base:.2f}"
            f"  median {values['cpu_ms_median']:.1f} ms  {values['megabytes']:.1f} MB"
        )
    print(json.dumps({"clips": args.clips, "frames": 16, "crop": 224, **result}))


if __name__ == "__main__":
    main()
