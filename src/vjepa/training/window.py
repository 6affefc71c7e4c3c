"""The updates between two lines of the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.runtime.distributed import ProcessGroup
from vjepa.runtime.process import resident_bytes
from vjepa.training.guards import HostStep
from vjepa.training.step import StepValues


class LogWindow:
    """Collects updates until the log is due."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self._steps: list[tuple[StepValues, NDArray[np.int64]]] = []
        self._waited, self._num_bad = 0.0, 0
        self._started, self._cpu_started = self._clock(), time.process_time()

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads of this process since the start."""
        return time.process_time() - self._cpu_started

    def add(self, step: StepValues, batch: Any, seconds_waited: float) -> None:
        """Add an update, whose values stay on the device, and how long the loop waited for data."""
        self._steps.append((step, batch.ordinals))
        self._waited += seconds_waited
        self._num_bad += getattr(batch, "num_bad", 0)

    def last_was_applied(self) -> bool:
        """Whether the newest update changed the weights; waits for the device."""
        newest = self._steps[-1][0]
        return bool(newest.finite) and not bool(newest.spike)

    def read(
        self, group: ProcessGroup
    ) -> tuple[list[HostStep], dict[str, Any], dict[str, list[float]]]:
        """Bring the values to the host in one transfer, the only synchronisation.

        Given back are each update; for the log the means over those that were applied and have the
        value (NaN when none was) and what a clock measured; numbers of each process, empty for one.
        """
        told = [x.float() for s, _ in self._steps for x in (s.finite, s.spike, *s.values.values())]
        numbers = iter(torch.stack(told).double().cpu().tolist())
        steps = []
        for step, ordinals in self._steps:
            finite, spike = next(numbers) == 1.0, next(numbers) == 1.0
            values = dict(zip(step.values, numbers, strict=False))  # the rest are later updates'
            steps.append(HostStep(step.update, ordinals, values, finite, spike))
        good = [step.values for step in steps if step.applied]
        seconds, cpu_seconds = max(self._clock() - self._started, 1e-9), self.cpu_seconds
        own = {
            "clips_per_second": sum(len(step.ordinals) for step in steps) / seconds,
            "data_wait_share": self._waited / seconds,
            "bad_videos": float(self._num_bad),
            # Whoever waits for the others computes little: the busy one holds them up.
            "cpu_share": cpu_seconds / seconds,
            "resident_gigabytes": resident_bytes() / 1e9,
        }
        if torch.cuda.is_initialized():
            own["device_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        everywhere = group.gather(own)
        ranks = {name: [there[name] for there in everywhere] for name in own}
        means: dict[str, Any] = {"first_step": steps[0].update}
        for name in dict.fromkeys(name for step in steps for name in step.values):
            having = [step[name] for step in good if name in step]
            means[name] = math.fsum(having) / len(having) if having else math.nan
        means |= {
            "clips_per_second": sum(ranks["clips_per_second"]),
            "data_wait_share": sum(ranks["data_wait_share"]) / group.size,
            # Of the process that holds most.
            **{name: max(ranks[name]) for name in ranks if name.endswith("_gigabytes")},
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "bad_videos": round(sum(ranks["bad_videos"])),
            "skipped": sum(not step.applied for step in steps),
        }
        return steps, means, ranks if group.size > 1 else {}
