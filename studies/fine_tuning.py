"""Fine-tuned against frozen, with few and with all labels, at equal numbers of clips seen.

``python studies/fine_tuning.py ENCODER MANIFEST LABEL --out runs/fine_tuning``

Both are shown the same number of clips of the same videos, cut by the same random crops, and try as
many learning rates; the rate is chosen by the `validation` videos, once, with the first seed, and
the `test` videos are looked at with that rate alone. A seed draws the few labels. Kinds: an
attentive probe on the frozen encoder; the encoder fine-tuned plainly (layer-wise rates and warm-up:
no mixing, RandAugment, erasing, drop path, average of weights); by the shipped recipe as it is;
plainly from untrained weights. With several `--steps` each number of clips has runs and rates of
its own, trained by a whole schedule: half-way through a longer one the rate is still high, and what
is measured there says little of a training that ends there. (Doubling numbers cost twice the
largest together.) They are drawn into ``clips_seen.png``. Figure 4 of the paper counts the clips of
the pretraining: for that give its checkpoints as ENCODER, one after the other. A run that is there
is not made again. Measured: docs/studies/fine-tuning.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from vjepa.config import load_config
from vjepa.evaluation.results import ProbeResult, SeedSummary, load_result, over_seeds
from vjepa.jobs.finetune.config import FinetuneConfig
from vjepa.jobs.finetune.job import run
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.probe import train
from vjepa.reporting.pictures import MIDDLE_GREY

BATCH = 32
PLAIN = {
    "mix.probability": 0.0,
    "data.augment.rand_augment": False,
    "data.augment.erasing": 0.0,
    "data.repeats": 1,
    "data.batch_size": BATCH,
    "trained.drop_path": 0.0,
    "ema": None,  # after few updates an average is still mostly the weights of the start
}
KINDS = ("frozen", "plain", "recipe", "untrained")


def measured(
    kind: str, few: int | None, steps: int, seed: int, rates: list[float], args: argparse.Namespace
) -> tuple[float, dict[float, float]]:
    """The test accuracy of the rate that is best in validation, and validation by rate."""
    if kind == "frozen":
        return frozen(few, steps, seed, rates, args)
    runs = {rate: tuned(kind, few, steps, seed, rate, args) for rate in rates}
    best = max(runs, key=lambda rate: runs[rate][1])
    return runs[best][0], {rate: value for rate, (_, value) in runs.items()}


def common(few: int | None, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What both jobs are told alike."""
    return {
        "seed": seed,
        "encoder.path": str(args.encoder),
        "data.label": args.label,
        "data.train.manifest": str(args.manifest),
        "data.train.split": "train",
        "data.validation.split": "validation",
        "data.test.split": "test",
        "data.labels_per_class": few,
    }


def frozen(
    few: int | None, steps: int, seed: int, rates: list[float], args: argparse.Namespace
) -> tuple[float, dict[float, float]]:
    """Heads of all rates, trained side by side on the same clips."""
    out = args.out / f"frozen_{few or 'all'}_{steps}_{seed}"
    changes = {
        "data.augment.policy": "paper",
        "data.augment.crop_scale": args.crop_scale,
        "data.augment.crop_aspect": args.crop_aspect,
        "data.augment.horizontal_flip": args.flip,
        "data.reading.num_workers": 0,
        "data.reading.frame_cache_gigabytes": 4.0,
        "features.batch_size": 128,
        "features.online": True,
        "optim.epochs": None,
        "optim.steps": steps,
        "optim.max_steps": steps,  # makes it measure the validation videos
        "optim.batch_size": BATCH,
        "optim.learning_rates": rates,
        "device": "cpu",
        "num_threads": 1,
    }
    config = load_config(ProbeConfig, overrides=common(few, seed, args) | changes)
    result = load_result(out) if (out / "result.json").is_file() else train(config, out)
    assert result.test is not None
    heads = {head.learning_rate: head.top1 or 0.0 for head in result.selection}
    return result.test.metrics.score, heads


def tuned(
    kind: str, few: int | None, steps: int, seed: int, rate: float, args: argparse.Namespace
) -> tuple[float, float]:
    """One run of fine-tuning: its accuracy on the test and on the validation videos."""
    out = args.out / f"{kind}_{few or 'all'}_{steps}_{seed}_{rate:g}"
    changes = {
        "data.horizontal_flip": args.flip,
        "data.crop_scale": args.crop_scale,
        "data.crop_aspect": args.crop_aspect,
        "data.test_segments": 1,
        "data.batch_size": BATCH // 2,
        "data.loader.num_workers": 0,
        "data.loader.frame_cache_gigabytes": 4.0,
        "optim.epochs": None,
        "optim.steps": steps,
        "optim.min_steps": 0,
        "optim.peak_lr": rate,
        "training.device": "cpu",
        "training.num_threads": 1,
        "training.evaluate_every_steps": steps,
        "encoder.random": kind == "untrained",
        "encoder.seed": seed,
    }
    recipe = "finetune_vits" if few is None else "finetune_few_labels"
    changes |= {} if kind == "recipe" else PLAIN
    overrides = common(few, seed, args) | changes
    config = load_config(FinetuneConfig, [recipe], overrides=overrides, recipes="finetune")
    is_there = (out / "result.json").is_file()
    result: ProbeResult | None = load_result(out) if is_there else run(config, out).result
    if result is None:
        raise KeyboardInterrupt
    assert result.test is not None
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    validation = [line["validation/top1"] for line in lines if "validation/top1" in line]
    return result.test.metrics.score, validation[-1]


Cell = tuple[str, int | None, int]
"""Kind, labels of each class or None, updates."""


def best_of(validation: dict[float, float]) -> float:
    """The rate of the highest validation."""
    return max(validation, key=validation.__getitem__)


def table(found: dict[Cell, SeedSummary], chosen: dict[Cell, dict[float, float]]) -> str:
    """What is known so far, as Markdown."""
    lines = [
        "| labels a class | trained | clips seen | top-1 % | by seed | validation % by rate |",
        "|---|---|---|---|---|---|",
    ]
    for cell, shown in sorted(found.items(), key=lambda item: str(item[0][1])):
        kind, few, steps = cell
        each = ", ".join(f"{value:.1f}" for value in shown.values)
        by_rate = ", ".join(f"{r:g}: {100 * v:.1f}" for r, v in chosen[cell].items())
        if best_of(chosen[cell]) in (min(chosen[cell]), max(chosen[cell])):
            by_rate += " (best at the edge: try more)"
        top1 = f"{shown.mean:.1f} +- {shown.deviation:.1f}"
        lines.append(f"| {few or 'all'} | {kind} | {steps * BATCH} | {top1} | {each} | {by_rate} |")
    return "\n".join(lines)


def draw(found: dict[Cell, SeedSummary], path: Path) -> None:
    """Accuracy over the clips seen, with the deviation over seeds."""
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    plt.rcParams.update(dict.fromkeys(inks, MIDDLE_GREY))  # read on white and on black
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    kinds = list(dict.fromkeys(kind for kind, *_ in found))
    for kind, few in dict.fromkeys(cell[:2] for cell in found):
        steps = sorted(cell[2] for cell in found if cell[:2] == (kind, few))
        own = {number * BATCH: found[kind, few, number] for number in steps}
        axes.errorbar(
            list(own),
            [shown.mean for shown in own.values()],
            [shown.deviation for shown in own.values()],
            color=f"C{kinds.index(kind)}",
            linestyle="-" if few is None else "--",
            marker="o",
            markersize=3.5,
            capsize=2,
            label=f"{kind}, {few} labels a class" if few else f"{kind}, all labels",
        )
    seen = sorted({cell[2] * BATCH for cell in found})
    axes.set_xscale("log", base=2)
    axes.set_xticks(seen, [f"{number:,}" for number in seen])
    axes.set_xlabel("clips seen")
    axes.set_ylabel("top-1 on test videos, %")
    axes.grid(visible=True, axis="y", linewidth=0.4)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)


def main() -> None:
    """All runs, seed after seed, and the table as far as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("label")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--few", type=int, default=10, help="labels of each class")
    parser.add_argument("--steps", type=int, nargs="+", default=[300], help="updates of 32 clips")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    parser.add_argument("--frozen-rates", nargs="*", type=float, default=rates)
    parser.add_argument("--tuned-rates", nargs="*", type=float, default=rates)
    parser.add_argument("--crop-scale", nargs=2, type=float, default=(0.3, 1.0))
    parser.add_argument("--crop-aspect", nargs=2, type=float, default=(0.75, 4 / 3))
    parser.add_argument("--flip", action="store_true", help="mirror training clips")
    args = parser.parse_args()
    chosen: dict[Cell, dict[float, float]] = {}
    scores: dict[Cell, list[float]] = {}
    for seed in range(args.seeds):
        for kind in args.kinds:
            for few in (None, args.few):
                for steps in args.steps:
                    cell, rates = (kind, few, steps), list(args.tuned_rates)
                    if kind == "frozen":
                        rates = list(args.frozen_rates)
                    if cell in chosen:
                        rates = [best_of(chosen[cell])]
                    score, validation = measured(*cell, seed, rates, args)
                    chosen.setdefault(cell, validation)
                    scores.setdefault(cell, []).append(100 * score)
        found = {cell: over_seeds(values) for cell, values in scores.items()}
        print(table(found, chosen), flush=True)
        if len(args.steps) > 1:
            draw(found, args.out / "clips_seen.png")


if __name__ == "__main__":
    main()
