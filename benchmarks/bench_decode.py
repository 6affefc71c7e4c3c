"""Reading training clips: ours beside decord, torchcodec and plain PyAV, on the same clips.

Run from the repository: ``python benchmarks/bench_decode.py``. Peers that are not installed are
left out (torchcodec needs FFmpeg's shared libraries). Everything runs in one process, on one
thread, one reader after the other on each clip, in an order that changes from clip to clip; a file
is opened anew for every reading. Times are CPU time of the whole process, so that a busy machine
changes them little; ``--wall`` takes the clock on the wall. The frames of all readers are compared.
The last line is JSON.

Stage ``frames`` is reading alone; stage ``clip`` goes on to the finished training clips, 224 px:
the peers' frames take the same crop and resize as ours. Several clips in one pass are asked of
every reader together.

The videos are made here (moving textures with grain, 340 x 256, 30 fps, h264 with B-frames by
x264's defaults); ``--video FILE`` takes real ones instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.counter_random import uniforms
from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.cut import cut
from vjepa.data.clips.dataset import TrainingClips
from vjepa.data.clips.plan import ClipConfig, clip_indices, plan_training
from vjepa.data.clips.source import FrameSource, VideoSource
from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file

Frames = NDArray[np.uint8]
WIDTH, HEIGHT, FPS = 340, 256, 30
OURS = "vjepa"


@dataclass(frozen=True)
class Case:
    """A file and the clips to read from it, some in one pass: int64 [passes, n, T]."""

    name: str
    info: VideoInfo
    clips: NDArray[np.int64]


def write_video(path: Path, gop: int, num_frames: int, seed: int) -> Path:
    """Three layers of texture that move over each other, with grain."""
    generator = np.random.default_rng(seed)
    layers = [_texture(generator, scale) for scale in (8, 16, 32)]
    speeds = generator.uniform(-3, 3, (3, 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.thread_count = gop, 1
        context.options = {"crf": "23", "x264-params": f"scenecut=0:keyint={gop}:min-keyint={gop}"}
        for number in range(num_frames):
            container.mux(stream.encode(_picture(generator, layers, speeds, number)))
        container.mux(stream.encode(None))
    return path


def _texture(generator: np.random.Generator, scale: int) -> NDArray[np.float32]:
    """Smooth periodic colour noise, float32 [512, 512, 3] in 0..1."""
    coarse = torch.from_numpy(generator.random((1, 3, 512 // scale, 512 // scale)))
    padded = torch.nn.functional.pad(coarse, (2, 2, 2, 2), mode="circular")
    fine = torch.nn.functional.interpolate(padded, scale_factor=scale, mode="bicubic")
    inside = fine[0, :, 2 * scale : -2 * scale, 2 * scale : -2 * scale]
    return inside.permute(1, 2, 0).numpy().clip(0, 1).astype(np.float32)


def _picture(
    generator: np.random.Generator,
    layers: Sequence[NDArray[np.float32]],
    speeds: NDArray[np.float64],
    number: int,
) -> av.VideoFrame:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
    for place, (layer, speed) in enumerate(zip(layers, speeds, strict=True)):
        shift = np.rint(speed * number).astype(int)
        moved = np.roll(layer, shift, axis=(0, 1))[:HEIGHT, :WIDTH]
        # Each layer but the last is seen through holes of the next.
        image = moved if place == 0 else np.where(moved[..., :1] > 0.55, moved, image)
    noisy = image * 200 + 20 + generator.normal(0, 2.0, (HEIGHT, WIDTH, 1))
    return av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), "rgb24")


def read_ours(info: VideoInfo, indices: NDArray[np.int64]) -> Frames:
    """`decode_frames` with what the manifest knows."""
    return decode_frames(info, indices)


def read_pyav(info: VideoInfo, indices: NDArray[np.int64]) -> Frames:
    """Seek to the key frame before the clip, decode everything to its end, convert what is asked.

    It is told the timestamps of a constant rate, which a plain program would assume.
    """
    ticks = round(1 / (info.fps * float(info.time_base)))
    wanted = {info.start_pts + int(number) * ticks: int(number) for number in indices}
    found: dict[int, Frames] = {}
    with av.open(info.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(min(wanted), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                found[wanted[frame.pts]] = frame.to_ndarray(format="rgb24")
                if len(found) == len(wanted):
                    break
    return np.stack([found[int(number)] for number in indices])


def _peers() -> dict[str, Callable[[VideoInfo, NDArray[np.int64]], Frames]]:
    readers: dict[str, Callable[[VideoInfo, NDArray[np.int64]], Frames]] = {"pyav": read_pyav}
    try:
        import decord
    except ImportError:
        print("decord is not installed: left out")
    else:

        def read_decord(info: VideoInfo, indices: NDArray[np.int64]) -> Frames:
            return decord.VideoReader(info.path, num_threads=1).get_batch(indices).asnumpy()

        readers["decord"] = read_decord
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:
        print(f"torchcodec cannot be used: left out ({str(error).splitlines()[0]})")
        return readers
    for mode in ("exact", "approximate"):

        def read_torchcodec(
            info: VideoInfo, indices: NDArray[np.int64], mode: str = mode
        ) -> Frames:
            decoder = VideoDecoder(
                info.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode
            )
            return decoder.get_frames_at(indices.tolist()).data.numpy()

        readers[f"torchcodec {mode}"] = read_torchcodec
    return readers


def with_crop(
    read: Callable[[VideoInfo, NDArray[np.int64]], Frames], config: TransformConfig
) -> Callable[[VideoInfo, NDArray[np.int64], NDArray[np.int64]], None]:
    """A peer's way to finished clips: all frames of the clips at once, then the same crops."""
    size = config.crop_size

    def finish(info: VideoInfo, clips: NDArray[np.int64], ordinals: NDArray[np.int64]) -> None:
        unique, places = np.unique(clips, return_inverse=True)
        source = FrameSource(read(info, unique))
        plans = [
            replace(plan, frames=frames)
            for plan, frames in zip(
                plan_training(ClipConfig(), config, source, 0, ordinals),
                places.reshape(clips.shape),
                strict=True,
            )
        ]
        cut(source, plans, torch.empty(len(clips), 3, 16, size, size, dtype=torch.uint8))

    return finish


def our_crop(config: TransformConfig) -> Callable[..., None]:
    """Our way to finished clips: what a loader's worker does."""
    size = config.crop_size

    def finish(info: VideoInfo, clips: NDArray[np.int64], ordinals: NDArray[np.int64]) -> None:
        recipe = TrainingClips(ClipConfig(clips_per_video=len(clips)), config, 0, 4.0)
        out = torch.empty(len(clips), 3, 16, size, size, dtype=torch.uint8)
        recipe.cut(VideoSource(info), ordinals, out)

    return finish


def measure(
    case: Case, readers: dict[str, Callable], clock: Callable[[], float], crop: bool
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each reader for each pass over the file: float64 [passes] by reader."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    num_clips = case.clips.shape[1]
    for number, clips in enumerate(case.clips):
        # Whoever reads a clip first may pay for cold caches: everybody is first equally often.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            ordinals = np.arange(number * num_clips, (number + 1) * num_clips)
            began = clock()
            if crop:
                readers[name](case.info, clips, ordinals)
            else:
                readers[name](case.info, np.unique(clips))
            seconds[name].append(clock() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def compare_pixels(case: Case, readers: dict[str, Callable], passes: int) -> dict[str, int]:
    """Largest difference of each reader's frames from ours, in grey levels."""
    worst = dict.fromkeys(readers, 0)
    for clips in case.clips[:passes]:
        indices = np.unique(clips)
        ours = read_ours(case.info, indices).astype(np.int16)
        for name, read in readers.items():
            difference = np.abs(read(case.info, indices).astype(np.int16) - ours)
            worst[name] = max(worst[name], int(difference.max()))
    return worst


def draw_clips(info: VideoInfo, passes: int, num_clips: int) -> NDArray[np.int64]:
    """Random clips, 16 frames over a window of 64: int64 [passes, num_clips, T]."""
    starts = uniforms(0, "clip start", np.arange(passes * num_clips), 1)[:, 0]
    drawn = [clip_indices(ClipConfig(), info.num_frames, info.fps, u) for u in starts]
    return np.stack(drawn).reshape(passes, num_clips, -1)


def report(case: Case, stage: str, seconds: dict[str, NDArray[np.float64]]) -> list[dict]:
    """One row for each reader; ratios are medians over passes of peer / ours, pass by pass."""
    rows = []
    num_clips = case.clips.shape[1]
    for name, values in seconds.items():
        ratio = values / seconds[OURS]
        rows.append(
            {
                "file": case.name,
                "stage": stage,
                "clips_in_one_pass": num_clips,
                "reader": name,
                "median_ms_per_clip": round(float(np.median(values)) * 1e3 / num_clips, 2),
                "mean_ms_per_clip": round(float(values.mean()) * 1e3 / num_clips, 2),
                "median_ratio_to_ours": round(float(np.median(ratio)), 3),
                "ratio_of_means": round(float(values.mean() / seconds[OURS].mean()), 3),
            }
        )
        row = rows[-1]
        print(
            f"{case.name:>16} {stage:>7} {num_clips:>5} {name:>22} {row['median_ms_per_clip']:>10}"
            f" {row['mean_ms_per_clip']:>9} {row['median_ratio_to_ours']:>12}"
            f" {row['ratio_of_means']:>10}"
        )
    return rows


def main() -> None:
    """Make the files, check the pixels, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=40, help="readings of each file")
    parser.add_argument("--frames", type=int, default=300, help="length of the videos made")
    parser.add_argument("--gops", type=int, nargs="+", default=[250, 12])
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 4], help="clips in one pass")
    parser.add_argument("--video", type=Path, nargs="*", default=[], help="read these instead")
    parser.add_argument("--wall", action="store_true", help="wall-clock instead of CPU time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.perf_counter if args.wall else time.process_time
    peers = _peers()
    config = TransformConfig()
    rows: list[dict] = []
    worst: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {path.name: path for path in args.video} or {
            f"GOP {gop}": write_video(Path(folder) / f"{gop}.mp4", gop, args.frames, 1)
            for gop in args.gops
        }
        print(
            f"{'file':>16} {'stage':>7} {'clips':>5} {'reader':>22} {'median ms':>10}"
            f" {'mean ms':>9} {'x ours (med)':>12} {'(means)':>10}"
        )
        for name, path in files.items():
            info = inspect_file(str(path))
            if not (info.ok and info.time_base and info.constant_rate):
                parser.error(f"{path}: the peers need readable frames at a constant rate")
            for num_clips in args.clips:
                case = Case(name, info, draw_clips(info, args.passes, num_clips))
                found = compare_pixels(case, peers, 4)
                worst[f"{name}, {num_clips}"] = found
                readers = {OURS: read_ours, **peers}
                rows += report(case, "frames", measure(case, readers, clock, crop=False))
                cuts = {key: with_crop(read, config) for key, read in peers.items()}
                cuts = {OURS: our_crop(config), **cuts}
                rows += report(case, "clip", measure(case, cuts, clock, crop=True))
    print(f"largest difference of a pixel from ours: {worst}")
    machine = {"cpu": platform.processor() or platform.machine(), "pyav": av.__version__}
    unit = "wall" if args.wall else "CPU"
    print(json.dumps({"benchmark": "decode", "time": unit, "machine": machine, "rows": rows}))


if __name__ == "__main__":
    main()
