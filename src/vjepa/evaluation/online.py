"""The online probe: during pretraining, how much do the features say about a label?

The loss of self-prediction does not tell (its targets move), so a small fixed set of labelled
videos is encoded now and then by the target encoder, and a closed-form linear classifier is fitted
on the mean of each video's tokens. It is cheap and rough: for numbers that are compared between
models, train a probe.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vjepa.config import config_dataclass
from vjepa.counter_random import permute
from vjepa.data.clips.dataset import EvaluationClips, ReadingConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import encode_clips
from vjepa.evaluation.heads import fit_ridge
from vjepa.evaluation.labels import (
    Labels,
    check_every_class_has_a_sample,
    labels_of,
    stratified_subset,
)
from vjepa.evaluation.metrics import wilson_interval
from vjepa.runtime.device import DeviceSetup
from vjepa.runtime.distributed import Team

_LOGGER = logging.getLogger(__name__)


@config_dataclass
class OnlineProbeConfig:
    """A linear probe that is fitted now and then while pretraining."""

    manifest: Path
    """Parquet manifest with labels."""
    label: str
    """Name of the label."""
    train_split: str = "train"
    """Split that the classifier is fitted on."""
    validation_split: str = "validation"
    """Split that it is measured on; never the test split."""
    max_clips: Annotated[int, Field(ge=2)] = 512
    """At most so many videos of each split, the same share of every class; all are kept in memory
    as pixels."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Updates between two measurements; null: as `training.evaluate_every_steps` says."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Clips per forward call."""

    def __post_init__(self) -> None:
        if self.train_split == self.validation_split:
            raise ValueError(
                f"validation_split: {self.validation_split!r} is the train split as well; "
                "measure on other videos than those fitted on"
            )


@dataclass(frozen=True)
class LabelledClips:
    """Clips in memory with their labels.

    Attributes:
        clips: uint8 [n, C, T, S, S]; of several processes each holds a part.
        labels: int64 [n].
        rows: int64 [n], their rows of the split.
        num_calls: Forward calls that the largest part takes.
    """

    clips: Tensor
    labels: Tensor
    rows: NDArray[np.int64]
    num_calls: int


class OnlineProbe:
    """An evaluator of the training loop: ``every_steps`` and ``run(step)``.

    Attributes:
        every_steps: As configured.
        classes: Class names.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: OnlineProbeConfig,
        clip: ClipConfig,
        view: ViewConfig,
        setup: DeviceSetup,
        seed: int,
        reading: ReadingConfig | None = None,
        team: Team | None = None,
    ) -> None:
        """Read the labelled videos once; unreadable ones are left out with a warning.

        Args:
            encoder: The target encoder that training keeps changing.
            config: Which videos and how often.
            clip, view: As the pretraining's clips, without the random part.
            setup: Device and precision to encode in.
            seed: Of the choice of videos, where there are more than `max_clips`.
            reading: Workers, for the time of this call; None takes the defaults.
            team: Processes that share the videos; all must measure together. None: this one alone.

        Raises:
            UserError: Manifest, split or label is missing, or labels are incomplete.
        """
        from vjepa.data.manifest.manifest import Manifest

        self.every_steps = config.every_steps
        self._encoder, self._config, self._setup = encoder, config, setup
        self._team = team or Team()
        self._filler = torch.zeros(
            1, 3, clip.num_frames, view.crop_size, view.crop_size, dtype=torch.uint8
        )
        manifest = Manifest.open(config.manifest)
        train = manifest.select(split=config.train_split)
        fit_labels = labels_of(train, config.label, part=f"split {config.train_split}")
        self.classes = fit_labels.classes
        check_every_class_has_a_sample(fit_labels, f"manifest {manifest.source}")
        held = manifest.select(split=config.validation_split)
        held_labels = labels_of(
            held, config.label, classes=self.classes, part=f"split {config.validation_split}"
        )
        reading = reading or ReadingConfig()
        choice = _Choice(config.max_clips, seed)
        mine = slice(self._team.rank, None, self._team.size)
        rows = choice.rows(fit_labels)[mine]
        with EvaluationClips(train, clip, view, reading, rows=rows, on_bad_video="list") as clips:
            self._fit = _read(clips, fit_labels, config.batch_size, self._team)
        rows = choice.rows(held_labels)[mine]
        with EvaluationClips(held, clip, view, reading, rows=rows, on_bad_video="list") as clips:
            self._validation = _read(clips, held_labels, config.batch_size, self._team)

    @torch.no_grad()
    def run(self, step: int) -> dict[str, float]:  # noqa: ARG002 (part of the evaluators' protocol)
        """Fit on the train part, measure on the validation part.

        Args:
            step: Updates done; the measurement depends on the weights alone.

        Returns:
            ``online_probe/top1`` (share in [0, 1]), the ends of its 95 % interval
            ``online_probe/top1_low`` and ``_high``, ``online_probe/count`` (validation videos),
            ``online_probe/train_top1``, and the chosen ridge ``online_probe/penalty``.
        """
        was_training = self._encoder.training
        self._encoder.eval()
        try:
            fit, fit_truth = self._pooled(self._fit)
            validation, truth = self._pooled(self._validation)
        finally:
            self._encoder.train(was_training)
        classifier = fit_ridge(fit, fit_truth, len(self.classes))
        right = classifier.scores(validation).argmax(dim=1) == truth
        fitted = classifier.scores(fit).argmax(dim=1) == fit_truth
        count, correct = int(right.numel()), int(right.sum())
        interval = wilson_interval(correct, count)
        return {
            "online_probe/top1": correct / count,
            "online_probe/top1_low": interval.low,
            "online_probe/top1_high": interval.high,
            "online_probe/count": float(count),
            "online_probe/train_top1": float(fitted.double().mean()),
            "online_probe/penalty": classifier.penalty,
        }

    def _pooled(self, own: LabelledClips) -> tuple[Tensor, Tensor]:
        """Mean token of each clip, float32 [n, D], and labels, int64 [n], of all processes."""
        size, means = self._config.batch_size, []
        for call in range(own.num_calls):
            clips = own.clips[call * size : (call + 1) * size]
            # Sharded weights are gathered for each call, so every process must make as many.
            given = clips if len(clips) else self._filler
            device, precision = self._setup.device, self._setup.precision
            tokens = encode_clips(self._encoder, given, device, precision)
            means.append(tokens.mean(dim=1).cpu()[: len(clips)])
        parts = self._team.gather((own.rows, torch.cat(means).numpy(), own.labels.numpy()))
        rows, features, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = rows.argsort()
        return torch.from_numpy(features[order]), torch.from_numpy(labels[order])


@dataclass(frozen=True)
class _Choice:
    """Which videos of a split are used."""

    max_clips: int
    seed: int

    def rows(self, labels: Labels) -> NDArray[np.int64]:
        """At most `max_clips` rows, the same share of every class: int64, ascending."""
        count = len(labels)
        if count <= self.max_clips:
            return np.arange(count, dtype=np.int64)
        share = self.max_clips / count
        rows = stratified_subset(labels, fraction=share, seed=self.seed)
        # Rounding each class may give a few too many.
        kept = permute(np.arange(len(rows)), len(rows), self.seed, "online probe")
        return np.sort(rows[kept[: self.max_clips]])


def _read(source: EvaluationClips, labels: Labels, batch_size: int, team: Team) -> LabelledClips:
    """Decode this process's part of the chosen videos of one split."""
    batches = list(source.batches(0, len(source), batch_size))
    for bad in (video for batch in batches for video in batch.bad):
        _LOGGER.warning("online probe: %s is left out: %s", bad.path, bad.reason)
    kept = np.concatenate([np.empty(0, dtype=np.int64), *(batch.rows for batch in batches)])
    counts = team.gather(len(kept))
    if sum(counts) < 2:
        raise UserError(f"online probe: fewer than two videos of label {labels.name!r} can be read")
    truth = torch.from_numpy(labels.indices[kept])
    clips = [batch.clips[:, 0] for batch in batches if len(batch.rows)]
    num_calls = -(-max(counts) // batch_size)
    return LabelledClips(
        torch.cat(clips) if clips else torch.empty(0, dtype=torch.uint8), truth, kept, num_calls
    )
