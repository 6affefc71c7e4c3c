"""Tiny videos and manifests for the tests of sampler, loader and cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.info import VideoInfo
from vjepa.data.video.inspect import inspect_file


def write_video(
    path: Path, *, num_frames: int = 24, height: int = 32, width: int = 48, seed: int = 0
) -> Path:
    """A video of smooth random pictures that change from frame to frame, 12 frames per second."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 16
    phases = rng.uniform(0, 6, size=(3, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(12))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(num_frames):
            waves = [
                np.sin(rows * (1 + seed % 3) + a + number / 3) * np.cos(columns + b - number / 5)
                for a, b in phases
            ]
            picture = (np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def make_manifest(
    folder: Path,
    count: int,
    *,
    num_frames: int | Sequence[int] = 24,
    height: int = 32,
    width: int = 48,
    labels: Sequence[str | None] | None = None,
) -> Manifest:
    """A manifest of `count` videos, written into `folder`."""
    lengths = [num_frames] * count if isinstance(num_frames, int) else list(num_frames)
    rows = []
    for number in range(count):
        file = write_video(
            folder / f"video_{number}.mp4",
            num_frames=lengths[number],
            height=height,
            width=width,
            seed=number,
        )
        names = {} if labels is None else {"motion": labels[number]}
        rows.append(ManifestRow(info=inspect_file(str(file)), labels=names))
    return Manifest.from_rows(rows, folder)


def rows_of(manifest: Manifest) -> list[VideoInfo]:
    """What the manifest knows of each file."""
    return [manifest.row(row) for row in range(len(manifest))]


def with_rows(manifest: Manifest, infos: Sequence[VideoInfo], folder: Path) -> Manifest:
    """The manifest with further rows behind."""
    rows = [*rows_of(manifest), *infos]
    return Manifest.from_rows([ManifestRow(info=info) for info in rows], folder)


def damaged(folder: Path, name: str = "damaged.mp4") -> VideoInfo:
    """A row whose file was good when indexed and is rubbish of the same size now."""
    file = write_video(folder / name, seed=99)
    info = inspect_file(str(file))
    file.write_bytes(os.urandom(info.bytes))
    return info


def hanging(folder: Path, name: str = "hanging.mp4") -> VideoInfo:
    """A row whose file never gives a byte: a pipe that nobody writes to.

    Opening it blocks inside the system, as a dead network disk does.
    """
    file = write_video(folder / f"good_{name}", seed=98)
    good = inspect_file(str(file))
    pipe = folder / name
    os.mkfifo(pipe)
    fields = {field: getattr(good, field) for field in VideoInfo.__slots__}
    stat = pipe.stat()
    changed = {"path": str(pipe), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return VideoInfo(**fields | changed)
