"""Judging the soak: the run with faults against the one without, step by step."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vjepa.runtime.logging import MetricRecord, read_metrics

if TYPE_CHECKING:
    from soak import Job, Soak


def _same(record: MetricRecord) -> dict[str, float]:
    """What must be equal: everything but times and rates."""
    return {
        name: value
        for name, value in record.values.items()
        if name.startswith(("loss", "grad_norm", "learning_rate", "momentum", "skipped"))
        or name in ("first_step", "weight_decay")
    }


def _hashes(run: Path) -> dict[int, str]:
    """SHA-256 of the weights of every complete checkpoint, by step."""
    found = {}
    for folder in (run / "checkpoints").glob("step_*"):
        manifest = folder / "manifest.json"
        if manifest.is_file():
            files = json.loads(manifest.read_text())["files"]
            found[int(folder.name.removeprefix("step_"))] = files["model.safetensors"]["sha256"]
    return found


def _bad(run: Path, last: int) -> dict[str, str]:
    """Path -> kind of the bad videos met up to a step."""
    log = run / "bad_videos.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {Path(e["path"]).name: e["kind"] for e in entries if e["step"] < last}


def _growth(job: Job) -> dict[str, float]:
    """Memory of the training processes: median of the first and of the last third, largest."""
    values = [value for _, value in job.resident_mb]
    if len(values) < 6:
        return {}
    third = len(values) // 3
    return {
        "first_third_mb": round(float(np.median(values[1 : third + 1])), 1),
        "last_third_mb": round(float(np.median(values[-third:])), 1),
        "largest_mb": max(values),
    }


def compare(soak: Soak, minutes: float, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is to be reported; ``problems`` is empty if all is well."""
    problems = list(soak.problems)
    records = {}
    for job in (soak.faulted, soak.control):
        lines = [r for r in read_metrics(job.run / "metrics.jsonl") if r.kind == "train"]
        steps = [record.step for record in lines]
        if steps != list(range(1, len(steps) + 1)):
            problems.append(f"{job.name}: steps in the log are not 1 .. {len(steps)}, each once")
        records[job.name] = lines
    common = min(len(lines) for lines in records.values())
    differing = [
        a.step
        for a, b in zip(records["faulted"][:common], records["control"][:common], strict=True)
        if _same(a) != _same(b)
    ]
    if differing:
        problems.append(f"{len(differing)} steps differ from the control, first {differing[0]}")
    hashes = [_hashes(job.run) for job in (soak.faulted, soak.control)]
    both = sorted(hashes[0].keys() & hashes[1].keys())
    unequal = [step for step in both if hashes[0][step] != hashes[1][step]]
    if unequal or not both:
        problems.append(f"checkpoints: {len(both)} in common, different at {unequal}")
    bad = [_bad(job.run, common) for job in (soak.faulted, soak.control)]
    # A worker that waits for a video that hangs may be killed by the soak before it is given up:
    # then the video counts as a crash. Which videos are replaced must be the same.
    if bad[0].keys() != bad[1].keys():
        problems.append(f"bad videos differ: {bad[0]} and {bad[1]}")
    grown = _growth(soak.control)
    if grown and grown["last_third_mb"] > 1.1 * grown["first_third_mb"] + 30:
        problems.append(f"memory of the control grew: {grown}")
    recoveries = soak.recoveries or [0.0]
    return {
        "benchmark": "soak",
        "minutes": round(minutes, 1),
        "ranks": args.ranks,
        "seed": args.seed,
        "faults": dict(soak.injected),
        "starts": soak.faulted.starts,
        "exits": dict(soak.faulted.exits),
        "seconds_to_train_again": {
            "median": round(float(np.median(recoveries)), 1),
            "largest": round(max(recoveries), 1),
        },
        "steps": {name: len(lines) for name, lines in records.items()},
        "steps_compared": common,
        "samples_compared": common * 4 * args.ranks,
        "steps_that_differ": len(differing),
        "checkpoints_compared": both,
        "bad_videos": bad[0],
        "resident": {job.name: _growth(job) for job in (soak.faulted, soak.control)},
        "problems": problems,
    }


def write(result: dict[str, Any], out: Path) -> None:
    """Write ``soak.json`` and ``soak.md``, and print both."""
    faults = "; ".join(f"{name} {count}" for name, count in result["faults"].items())
    rows = {
        "minutes": result["minutes"],
        "training processes": result["ranks"],
        "faults injected": sum(result["faults"].values()),
        "of these": faults,
        "starts of the same command": result["starts"],
        "how it ended before": "; ".join(f"{k} ({v})" for k, v in result["exits"].items()),
        "seconds until it trains again, median / largest": "{median} / {largest}".format(
            **result["seconds_to_train_again"]
        ),
        "steps with faults / without": "{faulted} / {control}".format(**result["steps"]),
        "steps compared": result["steps_compared"],
        "samples compared": result["samples_compared"],
        "steps that differ, are lost or doubled": result["steps_that_differ"],
        "checkpoints compared, all equal": len(result["checkpoints_compared"]),
        "bad videos replaced": ", ".join(f"{k} ({v})" for k, v in result["bad_videos"].items()),
        "memory of the control, first / last third": " / ".join(
            f"{result['resident']['control'].get(name, 0):g} MB"
            for name in ("first_third_mb", "last_third_mb")
        ),
        "problems": "; ".join(result["problems"]) or "none",
    }
    text = "| | |\n|---|---|\n" + "".join(f"| {k} | {v} |\n" for k, v in rows.items())
    (out / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "soak.md").write_text(text)
    print(text)
    print(json.dumps(result))
