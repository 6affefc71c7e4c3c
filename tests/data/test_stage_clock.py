from __future__ import annotations

import time

from vjepa.data.stage_clock import NO_CLOCK, STAGES, MeasuringClock


def _work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_cpu_time_goes_to_the_stage_that_runs() -> None:
    clock = MeasuringClock()
    began = time.thread_time()
    clock.enter("open")
    _work(0.02)
    clock.enter("decode")
    time.sleep(0.01)  # sleeping is no work
    clock.enter("rest")
    assert tuple(clock.seconds) == STAGES
    assert clock.seconds["open"] >= 0.02
    assert clock.seconds["decode"] < clock.seconds["open"]
    assert sum(clock.seconds.values()) <= time.thread_time() - began + 1e-3
    clock.reset()
    assert sum(clock.seconds.values()) == 0


def test_without_a_clock_nothing_is_counted() -> None:
    NO_CLOCK.enter("open")
    assert not hasattr(NO_CLOCK, "seconds")
