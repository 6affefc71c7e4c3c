"""Values of several updates, read from the device at once and averaged for the log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vjepa.training.step import StepValues


@dataclass(frozen=True)
class HostStep:
    """One update's values on the host."""

    update: int
    ordinals: NDArray[np.int64]
    values: dict[str, float]
    finite: bool


@dataclass(frozen=True)
class IntervalSummary:
    """An interval of updates, read."""

    steps: list[HostStep]
    """Each update."""
    means: dict[str, float]
    """Means over the updates that were finite; NaN when none was."""
    seconds: float
    """Wall-clock time."""
    clips_per_second: float
    """Samples of this process per second."""
    data_wait_share: float
    """Share of the time in which the loop waited for the next batch."""
    num_bad: int
    """Videos that could not be read and were replaced."""


class Interval:
    """Collects updates until the log is due."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self._steps: list[tuple[StepValues, NDArray[np.int64]]] = []
        self._waited, self._num_bad = 0.0, 0
        self._started = self._clock()

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

    def last_is_finite(self) -> bool:
        """Whether the newest update was finite; waits for the device."""
        return bool(self._steps[-1][0].finite)

    def read(self) -> IntervalSummary:
        """Bring the values to the host in one transfer (the only synchronisation) and average."""
        names = list(self._steps[0][0].values)
        rows = [
            torch.stack([*(step.values[name] for name in names), step.finite.float()])
            for step, _ in self._steps
        ]
        table = torch.stack(rows).double().cpu().tolist()
        steps = [
            HostStep(step.update, ordinals, dict(zip(names, row, strict=False)), row[-1] == 1.0)
            for (step, ordinals), row in zip(self._steps, table, strict=True)
        ]
        good = [step for step in steps if step.finite]
        seconds = max(self._clock() - self._started, 1e-9)
        return IntervalSummary(
            steps=steps,
            means={
                name: math.fsum(step.values[name] for step in good) / len(good)
                if good
                else math.nan
                for name in names
            },
            seconds=seconds,
            clips_per_second=sum(len(step.ordinals) for step in steps) / seconds,
            data_wait_share=self._waited / seconds,
            num_bad=self._num_bad,
        )
