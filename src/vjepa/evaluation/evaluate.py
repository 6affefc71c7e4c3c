"""Measuring heads on frozen features: the same for the choice among heads, the test, and later.

The paper (section 4) gives the probe the token maps of all segments together and averages its
probabilities over the spatial views. The released code can also show it each segment alone and
average over segments and views; `golden` tests hold both to recorded numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.data.clips.dataset import BadVideo
from vjepa.data.clips.views import JoinSegments, ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import FeatureExtractor, FeatureSet
from vjepa.evaluation.labels import Labels, Split
from vjepa.evaluation.metrics import Accuracy, AveragePrecision, probabilities_of
from vjepa.evaluation.results import Evaluation
from vjepa.runtime.distributed import Team

_CLASSIFY_CLIPS = 64
"""Clips that a head sees in one forward call. Fixed, because the size of a batch may change the
last bits of a logit and evaluation must give the training run's number again."""

Answers = Accuracy | AveragePrecision


def evaluate(
    extractor: FeatureExtractor,
    split: Split,
    head: nn.Module,
    *,
    seed: int = 0,
    team: Team | None = None,
) -> Evaluation:
    """Metrics of one head on labelled videos; `seed` is that of the bootstrap interval.

    The processes of a team share the videos, and all get the whole figures.
    """
    assert split.labels is not None
    team, device = team or Team(), extractor.setup.device
    shards = extractor.shards(split, share=(team.rank, team.size))
    view = extractor.settings.view
    (own,), own_bad = count_answers(head.to(device), 1, shards, split.labels, view, device)
    gathered: list[Any] = team.gather((own, own_bad))
    total: Answers = gathered[0][0]
    for other, _ in gathered[1:]:
        total.merge(other)
    bad = sorted((video for _, part in gathered for video in part), key=lambda video: video.row)
    if len(bad) == len(split.labels):
        raise UserError(f"not one video could be read (first: {bad[0].path}: {bad[0].reason})")
    return Evaluation(
        manifest=split.manifest.source,
        manifest_hash=split.manifest.content_hash,
        split=split.split,
        metrics=total.metrics(seed),
        bad_videos=tuple(bad),
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
    logits = head(tokens.flatten(0, 1)).cpu()
    shares = logits.double().sigmoid() if multi_label else probabilities_of(logits)
    return shares.unflatten(-2, tokens.shape[:2]).mean(dim=-2)
