"""Features of whole files: images, short and long videos of any size and frame rate.

The encoder runs over windows (:mod:`vjepa.data.clips.windows`); windows of several files share a
batch where their sizes agree. Tokens are handed on as soon as no later window sees them, so that
memory does not grow with the length of a video.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.data.clips.source import video_path
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
from vjepa.evaluation.frozen import check_finite, encode_clips, in_evaluation
from vjepa.evaluation.preprocess import Preprocess
from vjepa.models import EncoderConfig, InputConfig, far_from_input
from vjepa.models.encoder import FrameEncoder
from vjepa.models.preprocess import FEW_CLIPS
from vjepa.runtime.device import Precision

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileFeatures:
    """Features of one file.

    Attributes:
        tokens: float32, or as stored, [t, h, w, D]; [t, D] pooled over space; [D] pooled over the
            video.
        times: float64 [t], seconds from the first frame to the middle of what each tubelet shows.
        frame_numbers: int64 [t, tubelet], the source frames of each tubelet.
        grid: (t, h, w).
        box: The part of the source frame that the token grid covers: top, left, height, width, in
            source pixels; None in a table.
        path: The file.
    """

    tokens: Tensor
    times: NDArray[np.float64]
    frame_numbers: NDArray[np.int64]
    grid: tuple[int, int, int]
    box: tuple[float, float, float, float] | None
    path: str = ""


@config_dataclass
class FileEncodingConfig:
    """How whole files are encoded."""

    window: WindowConfig = field(default_factory=WindowConfig)
    """Which frames, in which windows."""
    framing: FramingConfig = field(default_factory=FramingConfig)
    """Which part of the frames."""
    precision: Precision = "float32"
    """Of the encoder's computation."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Windows per call of the encoder."""
    readers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode; 0 decodes in this process, without a watchdog for files that hang."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A file that keeps a reader for longer, at some windows, is given up and the reader killed."""


_Settings = TypeVar("_Settings", bound=FileEncodingConfig)

Part = tuple[Tensor | None, NDArray[np.float64] | None]
"""The next tokens of a file, float32 on the CPU: [m, h, w, D] or [m, D], once [D] for a whole
video; None while there are none. With the last come the times, as in :class:`FileFeatures`."""


def extract_features(
    encoder: nn.Module,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    window: WindowConfig | None = None,
    framing: FramingConfig | None = None,
    pool: Pool = "none",
    batch_size: int = 8,
) -> FileFeatures | list[FileFeatures]:
    """Features of a file, or of several, in memory; a list for a sequence of paths.

    Args:
        encoder: Video encoder, or image encoder, which then sees every frame alone; computes in
            the device of its weights.
        paths: One video, image or folder of frames, or a sequence of them.
        window: Which frames, in which windows; None takes windows of the encoder's length, half
            overlapping. Where it names no spacing, frames are spaced as ``encoder.preprocess``
            spaces them; every fourth is taken where an encoder has none.
        framing: Which part of the frames; None takes the whole frame, or its centre square where an
            encoder's positions are for one size (VideoMAE, MVD, OmniMAE, OpenCLIP, Hiera).
        pool: ``none``: every token, [t, h, w, D]; ``space``: a row for each tubelet, [t, D];
            ``video``: one for each file, [D]. Means over tokens.
        batch_size: Windows per call of the encoder.

    Raises:
        UserError: A file cannot be read, a setting does not fit the encoder, or the features are
            not finite.
    """
    # PyAV may be missing where only models are used.
    from vjepa.data.video.inspect import inspect_file

    several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes))
    every = [video_path(path) for path in (paths if several else [paths])]
    how = FileEncodingConfig(
        window=window or WindowConfig(),
        framing=framing or FramingConfig(),
        batch_size=batch_size,
    )
    if isinstance(own := getattr(encoder, "preprocess", None), Preprocess):
        how = replace(how, window=how.window.spaced_as(own.clip))
    found: dict[int, FileFeatures] = {}
    infos = [inspect_file(path) for path in every]
    for index, look, parts in encode_files(encoder, infos, how, pool=pool):
        tokens, times = tokens_and_times(parts)
        assert isinstance(look, Look)
        numbers, path = look.plan.frame_numbers, every[index]
        found[index] = FileFeatures(tokens, times, numbers, look.grid, look.box, path)
    ordered = [found[index] for index in range(len(every))]
    return ordered if several else ordered[0]


def tokens_and_times(parts: Iterable[Part]) -> tuple[Tensor, NDArray[np.float64]]:
    """All tokens of one file in memory, and their times; DecodeError if it fails."""
    found = list(parts)
    tokens, times = [part for part, _ in found if part is not None], found[-1][1]
    assert times is not None
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens), times


def encode_files(
    encoder: nn.Module,
    infos: Sequence[VideoInfo],
    how: FileEncodingConfig,
    *,
    pool: Pool = "none",
    between: tuple[float, float] | None = None,
) -> Iterator[tuple[int, Look | DecodeError, Iterator[Part]]]:
    """Encode files one after the other; a file that fails costs only itself.

    The encoder has its sizes as ``config``, and computes on the device of its weights. `pool` as
    for :func:`extract_features`; `between`: only this part of each video, in seconds.

    Yields:
        For each file its number, how it is looked at, or why that cannot be decided, and its parts,
        to be used before the next file, which raise DecodeError if it fails; those that cannot be
        looked at come first, those that no longer can be when their turn comes last.
    """
    config = _sizes_of(encoder)
    how = fitted_to(encoder, how)
    if config.is_image_model and not isinstance(encoder, FrameEncoder):
        encoder = FrameEncoder(encoder, config)

    def try_look(info: VideoInfo) -> Look | DecodeError:
        try:
            return look_of(info, how, config, between)
        except DecodeError as error:
            return error

    # Every file is looked at twice, so that errors come first and no look is kept for later.
    tried = ((index, try_look(info)) for index, info in enumerate(infos))
    failed = {index: look for index, look in tried if isinstance(look, DecodeError)}
    looks = ((index, try_look(info)) for index, info in enumerate(infos) if index not in failed)
    windows = read_files(looks, readers=how.readers, timeout_seconds=how.timeout_seconds)
    with in_evaluation(encoder):
        encoded = itertools.chain(
            ((index, error, error) for index, error in failed.items()),
            _encode(encoder, windows, how, pool),
        )
        for (index, look), own in itertools.groupby(encoded, key=lambda part: part[:2]):
            yield index, look, (_unless_failed(found) for *_, found in own)


def fitted_to(encoder: nn.Module, how: _Settings, source: str = "the encoder given") -> _Settings:
    """Settings with the framing that an encoder takes, where none is said.

    What fits no file is refused: of none it is the fault, so that none is called bad.
    """
    config = _sizes_of(encoder)
    window, patch, tubelet = how.window, config.patch_size, config.tubelet_size
    for name, value, unit, what in (
        ("framing.size", how.framing.size, patch, "pixels are not whole patches"),
        ("window.num_frames", window.num_frames, tubelet, "frames are not whole tubelets"),
        ("window.still_frames", window.still_frames, tubelet, "frames are not whole tubelets"),
    ):
        if name == "window.still_frames" and value == 1 and config.modalities:
            continue
        if value is not None and value % unit:
            fits = max(value // unit, 1) * unit
            raise UserError(f"{name}: {value} {what} of {unit}; take {fits}")
    kind = how.framing.kind or ("whole" if stretches(encoder) else "centre")
    if kind == "whole" and not stretches(encoder):
        raise UserError(
            f"framing.kind: whole frames are of any shape, but the positions of {source} are for "
            f"{config.image_size} x {config.image_size} pixels and are not stretched; take centre "
            f"or stretch{remedy_of(encoder)}"
        )
    num_frames = window.num_frames or config.num_frames
    for frames in (num_frames, window.still_frames or num_frames):
        require_fitting(encoder, frames, how.framing.size or config.image_size, source)
    return replace(how, framing=replace(how.framing, kind=kind))


def require_fitting(
    encoder: nn.Module, num_frames: int, image_size: int, source: str = "the encoder given"
) -> None:
    """Refuse clips of a size that an encoder has no positions for."""
    config = _sizes_of(encoder)
    # The rows of a table are time-major: the first ones are those of a shorter clip.
    frames_fit = config.is_image_model or (
        num_frames == config.num_frames
        if hasattr(encoder, "stretches")
        else not config.is_given or num_frames <= config.num_frames
    )
    if not frames_fit or (image_size != config.image_size and not stretches(encoder)):
        frames = "" if config.is_image_model else f"{config.num_frames} frames of "
        raise UserError(
            f"{source}: clips of {num_frames} frames, {image_size} pixels: its "
            f"table of positions is for {frames}{config.image_size} pixels and is not stretched; "
            "take such clips (data.clip.num_frames, data.view.crop_size; for features "
            f"window.num_frames or still_frames, framing.size){remedy_of(encoder)}"
        )


def stretches(encoder: nn.Module) -> bool:
    """Whether an encoder has positions for frames of any size: as it says, or by its config."""
    config = _sizes_of(encoder)
    images = encoder.image_encoder if isinstance(encoder, FrameEncoder) else encoder
    said = getattr(images, "stretches", None)
    return bool(said) if said is not None else config.position != "given" or config.is_image_model


def remedy_of(encoder: nn.Module) -> str:
    """What else can be done about frames of another size, by an encoder that we compute."""
    config = _sizes_of(encoder)
    ours = config.position == "given" and not (
        config.is_image_model or hasattr(encoder, "stretches")
    )
    return ", or stretch it (encoder.position_code table_stretched)" if ours else ""


def _sizes_of(encoder: nn.Module) -> EncoderConfig:
    config = getattr(encoder, "config", None)
    if isinstance(config, EncoderConfig):
        return config
    inside = "; give the model inside, encoder.module" if hasattr(encoder, "module") else ""
    if hasattr(encoder, "target_encoder"):
        inside = "; give its .target_encoder"
    if not isinstance(encoder, nn.Module):
        inside = "; vjepa.load_encoder gives one"
    raise UserError(
        f"{type(encoder).__name__} has no `config` with the sizes of an encoder "
        f"(vjepa.models.EncoderConfig){inside}"
    )


def look_of(
    info: VideoInfo,
    how: FileEncodingConfig,
    encoder: EncoderConfig,
    between: tuple[float, float] | None = None,
) -> Look:
    """How a file is looked at; DecodeError if that cannot be decided."""
    as_image = encoder.modalities and info.kind == "image" and how.window.still_frames == 1
    return look_at(
        info,
        how.window,
        how.framing,
        num_frames=encoder.num_frames,
        tubelet_size=1 if as_image else encoder.tubelet_size,
        image_size=encoder.image_size,
        patch_size=encoder.patch_size,
        between=between,
    )


def _unless_failed(found: Part | DecodeError) -> Part:
    if isinstance(found, DecodeError):
        raise found
    return found


def _encode(
    encoder: nn.Module,
    windows: Iterable[tuple[int, Look | DecodeError, ReadWindow | DecodeError]],
    how: FileEncodingConfig,
    pool: Pool,
) -> Iterator[tuple[int, Look | DecodeError, Part | DecodeError]]:
    """Encode windows in batches of one size; the parts of a file come one after the other."""
    sizes = _sizes_of(encoder)
    file: _OpenFile | None = None
    seen: dict[int, Tensor] | None = {}  # a window of each of the first files; None: judged

    def size_of(read: tuple[int, Look | DecodeError, ReadWindow | DecodeError]) -> object:
        return read[2].clip.shape if isinstance(read[2], ReadWindow) else None

    for _, alike in itertools.groupby(windows, size_of):
        while some := list(itertools.islice(alike, how.batch_size)):
            yield from ((n, look, w) for n, look, w in some if isinstance(w, DecodeError))
            good = [(n, look, w) for n, look, w in some if isinstance(w, ReadWindow)]
            if not good:
                continue
            clips = torch.stack([window.clip for *_, window in good])
            if seen is not None:  # windows of one file are alike, and few files may be odd ones
                for number, _, window in good:
                    if all(window.clip.shape == clip.shape for clip in seen.values()):
                        seen.setdefault(number, window.clip)
                if len(seen) >= FEW_CLIPS:
                    _say_if_far(seen, sizes.input)
                    seen = None
            tokens = check_finite(encode_clips(encoder, clips, how.precision))
            first = good[0][1]
            assert isinstance(first, Look)
            wanted = (len(clips), math.prod(first.window_grid), sizes.width)
            if tokens.shape != wanted:  # they could not be told apart by time and place
                given = f"{type(encoder).__name__}: gives {tuple(tokens.shape)}"
                raise UserError(
                    f"{given}, but its config says [clips, tokens, width] = {wanted}: leave out "
                    "other tokens (such as [cls]), pool nothing"
                )
            for (index, look, window), found in zip(good, tokens, strict=True):
                if file is None or file.index != index:
                    assert isinstance(look, Look)
                    file = _OpenFile(index, look, pool)
                yield index, look, file.add(found, window.seconds)
    if seen:
        _say_if_far(seen, sizes.input)


def _say_if_far(seen: dict[int, Tensor], how: InputConfig) -> None:
    if (said := far_from_input(torch.stack(list(seen.values())), how)) is not None:
        _LOGGER.warning("%s", said)


class _OpenFile:
    """A file that is being encoded."""

    def __init__(self, index: int, look: Look, pool: Pool) -> None:
        self.index, self._look, self._pool = index, look, pool
        self._stitcher = Stitcher(look.plan)
        self._times = np.zeros(look.grid[0])
        self._window = 0
        self._sum: Tensor | None = None

    def add(self, tokens: Tensor, seconds: NDArray[np.float64]) -> Part:
        """Add a window, tokens [N, D] and times [T] of its frames: what is finished with it."""
        plan = self._look.plan
        start = plan.starts[self._window]
        self._window += 1
        middles = seconds.reshape(plan.window_tubelets, plan.tubelet_size).mean(axis=1)
        kept = min(plan.window_tubelets, len(self._times) - start)
        self._times[start : start + kept] = middles[:kept]
        done = self._stitcher.add(tokens.reshape(*self._look.window_grid, -1))
        times = self._times if self._stitcher.is_done else None
        if self._pool == "none":
            return done.cpu(), times
        if self._pool == "space":
            return done.mean(dim=(1, 2)).cpu(), times
        added = done.sum(dim=(0, 1, 2), dtype=torch.float64)
        self._sum = added if self._sum is None else self._sum + added
        if times is None:
            return None, None
        return (self._sum / math.prod(self._look.grid)).float().cpu(), times
