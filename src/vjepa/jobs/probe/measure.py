"""Measuring probe heads: the same for the choice among heads, the test, and `vjepa probe eval`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.across_processes import add_up, averaged_probabilities, join_clips, my_share
from vjepa.evaluation.frozen import BadVideo, EncodedRows
from vjepa.evaluation.labels import Labels
from vjepa.evaluation.metrics import Accuracy, AveragePrecision, ClassificationMetrics
from vjepa.evaluation.results import Evaluation, HeadResult
from vjepa.evaluation.saved_probe import ProbeFile
from vjepa.jobs.probe.config import HeadSetting
from vjepa.jobs.probe.features import FeatureMaker
from vjepa.jobs.probe.inputs import LabelledVideos

_CLASSIFY_CLIPS = 64
"""Clips that a head sees in one forward call. Fixed, because the size of a batch may change the
last bits of a logit and evaluation must give the training run's number again."""

Answers = Accuracy | AveragePrecision


@torch.no_grad()
def probabilities(
    head: nn.Module, tokens: Tensor, view: ViewConfig, device: torch.device, *, multi_label: bool
) -> Tensor:
    """Class probabilities of some videos, averaged over views.

    Args:
        head: One head, or several together, on `device`.
        tokens: [b, R, N, D], as stored.
        view: How segments are joined.
        device: Where the head is.
        multi_label: Whether each class stands by itself.

    Returns:
        float64 [b, classes], for several heads [H, b, classes], on the CPU.
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


def measure(probe: ProbeFile, maker: FeatureMaker, labelled: LabelledVideos) -> Evaluation:
    """Metrics of a probe on labelled videos; the bootstrap has the seed of the training.

    Where several processes have joined, each measures its share and all get the whole figures.

    Args:
        probe: As loaded from its file.
        maker: Makes features of the probe's encoder and views.
        labelled: The videos.

    Raises:
        UserError: A video cannot be read and bad ones are not to be listed; or none can.
    """
    videos, device = labelled.videos, maker.setup.device
    head = probe.head.to(device)
    sums = [_empty(labelled.labels)]
    shards = maker.shards(videos, share=my_share())
    bad = _collect(head, sums, shards, labelled.labels, maker.view, device)
    total, bad = add_up(sums[0], bad)
    if len(bad) == len(labelled.labels):
        raise UserError(f"not one video could be read (first: {bad[0].path}: {bad[0].reason})")
    return Evaluation(
        manifest=videos.manifest.source,
        manifest_hash=videos.manifest.content_hash,
        split=videos.split,
        metrics=total.metrics(int(probe.training["seed"])),
        bad_videos=bad,
    )


def choose_head(
    heads: nn.Module,
    grid: Sequence[HeadSetting],
    parts: Iterable[EncodedRows],
    labels: Labels,
    view: ViewConfig,
    device: torch.device,
    rows: NDArray[np.int64] | None = None,
) -> tuple[HeadResult, ...]:
    """Measure every head on rows that none was trained on, and choose.

    Args:
        heads: Trained heads, tokens -> logits [H, b, classes], on the CPU.
        grid: Their settings.
        parts: Features; never those of the test rows.
        labels: Labels of all rows of the manifest.
        view: How segments are joined.
        device: Where to compute.
        rows: int64, the rows that the choice is made on; None: all.

    Returns:
        One result a head, in the order of the grid. The one with the most right answers is chosen
        (with several classes a video: the highest mean average precision), among equals the one
        with the lowest loss, then the first.

    Raises:
        UserError: Not one of the rows can be read.
    """
    sums = [_empty(labels) for _ in grid]
    _collect(heads.to(device), sums, parts, labels, view, device, rows)
    heads.to("cpu")
    if sums[0].count == 0:
        raise UserError("not one video for the choice among heads can be read")
    results = [
        HeadResult(
            kind=setting.kind,
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            **own.summary(),
        )
        for own, setting in zip(sums, grid, strict=True)
    ]
    best = min(range(len(grid)), key=lambda head: (*_rank(results[head]), head))
    results[best] = replace(results[best], chosen=True)
    return tuple(results)


def draw(measured: Evaluation, confusion: Path | None, calibration: Path | None) -> None:
    """Draw the confusion matrix, and accuracy over confidence, as PNG or SVG; None: not.

    Where a video may have several classes there is neither.
    """
    from vjepa.reporting.charts import ConfidenceRange, draw_calibration, draw_confusion

    metrics = measured.metrics
    if not isinstance(metrics, ClassificationMetrics):
        return
    if confusion is not None:
        title = f"{metrics.correct} of {metrics.count} right ({100 * metrics.top1:.1f} %)"
        names = [entry.name for entry in metrics.per_class]
        draw_confusion(metrics.confusion, names, confusion, title)
    if calibration is not None:
        ranges = [
            ConfidenceRange(
                low=entry.low,
                high=entry.high,
                count=entry.count,
                accuracy=entry.correct / entry.count,
                confidence=entry.confidence,
            )
            for entry in metrics.calibration
        ]
        error = metrics.calibration_error
        draw_calibration(
            ranges, calibration, f"{metrics.count} answers, calibration error {error:.3f}"
        )


def _empty(labels: Labels) -> Answers:
    return AveragePrecision(labels.classes) if labels.multi_label else Accuracy(labels.classes)


def _collect(
    head: nn.Module,
    sums: Sequence[Answers],
    parts: Iterable[EncodedRows],
    labels: Labels,
    view: ViewConfig,
    device: torch.device,
    rows: NDArray[np.int64] | None = None,
) -> tuple[BadVideo, ...]:
    """Count the answers of one head (one entry of `sums`) or of several; the unreadable videos."""
    bad: list[BadVideo] = []
    for part in parts:
        bad.extend(part.bad)
        kept = np.arange(len(part.rows)) if rows is None else np.isin(part.rows, rows).nonzero()[0]
        if len(kept) == 0:
            continue
        tokens = part.tokens if rows is None else part.tokens[torch.from_numpy(kept)]
        shares = probabilities(head, tokens, view, device, multi_label=labels.multi_label)
        own = part.rows[kept]
        truth = torch.from_numpy(labels.targets[own])
        for total, answers in zip(sums, shares if shares.ndim == 3 else shares[None], strict=True):
            total.add(own, answers, truth)
    return tuple(bad)


def _rank(result: HeadResult) -> tuple[float, float]:
    """Smaller is better."""
    if result.mean_average_precision is not None:
        return -result.mean_average_precision, result.loss
    assert result.correct is not None
    return -float(result.correct), result.loss
