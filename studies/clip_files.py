"""What the makers of labelled clips share: a new folder, and a clip as a file."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def new_folder(out: Path) -> Path:
    """`out` as an absolute path, with an empty folder `clips`; exits if it is not empty."""
    out = out.resolve()
    if out.exists() and any(out.iterdir()):
        sys.exit(f"error: {out} is not empty; name a new folder with --out")
    (out / "clips").mkdir(parents=True)
    return out


def write_clip(path: Path, frames: NDArray[np.uint8], fps: int, **options: str) -> None:
    """Frames uint8 [T, H, W, 3] as an h264 file; `options` are those of x264."""
    with av.open(str(path), "w") as container:
        settings = {"crf": "18"} | options
        stream = container.add_stream("libx264", rate=Fraction(fps), options=settings)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
