"""What ten million videos cost: time and memory of a manifest, from writing to resuming.

Run from the repository: ``python benchmarks/bench_manifest.py --rows 10000000 --out bench``. Each
stage runs in a process of its own, so that its peak memory is its own: ``peak MB`` is the highest
resident memory, ``base MB`` that of the process before the stage, with everything imported. CPU
seconds count all threads of the process (Parquet is read with several). The last line is JSON;
``OUT/manifest.json`` and ``OUT/manifest.md`` hold the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vjepa.data.loader.sampler import VideoSources
from vjepa.data.manifest import index as index_reuse
from vjepa.data.manifest.index import known_files, list_sources, note_of, still_known
from vjepa.data.manifest.lists import IndexConfig
from vjepa.data.manifest.manifest import LABEL_PREFIX, Manifest, to_schema
from vjepa.data.manifest.storage import FileStatus
from vjepa.data.video.info import MediaKind
from vjepa.data.video.inspect import stamp_of
from vjepa.runtime.process import resident_bytes

BATCH = 3072
_CHUNK = 1 << 20


def _path(number: int) -> str:
    return f"set{number % 3}/folder{number // 1000:05d}/video_{number:09d}.mp4"


def _rows(first: int, count: int) -> pa.Table:
    """Rows like those of a real set: two key frames a video, three data sets, 700 labels."""
    numbers = np.arange(first, first + count)
    frames = 60 + numbers % 240
    keys = np.stack([np.zeros_like(numbers), np.full_like(numbers, 48)], axis=1).reshape(-1)
    offsets = np.arange(0, 2 * count + 1, 2)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(keys))
    names = np.array(["kinetics", "ssv2", "howto"])[numbers % 3]
    table = pa.table(
        {
            "path": [_path(n) for n in numbers],
            "dataset": pa.array(names).dictionary_encode(),
            "split": pa.array(np.where(numbers % 20 == 0, "validation", "train")),
            "weight": np.where(numbers % 3 == 1, 2.0, 1.0),
            "ok": numbers % 100 != 99,
            "reason": pa.nulls(count, pa.large_string()),
            "num_frames": frames,
            "fps": np.full(count, 25.0),
            "duration_seconds": frames / 25,
            "width": np.full(count, 340),
            "height": np.full(count, 256),
            "codec": pa.array(np.full(count, "h264")),
            "bytes": 400_000 + numbers % 1000,
            "mtime_ns": numbers,
            "keyframe_pts": lists,
            "keyframe_index": lists,
            "time_base_num": np.ones(count, np.int64),
            "time_base_den": np.full(count, 25),
            LABEL_PREFIX + "action": pa.array((numbers % 700).astype(str)),
        }
    )
    return to_schema(table)


def _make(rows: int, folder: Path) -> None:
    """The Parquet file, written in pieces by other means, for the stages to work on."""
    # As `data index` marks what it probed; without it nothing would be used again.
    way = note_of(IndexConfig())
    schema = _rows(0, 1).schema
    schema = schema.with_metadata({**(schema.metadata or {}), **way})
    with pq.ParquetWriter(folder / "rows.parquet", schema, compression="zstd") as writer:
        for at in range(0, rows, _CHUNK):
            writer.write_table(_rows(at, min(_CHUNK, rows - at)).cast(schema))
    with (folder / "list.csv").open("w") as file:
        file.write("path,split,label\n")
        for number in range(rows):
            file.write(f"{_path(number)},train,{number % 700}\n")


def _open(folder: Path) -> dict[str, Any]:
    return {"rows": len(Manifest.open(folder / "rows.parquet"))}


def _write(folder: Path) -> dict[str, Any]:
    Manifest.open(folder / "rows.parquet").write(folder / "written.parquet")
    return {"megabytes": round((folder / "written.parquet").stat().st_size / 1e6)}


def _hash(folder: Path) -> dict[str, Any]:
    return {"hash": Manifest.open(folder / "rows.parquet").content_hash[:12]}


def _select(folder: Path) -> dict[str, Any]:
    return {"rows": len(Manifest.open(folder / "rows.parquet").select("train"))}


def _labels(folder: Path) -> dict[str, Any]:
    sources = VideoSources([Manifest.open(folder / "rows.parquet")], None, label="action")
    return {"classes": len(sources.class_names or [])}


def _sample(folder: Path) -> dict[str, Any]:
    """Weighted order, then 1000 batches in a row and one far away, as a resume asks for it."""
    sources = VideoSources([Manifest.open(folder / "rows.parquet")], None)
    began = time.process_time()
    order = sources.order(0, 1)
    for step in range(1000):
        sources.locate(order.at(np.arange(step * BATCH, (step + 1) * BATCH)))
    each = (time.process_time() - began) / 1000
    began = time.process_time()
    far = 90_000
    places = sources.locate(order.at(np.arange(far * BATCH, (far + 1) * BATCH)))
    resumed = time.process_time() - began
    began = time.process_time()
    for source, row in places[:1000]:
        sources.manifests[int(source)].row(int(row))
    rows_each = (time.process_time() - began) / 1000
    return {
        "milliseconds a batch": round(1e3 * each, 2),
        "milliseconds after a resume": round(1e3 * resumed, 2),
        "microseconds a row as Python object": round(1e6 * rows_each, 1),
    }


def _list(folder: Path) -> dict[str, Any]:
    """Reading a CSV list of so many videos, without probing: what `data index` begins with."""
    listing = list_sources([str(folder / "list.csv")], ["list"], IndexConfig())
    return {"rows": listing.num_rows, "megabytes in memory": round(listing.nbytes / 1e6)}


def _reuse(folder: Path) -> dict[str, Any]:
    """Looking each listed file up in an older manifest, and then on disk, where none of them is."""
    listing = list_sources([str(folder / "list.csv")], ["list"], IndexConfig())
    began = time.process_time()
    known = known_files(folder / "rows.parquet", note_of(IndexConfig()))
    looked_at = 0

    def look(path: str, kind: MediaKind) -> FileStatus:
        nonlocal looked_at
        looked_at += 1
        return stamp_of(path, kind)

    index_reuse.stamp_of = look
    matched = int((still_known(known, listing) >= 0).sum())
    used = round(time.process_time() - began, 1)
    return {"cpu s of the matching": used, "files looked at": looked_at, "matched": matched}


def _worker(folder: Path) -> dict[str, Any]:
    """A loader worker gets one row at a time: its memory does not know of the manifest."""
    from vjepa.runtime.workers import WorkerPool

    manifest = Manifest.open(folder / "rows.parquet")
    pool = WorkerPool(attrgetter("path"), 1, 60.0)
    try:
        pool.submit(manifest.row(len(manifest) // 2))
        outcomes = []
        while not outcomes:
            outcomes = pool.wait(10.0)
        of = {"worker MB": pool.worker_ids[0], "this process MB": os.getpid()}
        return {name: round(resident_bytes(pid) / 1e6) for name, pid in of.items()}
    finally:
        pool.close()


STAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "open": _open,
    "open and write": _write,
    "open and content_hash": _hash,
    "open and select a split": _select,
    "open and group by weight, with labels": _labels,
    "open, weighted order, 1000 batches of 3072": _sample,
    "read a CSV list": _list,
    "read a CSV list, match an older manifest": _reuse,
    "open, memory of a loader worker": _worker,
}


def _run_stage(name: str, folder: Path, answers: Any) -> None:
    base = resident_bytes()
    began, cpu = time.perf_counter(), time.process_time()
    found = STAGES[name](folder)
    answers.put(
        {
            "stage": name,
            "wall s": round(time.perf_counter() - began, 2),
            "cpu s": round(time.process_time() - cpu, 2),
            "base MB": round(base / 1e6),
            "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
            **found,
        }
    )


def measure(folder: Path, only: str) -> list[dict[str, Any]]:
    """Every stage whose name holds `only`, each in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = []
    for name in [name for name in STAGES if only in name]:
        answers = context.SimpleQueue()
        process = context.Process(target=_run_stage, args=(name, folder, answers))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"stage {name!r} failed with exit code {process.exitcode}")
        results.append(answers.get())
        print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    """Make the manifest, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=Path("bench_manifest"))
    parser.add_argument("--only", default="", help="only stages whose names hold this")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "list.csv").exists():
        _make(args.rows, args.out)
    results = measure(args.out, args.only)
    columns = ("stage", "wall s", "cpu s", "base MB", "peak MB")
    lines = ["| " + " | ".join(columns) + " | |", "|---|" + "---:|" * 4 + "---|"]
    for result in results:
        rest = ", ".join(f"{k} {v}" for k, v in result.items() if k not in columns)
        lines.append("| " + " | ".join(str(result[name]) for name in columns) + f" | {rest} |")
    (args.out / "manifest.md").write_text("\n".join(lines) + "\n")
    summary = {
        "benchmark": "manifest",
        "rows": args.rows,
        "cpus": os.cpu_count(),
        "stages": results,
    }
    (args.out / "manifest.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
