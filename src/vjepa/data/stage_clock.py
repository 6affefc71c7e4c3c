"""Where the time of reading a clip goes: open, seek, decode, convert, crop."""

from __future__ import annotations

import time
from typing import Literal

Stage = Literal["open", "seek", "decode", "convert", "crop", "rest"]

STAGES: tuple[Stage, ...] = ("open", "seek", "decode", "convert", "crop", "rest")
"""open: the file and its decoder; seek: jumps and reading of packets; decode: the decoder; convert:
to RGB, and into place; crop: resize and flip; rest: everything else."""


class StageClock:
    """Is told what happens next, and does nothing with it."""

    def enter(self, stage: Stage) -> None:
        """Another stage begins."""


class MeasuringClock(StageClock):
    """Sums up the CPU time of this thread by stage.

    Attributes:
        seconds: CPU time of each stage so far.
    """

    def __init__(self) -> None:
        """Start, in stage ``rest``."""
        self.reset()

    def reset(self) -> None:
        """Begin anew, in stage ``rest``."""
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._stage: Stage = "rest"
        self._since = time.thread_time()

    def enter(self, stage: Stage) -> None:
        """Add the time since the last call to the stage that ends."""
        now = time.thread_time()
        self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now


NO_CLOCK = StageClock()
