"""Values of several updates, read from the device at once and averaged for the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vjepa.runtime.distributed import Team
from vjepa.runtime.process import resident_bytes
from vjepa.training.step import StepValues


@dataclass(frozen=True)
class HostStep:
    """One update's values on the host."""

    update: int
    ordinals: NDArray[np.int64]
    values: dict[str, float]
    finite: bool
    spike: bool = False

    @property
    def applied(self) -> bool:
        """Whether it changed the weights."""
        return self.finite and not self.spike


@dataclass(frozen=True)
class IntervalSummary:
    """An interval of updates, read."""

    steps: list[HostStep]
    """Each update."""
    means: dict[str, float]
    """Means over the updates that were applied; NaN when none was."""
    seconds: float
    """Wall-clock time."""
    clips_per_second: float
    """Samples per second, of all processes."""
    data_wait_share: float
    """Share of the time in which the loop waited for the next batch, mean over processes."""
    num_bad: int
    """Videos that could not be read and were replaced, of all processes."""
    memory: dict[str, float]
    """`resident_gigabytes`, and `device_gigabytes` on a GPU: of the process that holds most."""
    ranks: dict[str, list[float]]
    """Numbers of each process, by rank; empty for one process."""


class Interval:
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
        """Number of updates since the last restart."""
        return len(self._steps)

    def add(
        self,
        step: StepValues,
        ordinals: NDArray[np.int64],
        seconds_waited: float,
        num_bad: int = 0,
    ) -> None:
        """Add an update.

        Args:
            step: Its values, which stay on the device.
            ordinals: int64 [B]: its samples.
            seconds_waited: How long the loop waited for its batch.
            num_bad: Videos that could not be read while it was made.
        """
        self._steps.append((step, ordinals))
        self._waited += seconds_waited
        self._num_bad += num_bad

    def last_was_applied(self) -> bool:
        """Whether the newest update changed the weights; waits for the device."""
        newest = self._steps[-1][0]
        return bool(newest.finite) and not (newest.spike is not None and bool(newest.spike))

    def read(self, team: Team) -> IntervalSummary:
        """Bring the values to the host in one transfer (the only synchronisation) and average.

        Args:
            team: All processes, which must read together.
        """
        names = list(self._steps[0][0].values)
        rows = [
            torch.stack([*(step.values[name] for name in names), *_verdicts(step)])
            for step, _ in self._steps
        ]
        table = torch.stack(rows).double().cpu().tolist()
        steps = [
            HostStep(
                step.update,
                ordinals,
                dict(zip(names, row, strict=False)),
                finite=row[-2] == 1.0,
                spike=row[-1] == 1.0,
            )
            for (step, ordinals), row in zip(self._steps, table, strict=True)
        ]
        good = [step for step in steps if step.applied]
        seconds = max(self._clock() - self._started, 1e-9)
        ranks = _by_name(team.gather(self._own_numbers(steps, seconds)))
        return IntervalSummary(
            steps=steps,
            means={
                name: math.fsum(step.values[name] for step in good) / len(good)
                if good
                else math.nan
                for name in names
            },
            seconds=seconds,
            clips_per_second=sum(ranks["clips_per_second"]),
            data_wait_share=sum(ranks["data_wait_share"]) / team.size,
            num_bad=round(sum(ranks["bad_videos"])),
            memory={name: max(ranks[name]) for name in ranks if name.endswith("_gigabytes")},
            ranks=ranks if team.size > 1 else {},
        )

    def _own_numbers(self, steps: list[HostStep], seconds: float) -> dict[str, float]:
        """What this process tells the others about itself."""
        return {
            "clips_per_second": sum(len(step.ordinals) for step in steps) / seconds,
            "data_wait_share": self._waited / seconds,
            "bad_videos": float(self._num_bad),
            # Whoever waits for the others computes little: the busy one holds them up.
            "cpu_share": (time.process_time() - self._cpu_started) / seconds,
            "resident_gigabytes": resident_bytes() / 1e9,
            **_device_memory(),
        }


def _verdicts(step: StepValues) -> tuple[Tensor, Tensor]:
    """Whether it was finite, and whether its loss was a spike: 0-d float32, 1 or 0."""
    finite = step.finite.float()
    return finite, torch.zeros_like(finite) if step.spike is None else step.spike.float()


def _device_memory() -> dict[str, float]:
    """The largest memory held on the GPU since the last call, in GB; nothing without a GPU."""
    if not torch.cuda.is_initialized():
        return {}
    largest = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return {"device_gigabytes": largest}


def _by_name(ranks: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [numbers[name] for numbers in ranks] for name in ranks[0]}
