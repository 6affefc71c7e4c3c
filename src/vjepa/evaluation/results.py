"""What is written down about probes: results, their tables, several draws of few labels."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vjepa.data.loader.evaluation import BadVideo
from vjepa.errors import UserError
from vjepa.evaluation.metrics import (
    ClassificationMetrics,
    ConfidenceInterval,
    Metrics,
    student_975,
    wilson_interval,
)
from vjepa.runtime.files import atomic_write, read_json

RESULT_FILE = "result.json"
TABLE_FILE = "result.md"
_FORMAT = "vjepa-probe-result-2"
_OLDER_FORMAT = "vjepa-probe-result-1"
"""There the figures of several classes a video stand in `test_multi_label`, not in `test`."""


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """One head of the grid on the rows that the choice was made on.

    With several classes a video it has `mean_average_precision` instead of `correct` and `top1`.
    `loss` is the mean cross-entropy in nats.
    """

    kind: str = "attentive"
    learning_rate: float
    weight_decay: float
    count: int
    correct: int | None = None
    top1: float | None = None
    mean_average_precision: float | None = None
    loss: float
    chosen: bool = False
    steps: int = 0
    """Updates; 0 in results of versions that did not keep them."""

    @property
    def rank(self) -> tuple[float, float]:
        """The smaller, the better: by the figure, then by the loss."""
        score = self.mean_average_precision if self.top1 is None else self.top1
        assert score is not None
        return -score, self.loss

    @property
    def score(self) -> str:
        """What the choice is made by, in words: ``83.3 % (5/6)`` or ``mAP 0.412 (6 videos)``."""
        if self.top1 is None:
            return f"mAP {self.mean_average_precision:.3f} ({self.count} videos)"
        return f"{100 * self.top1:.1f} % ({self.correct}/{self.count})"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics on one set of videos; their count plus the bad videos is the number of rows.

    `manifest_hash` is the content hash of the rows evaluated, `split` None for all rows, and
    `bad_videos` are those that could not be read (``on_bad_video: list``). `encoder` says which one
    it was, `trained_on` how many of the videos, or copies of them, the probe was trained on.
    """

    manifest: str
    manifest_hash: str
    split: str | None
    metrics: Metrics
    bad_videos: tuple[BadVideo, ...] = ()
    encoder: str = ""
    trained_on: int = 0

    def lines(self) -> list[str]:
        """What belongs beside the figures: what was left out, and what makes them too good."""
        lines = [f"Not evaluated: {bad.path}: {bad.reason}" for bad in self.bad_videos]
        empty = [entry.name for entry in self.metrics.per_class if not entry.count]
        if empty:
            lines.append(f"No video of class: {', '.join(empty)}")
        if self.trained_on:
            lines.append(
                f"{self.trained_on} of these videos, or copies of them, trained the probe: the "
                "figures are too good"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What needs no trained encoder, on the same labels and test videos; `name` says what."""

    name: str
    count: int
    correct: int

    @property
    def cells(self) -> tuple[str, str]:
        """Share of right answers in percent and its 95 % interval, as text."""
        found = wilson_interval(self.correct, self.count)
        top1 = f"{100 * self.correct / self.count:.1f}"
        return top1, f"{100 * found.low:.1f} to {100 * found.high:.1f}"


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The outcome of training one probe, or of fine-tuning.

    `encoder` says which encoder: file, weights, hash, or that it is untrained; `which` is
    ``target``, ``context``, ``random`` or ``fine-tuned``. `num_train` counts all labelled videos
    used, those of the choice included; `steps` are the head's updates. Nothing was chosen on the
    test rows; `test` is None without a test split, `selection` empty with one head only. `config`
    is the resolved one, `date` UTC in ISO 8601, `seconds` wall-clock by stage.
    """

    label: str
    encoder: str
    which: str
    weights_hash: str
    num_train: int
    num_classes: int
    test: Evaluation | None
    selection: tuple[HeadResult, ...]
    train_manifest_hash: str
    train_bad_videos: tuple[BadVideo, ...] = ()
    config: dict[str, Any]
    versions: dict[str, str]
    date: str
    seconds: dict[str, float] = field(default_factory=dict)
    folder: str = ""
    steps: int = 0
    floors: tuple[Floor, ...] = ()
    """Empty where they were not measured."""

    @property
    def left_out(self) -> str:
        """How many training videos could not be read, in words; empty where all could."""
        bad = self.train_bad_videos
        how_many = f"Not trained on, as they cannot be read: {len(bad)} of the training videos"
        return f"{how_many} (first: {bad[0].path}: {bad[0].reason})" if bad else ""

    def save(self, folder: Path) -> None:
        """Write ``result.json`` and a Markdown table beside it."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        atomic_write(folder / TABLE_FILE, self.markdown())
        atomic_write(folder / RESULT_FILE, text + "\n")

    def markdown(self) -> str:
        """The result as a short Markdown text: number, interval, heads, classes."""
        tuned = self.which == "fine-tuned"
        title, what = ("Fine-tuning", "Encoder and head") if tuned else ("Probe", "Head")
        lines = [f"# {title} of `{self.label}`", "", f"Encoder: {self.encoder}", ""]
        if self.steps:
            lines += [f"{what}: {self.steps} updates on {self.num_train} labelled videos", ""]
        lines += [self.left_out, ""] if self.left_out else []
        lines += [compare({self.which: self}), ""]
        if self.floors:
            rows = [(floor.name, *floor.cells) for floor in self.floors]
            lines += ["What needs no trained encoder, on the same videos and labels:", ""]
            lines += [*table_lines(("floor", "top-1 %", "95 % interval"), rows), ""]
        if self.selection:
            lines += ["Heads, by their figures on the rows held out for the choice:", ""]
            headings = (
                *("head", "updates", "learning rate", "weight decay", "held-out rows"),
                *("loss", "chosen"),
            )
            rows = [
                (
                    head.kind,
                    str(head.steps or self.steps),
                    f"{head.learning_rate:g}",
                    f"{head.weight_decay:g}",
                    head.score,
                    f"{head.loss:.3f}",
                    "yes" if head.chosen else "",
                )
                for head in self.selection
            ]
            lines += [*table_lines(headings, rows), ""]
        if self.test is not None:
            rows = [
                (entry.name, str(entry.count), entry.figure)
                for entry in self.test.metrics.per_class
                if entry.figure
            ]
            lines += [*table_lines(("class", "videos", self.test.metrics.class_figure), rows), ""]
            lines += self.test.lines()
        return "\n".join(lines).rstrip() + "\n"


_RESULT = TypeAdapter(ProbeResult)


def load_result(folder: Path) -> ProbeResult:
    """Read the result that a probe's training wrote into a folder."""
    path = folder / RESULT_FILE
    fields = read_json(path, "train the probe again")
    found = fields.get("format")
    if found not in (_FORMAT, _OLDER_FORMAT):
        raise UserError(f"{path}: format {found!r}, expected {_FORMAT!r}; train the probe again")
    if found == _OLDER_FORMAT:
        fields["test"] = fields.get("test") or fields.get("test_multi_label")
    try:
        return _RESULT.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: not a probe result ({where}: {first['msg']}); train the probe again"
        ) from error


def compare(results: Mapping[str, ProbeResult]) -> str:
    """A Markdown table of probes with their 95 % intervals, one row a result, by name.

    All with one class a video (top-1 in percent with Wilson's interval) or all with several (mean
    average precision with the jackknife's).
    """
    cells = {
        name: result.test.metrics.cells()
        for name, result in results.items()
        if result.test is not None
    }
    headings = tuple(dict.fromkeys(heading for found in cells.values() for heading in found))
    rows = [
        (
            name,
            results[name].label,
            str(results[name].num_train),
            *(found.get(heading, "-") for heading in headings),
        )
        for name, found in cells.items()
    ]
    lines = table_lines(("encoder", "label", "labels used", *headings), rows) if rows else []
    lines += [
        f"Not measured, without test videos: {name}, {result.label}, {result.num_train} labels used"
        for name, result in results.items()
        if name not in cells
    ]
    return "\n".join(lines)


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown; a class may be called "a|b", or have a new line in its name."""
    plain = [[" ".join(c.replace("|", r"\|").split()) for c in row] for row in (headings, *rows)]
    head, *lines = [f"| {' | '.join(row)} |" for row in plain]
    return [head, "|---" * len(headings) + "|", *lines]


@dataclass(frozen=True)
class SeedSummary:
    """The mean of a figure over seeds.

    `deviation` is the sample standard deviation, 0 for one seed; `interval` the 95 % interval of
    the mean (Student's t over seeds), infinite for one seed.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    interval: ConfidenceInterval


def over_seeds(values: Sequence[float]) -> SeedSummary:
    """Summarise one figure of several seeds, or the differences of two systems seed by seed.

    The interval of one test set says nothing about what another seed of the pretraining or
    another draw of the labels would have given: this one does.
    """
    if not values:
        raise ValueError("values: at least one is needed")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return SeedSummary(tuple(values), mean, 0.0, ConfidenceInterval(-math.inf, math.inf))
    deviation = statistics.stdev(values)
    half = student_975(len(values) - 1) * deviation / math.sqrt(len(values))
    return SeedSummary(tuple(values), mean, deviation, ConfidenceInterval(mean - half, mean + half))


SPLITS_FILE = "splits.json"
SPLITS_TABLE_FILE = "splits.md"
_SPLITS_FORMAT = "vjepa-probe-splits-1"


@dataclass(frozen=True, kw_only=True)
class SplitsResult:
    """Probes trained on several draws of labels, and their test figure over the draws, if any.

    `figure` is ``top1`` or ``mean_average_precision``.
    """

    results: tuple[ProbeResult, ...]
    seeds: tuple[int, ...]
    figure: str
    summary: SeedSummary | None

    @property
    def floors(self) -> dict[str, SeedSummary]:
        """The share of right answers of what needs no trained encoder, by its name."""
        draws = zip(*(result.floors for result in self.results), strict=True)
        return {
            same[0].name: over_seeds([floor.correct / floor.count for floor in same])
            for same in draws
        }

    def save(self, folder: Path) -> None:
        """Write ``splits.json`` and a Markdown table beside it."""
        plain = {
            "format": _SPLITS_FORMAT,
            "figure": self.figure,
            "seeds": list(self.seeds),
            "folders": [result.folder for result in self.results],
            "num_train": [result.num_train for result in self.results],
            "summary": None if self.summary is None else asdict(self.summary),
            "floors": {name: asdict(found) for name, found in self.floors.items()},
        }
        atomic_write(folder / SPLITS_TABLE_FILE, self.markdown())
        atomic_write(folder / SPLITS_FILE, json.dumps(plain, indent=1) + "\n")

    def markdown(self) -> str:
        """A Markdown table with one row a draw, the mean, and that of what stands beside it."""
        rows = [
            (f"seed {seed}", str(found.num_train))
            for seed, found in zip(self.seeds, self.results, strict=True)
        ]
        if self.summary is None:
            return "\n".join([*table_lines(("draw", "labels used"), rows), ""])
        name = "top-1 %" if self.figure == "top1" else "mAP %"
        values = zip(rows, self.summary.values, strict=True)
        shown = [(*row, f"{100 * value:.1f}") for row, value in values]
        means = {"mean": self.summary}
        means |= {f"beside it: {name}": found for name, found in self.floors.items()}
        for title, found in means.items():
            shown.append((title, "", f"{100 * found.mean:.1f} +- {100 * found.deviation:.1f}"))
        table = table_lines(("draw", "labels used", name), shown)
        return "\n".join([f"Encoder: {self.results[0].encoder}", "", *table, ""])


def summarise(results: Sequence[ProbeResult], seeds: Sequence[int]) -> SplitsResult:
    """Put the results of several draws together; all have test videos or none."""
    tested = [result.test.metrics for result in results if result.test is not None]
    one_class = not tested or isinstance(tested[0], ClassificationMetrics)
    return SplitsResult(
        results=tuple(results),
        seeds=tuple(seeds),
        figure="top1" if one_class else "mean_average_precision",
        summary=over_seeds([found.score for found in tested]) if tested else None,
    )
