"""What mask sampling costs: microseconds a clip for the paper's two masks together.

Run from the repository: ``python benchmarks/bench_masks.py``. The last line is JSON. For scale: the
authors' released code takes about 275 us a clip for the same two masks at 224 px, batch 24, and
320 us at batch 1, on one core of another machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np

from vjepa.masking import MaskingConfig, MaskSampler

GRIDS = {"224": (8, 14, 14), "384": (8, 24, 24)}
COUNTS = ("prefix", "fixed", "packed")
BATCHES = (24, 4, 1)


def microseconds(sampler: MaskSampler, batch: int, calls: int) -> dict[str, float]:
    """Median and smallest time of a call, divided by the clips in it."""
    times = []
    for call in range(calls + 20):
        ordinals = np.arange(call * batch, (call + 1) * batch)
        start = time.perf_counter()
        sampler.sample(ordinals, call)
        times.append((time.perf_counter() - start) / batch * 1e6)
    measured = np.array(times[20:])
    return {"median": round(float(np.median(measured)), 1), "min": round(float(measured.min()), 1)}


def main() -> None:
    """Measure every combination and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400, help="timed calls for each row")
    calls = parser.parse_args().calls
    # A process that handles video has freed large arrays; from then on the C library keeps freed
    # memory of this size instead of returning it to the system at every call.
    np.ones(2 << 20)
    rows = []
    print(f"{'pixels':>6} {'count':>7} {'batch':>5} {'median us/clip':>15} {'min us/clip':>12}")
    for pixels, grid in GRIDS.items():
        for count in COUNTS:
            sampler = MaskSampler(MaskingConfig(count=count), grid, 2, seed=0)
            for batch in BATCHES:
                row = microseconds(sampler, batch, calls)
                rows.append({"pixels": int(pixels), "count": count, "batch": batch, **row})
                print(f"{pixels:>6} {count:>7} {batch:>5} {row['median']:>15} {row['min']:>12}")
    machine = {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__}
    print(
        json.dumps({"benchmark": "masks", "unit": "us per clip", "machine": machine, "rows": rows})
    )


if __name__ == "__main__":
    main()
