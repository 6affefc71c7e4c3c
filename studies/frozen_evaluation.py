"""Does the evaluation protocol behave as in the paper? Its comparisons, on sets of laptop size.

For every run given (the seeds of one recipe) and for its architecture with random weights:

* attentive probe against a linear classifier on the mean token (Tables 3 and 12),
* one clip against several segments and several crops (Table 14),
* 5, 10 and 50 % of the labels against all (Table 7).

    python studies/frozen_evaluation.py --manifest data/vizdoom/manifest.parquet \
        --motion motion --appearance map --runs runs/seed0 runs/seed1 runs/seed2 --out runs/study

Clips, choice on held-out rows and test are those of `vjepa probe train`. Every fit writes a folder
under --out; a second call goes on where the first stopped. Mean and 95 % interval (Student) are
over the runs; with few labels each run sees another draw of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vjepa.config import load_config
from vjepa.data.loader.evaluation import EvaluationClips
from vjepa.data.manifest.manifest import Manifest
from vjepa.evaluation.heads import fit_ridge
from vjepa.evaluation.labels import labels_of
from vjepa.evaluation.results import RESULT_FILE, load_result, over_seeds
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.floors import PIXEL_FLOORS, small_frames
from vjepa.jobs.probe.probe import train

ENCODERS = {"V-JEPA": "target", "random weights": "random"}


@dataclass(frozen=True)
class Setting:
    """One row of a table."""

    title: str
    label: str
    kind: str = "attentive"
    segments: int = 1
    views: int = 1
    fraction: float | None = None
    join: str = "tokens"

    @property
    def folder(self) -> str:
        """Name of its folder; equal settings of two tables share it."""
        labels = "all" if self.fraction is None else f"{100 * self.fraction:g}pc"
        return f"{self.label}-{self.kind}-{self.segments}x{self.views}-{self.join}-{labels}"


def tables(motion: str, appearance: str | None) -> dict[str, list[Setting]]:
    """The comparisons, by title."""
    labels = [motion] if appearance is None else [motion, appearance]
    return {
        "Attentive against average pooling (Tables 3 and 12)": [
            Setting(f"{label}, {title}", label, kind)
            for label in labels
            for kind, title in (("attentive", "attentive"), ("linear", "mean token, linear"))
        ],
        "Segments x crops (Table 14)": [
            Setting(
                f"{segments} x {views}{note}", motion, segments=segments, views=views, join=join
            )
            for segments, views, join, note in (
                (1, 1, "tokens", ""),
                (1, 3, "tokens", ""),
                (2, 1, "tokens", ", tokens joined"),
                (2, 1, "average", ", probabilities averaged"),
                (2, 3, "tokens", ", tokens joined"),
            )
        ],
        "Share of the labels (Table 7)": [
            Setting(f"{title} of the labels, {kind}", motion, kind, fraction=fraction)
            for fraction, title in ((0.05, "5 %"), (0.1, "10 %"), (0.5, "50 %"), (None, "all"))
            for kind in ("attentive", "linear")
        ],
    }


def fit(setting: Setting, which: str, run: Path, seed: int, args: argparse.Namespace) -> float:
    """Top-1 on the test split, in percent; trains only what is not there yet."""
    out = args.out / f"{which}-seed{seed}" / setting.folder
    if (out / RESULT_FILE).exists():
        result = load_result(out)
    else:
        overrides = {
            "seed": seed,
            "encoder.path": str(run),
            "encoder.which": which,
            "encoder.seed": seed,
            "data.label": setting.label,
            "data.train.manifest": str(args.manifest),
            "data.train.split": "train",
            "data.test.split": "test",
            "data.label_fraction": setting.fraction,
            "data.view.num_segments": setting.segments,
            "data.view.num_views": setting.views,
            "data.view.join": setting.join,
            "data.reading.frame_cache_folder": str(args.out / "frames"),
            "features.cache_dir": str(args.out / "features"),
            "probe.kind": setting.kind,
            "optim.steps": args.steps,
        }
        if setting.kind == "linear":
            overrides["optim.learning_rates"] = [3e-3, 1e-2, 3e-2]
        result = train(load_config(ProbeConfig, ["demo"], overrides, recipes="probe"), out)
    assert result.test is not None
    return 100 * result.test.metrics.score


def pixel_baselines(label: str, some_probe: Path, manifest: Path) -> list[str]:
    """Ridge classifiers on 16 x 16 pixels of the same clips: what needs no encoder."""
    data = load_config(ProbeConfig, [some_probe / "config.yaml"]).data
    assert data.clip is not None
    assert data.view is not None
    parts: dict[str, tuple[Manifest, Tensor]] = {}
    for split in ("train", "test"):
        rows = Manifest.open(manifest).select(split=split)
        with EvaluationClips(rows, data.clip, data.view, data.reading) as source:
            frames = [
                small_frames(batch.clips[:, 0]) for batch in source.batches(0, len(source), 256)
            ]
        parts[split] = (rows, torch.cat(frames))
    known = labels_of(parts["train"][0], label)
    truth = torch.from_numpy(labels_of(parts["test"][0], label, classes=known.classes).indices)
    lines = []
    for name, view in PIXEL_FLOORS.items():
        fitted = fit_ridge(
            view(parts["train"][1]), torch.from_numpy(known.indices), len(known.classes)
        )
        right = fitted.scores(view(parts["test"][1])).argmax(dim=1) == truth
        top1 = 100 * float(right.double().mean())
        lines.append(f"| {label}, ridge on the pixels of the {name} | {top1:.1f} |")
    return lines


def write(title: str, rows: Sequence[tuple[str, dict[str, list[float]]]]) -> str:
    """A Markdown table: a row a setting, mean and interval over the runs for each encoder."""
    head = "| | " + " | ".join(ENCODERS) + " | difference |"
    lines = [f"### {title}", "", head, "|---|---|---|---|"]
    for name, values in rows:
        cells = []
        difference = [a - b for a, b in zip(*values.values(), strict=True)]
        for column in (*values.values(), difference):
            summary = over_seeds(column)
            low, high = summary.interval.low, summary.interval.high
            cells.append(f"{summary.mean:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every comparison and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--motion", required=True, help="label that needs several frames")
    parser.add_argument("--appearance", help="label that one frame may tell")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="one recipe, its seeds")
    parser.add_argument("--steps", type=int, default=400, help="updates of a probe")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = []
    for title, settings in tables(args.motion, args.appearance).items():
        rows = []
        for setting in settings:
            values = {
                name: [fit(setting, which, run, seed, args) for seed, run in enumerate(args.runs)]
                for name, which in ENCODERS.items()
            }
            rows.append((setting.title, values))
            print(f"{setting.title}: {values}", flush=True)
        text.append(write(title, rows))
    lines = ["### Without an encoder", "", "| | top-1 |", "|---|---|"]
    some_probe = args.out / "target-seed0" / Setting("", args.motion).folder
    for label in filter(None, (args.motion, args.appearance)):
        lines += pixel_baselines(label, some_probe, args.manifest)
    text.append("\n".join(lines) + "\n")
    (args.out / "tables.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
