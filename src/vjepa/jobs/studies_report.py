"""A study's report: what came of its jobs, beside what the paper finds, in plain words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from vjepa.config import from_dict, to_dict
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation import results
from vjepa.evaluation.results import RESULT_FILE, SPLITS_FILE, SeedSummary, load_result, over_seeds
from vjepa.jobs.decode import decode_clip, open_decoder, sample_strips
from vjepa.jobs.show import mask_strips, read_shot
from vjepa.jobs.studies import Grid, Job, config_class, with_folder
from vjepa.jobs.studies_run import Done, done
from vjepa.reporting import html
from vjepa.reporting.charts import MAX_LINES, Estimate, Line, estimate_charts, line_chart
from vjepa.reporting.html import Block, Chart, PictureBlock, Section, Table, Text
from vjepa.reporting.runs import read_run, run_charts
from vjepa.runtime.files import atomic_write, read_json
from vjepa.strict_yaml import write_yaml

_SCORED = ("probe train", "finetune", "detect train")
_REPRODUCED, _NOT, _OPEN = "reproduced", "not reproduced", "cannot be told"


@dataclass(frozen=True)
class Comparison:
    """Something that the paper finds, `better` above `worse`, on one set, label and step."""

    where: str
    better: str
    worse: str
    difference: SeedSummary
    """In points, seed by seed."""

    @property
    def verdict(self) -> str:
        """In plain words, by the 95 % interval over seeds."""
        low, high = self.difference.interval.low, self.difference.interval.high
        if (seeds := len(self.difference.values)) < 3:  # two alike would make no interval at all
            return f"{_OPEN} ({'one seed' if seeds == 1 else 'two seeds'})"
        if math.isclose(low, high):
            return f"{_OPEN} (equal in all seeds, so they tell no interval)"
        if low > 0:
            return _REPRODUCED
        return f"{_NOT}: the other way round" if high < 0 else f"{_OPEN} (the interval holds 0)"


def score_of(job: Job, folder: Path) -> float | None:
    """The test figure of a job in [0, 1]; None if it has none."""
    again = f"delete {folder} to run the job anew"
    if job.command == "detect train":
        found = read_json(folder / RESULT_FILE, again)["test"]
        return None if found is None else found["metrics"]["mean_average_precision"]
    if (folder / SPLITS_FILE).is_file():
        plain = read_json(folder / SPLITS_FILE, again)
        return None if plain["summary"] is None else plain["summary"]["mean"]
    test = load_result(folder).test
    return None if test is None else test.metrics.score


class Findings:
    """The figures of a grid, as far as its jobs are done."""

    def __init__(self, grid: Grid, out: Path) -> None:
        self.grid, self.out = grid, out
        self.done: dict[str, Done] = {}
        for job in grid.jobs.values():
            if (found := done(job, out)) is not None:
                self.done[job.id] = found

    def folder(self, job: str) -> Path:
        """Where a job has written."""
        return self.out / "jobs" / job

    @cached_property
    def scores(self) -> dict[tuple[str, str, str], dict[str, dict[int, float]]]:
        """By (set, label, step), variant and seed: the figure in percent."""
        found: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
        for cell in self.grid.cells:
            job = self.grid.jobs[cell.job]
            if job.command not in _SCORED or job.id not in self.done:
                continue
            score = score_of(job, self.folder(job.id))
            if score is not None:
                place = found.setdefault((cell.videos, cell.label, cell.step), {})
                place.setdefault(cell.variant, {})[cell.seed] = 100 * score
        return found

    @property
    def chains(self) -> list[tuple[str, ...]]:
        """What the paper finds of more than one of these variants; others are of other scales."""
        here = self.grid.variants.keys()
        return [chain for chain in self.grid.study.order if len(here & set(chain)) > 1]

    @property
    def comparisons(self) -> Iterator[Comparison]:
        """Neighbours in what the paper finds, wherever both were measured with the same seeds."""
        for place, by_variant in self.scores.items():
            for chain in self.chains:
                for better, worse in pairwise(chain):
                    one, other = by_variant.get(better, {}), by_variant.get(worse, {})
                    shared = sorted(one.keys() & other.keys())
                    if shared:
                        difference = over_seeds([one[seed] - other[seed] for seed in shared])
                        yield Comparison(_words(place), better, worse, difference)

    def floors(self) -> dict[str, dict[tuple[str, str, str], list[float]]]:
        """Figures that need no trained encoder, by name and place, where probes measured them."""
        found: dict[str, dict[tuple[str, str, str], list[float]]] = {}
        for cell in self.grid.cells:
            job = self.grid.jobs[cell.job]
            path = self.folder(job.id) / RESULT_FILE
            if job.command == "probe train" and job.id in self.done and path.is_file():
                for floor in load_result(path.parent).floors:
                    place = (cell.videos, cell.label, cell.step)
                    shares = found.setdefault(floor.name, {}).setdefault(place, [])
                    shares.append(100 * floor.correct / floor.count)
        return found


def _words(place: tuple[str, str, str]) -> str:
    return ", ".join(filter(None, place))


def _figure(summary: SeedSummary) -> str:
    if len(summary.values) == 1:
        return f"{summary.mean:.1f} (one seed)"
    low, high = summary.interval.low, summary.interval.high
    return f"{summary.mean:.1f} ({low:.1f} to {high:.1f})"


def _estimate(by_seed: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean over seeds in %, and the ends of its interval, which one seed does not have."""
    found = over_seeds(list(by_seed.values()))
    if len(by_seed) == 1:
        return found.mean, found.mean, found.mean
    return found.mean, max(0.0, found.interval.low), min(100.0, found.interval.high)


def write_report(name: str, grid: Grid, out: Path) -> tuple[Path, Path]:
    """Write ``NAME-SCALE.md`` and ``.html`` into `out` from the jobs that are done; their paths."""
    findings = Findings(grid, out)
    stem = f"{Path(name).stem}-{grid.scale}"
    sections = list(_sections(findings))
    answer = f"{_answer(findings)} What was run: {grid.plan.about}."
    if grid.changes:
        answer += f" Changed from that: {', '.join(grid.changes)}."
    seconds = sum(one.cpu_seconds for one in findings.done.values())
    begun = len({cell.seed for cell in grid.cells if cell.job in findings.done})
    planned = len(grid.plan.seeds)
    seeds = f"seed{'s' * (planned > 1)}"
    figures = [
        html.Figure(f"{len(findings.done)} of {len(grid.jobs)}", "jobs done"),
        html.Figure(f"{begun} of {planned}", f"{seeds} begun")
        if begun < planned
        else html.Figure(str(planned), seeds),
        html.Figure(f"{seconds / 3600:.2f} h", "of CPU time"),
    ]
    shows = ", ".join(grid.study.shows) or "not in the paper"
    footer = f"Written by vjepa studies report {name} --scale {grid.scale} --out DIR."
    title = f"{grid.study.title} ({shows}), scale {grid.scale}"
    report = html.Report(title, answer, figures, sections, footer)
    markdown, page = out / f"{stem}.md", out / f"{stem}.html"
    atomic_write(markdown, _markdown(report, page.name))
    html.write_report(report, page)
    return markdown, page


def _answer(findings: Findings) -> str:
    study = findings.grid.study
    found = list(findings.comparisons)
    if not any(job.command in _SCORED for job in findings.grid.jobs.values()):
        return f"{study.question} There is no figure to measure: see the pictures below."
    if not findings.scores:
        return f"{study.question} Nothing is measured yet."
    if not study.order:
        return f"{study.question} The paper has no order to compare with; the figures are below."
    if not findings.chains:
        return (
            f"{study.question} Nothing that the paper compares is run here; the figures are below."
        )
    if not found:
        return f"{study.question} Of what the paper compares nothing is measured yet."
    counts = {
        word: sum(one.verdict.startswith(word) for one in found)
        for word in (_REPRODUCED, _NOT, _OPEN)
    }
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    chains = "; ".join(map(" above ".join, findings.chains))
    return (
        f"{study.question} The paper finds {chains}. Comparisons of that kind here, at scale "
        f"{findings.grid.scale}: {said}."
    )


def _sections(findings: Findings) -> Iterator[Section]:
    grid = findings.grid
    if findings.scores:
        yield _scores_section(findings)
    if findings.chains:
        yield _order_section(findings)
    if grid.study.rows:
        yield _paper_section(findings)
    if grid.study.sweeps and findings.scores:
        yield Section("Over what varies", blocks=list(_sweep_charts(findings)))
    if blocks := list(_curves(findings)):
        yield Section("How the runs went", "Runs with the first seed.", blocks)
    if blocks := list(_pictures(findings)):
        yield Section("Pictures", blocks=blocks)
    if findings.done:
        yield _cost_section(findings)
    if lines := list(_open_lines(findings)):
        yield Section("What is missing", blocks=[Table(["what", "why"], lines)])
    plan: dict[str, Any] = {
        "about": grid.plan.about,
        "seeds": list(grid.plan.seeds),
        "sets": {name: list(labels) for name, labels in grid.plan.sets.items()},
        "variants": grid.variants,
    }
    declared = Text(write_yaml(plan), preformatted=True)
    yield Section("The grid as declared", blocks=[declared], folded=True)


def _scores_section(findings: Findings) -> Section:
    unit, places = findings.grid.study.unit, list(findings.scores)
    rows, estimates = [], []
    for variant in findings.grid.variants:
        cells = [variant]
        for place in places:
            by_seed = findings.scores[place].get(variant, {})
            cells.append(_figure(over_seeds(list(by_seed.values()))) if by_seed else "-")
        rows.append(cells)
    for name, by_place in findings.floors().items():
        shares = [by_place.get(place) for place in places]
        rows.append([name, *(f"{statistics.fmean(one):.1f}" if one else "-" for one in shares)])
    for place in places:
        found = findings.scores[place]
        for number, (variant, by_seed) in enumerate(found.items(), start=1):
            mean, low, high = (share / 100 for share in _estimate(by_seed))
            colour = number if len(found) <= MAX_LINES else 1  # no colour for two of them
            estimates.append(Estimate(_words(place), variant, mean, low, high, colour))
    right = " (the most probable class is the right one)" if unit.startswith("top-1") else ""
    introduction = (
        f"{unit} on test videos{right}: the mean over seeds and its 95 % interval (Student's t, "
        "wide for few seeds). Floors need no trained encoder."
    )
    caption = "Dots: mean over seeds. Bars: its interval, of several seeds."
    charts = [Chart(drawn, caption) for drawn in estimate_charts(estimates, x_label=unit)]
    header = ["", *map(_words, places)]
    return Section("What was measured", introduction, [Table(header, rows), *charts])


def _order_section(findings: Findings) -> Section:
    study, rows = findings.grid.study, []
    for one in findings.comparisons:
        paper = [
            f"{a - b:+.1f}"
            for a, b in zip(*(study.rows.get(x, ()) for x in (one.better, one.worse)), strict=False)
            if a is not None and b is not None
        ]
        low, high = one.difference.interval.low, one.difference.interval.high
        interval = "-" if math.isinf(low) else f"{low:+.1f} to {high:+.1f}"
        seeds, mean = str(len(one.difference.values)), f"{one.difference.mean:+.1f}"
        what = f"{one.better} above {one.worse}"
        rows.append([what, one.where, mean, interval, seeds, one.verdict, ", ".join(paper)])
    header = ["the paper finds", "where", "points", "95 % interval", "seeds", "here", "paper"]
    if not any(row[-1] for row in rows):  # a figure, of which the paper gives no numbers
        header, rows = header[:-1], [row[:-1] for row in rows]
    introduction = "Differences seed by seed: both sides of a pair start from the same seed."
    if len(rows) > 1:
        introduction += (
            f" With many comparisons some intervals miss the truth: of these {len(rows)} about "
            f"{0.05 * len(rows):.1f}."
        )
    table = Table(header, rows) if rows else Text("Nothing to compare is measured yet.")
    return Section("The paper's order", introduction, [table])


def _paper_section(findings: Findings) -> Section:
    study = findings.grid.study
    rows = []
    for name, numbers in study.rows.items():
        shown = ["-" if number is None else f"{number:g}" for number in numbers]
        is_run = any(name in by_variant for by_variant in findings.scores.values())
        rows.append([name, *shown, "measured here" if is_run else "not measured here"])
    header = ["", *study.columns, "row"]
    text = f"{study.unit}, of much larger models and sets: the order can be compared, not the size."
    return Section("The paper's numbers", text, [Table(header, rows)])


def _sweep_charts(findings: Findings) -> Iterator[Block]:
    for sweep in findings.grid.study.sweeps:
        lines: list[Line] = []
        for place, by_variant in findings.scores.items():
            for name, numbers in sweep.lines.items():
                points = sorted(
                    (x, *_estimate(by_variant[variant]))
                    for variant, x in numbers.items()
                    if variant in by_variant
                )
                if len(points) > 1:
                    xs, ys, *ends = zip(*points, strict=True)
                    intervals, label = list(zip(*ends, strict=True)), f"{name}: {_words(place)}"
                    lines.append(Line(label, xs, ys, len(lines) + 1, intervals=intervals))
        if lines:
            shown, unit = lines[:MAX_LINES], findings.grid.study.unit
            caption = f"{sweep.title}. Upright: the 95 % interval over seeds."
            yield Chart(line_chart(shown, x_label=sweep.x, y_label=unit), caption)
        if len(lines) > MAX_LINES:
            others = ", ".join(line.label for line in lines[MAX_LINES:])
            yield Text(f"Not drawn, as there are more than {MAX_LINES} lines: {others}.")


def _curves(findings: Findings) -> Iterator[Block]:
    """Curves of the pretraining of each variant, the first seed's on the first set."""
    first: dict[str, Path] = {}
    cells = findings.grid.cells
    for cell in cells:
        is_first = (cell.seed, cell.videos) == (cells[0].seed, cells[0].videos)
        is_run = findings.grid.jobs[cell.job].command == "pretrain" and cell.job in findings.done
        if is_first and is_run and findings.folder(cell.job) not in first.values():
            first.setdefault(cell.variant, findings.folder(cell.job))
    states = {name: read_run(folder) for name, folder in list(first.items())[:MAX_LINES]}
    if states:
        yield from run_charts(states)[:4]
    if len(first) > MAX_LINES:
        yield Text(f"Curves of the first {MAX_LINES} of {len(first)} runs.")


def _pictures(findings: Findings) -> Iterator[Block]:
    """Of each variant once: its masks, or what its decoder draws."""
    grid, shown = findings.grid, set[str]()
    for cell in grid.cells:
        job = grid.jobs[cell.job]
        if cell.variant in shown or cell.seed != grid.plan.seeds[0]:
            continue
        folder = findings.folder(job.id)
        is_masks = job.command == "pretrain" and "masks" in grid.study.pictures
        is_decoder = job.command == "decode train" and "samples" in grid.study.pictures
        if not (is_masks or (is_decoder and job.id in findings.done)):
            continue
        placed = with_folder(to_dict(job.config), findings.out.absolute())
        config = from_dict(config_class(job.command), placed)
        source = config.data.sources[0]
        if not source.manifest.is_file():
            continue
        rows = Manifest.open(source.manifest).select(split=source.split)
        if len(rows):
            shown.add(cell.variant)
            video, name = Path(rows.path(0)), cell.variant
            try:
                yield _masks(config, video, name) if is_masks else _samples(folder, video, name)
            except UserError as error:
                yield Text(f"{name}: not drawn: {error}")


def _masks(config: Any, video: Path, name: str) -> PictureBlock:
    """Figure 9: a clip and what each mask leaves of it."""
    encoder = config.model.encoder
    shot = read_shot(video, config.data.clip, encoder.image_size)
    strips = mask_strips(shot.sharp, config.masking, encoder, config.seed, 0)
    return PictureBlock(strips, f"{name}: what the encoder sees of a clip, by mask.")


def _samples(folder: Path, video: Path, name: str) -> PictureBlock:
    """Figure 6: what a decoder draws of what was predicted."""
    opened = open_decoder(folder)
    clip, masks = opened.preprocess.pixels(video), opened.masks()[0]
    drawn = decode_clip(opened, clip, masks, 0, (0, 1, 2, 3))
    strips, (error, of_mean, _) = sample_strips(opened.model.config.encoder, clip, masks, drawn, 4)
    caption = (
        f"{name}: samples of a decoder that saw only predicted features, laid into the grey. Mean "
        f"absolute error {error:.1f}, of the samples' mean {of_mean:.1f}, of 255."
    )
    return PictureBlock(strips, caption)


def _cost_section(findings: Findings) -> Section:
    spent: dict[tuple[str, str], dict[str, None]] = {}
    for cell in findings.grid.cells:
        if cell.job in findings.done:
            spent.setdefault((cell.variant, cell.step), {})[cell.job] = None
    rows = []
    for (variant, step), jobs in spent.items():
        took = [findings.done[job] for job in jobs]
        cells = [variant, step, str(len(jobs))]
        cells.append(f"{statistics.fmean(one.seconds for one in took) / 60:.2f}")
        cells.append(f"{statistics.fmean(one.cpu_seconds for one in took) / 60:.2f}")
        runs = [findings.grid.jobs[job] for job in jobs]
        sizes = {job.id: job.config.data.batch_size for job in runs if job.command == "pretrain"}
        updates = {job: read_run(findings.folder(job)).steps_done for job in sizes}
        for known in (updates.values(), [n * sizes[job] for job, n in updates.items()]):
            cells.append(f"{statistics.fmean(known):,.0f}" if known else "")
        rows.append(cells)
    header = ["variant", "step", "jobs", "minutes", "CPU minutes", "updates", "clips seen"]
    text = (
        "Means of the jobs. Minutes are by the clock, with whatever else ran; jobs that several "
        "variants or studies share stand with each."
    )
    return Section("What it cost", text, [Table(header, rows)])


def _open_lines(findings: Findings) -> Iterator[list[str]]:
    for what, why in findings.grid.missing.items():
        yield [what, why]
    to_do = [job for job in findings.grid.jobs.values() if job.id not in findings.done]
    for job in to_do[:20]:
        log, why = findings.folder(job.id).with_suffix(".log"), "not run yet"
        if log.is_file():
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = f"begun; its log ends with: {said[-1] if said else '(nothing)'}"
        yield [job.what, why]
    if len(to_do) > 20:
        yield [f"and {len(to_do) - 20} more jobs", "not run yet"]


def _markdown(report: html.Report, page: str) -> str:
    """The report's words and tables; pictures are in the page."""
    lines = [f"# {report.title}", "", report.answer, ""]
    lines += [", ".join(f"{one.value} {one.label}" for one in report.figures) + ".", ""]
    for section in report.sections:
        lines += [f"## {section.title}", ""]
        lines += [section.introduction, ""] if section.introduction else []
        drawn = 0
        for block in section.blocks:
            if isinstance(block, Table):
                lines += [*results.table_lines(block.header, block.rows), ""]
            elif isinstance(block, Text):
                fence = ["```"] if block.preformatted else []
                lines += [*fence, block.text.rstrip(), *fence, ""]
            else:
                drawn += 1
        if drawn:
            lines += [f"Drawings here, in [{page}]({page}): {drawn}", ""]
    return "\n".join(lines)
