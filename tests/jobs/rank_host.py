"""Runs pretraining jobs in several processes that start at once: imports once, then forks.

``python rank_host.py FILE`` with a JSON list of jobs: ``{"ranks": 2, "config": "x.yaml",
"out": "run", "overrides": [...]}``. Prints the exit codes of each job's processes as JSON.

A job may have ``"signals": [[rank, number], ...]``, sent when its log has ``"after_lines"`` lines;
what SIGSTOP has stopped is killed when the other processes have ended. With ``"kills": n`` a job of
one process is started again and again, and killed n times after random amounts of processor time,
before it may end; the codes then tell how each attempt ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
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
        code = run(job)
    except BaseException:  # noqa: BLE001 (a fork must never return as if it were its parent)
        traceback.print_exc()
    finally:
        os._exit(code)


def run(job: dict[str, Any]) -> int:
    """The job in this process."""
    from vjepa.cli.main import main

    arguments = [f"--{override}" for override in job["overrides"]]
    return main(
        [job.get("command", "pretrain"), "--config", job["config"], "--out", job["out"], *arguments]
    )


def launch(job: dict[str, Any]) -> list[int]:
    """All processes of a job, to their end; exit codes, negative for signals."""
    if "kills" in job:
        return launch_and_kill(job)
    port = free_port()
    children = [start(job, rank, port) for rank in range(job["ranks"])]
    stopped = send_signals(job, children)
    codes = {child: wait(child) for child in children if child not in stopped}
    for child in stopped:
        os.kill(child, signal.SIGKILL)
        codes[child] = wait(child)
    return [codes[child] for child in children]


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
    for attempt in range(job["kills"]):
        # Half of the kills meet a process that writes its checkpoints in the background.
        extra = [f"training.async_checkpoint={'true' if attempt % 2 else 'false'}"]
        child = start({**job, "overrides": job["overrides"] + extra}, 0, 0)
        limit = random.uniform(0.02, job["cpu_seconds"])
        # A process that has ended stays a zombie until wait() reads its code: it can be signalled.
        while cpu_seconds(child) < limit and not has_ended(child):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
        partial = list((Path(job["out"]) / "checkpoints").glob("*.partial"))
        print("left incomplete:", len(partial), flush=True)
    return [*codes, wait(start(job, 0, 0))]


def has_ended(pid: int) -> bool:
    """Whether a child has ended; its exit code is left to be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def cpu_seconds(pid: int) -> float:
    """Processor time of a process's main thread: not the clock's, so that load changes nothing."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def import_everything() -> None:
    """So that no fork has to."""
    import torch

    for name in (
        "torch._dynamo",
        "torch.distributed.checkpoint.staging",
        "torch.distributed.fsdp",
        "torch.nn.parallel",
        "torch.utils._sympy.functions",
        "torch.utils.serialization",
        "torch.utils.tensorboard",
        "numpy.ma",
        "vjepa.data.video.decode",
        "vjepa.jobs.finetune.job",
        "vjepa.jobs.pretrain",
    ):
        importlib.import_module(name)
    from vjepa.cli.main import build_parser

    build_parser()
    torch.set_num_threads(1)


if __name__ == "__main__":
    import_everything()
    codes = [launch(job) for job in json.loads(Path(sys.argv[1]).read_text())]
    print("\n" + json.dumps(codes))
