"""Which small recipe learns most from a set of videos in so many minutes of one CPU thread?

A grid in YAML names labelled sets and trials (overrides of one recipe); every trial is trained to
1, 5, 20, ... minutes of CPU time and measured at each. What stands beside every model: random
weights on the same input, and ridge on pixels, frame differences and their size.

    python studies/recipe_trials.py --grid studies/recipe_trials.yaml --out runs/trials

One job after the other in this process, cheap ones first; each leaves a JSON file, so the same
command goes on where it was stopped, and a longer grid adds to what is there. `tables-PART.md` in
--out is written anew after every job; `--tables` only writes it.

A measurement is a ridge classifier, in closed form, on the frozen encoder's mean token, on the
means of its time steps, and on all tokens, with few labels (three draws) and with all. With `part:
validation` a quarter of the training labels is held out and measured on, so that recipes can be
chosen; with `part: test` all training labels are fitted on and the test videos measured, for seeds
and recipes on which nothing was chosen any more. Pretraining sees the training videos only.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

import vjepa
from vjepa.config import load_config
from vjepa.data.clips.views import ViewConfig
from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.data.loader.reading import ReadingConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.errors import UserError
from vjepa.evaluation.frozen import encode_clips
from vjepa.evaluation.heads import fit_ridge, pool_tokens
from vjepa.evaluation.labels import hold_out, labels_of, stratified_subset
from vjepa.evaluation.preprocess import load_encoder
from vjepa.jobs.pretrain import PretrainConfig
from vjepa.jobs.probe.encoder import untrained_encoder
from vjepa.jobs.probe.floors import PIXEL_FLOORS, small_frames
from vjepa.models import Encoder
from vjepa.runtime.files import atomic_write
from vjepa.runtime.logging import read_metrics
from vjepa.strict_yaml import parse_yaml

_LOGGER = logging.getLogger("recipe_trials")
_HELD_OUT = 0.25
_FEW_DRAWS = 3
_OF_ENCODER = ("model.encoder.", "data.normalisation")
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """A labelled set of videos."""

    manifest: Path
    """Parquet manifest with the splits `train` and `test`."""
    labels: tuple[str, ...]
    """Names of the labels that are measured."""
    few: int = 15
    """Labelled videos of each class in the few-label measurements."""
    many: int | None = None
    """Labelled videos of each class of the first label in the others; all where it is not given.
    Pretraining sees all videos in any case."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Of the recipe, for every trial on this set."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Everything that is to be run."""

    sets: dict[str, SetConfig]
    """By name."""
    trials: dict[str, dict[str, Any]]
    """Overrides of the recipe, by the trial's name. The value `run of NAME` stands for the run
    folder of another trial on the same set with the same seed, at its time so far."""
    minutes: tuple[float, ...] = (1.0, 5.0, 20.0)
    """CPU minutes after which each trial is measured."""
    seeds: tuple[int, ...] = (0,)
    """Of the pretraining."""
    recipe: str = "demo"
    """What the trials change."""
    part: Literal["validation", "test"] = "validation"
    """What is measured on."""


@dataclass(frozen=True)
class Job:
    """One measurement: a trial on a set after so many CPU minutes; 0 minutes: without training."""

    data: str
    trial: str
    seed: int
    minutes: float

    @property
    def run(self) -> str:
        """Name of the run's folder."""
        return f"{self.data}-{self.trial}-seed{self.seed}"


class LabelledSet:
    """A set in memory, as one view of every video that the encoder takes."""

    def __init__(self, config: SetConfig, recipe: PretrainConfig, out: Path, part: str) -> None:
        clip = recipe.data.clip
        view = ViewConfig(
            crop_size=recipe.model.encoder.image_size,
            short_side=round(recipe.model.encoder.image_size / 0.8),
        )
        reading = ReadingConfig(num_workers=0, frame_cache_gigabytes=4, frame_cache_folder=out)
        manifest = Manifest.open(config.manifest)
        self.clips, self.rows = {}, {}
        for split in ("train", "test") if part == "test" else ("train",):
            rows = manifest.select(split=split)
            if split == "train" and config.many:
                labels = labels_of(rows, config.labels[0])
                rows = rows.take(stratified_subset(labels, per_class=config.many, seed=0))
            with EvaluationClips(rows, clip, view, reading) as source:
                batches = [batch.clips[:, 0] for batch in source.batches(0, len(source), 256)]
            self.clips[split], self.rows[split] = torch.cat(batches), rows
        self._config, self._part = config, part

    def splits(self, label: str) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """How many labels, rows of `train` to fit on, and rows to measure on (of their split)."""
        labels = labels_of(self.rows["train"], label)
        fit = held = np.arange(len(labels))
        if self._part == "test":
            held = np.arange(len(self.rows["test"]))
        else:
            fit, held = hold_out(labels, fit, _HELD_OUT, 0)
        yield "all", fit, held
        for draw in range(_FEW_DRAWS):
            few = stratified_subset(labels.take(fit), per_class=self._config.few, seed=draw)
            yield "few", fit[few], held

    def measure(self, features: Mapping[str, Tensor]) -> dict[str, float]:
        """Share of right answers by ``label/few|all``: features float [n, F] by split."""
        found: dict[str, list[float]] = {}
        measured = "test" if self._part == "test" else "train"
        for label in self._config.labels:
            labels = labels_of(self.rows["train"], label)
            truth = labels_of(self.rows[measured], label, classes=labels.classes)
            for amount, fit, held in self.splits(label):
                known = torch.from_numpy(labels.indices[fit])
                ridge = fit_ridge(features["train"][fit], known, len(labels.classes))
                answers = ridge.scores(features[measured][held]).argmax(dim=1).numpy()
                share = float((answers == truth.indices[held]).mean())
                found.setdefault(f"{label}/{amount}", []).append(share)
        return {name: statistics.fmean(shares) for name, shares in found.items()}

    def measure_encoder(self, encoder: nn.Module, steps: int) -> dict[str, dict[str, float]]:
        """By what the ridge sees (mean, steps, all), :meth:`measure` of an encoder's tokens."""
        tokens = {
            split: torch.cat(
                [encode_clips(encoder, part, "float32") for part in clips.split(_ENCODED_AT_ONCE)]
            )
            for split, clips in self.clips.items()
        }
        count = next(iter(tokens.values())).shape[1]
        return {
            name: self.measure({split: pool_tokens(x, groups) for split, x in tokens.items()})
            for name, groups in (("mean", 1), ("steps", steps), ("all", count))
        }

    def measure_pixels(self) -> dict[str, dict[str, float]]:
        """Floors without an encoder, by name."""
        frames = {split: small_frames(clips) for split, clips in self.clips.items()}
        return {
            name: self.measure({split: view(x) for split, x in frames.items()})
            for name, view in PIXEL_FLOORS.items()
        }


class Study:
    """The grid, and what is there of it."""

    def __init__(self, grid: GridConfig, out: Path) -> None:
        self.grid, self.out = grid, out
        self.labelled_set = cache(self._open_set)

    def jobs(self) -> list[Job]:
        """Everything, in the order in which it is run: cheap first.

        Random weights are measured once for the trials that change nothing of the encoder.
        """
        grid, inputs = self.grid, {}
        for trial, overrides in grid.trials.items():
            encoder = [item for item in overrides.items() if item[0].startswith(_OF_ENCODER)]
            inputs.setdefault(json.dumps(encoder), trial)
        return [
            Job(data, trial, seed, minutes)
            for minutes in (0.0, *grid.minutes)
            for seed in grid.seeds
            for data in grid.sets
            for trial in (grid.trials if minutes else inputs.values())
        ]

    def config(self, job: Job) -> PretrainConfig:
        """The pretraining of a job."""
        grid, data = self.grid, self.grid.sets[job.data]
        trial = dict(grid.trials[job.trial])
        for name, value in trial.items():
            if isinstance(value, str) and value.startswith("run of "):
                other = value.removeprefix("run of ")
                trial[name] = str(self.out / "runs" / f"{job.data}-{other}-seed{job.seed}")
        overrides = {
            "seed": job.seed,
            "online_probe": None,
            "data.normalisation": "measured",
            "data.sources": [{"manifest": str(data.manifest), "split": "train"}],
            "data.loader.frame_cache_folder": str(self.out / "frames"),
            "training.max_cpu_minutes": job.minutes or None,
            **data.overrides,
            **trial,
        }
        return load_config(PretrainConfig, [grid.recipe], overrides, "pretrain")

    def result(self, job: Job) -> dict[str, Any] | None:
        """What an earlier call has measured."""
        path = self._path(job)
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["overrides"] != _plain(self.grid.trials[job.trial]):
            raise UserError(
                f"{path}: made by a trial {job.trial!r} of other settings ({found['overrides']}); "
                "give the changed trial another name"
            )
        return found

    def do(self, job: Job) -> None:
        """Train as far as the job says, and measure."""
        config, data = self.config(job), self.labelled_set(job.data)
        found: dict[str, Any] = {"overrides": _plain(self.grid.trials[job.trial])}
        run = self.out / "runs" / job.run
        steps = config.data.clip.num_frames // config.model.encoder.tubelet_size
        if job.minutes:
            result = vjepa.pretrain(config, run)
            if result.interrupted:
                raise KeyboardInterrupt
            alarms = sum(r.kind == "warning" for r in read_metrics(run / "metrics.jsonl"))
            found |= {"step": result.step, "alarms": alarms, "metrics": result.metrics}
            found["encoder"] = data.measure_encoder(load_encoder(run), steps)
        else:
            # The input's numbers are measured by the run: one update, which is not measured.
            place = self.out / "inputs" / job.run
            vjepa.pretrain(replace(config, optim=replace(config.optim, steps=1)), place)
            encoder = load_encoder(place)
            assert isinstance(encoder, Encoder)
            fresh = untrained_encoder(encoder.config, job.seed).eval()
            found["encoder"] = data.measure_encoder(fresh, steps)
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(found, indent=1) + "\n")

    def floors(self, data: str) -> dict[str, dict[str, float]]:
        """Floors of a set without an encoder."""
        path = self.out / self.grid.part / f"{data}-pixels.json"
        if not path.is_file():
            found = self.labelled_set(data).measure_pixels()
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(found, indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def tables(self) -> str:
        """What is there, as Markdown: a table for each set and label."""
        text = [f"Top-1 in percent on the {self.grid.part} part; mean over seeds.\n"]
        for data, config in self.grid.sets.items():
            floors = self.floors(data)
            for label in config.labels:
                text += [f"### {data}: {label}\n", *self._table(data, label, floors), ""]
        return "\n".join(text)

    def _table(self, data: str, label: str, floors: Mapping[str, Any]) -> list[str]:
        columns = [(pool, amount) for amount in ("few", "all") for pool in ("mean", "steps", "all")]
        head = " | ".join(f"{amount} labels, {pool}" for pool, amount in columns)
        lines = [f"| trial | CPU min | updates | alarms | {head} |"]
        lines += ["|---" * (len(columns) + 4) + "|"]
        for name, found in floors.items():
            few, every = (f"{100 * found[f'{label}/{amount}']:.1f}" for amount in ("few", "all"))
            lines.append(f"| ridge on {name} | | | | | | {few} | | | {every} |")
        for trial in self.grid.trials:
            for minutes in (0.0, *self.grid.minutes):
                jobs = [Job(data, trial, seed, minutes) for seed in self.grid.seeds]
                there = [found for job in jobs if (found := self.result(job)) is not None]
                if not there:
                    continue
                cells = []
                for pool, amount in columns:
                    shares = [x["encoder"][pool][f"{label}/{amount}"] for x in there]
                    cells.append(_cell(shares))
                updates = f"{statistics.fmean(x.get('step', 0) for x in there):.0f}"
                what = "random weights" if not minutes else f"{minutes:g}"
                alarms = sum(x.get("alarms", 0) for x in there)
                lines.append(f"| {trial} | {what} | {updates} | {alarms} | {' | '.join(cells)} |")
        return lines

    def _open_set(self, name: str) -> LabelledSet:
        recipe = self.config(Job(name, next(iter(self.grid.trials)), 0, 0.0))
        folder, part = self.out / "frames", self.grid.part
        return LabelledSet(self.grid.sets[name], recipe, folder, part)

    def _path(self, job: Job) -> Path:
        return self.out / self.grid.part / f"{job.run}-{job.minutes:g}min.json"


def _cell(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} +- {100 * statistics.stdev(shares):.1f}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True, help="YAML file of a GridConfig")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tables", action="store_true", help="only write tables.md")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOGGER.setLevel(logging.INFO)
    torch.set_num_threads(1)
    grid = TypeAdapter(GridConfig).validate_python(
        parse_yaml(args.grid.read_text(encoding="utf-8"), str(args.grid))
    )
    study = Study(grid, args.out)
    table = args.out / f"tables-{study.grid.part}.md"
    for job in [] if args.tables else study.jobs():
        if study.result(job) is None:
            _LOGGER.info("%s", job)
            study.do(job)
            atomic_write(table, study.tables())
    atomic_write(table, study.tables())
    print(study.tables())


if __name__ == "__main__":
    main()
