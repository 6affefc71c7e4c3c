"""Clips of videos by number: random for training, views for evaluation, one for people.

A file that hangs or crashes its decoder costs itself and nothing else: the worker process that
reads it is given up after a time limit and the file counts as bad.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vjepa.config import config_dataclass
from vjepa.counter_random import uniforms
from vjepa.data.clips.augment import AugmentConfig, draw_clips, plan_augmented
from vjepa.data.clips.crops import NUM_UNIFORMS, TransformConfig
from vjepa.data.clips.cut import cut
from vjepa.data.clips.plan import ClipConfig, indices_from, plan_training, segment_indices
from vjepa.data.clips.source import FrameSource, Source, VideoSource
from vjepa.data.clips.views import ViewConfig, plan_views
from vjepa.data.video.info import NO_CLOCK, DecodeError, StageClock, VideoInfo
from vjepa.errors import UserError
from vjepa.runtime.workers import WorkerPool

if TYPE_CHECKING:
    from vjepa.data.frame_cache import FrameCache
    from vjepa.data.manifest.manifest import Manifest


_CHANNELS = 3

OnBadVideo = Literal["error", "list"]


@dataclass(frozen=True)
class TrainingClips:
    """Random clips; all that is random about one is a pure function of (seed, ordinal)."""

    clip: ClipConfig
    transform: TransformConfig
    seed: int
    max_gigabytes: float  # that the decoded frames of one opened video may take

    def cut(
        self,
        source: Source,
        ordinals: NDArray[np.int64],
        out: Tensor,
        clock: StageClock = NO_CLOCK,
    ) -> None:
        """Write the clips of n samples that share a video (or DecodeError) to `out`.

        `ordinals` are int64 [n], `out` uint8 [n, C, T, S, S].
        """
        clock.enter("seek")
        starts = uniforms(self.seed, "clip start", ordinals, 1)[:, 0]
        crop_u = uniforms(self.seed, "crop", ordinals, NUM_UNIFORMS)
        try:
            plans = plan_training(self.clip, self.transform, source, starts, crop_u)
        except ValueError as error:
            raise DecodeError(source.path, str(error)) from error
        pixels = sum(len(plan.frames) * plan.box[2] * plan.box[3] for plan in plans if plan.box)
        gigabytes = pixels * _CHANNELS / 1e9
        if gigabytes > self.max_gigabytes:
            raise DecodeError(
                source.path,
                f"{len(plans) * self.clip.num_frames} frames of {source.width}x{source.height} "
                f"take {gigabytes:.1f} GB, loader.max_clip_gigabytes is {self.max_gigabytes:g}",
            )
        cut(source, plans, out, clock)


@dataclass(frozen=True)
class ViewRequest:
    """One video to be read; random views depend on its row in the manifest and on the pass."""

    info: VideoInfo
    row: int = 0
    pass_index: int = 0

    def __str__(self) -> str:
        return self.info.path


@dataclass(frozen=True)
class ClipViews:
    """All clips through which a probe sees a video; picklable, as workers call it."""

    clip: ClipConfig
    view: ViewConfig
    augment: AugmentConfig | None = None  # None or policy `none`: nothing is random

    @property
    def clips_per_video(self) -> int:
        """R: for random views one crop of each segment."""
        return self.view.clips_per_video if self._policy is None else self.view.num_segments

    @property
    def _policy(self) -> AugmentConfig | None:
        is_random = self.augment is not None and self.augment.policy != "none"
        return self.augment if is_random else None

    def __call__(
        self, request: ViewRequest, source: Source | None = None
    ) -> NDArray[np.uint8] | str:
        """Read one video, or take it from `source`: uint8 [R, C, T, S, S], RGB, or why not."""
        try:
            opened = source or VideoSource(request.info)
            return self.read(opened, request.row, request.pass_index)
        except DecodeError as error:
            return error.reason

    def read(self, source: Source, row: int = 0, pass_index: int = 0) -> NDArray[np.uint8]:
        """The clips of one video, uint8 [R, C, T, S, S] in RGB, or DecodeError."""
        view, augment = self.view, self._policy
        try:
            if augment is None:
                plans = plan_views(self.clip, view, source)
            else:
                draws = draw_clips(augment.seed, row, pass_index, view.num_segments)
                plans = plan_augmented(self.clip, view, augment, source, draws)
        except ValueError as error:  # too short, without frames, or of an unknown rate
            raise DecodeError(source.path, str(error)) from error
        size = (view.crop_size, view.crop_size)
        out = torch.empty(len(plans), _CHANNELS, self.clip.num_frames, *size, dtype=torch.uint8)
        cut(source, plans, out)
        return out.numpy()


@config_dataclass
class ReadingConfig:
    """How evaluation clips get from files into memory. Nothing here changes a pixel."""

    num_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode; 0 decodes in this process, without a watchdog for files that hang."""
    sample_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A video that takes longer is given up and its worker process killed."""
    frame_cache_gigabytes: Annotated[float, Field(ge=0)] = 0.0
    """Decode every video once for all runs and keep its frames on disk, if the manifest's take no
    more than this, in GB; 0: off. Pays where several encoders are compared on small videos."""
    frame_cache_folder: Path | None = None
    """Where such frames are kept; null: the user's cache folder."""


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be evaluated, listed in the result and never replaced by another."""

    row: int
    path: str
    reason: str


@dataclass(frozen=True)
class ClipRows:
    """Clips of some manifest rows, as the encoder's input is made from them."""

    rows: NDArray[np.int64]  # [B], without those in `bad`
    clips: Tensor  # uint8 [B, R, C, T, S, S], RGB; empty when there is no row
    bad: tuple[BadVideo, ...] = ()


class EvaluationClips(AbstractContextManager):
    """The clips of manifest rows, int64 [n] `rows`, in order; it may hold worker processes."""

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
        """Read nothing yet; `rows` None means all, also those that are known to be bad.

        `on_bad_video`: ``error`` stops at the first video that cannot be read, ``list`` leaves it
        out and reports it. `pass_index` is the pass over the data that :meth:`batches` gives.
        """
        self.rows = np.arange(len(manifest), dtype=np.int64) if rows is None else rows
        self._manifest, self._on_bad_video, self._pass_index = manifest, on_bad_video, pass_index
        self._views, self._reading = ClipViews(clip, view, augment), reading
        self._pool: WorkerPool | None = None
        self._cache: FrameCache | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, row: int) -> str:
        """The file of a manifest row."""
        return self._manifest.path(row)

    @property
    def clips_per_video(self) -> int:
        """R, clips of each video."""
        return self._views.clips_per_video

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[ClipRows]:
        """Clips of ``rows[start:stop]``, `batch_size` rows at a time."""
        wanted = [(row, self._pass_index) for row in self.rows[start:stop].tolist()]
        firsts = range(0, len(wanted), batch_size)
        return self.stream([wanted[first : first + batch_size] for first in firsts], 2 * batch_size)

    def stream(
        self, batches: Iterable[Sequence[tuple[int, int]]], ahead: int
    ) -> Iterator[ClipRows]:
        """The clips of any rows in any passes, a batch at a time, read ahead over their ends.

        `batches` gives for each the (manifest row, pass) of its samples and may never end; up to
        `ahead` videos wait to be used. UserError: a video is bad, and such are not to be listed.
        """
        to_read, to_collect = itertools.tee(batches)
        requests = (
            ViewRequest(self._manifest.row(row), row, pass_index)
            for row, pass_index in itertools.chain.from_iterable(to_read)
        )
        read = self._read(requests, ahead)
        for batch in to_collect:
            good: list[int] = []
            clips: list[Tensor] = []
            bad: list[BadVideo] = []
            for (row, _), found in zip(batch, read, strict=False):
                if not isinstance(found, str):
                    good.append(row)
                    clips.append(torch.from_numpy(found))
                    continue
                bad.append(BadVideo(row, self.path(row), found))
                if self._on_bad_video == "error":
                    raise UserError(
                        f"{self.path(row)}: cannot be evaluated ({found}); mend it, take it out of "
                        "the manifest, or set on_bad_video: list"
                    )
            stacked = torch.stack(clips) if clips else torch.empty(0, dtype=torch.uint8)
            yield ClipRows(np.array(good, dtype=np.int64), stacked, tuple(bad))

    def _read(
        self, requests: Iterator[ViewRequest], ahead: int
    ) -> Iterator[NDArray[np.uint8] | str]:
        """The clips of videos, or why there are none, in the order of the requests."""
        # Arrow may be missing where only models are used.
        from vjepa.data.frame_cache import open_frame_caches

        reading = self._reading
        if reading.frame_cache_gigabytes == 0:
            if self._pool is None:
                self._pool = WorkerPool(
                    self._views, reading.num_workers, reading.sample_timeout_seconds
                )
            for _, outcome in self._pool.map(requests, max(1, ahead)):
                yield outcome.value if outcome.kind == "done" else outcome.reason
            return
        if self._cache is None:
            self._cache = open_frame_caches(
                [self._manifest],
                reading.frame_cache_folder,
                reading.frame_cache_gigabytes,
                None,
                max(1, reading.num_workers),
                reading.sample_timeout_seconds,
            )[0]
        for request in requests:
            failure = self._cache.failure(request.row)
            yield failure[0] if failure else self._views(request, self._cache.source(request.row))

    def close(self) -> None:
        """End the worker processes. Safe to call twice."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __exit__(self, *_: object) -> None:
        self.close()


def centre_view(
    source: str | os.PathLike[str] | VideoInfo | NDArray[np.uint8],
    clip: ClipConfig,
    view: ViewConfig,
) -> Tensor:
    """The clip around the middle of one video, centre crop: nothing random.

    `source` is a video, image or folder of images; what probing it has found; or its frames, uint8
    [L, H, W, C], of which as many as a clip has are taken as they are. Returns uint8 [T, C, S, S],
    RGB. DecodeError: the frames cannot be had; UserError: an array that cannot be frames.
    """
    opened: Source
    view = replace(view, num_segments=1, num_views=1)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 4 or source.shape[-1] != 3 or not len(source):
            raise UserError(
                f"frames must be uint8 [T, H, W, 3] in RGB, 0 to 255, got {source.dtype} "
                f"{list(source.shape)}: bring them into this form"
            )
        opened = FrameSource(source, path="the frames given")
        if len(source) == clip.num_frames:
            clip = replace(clip, stride=1, fps=None, clip_seconds=None, sampling="exact")
            view = replace(view, placement="centre")
    elif isinstance(source, VideoInfo):
        opened = VideoSource(source)
    else:
        from vjepa.data.video.inspect import inspect_file

        opened = VideoSource(inspect_file(os.fspath(source)))
    return torch.from_numpy(ClipViews(clip, view).read(opened)[0]).transpose(0, 1)


@dataclass(frozen=True)
class Clip:
    """Frames of a video and when they are shown."""

    frames: Tensor  # uint8 [T, C, H, W], RGB, 0..255, upright, at the file's size
    times: NDArray[np.float64]  # [T], seconds since the first frame of the video


def load_clip(
    path: str | os.PathLike[str],
    num_frames: int = 16,
    stride: int | None = 4,
    start_seconds: float | None = None,
    fps: float | None = None,
) -> Clip:
    """Read one clip of a video, image or folder of frames.

    Where the video ends before the clip, the last frame is repeated.

    Args:
        path: The file or folder.
        num_frames: T.
        stride: Spacing in frames, as in pretraining (16 frames over a window of 64).
        start_seconds: Where the clip begins; None takes the clip around the video's middle.
        fps: Spacing by time instead of `stride`: frames of the clip per second of video.

    Raises:
        UserError: The file cannot be read, or the clip would begin outside the video.
    """
    # PyAV and Arrow may be missing where only models are used.
    from vjepa.data.video.decode import decode_clip
    from vjepa.data.video.inspect import inspect_file

    try:
        config = ClipConfig(num_frames=num_frames, stride=None if fps else stride, fps=fps)
    except ValueError as error:
        raise UserError(f"load_clip: {error}") from error
    try:
        info = inspect_file(os.fspath(path))
        video = VideoSource(info)
        times = video.times if config.is_by_time else None
        if start_seconds is None:
            frames = segment_indices(config, info.num_frames, info.fps, 1, times=times)[0]
        elif 0 <= round(start_seconds * info.fps) < info.num_frames:
            frames = indices_from(config, info.num_frames, info.fps, start_seconds, times)
        else:
            raise UserError(
                f"start_seconds {start_seconds:g}: {info.path} runs from 0 to "
                f"{info.duration_seconds:.3g} s"
            )
        decoded = decode_clip(info, frames)
    except DecodeError as error:
        raise UserError(f"{error.path}: {error.reason}; give another file") from error
    return Clip(torch.from_numpy(decoded.frames).permute(0, 3, 1, 2), decoded.times)
