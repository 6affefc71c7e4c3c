"""Two versions of the source on the same inputs: is everything that they write the same?

    python benchmarks/compare_versions.py --old OTHER_CHECKOUT/src [--new src] [--out FOLDER]

Everything goes through the command line, which both versions share. The old version makes a set of
videos, then each version indexes, prepares, pretrains (feature and pixel prediction; prefix, fixed
and packed masks; with a cache of frames and without), probes, predicts and extracts features.
Weights, metrics, results, features, manifests and prepared videos are compared bit for bit, figures
of results that are sums over videos to 1e-12. At the end the new version resumes runs of the old
one and reads its probes.
Prints a line for each comparison; exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RECIPE = """
seed: 3
model:
  encoder: {width: 48, depth: 2, heads: 3, image_size: 32, num_frames: 4, patch_size: 8}
  predictor: {width: 24, depth: 1}
data:
  batch_size: 8
  clip: {num_frames: 4, stride: 1}
  transform: {crop_size: 32}
  loader: {num_workers: 1, prefetch_batches: 2}
optim: {steps: 12, warmup_steps: 4}
training: {device: cpu, num_threads: 1, log_every_steps: 2, checkpoint_every_steps: 6,
  keep_every_steps: 6, health_every_steps: 4}
"""
RUNS = {
    "features": [],
    "pixels": ["--objective.name", "pixel"],
    "fixed masks": ["--masking.count", "fixed"],
    "packed masks": ["--masking.count", "packed"],
    "accumulated": ["--optim.accumulation_steps", "2"],
    "cached frames": [
        *("--data.loader.num_workers", "0", "--data.loader.frame_cache_gigabytes", "1"),
        *("--data.loader.frame_cache_folder", "{out}/frames"),
    ],
    "squared error": ["--objective.loss_exponent", "2", "--data.clip.clips_per_video", "2"],
    "online probe": [
        *("--online_probe.manifest", "{set}", "--online_probe.label", "motion"),
        *("--training.evaluate_every_steps", "6"),
    ],
}
PROBES = {
    "attentive": ["--probe.kind", "attentive"],
    "linear, two views": ["--probe.kind", "linear", "--data.view.num_segments", "2"],
    "cached, few labels": [
        *("--data.labels_per_class", "1", "--features.cache_dir", "{out}/cache")
    ],
    "augmented": ["--data.augment.policy", "released"],
}
VOLATILE = ("seconds", "per_second", "data_wait", "memory", "bytes", "version", "manifest", "path")
VOLATILE += ("folder", "created", "time", "cache", "date", "modified")

SUMMED = ("confidence", "calibration_error", "loss", "low", "high")
"""Floats of results that are sums over videos: equal to 1e-12, since the order may have changed."""


class Comparison:
    """Runs commands of both versions and counts what is equal."""

    def __init__(self, sources: dict[str, Path], out: Path) -> None:
        self.sources, self.out, self.differences, self.count = sources, out, 0, 0

    def run(self, version: str, *arguments: object, check: bool = True) -> int:
        """A `vjepa` command of one version; its folder stands for ``{out}``."""
        words = [
            str(word).format(out=self.out / version, set=self.out / "set" / "manifest.parquet")
            for word in arguments
        ]
        done = subprocess.run(
            [sys.executable, "-m", "vjepa", *words],
            env={**os.environ, "PYTHONPATH": str(self.sources[version]), "OMP_NUM_THREADS": "1"},
            cwd=self.out,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise SystemExit(f"{version}: vjepa {' '.join(words)}\n{done.stdout}\n{done.stderr}")
        return done.returncode

    def both(self, *arguments: object) -> None:
        """The same command of both versions."""
        for version in self.sources:
            self.run(version, *arguments)

    def same(self, what: str, old: Any, new: Any) -> None:
        """Note whether two values are equal."""
        self.count += 1
        differ = sorted(differences(old, new, ""))
        self.differences += bool(differ)
        print(f"{'DIFFERS' if differ else 'equal  '}  {what}" + "".join(f"\n  {d}" for d in differ))

    def same_files(self, what: str, name: str, read: Callable[[Path], Any]) -> None:
        """Compare what a function reads from the same file of both versions."""
        self.same(what, *(read(self.out / version / name) for version in self.sources))


def differences(old: Any, new: Any, place: str) -> Iterator[str]:
    """Where two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if not any(word in str(key) for word in VOLATILE):
                yield from differences(old.get(key), new.get(key), f"{place}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{place}.{index}")
    elif isinstance(old, float) and isinstance(new, float) and any(w in place for w in SUMMED):
        if not math.isclose(old, new, rel_tol=1e-12):
            yield f"{place}: {old} -> {new}"
    elif old != new and not (old != old and new != new):
        yield f"{place}: {str(old)[:80]} -> {str(new)[:80]}"


def tensors(path: Path) -> dict[str, Any]:
    """Names and contents of a safetensors file, contents by hash."""
    import hashlib

    from safetensors.numpy import load_file

    found = load_file(path)
    return {name: hashlib.sha256(found[name].tobytes()).hexdigest() for name in sorted(found)}


def json_lines(path: Path) -> list[Any]:
    """Objects of a file of JSON lines, or the object of a JSON file."""
    text = path.read_text()
    return (
        [json.loads(line) for line in text.splitlines()]
        if ".jsonl" in path.name
        else [json.loads(text)]
    )


def table(path: Path) -> dict[str, Any]:
    """Columns of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pydict()


def hashes(folder: Path) -> dict[str, str]:
    """Content of every video, image and tar file below a folder."""
    import hashlib

    kinds = {".mp4", ".tar", ".png", ".npy", ".npz"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in kinds
    }


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="src folder of the old version")
    parser.add_argument("--new", type=Path, default=Path("src"), help="src folder of the new one")
    parser.add_argument("--out", type=Path, default=Path("comparison"))
    args = parser.parse_args()
    out = args.out.resolve()
    if out.exists():
        raise SystemExit(f"{out}: exists; give a new folder")
    for version in ("old", "new"):
        (out / version).mkdir(parents=True)
    (out / "recipe.yaml").write_text(RECIPE)
    it = Comparison({"old": args.old.resolve(), "new": args.new.resolve()}, out)
    compare_data(it)
    compare_training(it)
    compare_probes(it)
    compare_across(it)
    print(f"{it.count} comparisons, {it.differences} differ")
    sys.exit(1 if it.differences else 0)


def compare_data(it: Comparison) -> None:
    """Synthetic sets, manifests, prepared videos, features."""
    for version in it.sources:
        it.run(
            version,
            *("data", "synth", "--out", "{out}/set", "--workers", 1, "--num_frames", 9),
            *("--size", 48, "--num_clips_train", 44, "--num_clips_validation", 11),
            *("--num_clips_test", 11),
        )
    it.same_files("synthetic videos", "set", hashes)
    shutil.copytree(it.out / "old" / "set", it.out / "set")
    it.run("old", "data", "index", it.out / "set" / "labels.csv", "--out", "{set}")
    it.both("data", "index", it.out / "set" / "labels.csv", "--out", "{out}/m.parquet")
    it.same_files("manifest", "m.parquet", table)
    it.both("data", "prepare", "{set}", "--out", "{out}/prepared", "--workers", 1)
    it.same_files("prepared videos", "prepared", hashes)


def compare_training(it: Comparison) -> None:
    """Pretraining in several ways: weights, optimiser, metrics."""
    for name, changes in RUNS.items():
        run = f"run {name}"
        it.both(
            *("pretrain", "--config", it.out / "recipe.yaml", "--data.sources.0.manifest", "{set}"),
            *("--data.sources.0.split", "train", "--out", "{out}/" + run, *changes),
        )
        last = f"{run}/checkpoints/step_00000012"
        it.same_files(f"weights, {name}", f"{last}/model.safetensors", tensors)
        it.same_files(f"metrics, {name}", f"{run}/metrics.jsonl", json_lines)


def compare_probes(it: Comparison) -> None:
    """Frozen probes, their answers, features."""
    encoder = it.out / "old" / "run features"
    for name, changes in PROBES.items():
        it.both(
            *("probe", "train", "--encoder.path", encoder, "--data.label", "motion"),
            *("--data.train.manifest", "{set}", "--data.train.split", "train"),
            *("--data.test.split", "test", "--data.reading.num_workers", 0),
            *("--optim.steps", 6, "--optim.epochs", "null", "--device", "cpu"),
            *("--num_threads", 1, "--out", "{out}/probe " + name, *changes),
        )
        it.same_files(f"result, {name}", f"probe {name}/result.json", json_lines)
    videos = it.out / "set" / "test"
    it.both(
        *("probe", "predict", "{out}/probe attentive", videos, "--device", "cpu"),
        *("--out", "{out}/answers.jsonl"),
    )
    it.same_files("predictions", "answers.jsonl", json_lines)
    it.both(
        *("features", videos, "--encoder.path", encoder, "--out", "{out}/features"),
        *("--device", "cpu", "--window.stride", 1),
    )
    it.same_files("features", "features", hashes)


def compare_across(it: Comparison) -> None:
    """The new version goes on with what the old one has written."""
    for name in ("features", "packed masks"):
        old, new = it.out / "old" / f"run {name}", it.out / "new" / f"resumed {name}"
        shutil.copytree(old, new)
        shutil.rmtree(new / "checkpoints" / "step_00000012")
        it.run("new", "pretrain", "--out", new)
        step = "checkpoints/step_00000012/model.safetensors"
        it.same(f"resumed {name}", tensors(old / step), tensors(new / step))
    for name in PROBES:
        folder, answer = it.out / "old" / f"probe {name}", it.out / "new" / f"again {name}.json"
        it.run(
            *("new", "probe", "eval", folder, "{set}", "--split", "test", "--device", "cpu"),
            *("--json", answer),
        )
        result = json_lines(folder / "result.json")[0]["test"]["metrics"]
        it.same(f"old probe, {name}", result, json_lines(answer)[0]["metrics"])


if __name__ == "__main__":
    main()
