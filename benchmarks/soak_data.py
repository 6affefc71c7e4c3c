"""Videos and config of the soak: 40 tiny videos, of which four are bad in four ways."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.inspect import inspect_file

NUM_VIDEOS = 40


def _write_video(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:32, 0:48] / 16
    phases = rng.uniform(0, 6, size=(3, 2))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(12))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(24):
            waves = [
                np.sin(rows * (1 + seed % 3) + a + number / 3) * np.cos(columns + b - number / 5)
                for a, b in phases
            ]
            picture = (np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_videos(folder: Path) -> Path:
    """Write the videos, index them, and only then spoil every tenth one.

    Returns:
        The manifest, which takes all of them for good.
    """
    folder.mkdir(parents=True)
    files = [folder / f"video_{number:03d}.mp4" for number in range(NUM_VIDEOS)]
    rows = []
    for number, file in enumerate(files):
        _write_video(file, number)
        info = inspect_file(str(file))
        if number == 3:  # a row that never recorded a size, so that the file is opened unseen
            info = replace(info, bytes=0)
        rows.append(ManifestRow(info=info))
    files[3].unlink()
    os.mkfifo(files[3])  # whoever opens it waits for ever, as with a dead network drive
    files[13].write_bytes(files[13].read_bytes()[:400])
    files[23].write_bytes(b"this is text\n" * 1000)
    files[33].write_bytes(bytes(files[33].stat().st_size))
    manifest = folder.parent / "manifest.parquet"
    Manifest.from_rows(rows, folder).write(manifest)
    return manifest


def make_config(folder: Path, manifest: Path, args: argparse.Namespace) -> Path:
    """A pretraining config that could go on for days, for `args.ranks` processes."""
    keep_every = 100 if args.minutes < 10 else 500
    path = folder / "soak.yaml"
    path.write_text(
        f"""\
model:
  encoder: {{num_frames: 4, image_size: 32, patch_size: 8, width: 24, depth: 1, heads: 2}}
  predictor: {{width: 16, depth: 1, heads: 2, num_mask_tokens: 1}}
masking:
  masks: [{{num_blocks: 1, spatial_scale: [0.4, 0.4]}}]
data:
  sources: [{{manifest: {manifest}}}]
  batch_size: {4 * args.ranks}
  clip: {{num_frames: 4, stride: 2}}
  transform: {{crop_size: 32}}
  loader: {{num_workers: 1, prefetch_batches: 3, sample_timeout_seconds: 15,
           max_bad_fraction: 0.5}}
optim: {{steps: 1000000, warmup_steps: 100}}
training: {{device: cpu, num_threads: 1, log_every_steps: 1, checkpoint_every_steps: 20,
           keep_last: 2, keep_every_steps: {keep_every}, health_every_steps: null,
           evaluate_every_steps: null, nonfinite: skip}}
"""
    )
    return path
