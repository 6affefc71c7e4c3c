"""Frozen features of many clips: the encoder runs once, probes then train in seconds.

The encoder sees each of a video's R clips (R = views x segments) on its own (paper, section 4).
Features do not know of labels, so one set serves every label, every number of labels, every probe
and either way of joining segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.models import normalise_clip
from vjepa.runtime.device import Precision, to_device

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be evaluated, listed in the result and never replaced by another.

    Attributes:
        row: Its row in the manifest.
        path: Its file.
        reason: Why.
    """

    row: int
    path: str
    reason: str


@dataclass(frozen=True)
class ClipRows:
    """Clips of some manifest rows, as the encoder's input is made from them.

    Attributes:
        rows: int64 [B], manifest rows in ascending order.
        clips: uint8 [B, R, C, T, S, S], RGB; empty when there is no row.
        bad: Videos of the same span of rows that could not be read; they are not in `rows`.
    """

    rows: NDArray[np.int64]
    clips: Tensor
    bad: tuple[BadVideo, ...] = ()


class ClipSource(Protocol):
    """Gives evaluation clips in row order; a pure function of the rows asked for."""

    def __len__(self) -> int:
        """Number of rows n that it gives."""
        ...

    @property
    def clips_per_video(self) -> int:
        """R, clips of each video."""
        ...

    def path(self, row: int) -> str:
        """The file of a manifest row."""
        ...

    def batches(self, start: int, stop: int, batch_size: int) -> Iterable[ClipRows]:
        """Clips of its rows number `start` to before `stop`, `batch_size` rows at a time."""
        ...


@dataclass(frozen=True)
class FeatureSet:
    """Token maps of n videos.

    Attributes:
        shards: Tensors [n_i, R, N, D], float32 or bfloat16, together n rows in order. Large ones
            from a cache are mapped from disk, so that a set may be larger than the memory.
        rows: int64 [n], ascending rows of the manifest.
        paths: The n files.
        bad: Videos that are missing because they could not be read.
    """

    shards: tuple[Tensor, ...]
    rows: NDArray[np.int64]
    paths: tuple[str, ...]
    bad: tuple[BadVideo, ...] = ()

    def __post_init__(self) -> None:
        held = sum(int(shard.shape[0]) for shard in self.shards)
        if not held == len(self.rows) == len(self.paths):
            raise ValueError(
                f"features of {held} clips, {len(self.rows)} rows and {len(self.paths)} paths "
                "do not fit together"
            )

    def __len__(self) -> int:
        """The number of videos n."""
        return len(self.paths)

    @property
    def tokens(self) -> Tensor:
        """All token maps as one tensor [n, R, N, D]; copies when there are several shards."""
        return self.shards[0] if len(self.shards) == 1 else torch.cat(self.shards)

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        """Token maps at the given places of this set.

        Args:
            indices: int64 [b], each in [0, n).

        Returns:
            [b, R, N, D] in the given order, in the stored type.
        """
        if len(self.shards) == 1:
            return self.shards[0].index_select(0, torch.from_numpy(indices))
        ends = np.cumsum([shard.shape[0] for shard in self.shards])
        which = np.searchsorted(ends, indices, side="right")
        first = self.shards[0]
        out = torch.empty((len(indices), *first.shape[1:]), dtype=first.dtype)
        for shard in np.unique(which):
            places = np.flatnonzero(which == shard)
            inside = indices[places] - (ends[shard] - self.shards[shard].shape[0])
            out[torch.from_numpy(places)] = self.shards[shard][torch.from_numpy(inside)]
        return out

    def pooled(self) -> Tensor:
        """Mean over all tokens of each video: float32 [n, D]."""
        return torch.cat([shard.float().flatten(1, -2).mean(dim=1) for shard in self.shards])


@torch.no_grad()
def encode_clips(
    encoder: nn.Module, clips: Tensor, device: torch.device, precision: Precision
) -> Tensor:
    """Features of one batch, without autograd.

    Args:
        encoder: Frozen encoder, normalised float video [B, C, T, H, W] -> tokens [B, N, D].
        clips: uint8 [B, C, T, S, S].
        device: Where to compute.
        precision: ``bfloat16`` runs the encoder under autocast.

    Returns:
        float32 [B, N, D] on `device`.
    """
    video = normalise_clip(to_device(clips, device))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        tokens = encoder(video)
    return tokens.float()


def encode_rows(
    encoder: nn.Module,
    batches: Iterable[ClipRows],
    *,
    device: torch.device,
    precision: Precision,
    storage: Precision,
    clips_per_call: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> EncodedRows:
    """Run the encoder over batches of clips.

    Args:
        encoder: As for :func:`encode_clips`; put into evaluation mode for the time of the call.
        batches: Clips in row order.
        device, precision: As for :func:`encode_clips`.
        storage: Type in which features are kept.
        clips_per_call: Most clips in one forward call.
        on_batch: Called after each batch with the number of rows dealt with, bad ones included.

    Returns:
        The features.
    """
    tokens: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    bad: list[BadVideo] = []
    was_training = encoder.training
    encoder.eval()
    try:
        for batch in batches:
            bad.extend(batch.bad)
            if len(batch.rows):
                calls = batch.clips.flatten(0, 1).split(clips_per_call)
                parts = [encode_clips(encoder, call, device, precision) for call in calls]
                kept = torch.cat([part.to("cpu", _DTYPES[storage]) for part in parts])
                tokens.append(kept.unflatten(0, batch.clips.shape[:2]))
                rows.append(batch.rows)
            if on_batch is not None:
                on_batch(len(batch.rows) + len(batch.bad))
    finally:
        encoder.train(was_training)
    return EncodedRows(
        tokens=torch.cat(tokens) if tokens else torch.empty(0, 0, 0, 0, dtype=_DTYPES[storage]),
        rows=np.concatenate(rows) if rows else np.empty(0, dtype=np.int64),
        bad=tuple(bad),
    )


@dataclass(frozen=True)
class EncodedRows:
    """Features of a span of manifest rows.

    Attributes:
        tokens: [n, R, N, D] on the CPU; [0, 0, 0, 0] when no video of the span could be read.
        rows: int64 [n].
        bad: The videos of the span that could not be read.
    """

    tokens: Tensor
    rows: NDArray[np.int64]
    bad: tuple[BadVideo, ...]
