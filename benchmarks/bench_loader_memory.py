"""Memory of the loader over a very long manifest: of the training process and of each worker.

Run from the repository on Linux: ``python benchmarks/bench_loader_memory.py --rows 10000000``. The
rows are made up: they all name one small real video, each with two key frames. Figures are in MB:
`resident` is memory in RAM, `own` the part of it that no other process shares (a worker's libraries
are shared with the others). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_decode import write_video

from vjepa.data.clips.crops import TransformConfig
from vjepa.data.clips.plan import ClipConfig
from vjepa.data.loader.loader import ClipLoader, LoaderConfig
from vjepa.data.manifest.index import index_sources
from vjepa.data.manifest.manifest import Manifest


def memory(process: int) -> dict[str, float]:
    """Resident memory of a process and what of it is its own, in MB."""
    sizes = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        sizes[name] = int(value.split()[0]) / 1e3
    own = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"resident": round(sizes["Rss"], 1), "own": round(own, 1)}


def write_manifest(folder: Path, rows: int) -> Path:
    """A manifest of so many rows, written in pieces."""
    write_video(folder / "a.mp4", gop=40, num_frames=80, seed=0)
    one = folder / "one.parquet"
    index_sources([str(folder / "a.mp4")], one, workers=1)
    table = pq.read_table(one)
    piece = pa.concat_tables([table] * min(rows, 100_000)).combine_chunks()
    path = folder / "many.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, rows, len(piece)):
            writer.write_table(piece.slice(0, min(len(piece), rows - start)))
    return path


def main() -> None:
    """Make the manifest, read batches, and print the memory at each point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = write_manifest(Path(folder), rows)
            row: dict = {"rows": rows, "start": memory(os.getpid())}
            manifest = Manifest.open(path).select()
            row["manifest opened"] = memory(os.getpid())
            with ClipLoader(
                [manifest],
                None,
                ClipConfig(num_frames=4, stride=2),
                TransformConfig(crop_size=32),
                LoaderConfig(num_workers=args.workers),
                8,
                0,
            ) as loader:
                row["loader made"] = memory(os.getpid())
                for number, _ in enumerate(loader.batches(0, args.batches), start=1):
                    if number in (4, args.batches):
                        row[f"after {number} batches"] = memory(os.getpid())
                        row[f"workers after {number}"] = [memory(i) for i in loader.worker_ids]
            del manifest
        results.append(row)
        for name, value in row.items():
            print(f"{name}: {value}")
    print(json.dumps({"benchmark": "loader_memory", "unit": "MB", "rows": results}))


if __name__ == "__main__":
    main()
