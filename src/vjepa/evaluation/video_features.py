"""Features of whole files: images, short and long videos of any size and frame rate.

The encoder runs over windows (:mod:`vjepa.data.clips.windows`); windows of several files share a
batch where their sizes agree. Tokens go to a sink as soon as no later window sees them, so that
memory does not grow with the length of a video.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.data.clips.windows import (
    FramingConfig,
    Look,
    Pool,
    ReadWindow,
    Stitcher,
    WindowConfig,
    look_at,
    read_files,
)
from vjepa.data.video.info import DecodeError, VideoInfo
from vjepa.errors import UserError
from vjepa.evaluation.frozen import encode_clips
from vjepa.models import EncoderConfig
from vjepa.models.encoder import FrameEncoder
from vjepa.runtime.device import Precision


@dataclass(frozen=True)
class FileFeatures:
    """Features of one file.

    Attributes:
        tokens: float32 [t, h, w, D]; [t, D] pooled over space; [D] pooled over the video.
        times: float64 [t], seconds from the first frame to the middle of what each tubelet shows.
        frame_numbers: int64 [t, tubelet], the source frames of each tubelet.
        grid: (t, h, w).
        box: The part of the source frame that the token grid covers: top, left, height, width, in
            source pixels.
    """

    tokens: Tensor
    times: NDArray[np.float64]
    frame_numbers: NDArray[np.int64]
    grid: tuple[int, int, int]
    box: tuple[float, float, float, float]


class FeatureSink(Protocol):
    """Takes the features of one file as they come."""

    def write(self, tokens: Tensor) -> None:
        """The next tokens, float32 on the CPU: [m, h, w, D] or [m, D]; once [D] for a video."""
        ...

    def finish(self, times: NDArray[np.float64]) -> None:
        """All tokens are written; `times` as in :class:`FileFeatures`."""
        ...

    def abandon(self) -> None:
        """The file failed: forget what was written."""
        ...


@dataclass(frozen=True)
class FileOutcome:
    """A file that is done.

    Attributes:
        index: Which of the files.
        look: How it was looked at; None when that could not be decided.
        failure: Why it failed, or None.
    """

    index: int
    look: Look | None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileEncoding:
    """How files are encoded.

    Attributes:
        window: Which frames, in which windows.
        framing: Which part of them.
        pool: ``none`` keeps every token, ``space`` the mean over each tubelet's, ``video`` the mean
            over all.
        device, precision: Where and how the encoder runs.
        batch_size: Windows per call of it.
        readers: Processes that decode; 0 decodes in this one, without a watchdog.
        timeout_seconds: A file that keeps a reader for longer, at some windows, is given up.
    """

    window: WindowConfig = field(default_factory=WindowConfig)
    framing: FramingConfig = field(default_factory=FramingConfig)
    pool: Pool = "none"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"
    batch_size: int = 8
    readers: int = 0
    timeout_seconds: float = 60.0


def extract_features(
    encoder: nn.Module,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    window: WindowConfig | None = None,
    framing: FramingConfig | None = None,
    pool: Pool = "none",
    batch_size: int = 8,
) -> FileFeatures | list[FileFeatures]:
    """Features of a file, or of several, in memory.

    Args:
        encoder: Video encoder, or image encoder, which then sees every frame alone; computes in
            the device of its weights.
        paths: One video, image or folder of frames, or a sequence of them.
        window: Which frames, in which windows; None takes every fourth frame, windows of the
            encoder's length, half overlapping.
        framing: Which part of the frames; None takes the whole frame.
        pool: As in :class:`FileEncoding`.
        batch_size: Windows per call of the encoder.

    Returns:
        The features; a list for a sequence of paths.

    Raises:
        UserError: A file cannot be read.
    """
    # PyAV may be missing where only models are used.
    from vjepa.data.video.inspect import inspect_file

    several = not isinstance(paths, (str, os.PathLike))
    every = [os.fspath(path) for path in paths] if several else [os.fspath(paths)]
    how = FileEncoding(
        window=window or WindowConfig(),
        framing=framing or FramingConfig(),
        pool=pool,
        device=next(encoder.parameters()).device,
        batch_size=batch_size,
    )
    sinks: dict[int, MemorySink] = {}

    def open_sink(index: int, look: Look) -> MemorySink:
        return sinks.setdefault(index, MemorySink(look))

    for outcome in encode_files(encoder, [inspect_file(path) for path in every], how, open_sink):
        if outcome.failure is not None:
            raise UserError(f"{every[outcome.index]}: {outcome.failure}; give another file")
    found = [sinks[index].result() for index in range(len(every))]
    return found if several else found[0]


class MemorySink:
    """Keeps the features of one file in memory."""

    def __init__(self, look: Look) -> None:
        """Hold nothing yet."""
        self._look = look
        self._parts: list[Tensor] = []
        self._times = np.zeros(0)

    def write(self, tokens: Tensor) -> None:
        """Keep them."""
        self._parts.append(tokens)

    def finish(self, times: NDArray[np.float64]) -> None:
        """Keep the times."""
        self._times = times

    def abandon(self) -> None:
        """Forget them."""
        self._parts = []

    def result(self) -> FileFeatures:
        """The features of the finished file."""
        parts = self._parts
        return FileFeatures(
            tokens=parts[0] if len(parts) == 1 else torch.cat(parts),
            times=self._times,
            frame_numbers=self._look.plan.frame_numbers,
            grid=self._look.grid,
            box=self._look.box,
        )


def encode_files(
    encoder: nn.Module,
    infos: Sequence[VideoInfo],
    how: FileEncoding,
    open_sink: Callable[[int, Look], FeatureSink],
    on_windows: Callable[[int], None] | None = None,
) -> Iterator[FileOutcome]:
    """Encode files one after the other; a file that fails costs only itself.

    Args:
        encoder: Frozen encoder with its sizes as ``config``; on the device of `how`.
        infos: What probing the files has found.
        how: The look and the computation.
        open_sink: Makes the sink of a file when its first window is there.
        on_windows: Called after each batch with the number of windows in it.

    Yields:
        One outcome for each file, in the order in which they finish.
    """
    encoder = _as_video_encoder(encoder)
    config: EncoderConfig = encoder.config  # ty: ignore[invalid-assignment]
    looks: list[Look | DecodeError] = []
    for info in infos:
        try:
            look = look_at(
                info,
                how.window,
                how.framing,
                num_frames=config.num_frames,
                tubelet_size=config.tubelet_size,
                image_size=config.image_size,
                patch_size=config.patch_size,
            )
            looks.append(look)
        except DecodeError as error:
            looks.append(error)
    batch = _Batch(encoder, how, on_windows)
    events = read_files(looks, readers=how.readers, timeout_seconds=how.timeout_seconds)
    file: _OpenFile | None = None
    was_training = encoder.training
    encoder.eval()
    try:
        for index, found in events:
            look = looks[index]
            if isinstance(found, DecodeError):
                if file is not None and file.index == index:
                    file.fail()
                seen = look if isinstance(look, Look) else None
                yield FileOutcome(index, seen, found.reason)
                continue
            assert isinstance(look, Look)
            if file is None or file.index != index:
                file = _OpenFile(index, look, how.pool, open_sink)
            yield from batch.add(file, found)
        yield from batch.run()
    finally:
        encoder.train(was_training)


class _Batch:
    """Windows that wait to be encoded together; all have one size."""

    def __init__(
        self, encoder: nn.Module, how: FileEncoding, on_windows: Callable[[int], None] | None
    ) -> None:
        self._encoder, self._how, self._on_windows = encoder, how, on_windows
        self._waiting: list[tuple[_OpenFile, ReadWindow]] = []

    def add(self, file: _OpenFile, window: ReadWindow) -> Iterator[FileOutcome]:
        if self._waiting and self._waiting[0][1].clip.shape != window.clip.shape:
            yield from self.run()
        self._waiting.append((file, window))
        if len(self._waiting) >= self._how.batch_size:
            yield from self.run()

    def run(self) -> Iterator[FileOutcome]:
        """Encode what waits, and tell which files are done with it."""
        waiting = [(file, window) for file, window in self._waiting if not file.failed]
        self._waiting = []
        if not waiting:
            return
        clips = torch.stack([window.clip for _, window in waiting])
        tokens = encode_clips(self._encoder, clips, self._how.device, self._how.precision)
        for (file, window), found in zip(waiting, tokens, strict=True):
            file.add(found, window.seconds)
            if file.is_done:
                yield FileOutcome(file.index, file.look)
        if self._on_windows is not None:
            self._on_windows(len(waiting))


class _OpenFile:
    """A file that is being encoded."""

    def __init__(
        self, index: int, look: Look, pool: Pool, open_sink: Callable[[int, Look], FeatureSink]
    ) -> None:
        self.index, self.look, self.failed = index, look, False
        self._pool = pool
        self._stitcher = Stitcher(look.plan)
        self._sink = open_sink(index, look)
        self._times = np.zeros(look.grid[0])
        self._window = 0
        self._sum: Tensor | None = None

    @property
    def is_done(self) -> bool:
        return self._stitcher.is_done

    def add(self, tokens: Tensor, seconds: NDArray[np.float64]) -> None:
        """Add the tokens [N, D] of the next window and the times [T] of its frames."""
        plan = self.look.plan
        start = plan.starts[self._window]
        self._window += 1
        middles = seconds.reshape(plan.window_tubelets, plan.tubelet_size).mean(axis=1)
        kept = min(plan.window_tubelets, len(self._times) - start)
        self._times[start : start + kept] = middles[:kept]
        done = self._stitcher.add(tokens.reshape(*self.look.window_grid, -1))
        if self._pool == "none":
            self._sink.write(done.cpu())
        elif self._pool == "space":
            self._sink.write(done.mean(dim=(1, 2)).cpu())
        else:
            part = done.sum(dim=(0, 1, 2), dtype=torch.float64)
            self._sum = part if self._sum is None else self._sum + part
            if self.is_done:
                t, h, w = self.look.grid
                self._sink.write((self._sum / (t * h * w)).float().cpu())
        if self.is_done:
            self._sink.finish(self._times)

    def fail(self) -> None:
        self.failed = True
        self._sink.abandon()


def _as_video_encoder(encoder: nn.Module) -> nn.Module:
    """The encoder itself, or an image encoder of ours that is shown one frame after another."""
    config = getattr(encoder, "config", None)
    if not isinstance(config, EncoderConfig):
        raise UserError("the encoder has no `config` with its sizes (vjepa.models.EncoderConfig)")
    if config.is_image_model and not isinstance(encoder, FrameEncoder):
        return FrameEncoder(encoder, config)
    return encoder
