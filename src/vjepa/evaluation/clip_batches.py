"""Training batches of clips that are cut and encoded anew in every epoch: the paper's way.

The samples come in the same order as those of cached features, and the clip of a sample in epoch e
is the one that pass e of the cache holds: with as many cached passes as epochs both ways train on
the same features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.errors import UserError
from vjepa.evaluation.clip_reading import ViewConfig
from vjepa.evaluation.clips import EvaluationClips
from vjepa.evaluation.feature_batches import sample_order
from vjepa.evaluation.features import BadVideo, ClipRows, encode_rows
from vjepa.evaluation.joining import join_clips, stacked_for_training
from vjepa.runtime.device import Precision


@dataclass(frozen=True)
class ClipBatch:
    """One batch of a probe's training on clips.

    Attributes:
        step: Number of the update that uses it, from 0.
        ordinals: int64 [b], the samples' numbers in the endless stream.
        rows: The clips of the videos that could be read.
        targets: [b] int64, or [b, classes] float32.
    """

    step: int
    ordinals: NDArray[np.int64]
    rows: ClipRows
    targets: Tensor

    def __len__(self) -> int:
        """The number of samples b."""
        return len(self.ordinals)


class ClipBatches:
    """Gives the batches of any range of steps.

    Attributes:
        order: Which samples every batch takes.
    """

    def __init__(
        self,
        source: EvaluationClips,
        rows: NDArray[np.int64],
        targets: NDArray[np.int64] | NDArray[np.float32],
        batch_size: int,
        seed: int,
    ) -> None:
        """Read nothing yet.

        Args:
            source: Cuts random clips.
            rows: int64 [n], manifest rows to train on.
            targets: int64 [n], their class numbers; or float32 [n, classes].
            batch_size: Samples per update; at most n are taken.
            seed: Of the order.

        Raises:
            ValueError: There is nothing to train on, or lengths differ.
        """
        if len(rows) == 0 or len(rows) != len(targets):
            raise ValueError(f"rows: {len(rows)} of them with {len(targets)} labels")
        self._source, self._rows, self._targets = source, rows, targets
        self._bad: dict[int, BadVideo] = {}
        self.order = sample_order(len(rows), batch_size, seed)

    @property
    def bad(self) -> tuple[BadVideo, ...]:
        """Videos that could not be read so far, in row order."""
        return tuple(self._bad[row] for row in sorted(self._bad))

    def batches(self, start_step: int, stop_step: int) -> Iterator[ClipBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`.

        Raises:
            UserError: A video cannot be read and bad ones are not to be listed; or all of a batch
                are bad.
        """
        size = self.order.batch_size
        wanted = (self._requests(step) for step in range(start_step, stop_step))
        for step, read in enumerate(self._source.stream(wanted, 2 * size), start_step):
            samples, _ = self.order.batch(step)
            self._bad |= {video.row: video for video in read.bad}
            good = ~np.isin(self._rows[samples], [video.row for video in read.bad])
            if not good.any():
                raise UserError(f"{read.bad[0].path}: no video of this batch can be read")
            yield ClipBatch(
                step=step,
                ordinals=np.arange(step * size, (step + 1) * size)[good],
                rows=read,
                targets=torch.from_numpy(self._targets[samples[good]]),
            )

    def _requests(self, step: int) -> list[tuple[int, int]]:
        samples, epochs = self.order.batch(step)
        return list(zip(self._rows[samples].tolist(), epochs.tolist(), strict=True))

    def close(self) -> None:
        """End the worker processes."""
        self._source.close()


@dataclass(frozen=True)
class ClipEncoder:
    """Encodes training clips without autograd, once for all heads.

    Attributes:
        encoder: Frozen, on its device.
        view: How segments are joined.
        precision, storage: As the cache would hold the features.
        clips_per_call: Most clips in one forward call.
    """

    encoder: nn.Module
    view: ViewConfig
    precision: Precision
    storage: Precision
    clips_per_call: int

    def __call__(self, batch: ClipBatch, device: torch.device) -> tuple[Tensor, Tensor]:
        """The probe's inputs [b * P, N, D] and targets of a batch, on the device."""
        encoded = encode_rows(
            self.encoder,
            [batch.rows],
            device=device,
            precision=self.precision,
            storage=self.storage,
            clips_per_call=self.clips_per_call,
        )
        tokens = join_clips(encoded.tokens, self.view.num_segments, self.view.join)
        inputs, targets = stacked_for_training(tokens, batch.targets)
        return inputs.to(device), targets.to(device)
