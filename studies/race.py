"""The race: accuracy against CPU time, for every objective on the same encoder, clips and batch.

    vjepa data synth --num_clips_train 1200 --num_clips_validation 0 --num_clips_test 600 \
        --seed 1 --out data/race
    python studies/race.py --out runs/race

Each objective is trained to some minutes of CPU time of one thread, and measured at each, as
``studies/recipe_trials.py`` does it: ridge on frozen features of the test videos. The same command
goes on where it was stopped; ``--seeds 0`` runs one seed only, so that several processes can share
the work. What is there is drawn into `race.png` in --out, and written into `race.md`. Results:
docs/studies/race.md.

The teacher of `frozen teacher` is the pixel model of the first measurement. Its time is counted:
the curve begins later.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from recipe_trials import GridConfig, Job, Study

from vjepa.reporting.pictures import MIDDLE_GREY
from vjepa.runtime.files import atomic_write
from vjepa.runtime.logging import read_metrics
from vjepa.strict_yaml import parse_yaml

_COLOURS = ("#2f8fd0", "#e0702f", "#35a168", "#a06fd0", "#b58a1f")  # seen on white and on black
_POOL, _AMOUNTS = "steps", ("few", "all")


def shares(study: Study, data: str, trial: str, minutes: float, what: str) -> dict[int, float]:
    """What has been measured of a trial, by seed: percent of right answers."""
    found = {s: study.result(Job(data, trial, s, minutes)) for s in study.grid.seeds}
    return {s: 100 * r["encoder"][_POOL][what] for s, r in found.items() if r is not None}


def points(study: Study, data: str, trial: str, what: str) -> list[tuple[float, float, float]]:
    """Total CPU minutes, and mean and standard deviation of the share over seeds."""
    overrides = study.grid.trials[trial]
    is_student = any(str(value).startswith("run of ") for value in overrides.values())
    begins = study.grid.minutes[0] if is_student else 0.0
    found = []
    for minutes in study.grid.minutes:
        there = list(shares(study, data, trial, minutes, what).values())
        if there:
            spread = statistics.stdev(there) if len(there) > 1 else 0.0
            found.append((begins + minutes, statistics.fmean(there), spread))
    return found


def draw(study: Study, path: Path) -> None:
    """One picture of all sets and amounts of labels: the mean over seeds, and its deviation.

    Panels stand below each other, without a ground: it is read on a phone and on a dark page.
    """
    wanted = [
        (data, f"{label}/{amount}")
        for data, config in study.grid.sets.items()
        for label in config.labels
        for amount in _AMOUNTS
    ]
    figure = Figure(figsize=(6.4, 0.5 + 3.5 * len(wanted)), layout="constrained")
    places = figure.subplots(len(wanted), 1, squeeze=False)[:, 0]
    for axes, (data, what) in zip(places, wanted, strict=True):
        untrained = next(iter(study.grid.trials))
        random = list(shares(study, data, untrained, 0.0, what).values())
        levels = {"random weights": statistics.fmean(random)} if random else {}
        levels |= {name: 100 * floor[what] for name, floor in study.floors(data).items()}
        for name, level in levels.items():
            is_random = name == "random weights"
            axes.axhline(level, color=MIDDLE_GREY, alpha=0.7, linewidth=1,
                         linestyle=":" if is_random else "-")  # fmt: skip
            axes.annotate(name, (1, level), (5, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center", color=MIDDLE_GREY)  # fmt: skip
        for trial, colour in zip(study.grid.trials, _COLOURS, strict=False):
            found = points(study, data, trial, what)
            if found:
                x, mean, spread = zip(*found, strict=True)
                axes.plot(x, mean, color=colour, marker="o", markersize=4, label=trial)
                low, high = ([m + sign * d for m, d in zip(mean, spread, strict=True)]
                             for sign in (-1, 1))  # fmt: skip
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        label, _, amount = what.partition("/")
        config = study.grid.sets[data]
        labelled = f"{config.few} labels a class" if amount == "few" else "all labels"
        axes.set_title(f"{data} set, {label}, {labelled}", color=MIDDLE_GREY, fontsize=11)
        axes.set_ylabel("right on test videos, %", color=MIDDLE_GREY)
        axes.tick_params(colors=MIDDLE_GREY)
        axes.spines[:].set_color(MIDDLE_GREY)
        axes.spines[["top", "right"]].set_visible(False)
    places[-1].set_xlabel("CPU minutes of one thread, the teacher's included", color=MIDDLE_GREY)
    handles, names = places[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False,
                  labelcolor=MIDDLE_GREY)  # fmt: skip
    figure.savefig(path, dpi=130, transparent=True)


def table(study: Study) -> str:
    """The numbers of the picture, and the health of the last measured features, as Markdown."""
    lines = []
    for data, config in study.grid.sets.items():
        for label in config.labels:
            heads = " | ".join(
                f"{config.few} a class" if amount == "few" else "all labels" for amount in _AMOUNTS
            )
            lines += [
                f"\n### {data}: {label}\n",
                f"| objective | CPU minutes | seeds | updates | {heads} | effective rank | std |",
                "|---" * (6 + len(_AMOUNTS)) + "|",
            ]
            for name, floor in study.floors(data).items():
                cells = " | ".join(f"{100 * floor[f'{label}/{a}']:.1f}" for a in _AMOUNTS)
                lines.append(f"| no encoder: {name} | | | | {cells} | | |")
            for trial in study.grid.trials:
                lines += _rows(study, data, trial, label)
    return "\n".join(lines) + "\n"


def _rows(study: Study, data: str, trial: str, label: str) -> list[str]:
    rows = []
    for minutes in (0.0, *study.grid.minutes):
        by_amount = [shares(study, data, trial, minutes, f"{label}/{a}") for a in _AMOUNTS]
        if not by_amount[0]:
            continue
        cells = []
        for found in by_amount:
            values = list(found.values())
            spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        jobs = [Job(data, trial, seed, minutes) for seed in by_amount[0]]
        updates = [(study.result(job) or {}).get("step", 0) for job in jobs]
        health = ["", ""]
        if minutes:
            reports = [_health(study, job, step) for job, step in zip(jobs, updates, strict=True)]
            known = [report for report in reports if report]
            for place, name in enumerate(("effective_rank", "target_std")):
                if known:
                    health[place] = f"{statistics.fmean(r[name] for r in known):.2f}"
        what = f"{minutes:g}" if minutes else "random weights"
        rows.append(
            f"| {trial} | {what} | {len(jobs)} | {statistics.fmean(updates):.0f} | "
            f"{' | '.join(cells)} | {' | '.join(health)} |"
        )
    return rows


def _health(study: Study, job: Job, step: int) -> dict[str, float]:
    """The newest report of a run's features until an update."""
    log = study.out / "runs" / job.run / "metrics.jsonl"
    reports = [r for r in read_metrics(log) if r.kind == "health" and r.step <= step]
    return dict(reports[-1].values) if reports else {}


def main() -> None:
    """Run what is missing, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=Path, default=Path(__file__).with_name("race.yaml"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", help="train these only; none: only draw")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("race").setLevel(logging.INFO)
    torch.set_num_threads(1)
    grid = TypeAdapter(GridConfig).validate_python(
        parse_yaml(args.grid.read_text(encoding="utf-8"), str(args.grid))
    )
    study = Study(grid, args.out)
    for job in study.jobs():
        if (args.seeds is None or job.seed in args.seeds) and study.result(job) is None:
            logging.getLogger("race").info("%s", job)
            study.do(job)
    text = table(study)
    atomic_write(args.out / "race.md", text)
    draw(study, args.out / "race.png")
    print(text)


if __name__ == "__main__":
    main()
