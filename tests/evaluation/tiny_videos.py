"""A small labelled video set, written as real files in a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vjepa.data.manifest.manifest import Manifest, ManifestRow
from vjepa.data.video.inspect import inspect_file

SIZE = 32
FRAMES = 10
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_video(path: Path, frames: NDArray[np.uint8], fps: int = 10) -> None:
    """Encode uint8 [T, H, W, 3] as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def coloured_frames(colour: str, seed: int) -> NDArray[np.uint8]:
    """A coloured square that wanders over noise: uint8 [T, H, W, 3]."""
    generator = np.random.default_rng(seed)
    frames = generator.integers(90, 150, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    top, left = generator.integers(0, SIZE // 2, 2)
    for number, frame in enumerate(frames):
        row = (top + number) % (SIZE // 2)
        frame[row : row + 14, left : left + 14] = COLOURS[colour]
    return frames


def make_set(folder: Path, counts: dict[str, int]) -> Path:
    """Write videos of three colours in turn for each split, and their manifest.

    Labels: ``colour`` (red, green, blue) and ``parity`` (even, odd: not to be seen in the video).
    """
    rows: list[ManifestRow] = []
    for split, count in counts.items():
        for number in range(count):
            colour = list(COLOURS)[number % 3]
            path = folder / f"{split}_{number:03d}.mp4"
            write_video(path, coloured_frames(colour, len(rows)))
            labels = {"colour": colour, "parity": "odd" if number % 2 else "even"}
            rows.append(ManifestRow(info=inspect_file(str(path)), split=split, labels=labels))
    return write_manifest(rows, folder / "manifest.parquet")


def write_manifest(rows: list[ManifestRow], path: Path) -> Path:
    """Write rows as a manifest."""
    Manifest.from_rows(rows, path.parent).write(path)
    return path


def with_bad_video(manifest: Path, split: str, target: Path, *, is_known: bool = False) -> str:
    """A copy of a manifest whose first row of a split points to a truncated file; its path.

    Where it `is_known` the row says so.
    """
    opened = Manifest.open(manifest)
    rows: list[ManifestRow] = []
    broken = ""
    splits = opened.table.column("split").to_pylist()
    labels = {name: opened.labels(name) for name in opened.label_names}
    for row in range(len(opened)):
        info = opened.row(row)
        if splits[row] == split and not broken:
            broken = str(target.parent / "broken.mp4")
            Path(broken).write_bytes(Path(info.path).read_bytes()[:300])
            info = replace(info, path=broken)
            info = replace(info, ok=False, reason="truncated") if is_known else info
        named = {name: values[row] for name, values in labels.items()}
        rows.append(ManifestRow(info=info, split=splits[row], labels=named))
    write_manifest(rows, target)
    return broken
