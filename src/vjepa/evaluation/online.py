"""The online probe: during pretraining, how much do the features say about a label?

The loss of self-prediction does not tell (its targets move), so a small fixed set of labelled
videos is encoded now and then by the target encoder, and closed-form linear classifiers are fitted
on the mean of each video's tokens, of each of its time steps, and on all tokens: the first alone
hides much of what the features hold. It is cheap and rough: for numbers that are compared between
models, train a probe.
"""

from __future__ import annotations

import functools
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
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.data.loader.reading import ReadingConfig
from vjepa.errors import UserError
from vjepa.evaluation.frozen import check_finite, encode_clips, in_evaluation
from vjepa.evaluation.heads import fit_ridge, pool_tokens
from vjepa.evaluation.labels import (
    Labels,
    Split,
    check_every_class_has_a_sample,
    labelled_split,
    paths_and_sizes,
    refuse_known,
    stratified_subset,
)
from vjepa.evaluation.metrics import wilson_interval
from vjepa.models import EncoderConfig
from vjepa.runtime.device import Precision
from vjepa.runtime.distributed import ProcessGroup

_LOGGER = logging.getLogger(__name__)
_MOST_NUMBERS = 1 << 27
"""Of all tokens of a split's videos, 0.5 GB; with more only means are looked at."""


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
class _Clips:
    """This process's clips of one split: rows int64 [n] and pixels uint8 [n, C, T, S, S]."""

    rows: NDArray[np.int64]
    pixels: Tensor
    labels: Labels  # of all rows of the split
    num_calls: int  # forward calls of the process that has most clips


class OnlineProbe:
    """An evaluator of the training loop, which measures before the first update, too.

    What that tells is the floor: features that predict one another well may tell no more of a label
    than those of random weights, and no number of health shows it.
    """

    is_early = True

    def __init__(
        self,
        encoder: nn.Module,
        config: OnlineProbeConfig,
        clip: ClipConfig,
        view: ViewConfig,
        precision: Precision,
        seed: int,
        reading: ReadingConfig | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        """Read the labelled videos once; unreadable ones are left out with a warning.

        `encoder` is the target encoder that training keeps changing; `clip` and `view` are those of
        the pretraining without the random part. `seed` draws the videos, where there are more than
        `max_clips`; the processes of a group share them, and all must measure together.
        """
        from vjepa.data.manifest.manifest import Manifest

        self.every_steps = config.every_steps
        self._encoder, self._config, self._precision = encoder, config, precision
        self._group, self._seed = group or ProcessGroup(), seed
        size = (view.crop_size, view.crop_size)
        self._filler = torch.zeros(1, 3, clip.num_frames, *size, dtype=torch.uint8)
        self._reading = (clip, view, reading or ReadingConfig())
        sizes = encoder.config
        assert isinstance(sizes, EncoderConfig)
        self._floor: tuple[float, float] | None = None  # and the end of its interval; of update 0
        self._groups = {"": 1, "steps_": clip.num_frames // sizes.tubelet_size}
        if config.max_clips * sizes.num_tokens * sizes.width <= _MOST_NUMBERS:
            self._groups["tokens_"] = sizes.num_tokens
        else:
            _LOGGER.info(
                "online probe: without a classifier on all tokens: %d videos of %d x %d numbers "
                "are too many",
                *(config.max_clips, sizes.num_tokens, sizes.width),
            )
        try:
            manifest, what = Manifest.open(config.manifest), "videos, splits or labels"
            self._group.check_same(manifest.content_hash, manifest.source, what)
            part = functools.partial(labelled_split, manifest, label=config.label, ok_only=True)
            train = part(config.train_split, f"split {config.train_split}")
            check_every_class_has_a_sample(train.labels, f"manifest {manifest.source}")
            self.classes, name = train.labels.classes, config.validation_split
            held = part(name, f"split {name}", classes=self.classes)
            known, what = paths_and_sizes(train.manifest), f"in split {config.train_split} too"
            held = refuse_known(held, known, what, "give every video one split")
        except UserError as error:
            raise UserError(
                f"online_probe.manifest: {error}; or leave the probe out (--online_probe null)"
            ) from error
        self._fit, self._validation = self._read(train), self._read(held)

    def _read(self, split: Split) -> _Clips:
        """Decode this process's part of the chosen videos of one split."""
        size, manifest, labels = self._config.batch_size, split.manifest, split.labels
        rows = choose_rows(labels, self._config.max_clips, self._seed)
        mine = rows[self._group.rank :: self._group.size]
        with EvaluationClips(manifest, *self._reading, rows=mine, on_bad_video="list") as source:
            batches = list(source.batches(0, len(source), size))
        for bad in (video for batch in batches for video in batch.bad):
            _LOGGER.warning("online probe: %s is left out: %s", bad.path, bad.reason)
        kept = np.concatenate([np.empty(0, dtype=np.int64), *(batch.rows for batch in batches)])
        counts = self._group.gather(len(kept))
        if sum(counts) < 2:
            raise UserError(
                f"online probe: fewer than two videos of label {labels.name!r} can be read; look "
                "at the warnings, or leave online_probe out"
            )
        pixels = [self._filler[:0], *(batch.clips[:, 0] for batch in batches if len(batch.rows))]
        return _Clips(kept, torch.cat(pixels), labels, -(-max(counts) // size))

    @torch.no_grad()
    def run(self, step: int) -> dict[str, float]:
        """Fit on the train part, measure on the validation part, by the weights alone.

        Returns:
            ``online_probe/top1`` (share in [0, 1]), the ends of its 95 % interval
            ``online_probe/top1_low`` and ``_high``, ``online_probe/count`` (validation videos),
            ``online_probe/train_top1``, and the chosen ridge ``online_probe/penalty``: of the mean
            token; ``online_probe/steps_top1`` of the means of all time steps, and
            ``online_probe/tokens_top1`` of all tokens, where they are not too many.
        """
        with in_evaluation(self._encoder):
            fit, fit_truth = self._pooled(self._fit)
            validation, truth = self._pooled(self._validation)
        values = {}
        for name in self._groups:
            classifier = fit_ridge(fit[name], fit_truth, len(self.classes))
            right = classifier.scores(validation[name]).argmax(dim=1) == truth
            count, correct = int(right.numel()), int(right.sum())
            values[f"online_probe/{name}top1"] = correct / count
            if name:
                continue
            fitted = classifier.scores(fit[name]).argmax(dim=1) == fit_truth
            interval = wilson_interval(correct, count)
            values |= {
                "online_probe/top1_low": interval.low,
                "online_probe/top1_high": interval.high,
                "online_probe/count": float(count),
                "online_probe/train_top1": float(fitted.double().mean()),
                "online_probe/penalty": classifier.penalty,
            }
        best = max(values[f"online_probe/{name}top1"] for name in self._groups)
        if step == 0:
            self._floor = best, wilson_interval(round(best * len(truth)), len(truth)).high
        elif self._floor is not None and best <= self._floor[1] and self._group.is_main:
            _LOGGER.warning(
                "step %d: so far the features tell no more of %s than before the first update: "
                "%.1f %%, then %.1f %% (by its interval up to %.1f). It may be early; if it stays "
                "so, try a lower learning rate or other masks",
                *(step, self._config.label, 100 * best, *(100 * x for x in self._floor)),
            )
        return values

    def _pooled(self, own: _Clips) -> tuple[dict[str, Tensor], Tensor]:
        """Pooled tokens of each clip by name, float32 [n, F], and labels, int64 [n]."""
        size = self._config.batch_size
        pooled: dict[str, list[Tensor]] = {name: [] for name in self._groups}
        for call in range(own.num_calls):
            clips = own.pixels[call * size : (call + 1) * size]
            # Sharded weights are gathered for each call, so every process must make as many.
            given = clips if len(clips) else self._filler
            tokens = encode_clips(self._encoder, given, self._precision)
            check_finite(tokens.mean(dim=1)[: len(clips)])
            for name, groups in self._groups.items():
                pooled[name].append(pool_tokens(tokens, groups).cpu()[: len(clips)])
        rows = np.concatenate(self._group.gather(own.rows))
        order = rows.argsort()
        features = {
            name: np.concatenate(self._group.gather(torch.cat(parts).numpy()))[order]
            for name, parts in pooled.items()
        }
        labels = own.labels.indices[rows[order]]
        return {k: torch.from_numpy(v) for k, v in features.items()}, torch.from_numpy(labels)


def choose_rows(labels: Labels, most: int, seed: int) -> NDArray[np.int64]:
    """At most so many rows, the same share of every class: int64, ascending."""
    count = len(labels)
    if count <= most:
        return np.arange(count, dtype=np.int64)
    rows = stratified_subset(labels, fraction=most / count, seed=seed)
    # Rounding each class may give a few too many.
    kept = permute(np.arange(len(rows)), len(rows), seed, "online probe")
    return np.sort(rows[kept[:most]])
