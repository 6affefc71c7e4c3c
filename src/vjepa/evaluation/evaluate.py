"""Batches for probes, and measuring heads on frozen features.

Both ways take the samples in the same order, and the clip of a sample in epoch e is the one that
pass e of the features holds: with as many passes as epochs both train on the same features.

The paper (section 4) gives the probe the token maps of all segments together and averages its
probabilities over the spatial views. The released code can also show it each segment alone and
average over segments and views; `golden` tests hold both to recorded numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.counter_random import permute
from vjepa.data.clips.views import JoinSegments, ViewConfig
from vjepa.data.loader.evaluation import BadVideo, EvaluationClips
from vjepa.errors import UserError
from vjepa.evaluation.frozen import FeatureExtractor, FeatureSet
from vjepa.evaluation.labels import Labels, Split
from vjepa.evaluation.metrics import Accuracy, AveragePrecision
from vjepa.evaluation.results import Evaluation
from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.files import write_csv

Wanted = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of the manifest and the pass that each is wanted from, int64 [b] twice."""
Read = Callable[[Iterable[Wanted]], Iterator[FeatureSet]]
"""Features of wanted rows, in their order; rows that cannot be read are listed as bad."""


@dataclass(frozen=True)
class ProbeBatch:
    """One batch of a probe's training; P inputs of each of B videos.

    Attributes:
        ordinals: int64 [B], the samples' numbers in the endless stream.
        samples: int64 [B], numbers of the samples among the training rows.
        tokens: [B * P, N, D], as stored.
        labels: [B * P] int64, or [B * P, classes] float32 where a video has several labels.
    """

    ordinals: NDArray[np.int64]
    samples: NDArray[np.int64]
    tokens: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.samples)


class ProbeBatches:
    """Gives the batches of any range of steps."""

    def __init__(
        self,
        read: Read,
        rows: NDArray[np.int64],
        targets: NDArray[np.int64] | NDArray[np.float32],
        batch_size: int,
        seed: int,
        view: ViewConfig,
    ) -> None:
        """Read nothing yet.

        `rows` int64 [n] are trained on; `targets` are their class numbers int64 [n], or float32
        [n, classes]; `view` says how segments become the probe's input.
        """
        if len(rows) == 0 or len(rows) != len(targets):
            raise ValueError(f"rows: {len(rows)} of them with {len(targets)} labels")
        self._read, self._rows, self._targets, self._view = read, rows, targets, view
        self._bad: dict[int, BadVideo] = {}
        # A larger batch would hold one sample twice while another is not in it.
        self._size, self._seed = min(batch_size, len(rows)), seed

    def steps_for(self, epochs: float) -> int:
        """Updates that make up so many passes over the data, rounded up, at least one."""
        return max(1, math.ceil(epochs * len(self._rows) / self._size))

    def _samples(self, step: int) -> Wanted:
        return samples_of_step(step, self._size, len(self._rows), self._seed, "probe")

    @property
    def bad(self) -> tuple[BadVideo, ...]:
        """Videos that could not be read so far, in row order."""
        return tuple(self._bad[row] for row in sorted(self._bad))

    def batches(self, start_step: int, stop_step: int) -> Iterator[ProbeBatch]:
        """The batches of steps `start_step` (counted from 0) to before `stop_step`."""
        size, view = self._size, self._view
        steps = range(start_step, stop_step)
        orders = map(self._samples, steps)  # may be read in another thread
        found = self._read((self._rows[samples], epochs) for samples, epochs in orders)
        for step, part in zip(steps, found, strict=True):
            samples, _ = self._samples(step)
            self._bad |= {video.row: video for video in part.bad}
            good = ~np.isin(self._rows[samples], [video.row for video in part.bad])
            if not good.any():
                raise UserError(f"{part.bad[0].path}: no video of this batch can be read")
            tokens = join_clips(part.tokens, view.num_segments, view.join)
            labels = torch.from_numpy(self._targets[samples[good]])
            yield ProbeBatch(
                ordinals=np.arange(step * size, (step + 1) * size)[good],
                samples=samples[good],
                # Every input of a video is a sample with the video's label.
                tokens=tokens.flatten(0, 1),
                labels=torch.repeat_interleave(labels, tokens.shape[1], dim=0),
            )


def samples_of_step(step: int, size: int, length: int, seed: int, stream: str) -> Wanted:
    """Samples of batch `step` (from 0) and the pass that each belongs to: int64 [size] twice.

    There are `length` samples; each pass over them has an order of its own.
    """
    epochs, inside = np.divmod(np.arange(step * size, (step + 1) * size, dtype=np.int64), length)
    samples = np.empty_like(inside)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        samples[now] = permute(inside[now], length, seed, stream, int(epoch))
    return samples, epochs


def read_passes(passes: Sequence[FeatureSet], wanted: Iterable[Wanted]) -> Iterator[FeatureSet]:
    """Features that are there: epoch e takes pass number e modulo K of K passes."""
    for rows, epochs in wanted:
        which = epochs % len(passes)
        present = np.unique(which)
        parts = [passes[taken].gather(rows[which == taken]) for taken in present]
        back = np.argsort(np.concatenate([np.flatnonzero(which == taken) for taken in present]))
        tokens = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.from_numpy(back)]
        yield FeatureSet((tokens,), rows)


def read_clips(
    extractor: FeatureExtractor, clips: EvaluationClips, batch_size: int, wanted: Iterable[Wanted]
) -> Iterator[FeatureSet]:
    """Clips that are cut and encoded now, at most `batch_size` videos at once."""
    requests = (list(zip(rows.tolist(), epochs.tolist(), strict=True)) for rows, epochs in wanted)
    return map(extractor.encode, clips.stream(requests, batch_size))


_CLASSIFY_CLIPS = 64
"""Clips that a head sees in one forward call. Fixed, because the size of a batch may change the
last bits of a logit and evaluation must give the training run's number again."""

Answers = Accuracy | AveragePrecision


def evaluate(
    extractor: FeatureExtractor,
    split: Split,
    head: nn.Module,
    *,
    group: ProcessGroup | None = None,
    answers: Path | None = None,
) -> Evaluation:
    """Metrics of one head on labelled videos.

    The processes of a group share the videos, and all get the whole figures; one of them writes
    every video's own answer to the CSV file `answers`, for tests on pairs of probes.
    """
    group, device = group or ProcessGroup(), extractor.setup.device
    manifest = split.manifest
    group.check_same(manifest.content_hash, manifest.source, "videos, splits or labels")
    shards = extractor.shards(split, share=(group.rank, group.size))
    view = extractor.settings.view
    (own,), own_bad = count_answers(head.to(device), 1, shards, split.labels, view, device)
    gathered: list[Any] = group.gather((own, own_bad))
    total: Answers = gathered[0][0]
    for other, _ in gathered[1:]:
        total.merge(other)
    bad = sorted((video for _, part in gathered for video in part), key=lambda video: video.row)
    if len(bad) == len(split.labels):
        first = f"(first: {bad[0].path}: {bad[0].reason})"
        raise UserError(f"not one video could be read {first}; name other videos")
    if answers is not None and group.is_main:
        rows, names, lines = total.table()
        paths = itertools.chain(["path"], *manifest.paths(rows))
        table = zip(paths, [names, *lines], strict=True)
        write_csv(answers, ((path, *line) for path, line in table), "\r\n")
    return Evaluation(
        manifest=manifest.source,
        manifest_hash=manifest.content_hash,
        split=split.split,
        metrics=total.metrics(),
        bad_videos=tuple(bad),
        encoder=extractor.frozen.identity.sentence,
        trained_on=split.trained_on,
    )


def count_answers(
    heads: nn.Module,
    num_heads: int,
    parts: Iterable[FeatureSet],
    labels: Labels,
    view: ViewConfig,
    device: torch.device,
    rows: NDArray[np.int64] | None = None,
) -> tuple[list[Answers], tuple[BadVideo, ...]]:
    """The answers of each of several heads, or of one, and the videos that could not be read.

    The heads, on `device`, take tokens and give logits [b, classes], several of them [H, b,
    classes]. `rows` int64 are those that count; None: all.
    """
    kind = AveragePrecision if labels.multi_label else Accuracy
    answers: list[Answers] = [kind(labels.classes) for _ in range(num_heads)]
    bad: list[BadVideo] = []
    for part in parts:
        bad.extend(part.bad)
        own, tokens = part.rows, part.tokens
        if rows is not None:
            kept = np.flatnonzero(np.isin(own, rows))
            own, tokens = own[kept], tokens[torch.from_numpy(kept)]
        if len(own) == 0:
            continue
        found = probabilities(heads, tokens, view, device, multi_label=labels.multi_label)
        truth = torch.from_numpy(labels.targets[own])
        for head, shares in zip(answers, found if found.ndim == 3 else found[None], strict=True):
            head.add(own, shares, truth)
    return answers, tuple(bad)


@torch.no_grad()
def probabilities(
    head: nn.Module, tokens: Tensor, view: ViewConfig, device: torch.device, *, multi_label: bool
) -> Tensor:
    """Class probabilities of some videos, from tokens [b, R, N, D] as stored, averaged over views.

    Of one head float64 [b, classes], of several together [H, b, classes], on the CPU. `device` is
    where the head is; with `multi_label` each class stands by itself.
    """
    rows = max(1, _CLASSIFY_CLIPS // tokens.shape[1])
    parts = [
        averaged_probabilities(
            head,
            join_clips(part.to(device, torch.float32), view.num_segments, view.join),
            multi_label=multi_label,
        )
        for part in tokens.split(rows)
    ]
    return torch.cat(parts, dim=-2)


def join_clips(tokens: Tensor, num_segments: int, join: JoinSegments) -> Tensor:
    """Arrange the token maps [B, R, N, D] of R = V * S clips, clip r = v * S + s.

    ``tokens`` puts the maps of a view's S segments one after the other in time, ``average`` leaves
    every clip by itself: [B, P, N', D] with P = V and N' = S * N, or P = R and N' = N.
    """
    if join == "average":
        return tokens
    batch, clips, count, width = tokens.shape
    return tokens.reshape(batch, clips // num_segments, num_segments * count, width)


def averaged_probabilities(head: nn.Module, tokens: Tensor, *, multi_label: bool = False) -> Tensor:
    """Probabilities of each video: the mean over its P inputs, float [B, P, N', D].

    Of several heads [H, B, classes], of one [B, classes]: float64 on the CPU. With `multi_label`
    each class by itself (sigmoid) instead of one of all (softmax).
    """
    logits = head(tokens.flatten(0, 1)).detach().cpu().double()
    shares = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
    return shares.unflatten(-2, tokens.shape[:2]).mean(dim=-2)
