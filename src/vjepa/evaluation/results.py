"""Several draws of few labels, summed up: mean and standard deviation (paper, Table 7)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vjepa.errors import UserError
from vjepa.evaluation.frozen import BadVideo
from vjepa.evaluation.metrics import (
    CalibrationBin,
    ClassificationMetrics,
    ClassMetrics,
    ClassPrecision,
    Interval,
    MultiLabelMetrics,
)

RESULT_FILE = "result.json"
TABLE_FILE = "result.md"
_FORMAT = "vjepa-probe-result-1"


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """One head of the grid on the rows that the choice was made on.

    Attributes:
        kind: Form of the head.
        learning_rate, weight_decay: Its peak learning rate and starting weight decay.
        count, correct: Rows, and those answered rightly (None with several classes a video).
        top1: correct / count, or None.
        mean_average_precision: With several classes a video; None otherwise.
        loss: Mean cross-entropy in nats.
        chosen: Whether this head was taken.
    """

    kind: str = "attentive"
    learning_rate: float
    weight_decay: float
    count: int
    correct: int | None
    top1: float | None
    mean_average_precision: float | None = None
    loss: float
    chosen: bool

    @property
    def score(self) -> str:
        """What the choice is made by, in words: ``83.3 % (5/6)`` or ``mAP 0.412 (6 videos)``."""
        if self.top1 is None:
            return f"mAP {self.mean_average_precision:.3f} ({self.count} videos)"
        return f"{100 * self.top1:.1f} % ({self.correct}/{self.count})"


@dataclass(frozen=True, kw_only=True)
class EvaluatedSplit:
    """Metrics on one set of videos.

    Attributes:
        manifest: Path of the manifest.
        manifest_hash: Content hash of the rows evaluated.
        split: Name of the split, or None for all rows.
        metrics: The figures; their count plus the bad videos is the number of rows.
        bad_videos: Videos that could not be read (``on_bad_video: list``).
    """

    manifest: str
    manifest_hash: str
    split: str | None
    metrics: ClassificationMetrics
    bad_videos: tuple[BadVideo, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MultiLabelSplit:
    """The same where a video may have several classes; attributes as in :class:`EvaluatedSplit`."""

    manifest: str
    manifest_hash: str
    split: str | None
    metrics: MultiLabelMetrics
    bad_videos: tuple[BadVideo, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The outcome of training one probe.

    Attributes:
        label: Name of the label.
        encoder: Path of the encoder, or what it is.
        which: ``target``, ``context`` or ``random`` weights.
        weights_hash: SHA-256 of the encoder's weights.
        num_train: Labelled videos that were used in all, those of the choice included.
        num_classes: Classes.
        test: Metrics on the test rows, which nothing was chosen on; None without a test split.
        test_multi_label: The same where a video may have several classes; `test` is then None.
        selection: Every head of the grid; empty when there was only one.
        train_manifest_hash: Content hash of the training rows.
        train_bad_videos: Training videos that could not be read (``on_bad_video: list``).
        config: The resolved config of the job.
        versions: Of vjepa, Python and the libraries that a number may depend on.
        date: When, UTC, ISO 8601.
        seconds: Wall-clock seconds by stage.
        folder: Where probe and split file lie.
    """

    label: str
    encoder: str
    which: str
    weights_hash: str
    num_train: int
    num_classes: int
    test: EvaluatedSplit | None
    test_multi_label: MultiLabelSplit | None = None
    selection: tuple[HeadResult, ...]
    train_manifest_hash: str
    train_bad_videos: tuple[BadVideo, ...] = ()
    config: dict[str, Any]
    versions: dict[str, str]
    date: str
    seconds: dict[str, float] = field(default_factory=dict)
    folder: str = ""

    def save(self, folder: Path) -> None:
        """Write ``result.json`` and a Markdown table beside it."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / TABLE_FILE).write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The result as a short Markdown text: number, interval, heads, classes."""
        lines = [f"# Probe of `{self.label}`", "", compare({self.which: self}), ""]
        if self.selection:
            lines += [
                "Heads, by their figures on the rows held out for the choice:",
                "",
                "| head | learning rate | weight decay | held-out rows | loss | chosen |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {head.kind} | {head.learning_rate:g} | {head.weight_decay:g} | {head.score} | "
                f"{head.loss:.3f} | {'yes' if head.chosen else ''} |"
                for head in self.selection
            ]
            lines.append("")
        if self.test is not None:
            lines += ["| class | videos | accuracy % |", "|---|---|---|"]
            lines += [
                f"| {entry.name} | {entry.count} | "
                f"{'-' if entry.accuracy is None else f'{100 * entry.accuracy:.1f}'} |"
                for entry in self.test.metrics.per_class
            ]
        elif self.test_multi_label is not None:
            lines += ["| class | videos | average precision |", "|---|---|---|"]
            lines += [
                f"| {entry.name} | {entry.count} | "
                f"{'-' if entry.average_precision is None else f'{entry.average_precision:.3f}'} |"
                for entry in self.test_multi_label.metrics.per_class
            ]
        measured = self.test or self.test_multi_label
        if measured is not None:
            lines.append("")
            lines += [f"Not evaluated: {bad.path}: {bad.reason}" for bad in measured.bad_videos]
        return "\n".join(lines)


def load_result(folder: Path) -> ProbeResult:
    """Read the result that a probe's training wrote into a folder.

    Raises:
        UserError: It is missing or of another format.
    """
    path = folder / RESULT_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        found = fields.pop("format", None)
        if found != _FORMAT:
            raise UserError(f"{path}: format {found!r}, expected {_FORMAT!r}")
        fields["train_bad_videos"] = tuple(
            BadVideo(**video) for video in fields["train_bad_videos"]
        )
        fields["selection"] = tuple(HeadResult(**head) for head in fields["selection"])
        if fields["test"] is not None:
            fields["test"] = evaluated_split(fields["test"])
        if fields.get("test_multi_label") is not None:
            fields["test_multi_label"] = _multi_label_split(fields["test_multi_label"])
        return ProbeResult(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a probe result ({error})") from error


def evaluated_split(fields: Mapping[str, Any]) -> EvaluatedSplit:
    """Metrics on a set of videos from the plain values that ``dataclasses.asdict`` gives."""
    rebuilt: dict[str, Any] = dict(fields)
    rebuilt["metrics"] = _metrics(fields["metrics"])
    rebuilt["bad_videos"] = tuple(BadVideo(**video) for video in fields["bad_videos"])
    return EvaluatedSplit(**rebuilt)


def _multi_label_split(fields: Mapping[str, Any]) -> MultiLabelSplit:
    rebuilt: dict[str, Any] = dict(fields)
    metrics: dict[str, Any] = dict(fields["metrics"])
    metrics["bootstrap"] = Interval(**metrics["bootstrap"])
    metrics["per_class"] = tuple(ClassPrecision(**entry) for entry in metrics["per_class"])
    rebuilt["metrics"] = MultiLabelMetrics(**metrics)
    rebuilt["bad_videos"] = tuple(BadVideo(**video) for video in fields["bad_videos"])
    return MultiLabelSplit(**rebuilt)


def _metrics(fields: Mapping[str, Any]) -> ClassificationMetrics:
    rebuilt: dict[str, Any] = dict(fields)
    rebuilt["wilson"] = Interval(**fields["wilson"])
    rebuilt["bootstrap"] = Interval(**fields["bootstrap"])
    rebuilt["per_class"] = tuple(ClassMetrics(**entry) for entry in fields["per_class"])
    rebuilt["confusion"] = tuple(tuple(row) for row in fields["confusion"])
    rebuilt["calibration"] = tuple(CalibrationBin(**bin) for bin in fields.get("calibration", ()))
    return ClassificationMetrics(**rebuilt)


def compare(results: Mapping[str, ProbeResult]) -> str:
    """A Markdown table of probes with their 95 % intervals.

    Args:
        results: The results by the name that each row shall have.

    Returns:
        One row a result: labels used, top-1 in percent with the Wilson interval, the number of
        test videos, top-5, calibration error, loss. With several classes a video mean average
        precision stands instead of top-1, with its bootstrap interval.
    """
    if any(result.test_multi_label is not None for result in results.values()):
        return _compare_multi_label(results)
    lines = [
        "| encoder | label | labels used | top-1 % | 95 % interval | videos | top-5 % | ECE "
        "| loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        head = f"| {name} | {result.label} | {result.num_train} |"
        if result.test is None:
            lines.append(f"{head} - | - | - | - | - | - |")
            continue
        found = result.test.metrics
        top5 = "-" if found.top5 is None else f"{100 * found.top5:.1f}"
        lines.append(
            f"{head} {100 * found.top1:.1f} | {100 * found.wilson.low:.1f} to "
            f"{100 * found.wilson.high:.1f} | {found.count} | {top5} | "
            f"{found.calibration_error:.3f} | {found.loss:.3f} |"
        )
    return "\n".join(lines)


def _compare_multi_label(results: Mapping[str, ProbeResult]) -> str:
    lines = [
        "| encoder | label | labels used | mAP | 95 % interval | videos | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        head = f"| {name} | {result.label} | {result.num_train} |"
        if result.test_multi_label is None:
            lines.append(f"{head} - | - | - | - |")
            continue
        found = result.test_multi_label.metrics
        lines.append(
            f"{head} {found.mean_average_precision:.3f} | {found.bootstrap.low:.3f} to "
            f"{found.bootstrap.high:.3f} | {found.count} | {found.loss:.3f} |"
        )
    return "\n".join(lines)


# 97.5 % points of Student's t for 1 to 10 degrees of freedom; beyond, the normal's is near enough.
_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class SeedSummary:
    """The mean of a figure over seeds.

    Attributes:
        values: One a seed.
        mean: Their mean.
        deviation: Sample standard deviation; 0 for one seed.
        interval: 95 % interval of the mean (Student's t over seeds); infinite for one seed.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    interval: Interval


def over_seeds(values: Sequence[float]) -> SeedSummary:
    """Summarise one figure of several seeds, or the differences of two systems seed by seed.

    The interval of one test set says nothing about what another seed of the pretraining or
    another draw of the labels would have given: this one does.

    Args:
        values: One value a seed, for example ``result.test.metrics.top1``.

    Returns:
        Mean, deviation and interval.

    Raises:
        ValueError: No value.
    """
    if not values:
        raise ValueError("values: at least one is needed")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return SeedSummary(tuple(values), mean, 0.0, Interval(-math.inf, math.inf))
    deviation = statistics.stdev(values)
    freedom = len(values) - 1
    factor = _STUDENT_975[freedom - 1] if freedom <= len(_STUDENT_975) else 1.96
    half = factor * deviation / math.sqrt(len(values))
    return SeedSummary(tuple(values), mean, deviation, Interval(mean - half, mean + half))


SPLITS_FILE = "splits.json"
SPLITS_TABLE_FILE = "splits.md"
_SPLITS_FORMAT = "vjepa-probe-splits-1"


@dataclass(frozen=True, kw_only=True)
class SplitsResult:
    """Probes that were trained on several draws of labels.

    Attributes:
        results: One a draw, in the order of seeds.
        seeds: Of the draws.
        figure: ``top1`` or ``mean_average_precision``.
        summary: Values, mean, standard deviation and 95 % interval over draws of the test figure;
            None without test videos.
    """

    results: tuple[ProbeResult, ...]
    seeds: tuple[int, ...]
    figure: str
    summary: SeedSummary | None

    def save(self, folder: Path) -> None:
        """Write ``splits.json`` and a Markdown table beside it."""
        plain = {
            "format": _SPLITS_FORMAT,
            "figure": self.figure,
            "seeds": list(self.seeds),
            "folders": [result.folder for result in self.results],
            "num_train": [result.num_train for result in self.results],
            "summary": None if self.summary is None else asdict(self.summary),
        }
        text = json.dumps(plain, indent=1)
        (folder / SPLITS_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / SPLITS_TABLE_FILE).write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """A Markdown table with one row a draw, and the mean."""
        name = "top-1 %" if self.figure == "top1" else "mAP %"
        lines = [f"| draw | labels used | {name} |", "|---|---|---|"]
        values = self.summary.values if self.summary is not None else (None,) * len(self.results)
        for seed, result, value in zip(self.seeds, self.results, values, strict=True):
            shown = "-" if value is None else f"{100 * value:.1f}"
            lines.append(f"| seed {seed} | {result.num_train} | {shown} |")
        if self.summary is not None:
            lines.append(f"| mean | | {self.in_words} |")
        return "\n".join(lines) + "\n"

    @property
    def in_words(self) -> str:
        """Mean and standard deviation in percent, for example ``61.2 +- 1.4``."""
        if self.summary is None:
            return "-"
        return f"{100 * self.summary.mean:.1f} +- {100 * self.summary.deviation:.1f}"


def summarise(results: Sequence[ProbeResult], seeds: Sequence[int]) -> SplitsResult:
    """Put the results of several draws together.

    Args:
        results: At least one; all with test videos or none.
        seeds: Of the draws.
    """
    tops = [result.test.metrics.top1 for result in results if result.test is not None]
    precisions = [
        result.test_multi_label.metrics.mean_average_precision
        for result in results
        if result.test_multi_label is not None
    ]
    values = tops or precisions
    return SplitsResult(
        results=tuple(results),
        seeds=tuple(seeds),
        figure="mean_average_precision" if precisions else "top1",
        summary=over_seeds(values) if values else None,
    )
