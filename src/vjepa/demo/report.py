"""The demo's report: what was trained, what it knows, and how that looks."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vjepa.checkpoint import AnyEncoder
from vjepa.config import RESOLVED_CONFIG_FILE, dump_yaml, load_config
from vjepa.data.manifest.manifest import Manifest
from vjepa.demo.config import DemoConfig
from vjepa.demo.films import (
    drawn_section,
    expected_grid,
    followed_section,
    surprised_section,
    watched_section,
)
from vjepa.demo.probes import Cell, ProbeTask, evaluation_view, summarise
from vjepa.demo.training import DECODER_FOLDER, OBJECTIVES, run_folder
from vjepa.evaluation.preprocess import load_encoder, load_model
from vjepa.evaluation.results import ProbeResult, SeedSummary, over_seeds
from vjepa.jobs.learn_report import moment_sections
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.probe.encoder import untrained_encoder
from vjepa.jobs.show import feature_grid, feature_section, prediction_section, read_shot
from vjepa.models import VJEPA
from vjepa.reporting.charts import Estimate, estimate_charts
from vjepa.reporting.html import Block, Chart, Figure, Report, Section, Table, Text, write_report
from vjepa.reporting.runs import read_run, run_charts
from vjepa.runtime.device import seed_torch
from vjepa.runtime.process import usable_cpus

_ENCODERS: Mapping[str, tuple[str, int]] = {
    "vjepa": ("V-JEPA (predicts features)", 1),
    "pixel": ("same model, predicts pixels", 2),
    "random": ("random weights", 3),
    "frame differences": ("no encoder: frame differences", 4),
    "size of differences": ("no encoder: size of frame differences", 4),
    "all frames": ("no encoder: all frames", 4),
    "middle frame": ("no encoder: middle frame", 4),
}
"""Name and colour of each in tables and charts, in their order."""
_EVENTS_FOLDER = "events"
_WATCHED = 8  # clips
_RIGHT = "test clips named rightly (%)"
_MEANT = {
    "motion": "motion says what a digit did",
    "colour": "colour which colour it had",
    "appearance": "appearance which digit it was",
}
"""The questions of the synthetic set."""
_HEADS = ("attentive", "ridge mean", "ridge steps", "ridge all", "ridge")


@dataclass(frozen=True)
class DemoFindings:
    """What the demo found."""

    config: DemoConfig
    out: Path
    manifest: Path
    results: dict[ProbeTask, ProbeResult]
    baselines: list[Cell]
    seconds: dict[str, float]
    """Wall-clock seconds of this call by stage."""

    def run(self, objective: str) -> Path:
        """The run folder of an objective, first seed."""
        return run_folder(self.out, objective, self.config.seeds[0])


def write_demo_report(findings: DemoFindings, path: Path) -> None:
    """Write the report as one HTML file."""
    config = findings.config
    cells = sorted(
        summarise(findings.results) + findings.baselines,
        key=lambda cell: (
            config.labels.index(cell.label),
            cell.labels_per_class,
            _HEADS.index(cell.kind),
            list(_ENCODERS).index(cell.encoder),
        ),
    )
    run = findings.run("vjepa")
    pretrained = load_config(PretrainConfig, [run / RESOLVED_CONFIG_FILE])
    manifest = Manifest.open(findings.manifest)
    test, clip = manifest.select(split="test"), pretrained.data.clip
    _, view, _ = evaluation_view(config, findings.out)
    columns = [test.labels(label) for label in config.labels]
    shots = []  # evenly spread, named by their labels
    for row in np.unique(np.linspace(0, len(test) - 1, _WATCHED).astype(int)).tolist():
        name = ", ".join(str(column[row]).replace("_", " ") for column in columns)
        shots.append(read_shot(Path(test.path(row)), clip, view.crop_size, name, view))
    title, answer, figures = headline(config, cells)
    trained = load_encoder(run)
    encoders: dict[str, AnyEncoder] = {
        "random weights": untrained_encoder(trained.config, config.seeds[0]),
        "pixels": load_encoder(findings.run("pixel")),
        "V-JEPA": trained,
    }
    two = {name: encoders[name] for name in ("random weights", "V-JEPA")}
    model = load_model(run).eval()
    runs = (("V-JEPA", "vjepa"), ("pixels", "pixel"))
    states = {title: read_run(findings.run(objective)) for title, objective in runs}
    curves = "Losses of the two objectives are different quantities: compare probes, not losses."
    sections = [
        _claim_section(findings, cells),
        watched_section(shots, len(manifest.select(split="train")), config.labels),
    ]
    if config.decoder_steps:
        sections.append(drawn_section(findings.out / DECODER_FOLDER, test))
    if config.data.manifest is None:
        events = findings.out / _EVENTS_FOLDER
        data = config.data.synthetic
        with torch.random.fork_rng(devices=[]):
            seed_torch(config.seeds[0], "untrained model")
            fresh = VJEPA(model.config).eval()
        followed = {
            "V-JEPA": partial(expected_grid, model),
            "untrained": partial(expected_grid, fresh),
            "V-JEPA, if it sees all": partial(feature_grid, model.target_encoder),
        }
        sections += [
            followed_section(followed, data, model.config.encoder, clip, view),
            surprised_section(model, data, clip, view, events),
        ]
    configs = {"demo config": config, "pretraining config": pretrained}
    records = [Text(f"{k}\n\n{dump_yaml(v)}", preformatted=True) for k, v in configs.items()]
    sections += [
        *moment_sections(test, pretrained, two, set(), config.labels[0], view),
        _probe_section(findings, cells),
        _cost_section(findings, pretrained),
        _next_section(findings),
        replace(feature_section(shots[:3], encoders, "test clips"), folded=True),
        replace(prediction_section(model, pretrained, shots[:2]), folded=True),
        Section("How training went", curves, run_charts(states), folded=True),
        Section("All settings", blocks=records, folded=True),
    ]
    write_report(Report(title, answer, figures, sections), path)


def difference(one: Cell, other: Cell) -> SeedSummary:
    """How far a row is above another, seed by seed: both share data, labels and probe."""
    return over_seeds([a - b for a, b in zip(one.by_seed, other.by_seed, strict=True)])


def _compared(one: Cell, other: Cell) -> str:
    """How two rows stand to each other: by the paired difference where there are seeds enough."""
    told_apart = not one.interval.overlaps(other.interval)
    if len(one.by_seed) >= 3 and other.by_seed:
        gap = difference(one, other).interval
        told_apart = gap.low > 0 or gap.high < 0
    if not told_apart:
        return "not told apart from"
    return "above" if one.top1 > other.top1 else "below"


def _headline_cells(config: DemoConfig, cells: Sequence[Cell], label: str) -> dict[str, Cell]:
    """The rows for few labels: ridge on all tokens, and on pixels.

    Closed form: nothing is chosen on a handful of held-out clips, whose luck moves attentive rows.
    """
    few = (label, config.few_labels_per_class)
    return {
        cell.encoder: cell
        for cell in cells
        if (cell.label, cell.labels_per_class) == few and cell.kind in ("ridge all", "ridge")
    }


def headline(config: DemoConfig, cells: Sequence[Cell]) -> tuple[str, str, list[Figure]]:
    """The claim in a sentence, as far as it holds; the answer in a paragraph and in figures."""
    label = config.labels[0]
    by_encoder = _headline_cells(config, cells, label)
    mine, pixel, random = by_encoder["vjepa"], by_encoder["pixel"], by_encoder["random"]
    floors = [cell for cell in by_encoder.values() if cell.kind == "ridge"]
    others = {
        "the same network untrained": [random],
        "trained to predict pixels": [pixel],
        "linear classifiers on raw frames": floors,
    }
    beaten = [
        name
        for name, rows in others.items()
        if rows and all(_compared(mine, row) == "above" for row in rows)
    ]
    watched = f"{config.minutes:g} minute{'' if config.minutes == 1 else 's'} of watching"
    title = f"{watched} without a label, and from few labels it tells {label} "
    if beaten and beaten[0] == "the same network untrained":
        *most, last = beaten
        title += f"better than {', '.join(most)}{' or ' if most else ''}{last}"
    else:
        title += "no better than the same network untrained"
    answer = (
        f"Trained for {config.minutes:g} minutes of one CPU thread's time without any label, the "
        f"V-JEPA encoder was frozen, and a linear classifier learnt to name the {label} from its "
        f"features of {config.few_labels_per_class} labelled clips of each kind. It gets "
        f"{100 * mine.top1:.1f} % of unseen test clips right; the same on an untrained "
        f"encoder gets {100 * random.top1:.1f} %, and on an encoder trained for the same CPU time "
        f"to predict pixels {100 * pixel.top1:.1f} %. By the 95 % intervals, V-JEPA is "
        f"{_compared(mine, random)} the untrained encoder and {_compared(mine, pixel)} pixel "
        "prediction."
    )
    shares = {c.encoder: 100 * c.top1 for c in cells if (c.label, c.kind) == (label, "attentive")}
    if shares:
        answer += " By the paper's attentive probe, on one draw of these labels, the three have "
        answer += "{vjepa:.1f} %, {random:.1f} % and {pixel:.1f} %.".format(**shares)
    for other in config.labels[1:]:
        rows = _headline_cells(config, cells, other)
        if {"vjepa", "random"} <= rows.keys():
            answer += (
                f" Asked for the {other} instead, it gets {100 * rows['vjepa'].top1:.1f} % right "
                f"(untrained {100 * rows['random'].top1:.1f} %)."
            )
    figures = [
        Figure(f"{100 * mine.top1:.1f} %", f"{label} from few labels, V-JEPA"),
        _gap(mine, random, "random weights"),
        _gap(mine, pixel, "pixel prediction"),
        Figure(f"{config.minutes:g} min", "pretraining, CPU time of one thread"),
    ]
    return title, answer, figures


def _gap(one: Cell, other: Cell, name: str) -> Figure:
    """How far a row is above or below another, and whether that is more than chance."""
    gap, told = 100 * (one.top1 - other.top1), _compared(one, other)
    side = "above" if gap > 0 else "below" if gap < 0 else "beside"
    doubt = "" if told == side else ", not told apart"
    return Figure(f"{abs(gap):.1f} points", f"{side} {name}{doubt}")


def _claim_section(findings: DemoFindings, cells: Sequence[Cell]) -> Section:
    config = findings.config
    label = config.labels[0]
    classes = next(r.num_classes for r in findings.results.values() if r.label == label)
    labels = config.few_labels_per_class * classes
    group = f"{label}, {labels} labels"
    rows = _headline_cells(config, cells, label)
    estimates = [
        Estimate(group, name, cell.top1, cell.interval.low, cell.interval.high, colour)
        for encoder, (name, colour) in _ENCODERS.items()
        if (cell := rows.get(encoder))
    ]
    told = {group: 1 / classes}
    (chart,) = estimate_charts(estimates, x_label=_RIGHT, chance=told)
    caption = "Dots: share of test clips named rightly. Bars: 95 % intervals. Dotted: chance."
    title = f"Which {label} is it? Learnt from {labels} labels"
    return Section(title, blocks=[Chart(chart, caption, wide=True)])


def _probe_section(findings: DemoFindings, cells: Sequence[Cell]) -> Section:
    config = findings.config
    classes = {result.label: result.num_classes for result in findings.results.values()}
    estimates, chance, rows, strong = [], {}, [], set()
    for cell in cells:
        labels = cell.labels_per_class * classes[cell.label]
        group = f"{cell.label}, {labels} labels"
        chance[group] = 1 / classes[cell.label]
        name, colour = _ENCODERS[cell.encoder]
        low, high = cell.interval.low, cell.interval.high
        estimates.append(Estimate(group, f"{name}, {cell.kind}", cell.top1, low, high, colour))
        if cell.encoder == "vjepa":
            strong.add(len(rows))
        percent, interval = f"{100 * cell.top1:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append((f"{labels}, {cell.label}", cell.kind, name, percent, interval))
    test = next(iter(findings.results.values())).test
    count = test.metrics.count if test else 0
    seeds = len(config.seeds)
    basis = (
        f"over {seeds} pretraining seeds (Student's t), of rows without a seed over test "
        f"clips (Wilson, n = {count})"
        if seeds >= 3
        else f"of the test clips (Wilson, n = {count}), not of another training run"
    )
    caption = (
        f"Dots: top-1 on {count} test clips. Bars: 95 % interval {basis}. Dotted: chance. "
        f"Few-label rows: ridge is the mean over {config.label_draws} "
        f"draw{'s' * (config.label_draws != 1)} of the labelled clips."
    )
    head = ("labels", "probe", "encoder", "top-1 %", "95 % interval")
    dots = estimate_charts(estimates, x_label=_RIGHT, chance=chance)
    blocks: list[Block] = [
        *(Chart(dot, "") for dot in dots),
        Text(caption),
        Table(head, rows, strong_rows=frozenset(strong)),
        *_difference_table(cells, classes),
    ]
    told = "Test clips are those of the manifest's split `test`. "
    if config.data.manifest is None:
        meant = ", ".join(_MEANT[label] for label in config.labels if label in _MEANT)
        told = (
            f"{meant[:1].upper()}{meant[1:]}. Test clips show digit images that no training clip "
            "has. "
        )
    lede = (
        f"The encoder is frozen; only the probe on top is trained. {told}Attentive probes are "
        "trained until held-out labels gain no more; ridge probes see the mean token, the mean of "
        "each time step, or all tokens. Green rows use no encoder at all: a linear classifier on "
        "the pixels."
    )
    return Section("What do the frozen features know?", lede, blocks)


def _difference_table(cells: Sequence[Cell], classes: Mapping[str, int]) -> list[Block]:
    """V-JEPA minus the others with the same probe, paired by seed; nothing below three seeds."""
    rows = []
    for mine in cells:
        if mine.encoder != "vjepa" or len(mine.by_seed) < 3:
            continue
        row = (mine.label, mine.kind, mine.labels_per_class)
        labels = str(mine.labels_per_class * classes[mine.label])
        for other in cells:
            same = (other.label, other.kind, other.labels_per_class) == row
            if same and other.encoder in ("pixel", "random"):
                gap, name = difference(mine, other), f"V-JEPA minus {_ENCODERS[other.encoder][0]}"
                interval = f"{100 * gap.interval.low:+.1f} to {100 * gap.interval.high:+.1f}"
                points = f"{100 * gap.mean:+.1f}"
                rows.append((f"{labels}, {mine.label}", mine.kind, name, points, interval))
    head = ("labels", "probe", "difference, paired by seed", "points", "95 % interval")
    return [Table(head, rows)] if rows else []


def _cost_section(findings: DemoFindings, config: PretrainConfig) -> Section:
    rows = [(name, f"{seconds:.0f} s") for name, seconds in findings.seconds.items()]
    rows.append(("in all", f"{sum(findings.seconds.values()) / 60:.1f} minutes by the clock"))
    for objective in OBJECTIVES:
        state = read_run(findings.run(objective))
        clips = state.steps_done * config.data.batch_size
        _, rates = state.series("train", "clips_per_second")
        rate = f", {np.median(rates):.0f} clips/s (median)" if rates else ""
        used = state.newest("train").get("elapsed_cpu_seconds")
        rate += "" if used is None else f", {used / 60:.1f} minutes of CPU time"
        rows.append((f"{objective} run", f"{state.steps_done:,} steps, {clips:,} clips{rate}"))
    size = sum(p.numel() for p in load_encoder(findings.run("vjepa"), which="target").parameters())
    rows.append(("encoder", f"{size / 1e6:.2f} M parameters"))
    machine = f"{platform.processor() or platform.machine()}, {platform.system()}"
    rows += [("machine", f"{machine}, cores used: {usable_cpus()}, no GPU")]
    rows += [("Python", platform.python_version())]
    introduction = "Stages that an earlier call had finished took no time in this one."
    return Section("What it cost", introduction, [Table(("what", "how long, how much"), rows)])


def _next_section(findings: DemoFindings) -> Section:
    folder, test = findings.run("vjepa"), Manifest.open(findings.manifest).select(split="test")
    video, longer = test.path(0), "VIDEO.mp4"
    run, clip = shlex.quote(str(folder)), shlex.quote(video)
    if findings.config.data.manifest is None:
        longer = shlex.quote(str(findings.out / _EVENTS_FOLDER / "00_vanishes.mp4"))
    sample, decoder = "", shlex.quote(str(findings.out / DECODER_FOLDER))
    if findings.config.decoder_steps:
        sample = f"vjepa decode sample {clip} --decoder {decoder} --out samples.png\n"
    shape = f"e(e.preprocess('{video}')).shape"
    text = f"""\
# your own videos, no label needed: ten minutes, and a page like this one
vjepa learn videos/ --out runs/mine

# your own videos with labels, in this demo's way (video, label and split in a list)
vjepa data index list.csv --out videos.parquet
vjepa demo --data.manifest videos.parquet --out runs/mine_demo

# more of this page's pictures, of any clip
vjepa show similarity {clip} --model {run} --out similarity.png
vjepa show surprise {longer} --model {run} --out surprise.html
{sample}
# longer, and with intervals over three trainings
vjepa demo --minutes 20 --seeds '[0, 1, 2]' --out runs/longer

# in Python
python -c "import vjepa; e = vjepa.load_encoder('{folder}'); print({shape})"\
"""
    return Section("How to go on", blocks=[Text(text, preformatted=True)])
