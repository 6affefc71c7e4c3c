"""The clip that an evaluated video is seen through: one per video, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clip_sampling import ClipConfig
from vjepa.data.video_info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.clip_reading import (
    CentreClip,
    ClipReader,
    ReadFailure,
    ReadingConfig,
    ViewConfig,
)
from vjepa.evaluation.features import BadVideo, ClipRows

if TYPE_CHECKING:
    from vjepa.data import Manifest

OnBadVideo = Literal["error", "list"]


def read_centre_clip(info: VideoInfo, clip: ClipConfig, view: ViewConfig) -> Tensor:
    """The clip around the middle of one video, centre crop: nothing random.

    Args:
        info: A manifest row, or what probing a file has found.
        clip: Which frames.
        view: Which part of them.

    Returns:
        uint8 [C, T, S, S], RGB.

    Raises:
        DecodeError: The frames cannot be had.
    """
    read = CentreClip(clip, view)(info)
    if isinstance(read, ReadFailure):
        raise DecodeError(info.path, read.reason)
    return torch.from_numpy(read)


class EvaluationClips:
    """The clips of a manifest in row order. A context manager: it may hold worker processes.

    Attributes:
        rows: int64 [n], ascending: the manifest rows that are read.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipConfig,
        view: ViewConfig,
        reading: ReadingConfig,
        *,
        rows: NDArray[np.int64] | None = None,
        on_bad_video: OnBadVideo = "error",
    ) -> None:
        """Read nothing yet.

        Args:
            manifest: The videos, also those that the manifest knows to be bad.
            clip, view: What is seen of each.
            reading: Workers.
            rows: int64 [n], ascending; None reads all rows.
            on_bad_video: ``error`` stops at the first video that cannot be read; ``list`` leaves it
                out and reports it. It is never replaced by another video.
        """
        self.rows = np.arange(len(manifest), dtype=np.int64) if rows is None else rows
        self._manifest, self._clip, self._view = manifest, clip, view
        self._on_bad_video = on_bad_video
        self._reader = ClipReader(manifest, CentreClip(clip, view), reading)

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
        rows = self.rows[start:stop]
        clips = self._reader.read(rows, ahead=2 * batch_size)
        for first in range(0, len(rows), batch_size):
            yield self._collect(rows[first : first + batch_size], clips)

    def _collect(
        self, rows: NDArray[np.int64], clips: Iterator[NDArray[np.uint8] | ReadFailure]
    ) -> ClipRows:
        size = self._view.crop_size
        out = torch.empty(len(rows), 3, self._clip.num_frames, size, size, dtype=torch.uint8)
        good: list[int] = []
        bad: list[BadVideo] = []
        for row, clip in zip(rows.tolist(), clips, strict=False):
            if isinstance(clip, ReadFailure):
                bad.append(self._refuse(row, clip.reason))
            else:
                out[len(good)] = torch.from_numpy(clip)
                good.append(row)
        return ClipRows(np.array(good, dtype=np.int64), out[: len(good)], tuple(bad))

    def _refuse(self, row: int, reason: str) -> BadVideo:
        path = self._manifest.path(row)
        if self._on_bad_video == "error":
            raise UserError(
                f"{path}: cannot be evaluated ({reason}); mend it, take it out of the manifest, or "
                "set on_bad_video: list"
            )
        return BadVideo(row, path, reason)

    def close(self) -> None:
        """End the worker processes. Safe to call twice."""
        self._reader.close()

    def __enter__(self) -> Self:
        """Nothing starts before the first batch."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
