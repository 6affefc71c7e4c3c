"""Fine-tuned against frozen, with few and with all labels, at equal clips seen (Figure 4 in small).

``python studies/fine_tuning.py ENCODER MANIFEST LABEL --out runs/fine_tuning``

Both are shown the same number of clips of the same videos, cut by the same random crops, and try as
many learning rates; the rate is chosen by the `validation` videos, once, with the first seed, and
the `test` videos are looked at with that rate alone. A seed draws the few labels. Kinds: an
attentive probe on the frozen encoder; the encoder fine-tuned plainly (layer-wise rates and warm-up:
no mixing, RandAugment, erasing, drop path); by the shipped recipe as it is; plainly from untrained
weights. A run that is there is not made again. Measured: docs/studies/fine-tuning.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vjepa.config import load_config
from vjepa.evaluation.results import ProbeResult, load_result, over_seeds
from vjepa.jobs.finetune.config import FinetuneConfig
from vjepa.jobs.finetune.job import run
from vjepa.jobs.probe.config import ProbeConfig
from vjepa.jobs.probe.probe import train

BATCH = 32
PLAIN = {
    "mix.probability": 0.0,
    "data.augment.rand_augment": False,
    "data.augment.erasing": 0.0,
    "data.repeats": 1,
    "data.batch_size": BATCH,
    "trained.drop_path": 0.0,
}
KINDS = ("frozen", "plain", "recipe", "untrained")


def measured(
    kind: str, few: int | None, seed: int, rates: list[float], args: argparse.Namespace
) -> tuple[float, dict[float, float]]:
    """The test accuracy of the rate that is best in validation, and validation by rate."""
    if kind == "frozen":
        return frozen(few, seed, rates, args)
    runs = {rate: tuned(kind, few, seed, rate, args) for rate in rates}
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
    few: int | None, seed: int, rates: list[float], args: argparse.Namespace
) -> tuple[float, dict[float, float]]:
    """Heads of all rates, trained side by side on the same clips."""
    out = args.out / f"frozen_{few or 'all'}_{seed}"
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
        "optim.steps": args.steps,
        "optim.max_steps": args.steps,  # makes it measure the validation videos
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
    kind: str, few: int | None, seed: int, rate: float, args: argparse.Namespace
) -> tuple[float, float]:
    """One run of fine-tuning: its accuracy on the test and on the validation videos."""
    out = args.out / f"{kind}_{few or 'all'}_{seed}_{rate:g}"
    changes = {
        "data.horizontal_flip": args.flip,
        "data.crop_scale": args.crop_scale,
        "data.crop_aspect": args.crop_aspect,
        "data.test_segments": 1,
        "data.batch_size": BATCH // 2,
        "data.loader.num_workers": 0,
        "data.loader.frame_cache_gigabytes": 4.0,
        "optim.epochs": None,
        "optim.steps": args.steps,
        "optim.min_steps": 0,
        "optim.peak_lr": rate,
        "training.device": "cpu",
        "training.num_threads": 1,
        "training.evaluate_every_steps": args.steps,
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


def main() -> None:
    """All runs, seed after seed, and the table as far as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("label")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--few", type=int, default=10, help="labels of each class")
    parser.add_argument("--steps", type=int, default=300, help="updates of 32 clips")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    rates = (1e-3, 3e-3, 1e-2)
    parser.add_argument("--frozen-rates", nargs="*", type=float, default=rates)
    parser.add_argument("--tuned-rates", nargs="*", type=float, default=rates)
    parser.add_argument("--crop-scale", nargs=2, type=float, default=(0.3, 1.0))
    parser.add_argument("--crop-aspect", nargs=2, type=float, default=(0.75, 4 / 3))
    parser.add_argument("--flip", action="store_true", help="mirror training clips")
    args = parser.parse_args()
    chosen: dict[tuple[str, int | None], dict[float, float]] = {}
    found: dict[tuple[str, int | None], list[float]] = {}
    for seed in range(args.seeds):
        for kind in args.kinds:
            for few in (None, args.few):
                rates = args.frozen_rates if kind == "frozen" else args.tuned_rates
                before = chosen.get((kind, few))
                if before is not None:
                    rates = [max(before, key=lambda rate: before[rate])]
                score, validation = measured(kind, few, seed, list(rates), args)
                chosen.setdefault((kind, few), validation)
                found.setdefault((kind, few), []).append(score)
        print("| labels a class | trained | top-1 % | by seed | validation % by rate |")
        print("|---|---|---|---|---|")
        for (kind, few), scores in sorted(found.items(), key=lambda item: str(item[0][1])):
            shown = over_seeds([100 * score for score in scores])
            each = ", ".join(f"{value:.1f}" for value in shown.values)
            by_rate = ", ".join(f"{r:g}: {100 * v:.1f}" for r, v in chosen[kind, few].items())
            print(
                f"| {few or 'all'} | {kind} | {shown.mean:.1f} +- {shown.deviation:.1f} | {each} | "
                f"{by_rate} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
