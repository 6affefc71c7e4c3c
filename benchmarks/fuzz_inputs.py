"""Thousands of damaged inputs through everything that reads files from outside.

Run from the repository: ``python benchmarks/fuzz_inputs.py --inputs 5000 --out fuzz``. Small real
videos and images of many formats, lists of videos, manifests, YAML and checkpoints are changed at
random (the same changes for the same ``--seed``). Media go through index, check (every frame), the
training loader; texts and checkpoints through the functions that open them, in worker processes.

Every input must end in one of the expected ways: read, or refused with a reason. Anything else is a
finding: an exception of ours, a worker that dies of it, a hang, memory, file descriptors or
processes that stay behind. Findings are copied to ``OUT/findings``. The last line is JSON; exit
code 1 says that there are findings. ``OUT/fuzz.json`` and ``OUT/fuzz.md`` hold the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_openers
import fuzz_samples

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.failures import BadVideoLog
from vjepa.data.loader.loader import ClipLoader, LoaderConfig
from vjepa.data.manifest.index import check_manifest, index_sources
from vjepa.data.manifest.lists import IndexConfig
from vjepa.data.manifest.manifest import Manifest
from vjepa.data.video.info import LimitsConfig
from vjepa.errors import UserError
from vjepa.runtime.process import resident_bytes
from vjepa.runtime.workers import WorkerPool

LIMITS = LimitsConfig(
    max_pixels=1 << 22, max_frames=20_000, max_bytes=1 << 24, max_memory_gigabytes=2.0
)
FILE_SECONDS = 10.0
MEDIA_PER_ROUND, OTHERS_PER_ROUND = 120, 80
CLIPS_PER_STEP = 8


@dataclass
class Tally:
    """What became of the inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By stage and ending."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Refusals and losses in words, numbers left out."""
    findings: list[str] = field(default_factory=list)
    """What must not happen."""
    levels: list[dict[str, float]] = field(default_factory=list)
    """After each round: resident MB, file descriptors, child processes of this process."""

    def note(self, stage: str, ending: str, reason: str = "") -> None:
        """Count one ending."""
        self.outcomes[f"{stage}: {ending}"] += 1
        if reason:
            self.reasons[f"{stage}: {_shape_of(reason)}"] += 1

    def finding(self, text: str, file: Path | None, folder: Path) -> None:
        """Keep what must not happen, with the input that did it."""
        self.findings.append(text)
        if file is not None and file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / f"{len(self.findings):03d}_{file.name}")


def _shape_of(reason: str) -> str:
    """A reason without paths and numbers, so that equal ones are counted together."""
    words = ["#" if any(c.isdigit() for c in w) else w for w in reason.split() if "/" not in w]
    return " ".join(words)[:80]


def _children() -> int:
    """Live child processes of this one, those of the fork server included."""
    mine, parents = os.getpid(), {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found, new = set(), {mine}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return len(found)


def fuzz_media(files: list[Path], work: Path, tally: Tally, kept: Path) -> None:
    """Index, check and load one round of media files."""
    listing, manifest_path = work / "list.csv", work / "manifest.parquet"
    listing.write_text("path\n" + "".join(f"{file}\n" for file in files))
    config = IndexConfig(timeout_seconds=FILE_SECONDS, limits=LIMITS)
    try:
        manifest = index_sources([listing], manifest_path, config=config)
    except UserError as error:
        tally.note("index", "refused as a whole", str(error))
        return
    for row in range(len(manifest)):
        info = manifest.row(row)
        tally.note("index", "usable" if info.ok else "refused", info.reason or "")
        _judge("index", info.reason or "", Path(info.path), tally, kept)
    config = IndexConfig(timeout_seconds=FILE_SECONDS, limits=LIMITS)
    report = check_manifest(manifest, deep=True, config=config)
    tally.outcomes["check of every frame: usable"] += report.num_ok
    for bad in report.bad:
        tally.note("check of every frame", "refused", bad.reason)
        _judge("check", bad.reason, Path(bad.path), tally, kept)
    _load(manifest.select(), work, tally, kept)


def _judge(stage: str, reason: str, file: Path, tally: Tally, kept: Path) -> None:
    """A decoder that crashes or hangs is contained; an exception that escapes is ours."""
    if "exit status 1)" in reason:
        tally.finding(f"{stage}: an exception escaped: {file.name}: {reason}", file, kept)


def _load(manifest: Manifest, work: Path, tally: Tally, kept: Path) -> None:
    """Draw every usable video about once, as training does."""
    config = LoaderConfig(
        num_workers=2,
        sample_timeout_seconds=FILE_SECONDS,
        max_retries=50,
        max_bad_fraction=1.0,
        max_clip_gigabytes=0.5,
        max_worker_gigabytes=2.0,
    )
    clip = ClipConfig(num_frames=4, stride=2)
    transform = TransformConfig(crop_size=32)
    log = work / "bad_videos.jsonl"
    log.unlink(missing_ok=True)
    steps = max(1, len(manifest) // CLIPS_PER_STEP)
    try:
        with ClipLoader(
            [manifest], None, clip, transform, config, CLIPS_PER_STEP, 0, bad_videos_log=log
        ) as loader:
            for batch in loader.batches(0, steps):
                tally.outcomes["loader: clips"] += len(batch.ordinals)
    except UserError as error:
        tally.note("loader", "stopped with a reason", str(error))
    except RuntimeError as error:
        tally.finding(f"loader: {str(error).splitlines()[-1]}", None, kept)
    if len(BadVideoLog(log)):
        for line in log.read_text().splitlines():
            bad = json.loads(line)
            tally.note("loader", f"replaced ({bad['kind']})", bad["reason"])


def fuzz_others(files: list[Path], pool: WorkerPool, tally: Tally, kept: Path) -> None:
    """Open lists, manifests, configs and checkpoints in worker processes."""
    waiting = {pool.submit(str(file)): file for file in files}
    while waiting:
        for outcome in pool.wait(60.0):
            file = waiting.pop(outcome.ticket)
            stage = file.name.split("_", 1)[1]
            if outcome.kind != "done":
                tally.note(stage, outcome.kind)
                tally.finding(f"{stage}: {outcome.kind}: {outcome.reason}", file, kept)
                continue
            ending, reason = outcome.value
            tally.note(stage, ending, reason)
            if ending == "exception":
                tally.finding(f"{stage}: {reason}", file, kept)


def _mutants(samples: list[Path], work: Path, count: int, rng: np.random.Generator) -> list[Path]:
    contents = [sample.read_bytes() for sample in samples]
    made = []
    for number in range(count):
        pick = int(rng.integers(len(samples)))
        file = work / f"{number:04d}_{samples[pick].name}"
        file.write_bytes(fuzz_samples.mutate(contents[pick], contents, rng))
        made.append(file)
    return made


def run_rounds(args: argparse.Namespace, tally: Tally) -> Iterator[int]:
    """Fuzz until so many inputs are through; gives the number after each round."""
    rng = np.random.default_rng(args.seed)
    samples = args.out / "samples"
    media, others = fuzz_samples.write_media(samples), fuzz_samples.write_others(samples)
    work, kept, done = args.out / "work", args.out / "findings", 0
    pool = WorkerPool(fuzz_openers.open_input, 1, FILE_SECONDS * 2, 4.0)
    try:
        while done < args.inputs:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            left = args.inputs - done
            num_media = min(MEDIA_PER_ROUND, max(1, left * 3 // 5))
            files = _mutants(media, work, num_media, rng)
            texts = _mutants(others, work, min(OTHERS_PER_ROUND, left - num_media), rng)
            fuzz_media(files, work, tally, kept)
            fuzz_others(texts, pool, tally, kept)
            done += len(files) + len(texts)
            tally.levels.append(
                {
                    "inputs": done,
                    "resident_mb": round(resident_bytes() / 1e6, 1),
                    "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
                    "processes": _children(),
                }
            )
            yield done
    finally:
        pool.close()


def leaks(levels: list[dict[str, float]]) -> list[str]:
    """What grew from the first third of the rounds to the last, beyond noise."""
    if len(levels) < 6:
        return []
    third = len(levels) // 3
    found = []
    for name, slack in (("resident_mb", 60.0), ("descriptors", 4), ("processes", 1)):
        before = float(np.median([level[name] for level in levels[1 : third + 1]]))
        after = float(np.median([level[name] for level in levels[-third:]]))
        if after > before + slack:
            found.append(f"{name} grew from {before:g} to {after:g}")
    return found


def _markdown(result: dict) -> str:
    lines = ["| ending | inputs |", "|---|---:|"]
    lines += [f"| {name} | {count} |" for name, count in result["outcomes"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fuzz, print progress, write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began, tally, done = time.monotonic(), Tally(), 0
    for done in run_rounds(args, tally):
        print(f"{done} inputs, {len(tally.findings)} findings, {tally.levels[-1]}", flush=True)
    tally.findings += leaks(tally.levels)
    result = {
        "benchmark": "fuzz",
        "inputs": done,
        "seed": args.seed,
        "seconds": round(time.monotonic() - began, 1),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "reasons": dict(tally.reasons.most_common(60)),
        "first": tally.levels[0] if tally.levels else {},
        "last": tally.levels[-1] if tally.levels else {},
        "findings": tally.findings,
    }
    (args.out / "fuzz.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.out / "fuzz.md").write_text(_markdown(result))
    shutil.rmtree(args.out / "work", ignore_errors=True)
    print(json.dumps(result))
    sys.exit(1 if tally.findings else 0)


if __name__ == "__main__":
    main()
