"""Looking into files: a task that hangs on `hang*`, crashes on `crash*`, fails on `mistake*`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vjepa.data.video.info import LimitsConfig, VideoInfo
from vjepa.data.video.inspect import InspectOrder, inspect_order


def hanging_order(order: InspectOrder, limits: LimitsConfig) -> VideoInfo:
    """Runs in a worker process."""
    name = Path(order.path).name
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("mistake"):
        raise KeyError("a mistake in the program")
    return inspect_order(order, limits)
