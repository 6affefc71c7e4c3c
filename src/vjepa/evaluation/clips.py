"""The clip that an evaluated video is seen through: one per video, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clip_sampling import ClipConfig, ShortVideoError, segment_indices
from vjepa.data.transforms import Resize, center_crop_clip
from vjepa.data.video_info import DecodeError
from vjepa.errors import UserError
from vjepa.evaluation.features import BadVideo, ClipRows

if TYPE_CHECKING:
    from vjepa.data import Manifest
    from vjepa.data.video_info import VideoInfo

OnBadVideo = Literal["error", "list"]


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The centre view of an evaluated clip."""

    crop_size: int = 224
    """Height and width of the crop, in pixels."""
    short_side: int | None = None
    """Length that the frame's short side is brought to first, in pixels; null: 256/224 of
    `crop_size`, as in the paper's evaluation with one view."""
    resize: Resize = "antialias"
    """`antialias`: bilinear with antialias; `reference`: without it, as the released code."""

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"crop_size: must be at least 1, got {self.crop_size}")
        if self.short_side is not None and self.short_side < self.crop_size:
            raise ValueError(
                f"short_side: {self.short_side} is smaller than crop_size {self.crop_size}"
            )


def read_centre_clip(info: VideoInfo, clip: ClipConfig, view: ViewConfig) -> Tensor:
    """The clip around the middle of a video, centre crop: nothing random.

    Args:
        info: A manifest row.
        clip: Which frames.
        view: Which part of them.

    Returns:
        uint8 [C, T, S, S], RGB.

    Raises:
        DecodeError: The frames cannot be had.
    """
    from vjepa.data.decode import decode_frames

    if not info.ok:
        raise DecodeError(info.path, info.reason or "marked as bad in the manifest")
    try:
        indices = segment_indices(clip, info.num_frames, info.fps, 1, "centre")[0]
    except ShortVideoError as error:
        raise DecodeError(info.path, str(error)) from error
    frames = decode_frames(info, indices)
    return center_crop_clip(frames, view.crop_size, view.resize, view.short_side)


class EvaluationClips:
    """The clips of a manifest in row order, read by a few threads ahead of the encoder.

    Attributes:
        rows: int64 [n], ascending: the manifest rows that are read.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipConfig,
        view: ViewConfig,
        *,
        rows: NDArray[np.int64] | None = None,
        on_bad_video: OnBadVideo = "error",
        num_threads: int = 2,
    ) -> None:
        """Read nothing yet.

        Args:
            manifest: The videos, also those that the manifest knows to be bad.
            clip, view: What is seen of each.
            rows: int64 [n], ascending; None reads all rows.
            on_bad_video: ``error`` stops at the first video that cannot be read; ``list`` leaves it
                out and reports it. It is never replaced by another video.
            num_threads: How many videos are read at a time (decoding releases Python's lock).
        """
        self.rows = np.arange(len(manifest), dtype=np.int64) if rows is None else rows
        self._manifest, self._clip, self._view = manifest, clip, view
        self._on_bad_video, self._num_threads = on_bad_video, num_threads

    def __len__(self) -> int:
        """Number of rows n."""
        return len(self.rows)

    def path(self, row: int) -> str:
        """The file of a manifest row."""
        return self._manifest.path(row)

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[ClipRows]:
        """Clips of ``rows[start:stop]``, `batch_size` rows at a time.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed.
        """
        groups = [
            self.rows[first : min(first + batch_size, stop)]
            for first in range(start, stop, batch_size)
        ]
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="evaluation-clip")
        try:
            waiting: list[list[Future[Tensor | BadVideo]]] = []
            for index, rows in enumerate(groups):
                while len(waiting) < min(2, len(groups) - index):
                    ahead = groups[index + len(waiting)]
                    waiting.append([pool.submit(self._read, int(row)) for row in ahead])
                yield self._collect(rows, [future.result() for future in waiting.pop(0)])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, row: int) -> Tensor | BadVideo:
        try:
            return read_centre_clip(self._manifest.row(row), self._clip, self._view)
        except DecodeError as error:
            if self._on_bad_video == "error":
                raise UserError(
                    f"{error.path}: cannot be evaluated ({error.reason}); mend it, take it out of "
                    "the manifest, or set on_bad_video: list"
                ) from error
            return BadVideo(row, error.path, error.reason)

    def _collect(self, rows: NDArray[np.int64], read: list[Tensor | BadVideo]) -> ClipRows:
        clips = [item for item in read if isinstance(item, Tensor)]
        bad = tuple(item for item in read if isinstance(item, BadVideo))
        good = [row for row, item in zip(rows, read, strict=True) if isinstance(item, Tensor)]
        size = self._view.crop_size
        stacked = (
            torch.stack(clips)
            if clips
            else torch.empty(0, 3, self._clip.num_frames, size, size, dtype=torch.uint8)
        )
        return ClipRows(np.array(good, dtype=np.int64), stacked, bad)
