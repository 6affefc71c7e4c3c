"""Processes that start at once: a server imports everything once, and they are forked from it.

A fresh interpreter spends most of its time importing torch. Where a process of its own is needed
(to be killed, stopped by a signal, or one of several) but not how it starts, it comes from here.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vjepa.runtime.process import stop_with_parent

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
_MODULES = (
    "torch._dynamo",
    "torch.distributed.checkpoint.staging",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torch.utils._sympy.functions",
    "torch.utils._sympy.reference",
    "torch.utils.serialization",
    "torch.utils.tensorboard",
    "torchvision.ops",
    "torchvision.transforms.v2",
    "numpy.ma",
    "pyarrow.dataset",
    "safetensors.torch",
    "vjepa.data.video.decode",
    "vjepa.jobs.detect.train",
    "vjepa.jobs.finetune.job",
    "vjepa.jobs.learn",
    "vjepa.jobs.pretrain",
    "vjepa.jobs.probe.probe",
)


class WarmProcess:
    """A process forked from the server; what it prints goes to a file."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log
        self._code: int | None = None

    @property
    def said(self) -> str:
        """All that it has printed so far, stdout and stderr together."""
        return self._log.read_text(errors="replace")

    def poll(self) -> int | None:
        """Its exit code (negative for a signal) once it has ended, else None."""
        if self._code is None:
            self._code = _ask({"poll": self.pid})
        return self._code

    @property
    def returncode(self) -> int | None:
        """As :meth:`poll`."""
        return self.poll()

    def wait(self, timeout: float = 600.0) -> int:
        """The exit code, when it has ended."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, if it has not ended, and wait."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def end_all(self) -> None:
        """End whatever is left of it and of what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def call(
    function: str,
    arguments: Sequence[Any],
    log: Path,
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> WarmProcess:
    """Call ``package.module:function`` in a new process; an int it returns is the exit code."""
    ask = {"function": function, "arguments": arguments, "log": str(log), "cwd": str(cwd)}
    return WarmProcess(_ask(ask | {"environment": dict(environment or {})}), log)


def vjepa(*argv: object, log: Path, **options: Any) -> WarmProcess:
    """The command line in a process of its own."""
    return call("vjepa.cli.main:main", [[str(word) for word in argv]], log, **options)


def script(code: str, *argv: object, log: Path, **options: Any) -> WarmProcess:
    """As ``python -c CODE ARGV``."""
    return call("tests.warm:_run_script", [code, [str(word) for word in argv]], log, **options)


def _run_script(code: str, argv: list[str]) -> None:
    sys.argv = ["-c", *argv]
    exec(code, {"__name__": "__main__"})


@functools.cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.warm"],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ask(what: Mapping[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(what) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _start(ask: Mapping[str, Any]) -> int:
    """Fork a process; its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        stop_with_parent()  # of a test run that was killed nothing stays behind
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(ask["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        os.environ.update(ask["environment"])
        os.chdir(ask["cwd"])
        module, _, name = ask["function"].partition(":")
        answer = getattr(importlib.import_module(module), name)(*ask["arguments"])
        code = answer if isinstance(answer, int) else 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (a fork must never return as if it were its parent)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _serve() -> None:
    import torch

    for name in _MODULES:
        importlib.import_module(name)
    import pyarrow

    from vjepa.cli.main import build_parser

    build_parser()
    pyarrow.array([0])  # looks for pandas, which takes half a second where it is installed
    torch.set_num_threads(1)
    for line in sys.stdin:
        ask = json.loads(line)
        if "poll" in ask:
            ended, status = os.waitpid(ask["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = _start(ask)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
