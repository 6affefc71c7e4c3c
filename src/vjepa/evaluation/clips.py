"""The clips that a video is seen through: for evaluation the same every time, never random."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.data.clip_sampling import ClipConfig
from vjepa.data.video_info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.augment import AugmentConfig
from vjepa.evaluation.clip_reading import (
    ClipReader,
    ClipViews,
    ReadFailure,
    ReadingConfig,
    ViewConfig,
    ViewRequest,
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
    read = ClipViews(clip, replace(view, num_segments=1, num_views=1))(ViewRequest(info))
    if isinstance(read, ReadFailure):
        raise DecodeError(info.path, read.reason)
    return torch.from_numpy(read[0])


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
        augment: AugmentConfig | None = None,
        pass_index: int = 0,
    ) -> None:
        """Read nothing yet.

        Args:
            manifest: The videos, also those that the manifest knows to be bad.
            clip, view: What is seen of each.
            reading: Workers.
            rows: int64 [n], ascending; None reads all rows.
            on_bad_video: ``error`` stops at the first video that cannot be read; ``list`` leaves it
                out and reports it. It is never replaced by another video.
            augment: What is random about the clips, for training.
            pass_index: Which pass over the data :meth:`batches` gives.
        """
        self.rows = np.arange(len(manifest), dtype=np.int64) if rows is None else rows
        self._manifest, self._on_bad_video, self._pass_index = manifest, on_bad_video, pass_index
        self._task = ClipViews(clip, view, augment)
        self._reader = ClipReader(manifest, self._task, reading)

    def __len__(self) -> int:
        """Number of rows n."""
        return len(self.rows)

    def path(self, row: int) -> str:
        """The file of a manifest row."""
        return self._manifest.path(row)

    @property
    def clips_per_video(self) -> int:
        """R, clips of each video."""
        return self._task.clips_per_video

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[ClipRows]:
        """Clips of ``rows[start:stop]``, `batch_size` rows at a time.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed.
        """
        rows = self.rows[start:stop]
        read = self._reader.read(((row, self._pass_index) for row in rows.tolist()), 2 * batch_size)
        for first in range(0, len(rows), batch_size):
            yield self._collect(rows[first : first + batch_size], read)

    def stream(
        self, batches: Iterable[Sequence[tuple[int, int]]], ahead: int
    ) -> Iterator[ClipRows]:
        """The clips of any rows in any passes, a batch at a time, read ahead over their ends.

        Args:
            batches: For each batch the (manifest row, number of the pass) of its samples.
            ahead: How many videos may wait to be used.

        Raises:
            UserError: As :meth:`batches`.
        """
        to_read, to_collect = itertools.tee(batches)
        read = self._reader.read(itertools.chain.from_iterable(to_read), ahead)
        for batch in to_collect:
            yield self._collect(np.array([row for row, _ in batch], dtype=np.int64), read)

    def _collect(
        self, rows: NDArray[np.int64], read: Iterator[NDArray[np.uint8] | ReadFailure]
    ) -> ClipRows:
        good: list[int] = []
        clips: list[Tensor] = []
        bad: list[BadVideo] = []
        for row, found in zip(rows.tolist(), read, strict=False):
            if isinstance(found, ReadFailure):
                bad.append(self._refuse(row, found.reason))
            else:
                clips.append(torch.from_numpy(found))
                good.append(row)
        stacked = torch.stack(clips) if clips else torch.empty(0, dtype=torch.uint8)
        return ClipRows(np.array(good, dtype=np.int64), stacked, tuple(bad))

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
