"""A reader process for tests that hangs on files named `hang*` and crashes on `crash*`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import vjepa.data.video.inspect_worker as worker

_probe = worker.probe


def probe(path, **options):
    name = Path(path).name
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return _probe(path, **options)


if __name__ == "__main__":
    worker.probe = probe
    worker.main()
