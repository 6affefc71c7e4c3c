"""Fine-tuned against frozen, with few and with all labels, at equal clips seen (Figure 4 in small).

``python studies/fine_tuning.py ENCODER MANIFEST LABEL --out runs/fine_tuning``

For each seed (which draws the few labels) and each number of labels: an attentive probe on the
frozen encoder (centre crops, learning rate chosen on a held-out fifth of the labels), the encoder
fine-tuned plainly (random crops alone: no mixing, RandAugment, erasing, drop path), the same from
untrained weights, and by the shipped recipe as it is. All are shown as many clips of the same
videos. A run that is there is not made again.
"""

from __future__ import annotations

import argparse
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
    "trained.drop_path": 0.0,
}
KINDS = ("frozen", "plain", "untrained", "recipe")


def result_of(kind: str, few: int | None, seed: int, args: argparse.Namespace) -> ProbeResult:
    """One run, made if it is not there."""
    labels = "all" if few is None else str(few)
    out = args.out / f"{kind}_{labels}_{seed}"
    if (out / "result.json").is_file():
        return load_result(out)
    common: dict[str, Any] = {
        "seed": seed,
        "encoder.path": str(args.encoder),
        "data.label": args.label,
        "data.train.manifest": str(args.manifest),
        "data.train.split": "train",
        "data.test.split": "test",
        "data.labels_per_class": few,
    }
    if kind == "frozen":
        changes = {
            "data.reading.num_workers": 0,
            "data.reading.frame_cache_gigabytes": 4.0,
            "features.batch_size": 128,
            "optim.epochs": None,
            "optim.steps": args.steps,
            "optim.batch_size": BATCH,
            "optim.learning_rates": [1e-3, 3e-3, 1e-2],
            "device": "cpu",
            "num_threads": 1,
        }
        return train(load_config(ProbeConfig, overrides=common | changes), out)
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
        "training.device": "cpu",
        "training.num_threads": 1,
        "encoder.random": kind == "untrained",
        "encoder.seed": seed,
    }
    recipe = "finetune_vits" if few is None else "finetune_few_labels"
    plain = {} if kind == "recipe" else PLAIN
    config = load_config(
        FinetuneConfig, [recipe], overrides=common | changes | plain, recipes="finetune"
    )
    result = run(config, out).result
    if result is None:
        raise KeyboardInterrupt
    return result


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
    parser.add_argument("--crop-scale", nargs=2, type=float, default=(0.3, 1.0))
    parser.add_argument("--crop-aspect", nargs=2, type=float, default=(0.75, 4 / 3))
    parser.add_argument("--flip", action="store_true", help="mirror training clips")
    args = parser.parse_args()
    found: dict[tuple[str, int | None], list[float]] = {}
    for seed in range(args.seeds):
        for few in (args.few, None):
            for kind in args.kinds:
                test = result_of(kind, few, seed, args).test
                assert test is not None
                found.setdefault((kind, few), []).append(test.metrics.score)
        print("| labels a class | trained | top-1 % | by seed |", "|---|---|---|---|", sep="\n")
        for (kind, few), scores in sorted(found.items(), key=lambda item: str(item[0][1])):
            shown = over_seeds([100 * score for score in scores])
            each = ", ".join(f"{value:.1f}" for value in shown.values)
            print(
                f"| {few or 'all'} | {kind} | {shown.mean:.1f} +- {shown.deviation:.1f} | {each} |"
            )


if __name__ == "__main__":
    main()
