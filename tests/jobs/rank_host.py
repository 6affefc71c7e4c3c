"""Pretraining jobs in several processes, each forked from one that has everything imported.

A job is ``{"ranks": 2, "config": "x.yaml", "out": "run", "overrides": [...]}``. It may have
``"signals": [[rank, number], ...]``, sent when its log has ``"after_lines"`` lines; what SIGSTOP
has stopped is killed when the other processes have ended. With ``"kills": n`` a job of one process
is started again and again, and killed n times after random amounts of processor time, before it
may end, half of the times while it writes a checkpoint; the codes then tell how each attempt ended.
Its ``"folders"``, if any, are where its processes start, one each. A job that ``"waits"``, for a
process that does not answer, is left to it while the next ones run.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher tells process `rank`."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def start(job: dict[str, Any], rank: int, port: int) -> int:
    """Fork the process of one rank; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(place(rank, job["ranks"], port))
        os.chdir(job["folders"][rank] if "folders" in job else ".")
        code = run(job)
    except BaseException:  # noqa: BLE001 (a fork must never return as if it were its parent)
        traceback.print_exc()
    finally:
        os._exit(code)


def run(job: dict[str, Any]) -> int:
    """The job in this process."""
    from vjepa.cli.main import main

    if job.get("is_timed"):
        from vjepa.training import preflight

        preflight._TIMED_SECONDS, preflight._TELLING_SECONDS, preflight._TIMED_SHARE = 0.0, 0.0, 1
    arguments = [f"--{override}" for override in job["overrides"]]
    command = job.get("command", "pretrain").split()
    return main([*command, "--config", job["config"], "--out", job["out"], *arguments])


def launch(job: dict[str, Any]) -> Callable[[], list[int]]:
    """All processes of a job; what gives their exit codes, negative for signals, at their end."""
    if "kills" in job:
        codes = launch_and_kill(job)
        return lambda: codes
    port = free_port()
    children = [start(job, rank, port) for rank in range(job["ranks"])]
    stopped = send_signals(job, children)

    @functools.cache
    def end() -> list[int]:
        codes = {child: wait(child) for child in children if child not in stopped}
        for child in stopped:
            os.kill(child, signal.SIGKILL)
            codes[child] = wait(child)
        return [codes[child] for child in children]

    if not job.get("waits"):
        end()
    return end


def wait(child: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send_signals(job: dict[str, Any], children: list[int]) -> list[int]:
    """Send a job's signals when it is under way; the processes that are stopped now."""
    metrics, stopped = Path(job["out"]) / "metrics.jsonl", []
    signals = job.get("signals", [])
    while signals and not (
        metrics.is_file() and metrics.read_text().count("\n") >= job["after_lines"]
    ):
        time.sleep(0.02)
    for rank, number in signals:
        os.kill(children[rank], number)
        if number == signal.SIGSTOP:
            stopped.append(children[rank])
    return stopped


def launch_and_kill(job: dict[str, Any]) -> list[int]:
    """Attempt after attempt, killed as often as the job says; then one that may end."""
    random, codes = np.random.default_rng(0), []
    checkpoints = Path(job["out"]) / "checkpoints"
    for attempt in range(job["kills"]):
        # Half of the kills meet a process that writes its checkpoints in the background.
        extra = [f"training.async_checkpoint={'true' if attempt % 2 else 'false'}"]
        old = set(checkpoints.glob("*.partial"))
        child = start({**job, "overrides": job["overrides"] + extra}, 0, 0)
        limit = random.uniform(0.02, job["cpu_seconds"])
        # A process that has ended stays a zombie until wait() reads its code: it can be signalled.
        while cpu_seconds(child) < limit and not has_ended(child):
            time.sleep(0.001)
        if attempt % 4 >= 2:
            stop_while_saving(child, checkpoints, old)
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
        print("left incomplete:", len(set(checkpoints.glob("*.partial")) - old), flush=True)
    return [*codes, wait(start(job, 0, 0))]


def stop_while_saving(child: int, checkpoints: Path, old: set[Path]) -> None:
    """Stop a process as soon as it is writing a checkpoint, unless it ends before."""
    while not has_ended(child):
        if set(checkpoints.glob("*.partial")) - old:
            os.kill(child, signal.SIGSTOP)
            if set(checkpoints.glob("*.partial")) - old:
                return
            os.kill(child, signal.SIGCONT)
        time.sleep(0.001)


def has_ended(pid: int) -> bool:
    """Whether a child has ended; its exit code is left to be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def cpu_seconds(pid: int) -> float:
    """Processor time of a process's main thread: not the clock's, so that load changes nothing."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def launch_all(jobs: list[dict[str, Any]]) -> None:
    """Run jobs one after the other; prints the exit codes of each one's processes as JSON."""
    ends = [launch(job) for job in jobs]
    print("\n" + json.dumps([end() for end in ends]))
