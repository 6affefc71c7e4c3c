"""The report of a training run: curves, warnings, config, and what the model sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vjepa.config import load_config
from vjepa.data.manifest import Manifest
from vjepa.errors import UserError
from vjepa.interop import read_model
from vjepa.jobs.pretrain_config import PretrainConfig
from vjepa.jobs.show import Seeing, predict_hidden, read_clip
from vjepa.jobs.visualise import features_picture, masks_picture, prediction_picture
from vjepa.reporting.charts import Line, line_chart
from vjepa.reporting.html import (
    Block,
    Chart,
    Figure,
    PictureBlock,
    Report,
    Section,
    Text,
    write_report,
)
from vjepa.runtime.metric_sinks import MetricRecord, read_metrics
from vjepa.version import __version__

_NUM_VIDEOS = 3
_NUM_COLOURS = 5
_KINDS = {
    "train": "Means over the updates between two log lines.",
    "health": "Spread of the features and how much of the targets is explained.",
    "evaluation": "Online measurements on labelled videos; rough, for comparing within this run.",
}


@dataclass(frozen=True)
class _Series:
    """One metric over the steps.

    Attributes:
        name: As logged.
        steps: Where it was logged.
        values: Finite values.
    """

    name: str
    steps: list[float]
    values: list[float]


def write_run_report(run: Path, out: Path, videos: Sequence[Path] = ()) -> None:
    """Write the report of a pretraining run as one HTML file.

    Args:
        run: The run folder.
        out: The HTML file.
        videos: Videos to look at with the newest checkpoint; none takes the first ones of the
            run's own data, if they are still there.

    Raises:
        UserError: `run` is no run folder, or a named video cannot be read.
    """
    stored = run / "config.yaml"
    if not stored.is_file():
        raise UserError(f"{run}: is no run folder (it has no config.yaml)")
    config = load_config(PretrainConfig, [stored])
    records = read_metrics(run / "metrics.jsonl")
    sections = [*_curve_sections(records), *_warning_sections(records)]
    chosen = list(videos) or _own_videos(config)
    if chosen and config.objective.name == "vjepa" and (run / "checkpoints").is_dir():
        sections.append(_sight_section(run, config, chosen))
    config_text = Text(stored.read_text(encoding="utf-8"), preformatted=True)
    sections.append(Section("Config", blocks=[config_text], folded=True))
    last = max((record.step for record in records), default=0)
    report = Report(
        title=f"Run {run.name}",
        answer=f"{last} of {config.optim.steps} updates done. The loss of self-prediction has no"
        " scale of its own: its targets learn too. Judge a run by the spread of its features and"
        " by a probe, not by the loss alone.",
        figures=_headlines(records, config),
        sections=sections,
        footer=f"vjepa {__version__}",
    )
    write_report(report, out)


def _own_videos(config: PretrainConfig) -> list[Path]:
    """The first usable videos of the run's first data set; none if they are gone."""
    for source in config.data.sources[:1]:
        if source.manifest.is_file():
            manifest = Manifest.open(source.manifest).select(split=source.split)
            paths = (Path(manifest.path(row)) for row in range(min(_NUM_VIDEOS, len(manifest))))
            return [path for path in paths if path.exists()]
    return []


def _headlines(records: Sequence[MetricRecord], config: PretrainConfig) -> list[Figure]:
    last = max((record.step for record in records), default=0)
    figures = [
        Figure(f"{last:,}", "updates"),
        Figure(f"{last * config.data.batch_size:,}", "clips"),
    ]
    losses = next((s for s in _series(records, "train") if s.name == "loss"), None)
    if losses is not None:
        figures.append(Figure(f"{losses.values[-1]:.4g}", "loss at the end"))
    return figures


def _series(records: Sequence[MetricRecord], kind: str) -> Iterator[_Series]:
    """The finite numbers of one kind of record, metric by metric, in the order of the log."""
    chosen = [record for record in records if record.kind == kind]
    for name in dict.fromkeys(name for record in chosen for name in record.values):
        points = [
            (float(record.step), float(value))
            for record in chosen
            if isinstance(value := record.values.get(name), (int, float)) and math.isfinite(value)
        ]
        if points:
            steps, values = zip(*points, strict=True)
            yield _Series(name, list(steps), list(values))


def _curve_sections(records: Sequence[MetricRecord]) -> list[Section]:
    """One section for each kind of record; metrics named ``group/metric`` share a chart."""
    sections = []
    for kind, lede in _KINDS.items():
        groups: dict[str, list[_Series]] = {}
        for series in _series(records, kind):
            groups.setdefault(series.name.rpartition("/")[0] or series.name, []).append(series)
        charts = [
            _chart(group, members[start : start + _NUM_COLOURS])
            for group, members in groups.items()
            for start in range(0, len(members), _NUM_COLOURS)
        ]
        if charts:
            sections.append(Section(kind.capitalize(), lede, charts))
    return sections


def _chart(group: str, members: Sequence[_Series]) -> Chart:
    lines = [
        Line(series.name.rpartition("/")[2], series.steps, series.values, colour)
        for colour, series in enumerate(members, start=1)
    ]
    return Chart(line_chart(lines, x_label="update", y_label=group), group)


def _warning_sections(records: Sequence[MetricRecord]) -> list[Section]:
    warnings = [record for record in records if record.kind == "warning"]
    lines = [f"step {record.step}: {record.values.get('message', '')}" for record in warnings]
    return [Section("Warnings", blocks=[Text(line) for line in lines])] if lines else []


def _sight_section(run: Path, config: PretrainConfig, videos: Sequence[Path]) -> Section:
    """Masks, features and predictions of the newest checkpoint for some videos."""
    model = read_model(run).model
    encoder = model.config.encoder
    clips = [read_clip(video, config.data.clip, encoder.image_size) for video in videos]
    blocks: list[Block] = [
        PictureBlock(
            masks_picture(
                clips[0], config.masking, encoder.tubelet_size, encoder.patch_size, config.seed, 0
            ),
            "The masks: the clip, then what each kind of mask leaves visible.",
        ),
        PictureBlock(
            features_picture(clips, {"target": model.target_encoder}),
            "The features: their three main directions as red, green and blue.",
        ),
    ]
    seeing = Seeing(config.data.clip, config.masking, config.seed)
    for video, clip in zip(videos, clips, strict=True):
        error = predict_hidden(model, seeing, clip)
        caption = f"{video.name}: what is predicted; relative error {error.mean:.3f}."
        blocks.append(PictureBlock(prediction_picture(clip, error), caption))
    return Section("What the model sees", "The newest checkpoint on a few videos.", blocks)
