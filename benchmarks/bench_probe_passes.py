"""Two ways to the same probe: clips encoded anew in every epoch, and cached passes of features.

Trains the same augmented attentive probe online and from caches of 20, 5 and 1 passes, then once
more from each cache, and prints top-1 of each seed and the CPU seconds of training (features and
updates, without the test). CPU time of one process: other work on the machine moves it little.

    python benchmarks/bench_probe_passes.py runs/first set/manifest.parquet --label motion

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vjepa.config import load_config
from vjepa.jobs.probe.config import ProbeConfig, VideosConfig
from vjepa.jobs.probe.inputs import rows_of_all_splits
from vjepa.jobs.probe.probe import evaluate, train

EPOCHS = 20


def _config(args: argparse.Namespace, seed: int) -> ProbeConfig:
    return load_config(
        ProbeConfig,
        ["demo"],
        {
            "seed": seed,
            "encoder.path": str(args.encoder),
            "data.label": args.label,
            "data.labels_per_class": args.labels_per_class,
            "data.train.manifest": str(args.manifest),
            "data.train.split": "train",
            "data.augment.policy": "paper",
            "data.augment.crop_scale": [0.5, 1.0],
            "data.augment.horizontal_flip": False,
            "data.reading.frame_cache_folder": str(args.frames),
            "features.batch_size": 64,
            "optim.epochs": EPOCHS,
            "optim.min_steps": 0,
            "optim.steps": None,
            "optim.learning_rates": [3e-3],
        },
        recipes="probe",
    )


def _run(config: ProbeConfig, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One probe: CPU seconds of its training, and top-1 on the test videos."""
    rows = rows_of_all_splits(config)  # a cache would hold all training rows
    start = time.process_time()
    train(config, folder, cached_rows=rows)
    seconds = time.process_time() - start
    measured = evaluate(
        folder,
        VideosConfig(manifest=args.manifest, split="test"),
        reading=config.data.reading,
        cache_dir=folder.parent / "test_features",
        device="cpu",
        num_threads=1,
    )
    return {"cpu_seconds": seconds, "top1": measured.metrics.top1}  # ty: ignore


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, list[dict[str, float]]]:
    """All ways, each for every seed."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        base = _config(args, seed)
        online = replace(base, features=replace(base.features, online=True))
        found.setdefault("online", []).append(_run(online, args, scratch / f"online_{seed}"))
        for passes in (EPOCHS, 5, 1):
            cache = scratch / f"cache_{passes}_{seed}"
            features = replace(base.features, passes=passes, cache_dir=cache)
            cached = replace(base, features=features)
            for name in ("first", "again"):
                key = f"{passes} passes, {name}"
                folder = scratch / f"{passes}_{name}_{seed}"
                found.setdefault(key, []).append(_run(cached, args, folder))
            shutil.rmtree(cache)
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", type=Path, help="run folder of an encoder")
    parser.add_argument("manifest", type=Path, help="labelled videos, splits train and test")
    parser.add_argument("--label", required=True)
    parser.add_argument("--labels-per-class", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=Path, help="folder of the frame cache")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.frames = args.frames or Path(folder) / "frames"
        _run(_config(args, 0), args, Path(folder) / "warm up")  # frames are decoded here
        found = measure(args, Path(folder))
    print("| training features | top-1 % by seed | mean | CPU seconds |\n|---|---|---|---|")
    for name, runs in found.items():
        tops = [100 * run["top1"] for run in runs]
        seconds = statistics.median(run["cpu_seconds"] for run in runs)
        listed = ", ".join(f"{top:.1f}" for top in tops)
        print(f"| {name} | {listed} | {statistics.fmean(tops):.1f} | {seconds:.1f} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
