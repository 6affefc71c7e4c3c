"""A long pretraining run with faults injected, against one of the same command without faults.

Run from the repository on Linux: ``python benchmarks/soak.py --minutes 30 --ranks 2 --out soak``.
Two real pretraining jobs (``torchrun`` with gloo on the CPU; ``--ranks 1``: one plain process)
start on the same small videos, a tenth of which were spoilt after they had been indexed. One job is
left alone. To the other happens what :meth:`Soak.run` lists, at random times (the same draws for
the same ``--seed``); whenever it ends, the same command starts it again. At the end, over all steps
that both have done: every step must stand in the log exactly once with exactly the same loss and
gradient norms, checkpoints must be byte for byte the same, and the same videos must have been found
bad.
``OUT/soak.json`` and ``OUT/soak.md`` hold what happened; exit code 1 says that something is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import soak_report
from soak_data import make_config, make_videos
from soak_processes import Tree, tree_of

from vjepa.runtime.process import resident_bytes

DISK_MEGABYTES = 400
QUIET_SECONDS = 120.0
"""A job that writes no line of metrics for so long has frozen."""
GONE_SECONDS = 60.0
"""After such a fault the job must have ended within this time."""


@dataclass
class Job:
    """One pretraining job: its command, its processes, what happened to it."""

    name: str
    command: list[str]
    run: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    exits: Counter[str] = field(default_factory=Counter)
    resident_mb: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the soak began, and memory of the training processes together in MB."""

    def start(self) -> None:
        """Start the command, with its output appended to a file beside the run."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True
            )

    def tree(self) -> Tree:
        """Its live processes by role."""
        return tree_of(self.process.pid if self.process else 0)

    def measure(self, now: float) -> None:
        """Note the memory of the training processes."""
        ranks = self.tree().ranks
        if ranks:
            total = sum(resident_bytes(pid) for pid in ranks) / 1e6
            self.resident_mb.append((round(now, 1), round(total, 1)))

    def seconds_quiet(self) -> float:
        """Since the newest line of metrics (0 before there is one)."""
        metrics = self.run / "metrics.jsonl"
        return time.time() - metrics.stat().st_mtime if metrics.exists() else 0.0


class Soak:
    """Injects faults into one of two jobs."""

    def __init__(self, args: argparse.Namespace, faulted: Job, control: Job) -> None:
        self.rng = np.random.default_rng(args.seed)
        self.faulted, self.control = faulted, control
        self.has_ranks = args.ranks > 1
        self.injected: Counter[str] = Counter()
        self.problems: list[str] = []
        self.recoveries: list[float] = []

    def worker(self, number: signal.Signals) -> bool:
        """Send a signal to a random loader worker."""
        workers = self.faulted.tree().workers
        return bool(workers) and _send(int(self.rng.choice(workers)), number)

    def kill_worker(self) -> bool:
        """A loader worker is killed, as the system does when memory runs out."""
        return self.worker(signal.SIGKILL)

    def stall(self, pids: list[int]) -> bool:
        """Processes stop for a moment, as with a drive that does not answer."""
        if not pids:
            return False
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        time.sleep(float(self.rng.uniform(0.5, 3.0)))
        for pid in pids:
            _send(pid, signal.SIGCONT)
        return True

    def stall_workers(self) -> bool:
        """All loader workers stand still."""
        return self.stall(self.faulted.tree().workers)

    def stall_rank(self) -> bool:
        """One training process stands still."""
        ranks = self.faulted.tree().ranks
        return bool(ranks) and self.stall([int(self.rng.choice(ranks))])

    def kill_all(self) -> bool:
        """``kill -9`` of the launcher and of all training processes; their workers must follow."""
        tree = self.faulted.tree()
        for pid in [*tree.launchers, *tree.ranks]:
            _send(pid, signal.SIGKILL)
        self.wait_for_end("kill -9 of the job", tree)
        return True

    def kill_rank(self) -> bool:
        """``kill -9`` of one training process; the others must not wait for it for ever."""
        tree = self.faulted.tree()
        if not self.has_ranks or not tree.ranks:
            return False
        _send(int(self.rng.choice(tree.ranks)), signal.SIGKILL)
        self.wait_for_end("kill -9 of one process", tree)
        return True

    def preempt(self) -> bool:
        """SIGTERM, as a scheduler sends it: save and leave."""
        tree = self.faulted.tree()
        for pid in tree.launchers or tree.ranks:
            _send(pid, signal.SIGTERM)
        self.wait_for_end("SIGTERM", tree)
        return True

    def fill_disk(self) -> bool:
        """The file system of the run is full while checkpoints and logs are written."""
        filler = self.faulted.run.parent / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        except OSError:
            pass
        tree = self.faulted.tree()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not self.has_ended():
            time.sleep(0.2)
        ended = self.has_ended()
        filler.unlink()
        if ended:
            self.wait_for_end("full disk", tree)
        return True

    def has_ended(self) -> bool:
        """Whether the command has returned."""
        return self.faulted.process is None or self.faulted.process.poll() is not None

    def wait_for_end(self, why: str, tree: Tree) -> None:
        """The whole job must go, its loader workers too, and then starts again."""
        deadline = time.monotonic() + GONE_SECONDS
        process = self.faulted.process
        assert process is not None
        while time.monotonic() < deadline:
            if process.poll() is not None and not tree.alive():
                break
            time.sleep(0.1)
        else:
            left = tree.alive()
            self.problems.append(f"{why}: {len(left)} processes left after {GONE_SECONDS:g} s")
            for pid in [*left, process.pid]:
                _send(pid, signal.SIGKILL)
            process.wait()
        self.faulted.exits[f"{why}: exit {process.returncode}"] += 1
        self.restart()

    def restart(self) -> None:
        """The same command again; the time until it trains counts as lost."""
        (before, _), began = self.log(), time.monotonic()
        self.faulted.start()
        number, size = before, 0
        while not self.has_ended() and time.monotonic() - began < QUIET_SECONDS:
            time.sleep(0.2)
            now = self.log()
            # A resumed job replaces the log by what belongs to its checkpoint, then adds to it.
            if now[0] == number != before and now[1] > size:
                self.recoveries.append(time.monotonic() - began)
                return
            number, size = now

    def log(self) -> tuple[int, int]:
        """Number and size of the file of metrics; zeros before there is one."""
        metrics = self.faulted.run / "metrics.jsonl"
        if not metrics.exists():
            return 0, 0
        status = metrics.stat()
        return status.st_ino, status.st_size

    def check_health(self) -> None:
        """Nobody may have ended by itself or frozen."""
        for job in (self.faulted, self.control):
            code = None if job.process is None else job.process.poll()
            if code is not None:
                self.problems.append(f"{job.name} ended by itself with exit code {code}")
                job.start()
            if job.seconds_quiet() > QUIET_SECONDS:
                self.problems.append(f"{job.name}: no line of metrics for {QUIET_SECONDS:g} s")
                os.utime(job.run / "metrics.jsonl")

    def inject(self, faults: Mapping[str, tuple[float, Callable[[], bool]]]) -> None:
        """One random fault."""
        names = list(faults)
        weights = np.array([weight for weight, _ in faults.values()])
        name = str(self.rng.choice(names, p=weights / weights.sum()))
        if faults[name][1]():
            self.injected[name] += 1

    def run(self, minutes: float) -> None:
        """Inject until time is up."""
        faults = {
            "loader worker killed": (8.0, self.kill_worker),
            "loader workers stopped for up to 3 s": (4.0, self.stall_workers),
            "training process stopped for up to 3 s": (3.0, self.stall_rank),
            "kill -9 of the whole job": (2.0, self.kill_all),
            "kill -9 of one training process": (1.0 if self.has_ranks else 0.0, self.kill_rank),
            "SIGTERM": (1.0, self.preempt),
            "disk full while training": (1.0, self.fill_disk),
        }
        began = time.monotonic()
        self.control.start()
        self.restart()
        while (now := time.monotonic() - began) < 60 * minutes and len(self.problems) < 10:
            self.check_health()
            for job in (self.faulted, self.control):
                job.measure(now)
            time.sleep(float(self.rng.uniform(1.0, 6.0)))
            self.inject(faults)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _stop(job: Job) -> None:
    """End a job as a user does; by force if it does not listen."""
    tree = job.tree()
    for pid in tree.launchers or tree.ranks:
        _send(pid, signal.SIGTERM)
    try:
        if job.process is not None:
            job.process.wait(timeout=GONE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    for pid in tree.alive():
        _send(pid, signal.SIGKILL)


def _mount(folder: Path) -> bool:
    """A small file system of its own for the faulted run, so that it can be filled."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Set up, soak, compare, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    args = parser.parse_args()
    out = args.out.absolute()
    if out.exists():
        sys.exit(f"{out}: exists; give another --out or remove it")
    (out / "control").mkdir(parents=True)
    disk = out / "small_disk"
    if not _mount(disk):
        sys.exit(f"{disk}: no tmpfs can be mounted here (root is needed to fill a disk)")
    try:
        config = make_config(out, make_videos(out / "videos"), args)
        jobs = [
            Job(name, _command(args.ranks, config, run), run, out / f"{name}.log")
            for name, run in (("faulted", disk / "run"), ("control", out / "control" / "run"))
        ]
        soak = Soak(args, *jobs)
        began = time.monotonic()
        try:
            soak.run(args.minutes)
        finally:
            for job in jobs:
                _stop(job)
        result = soak_report.compare(soak, (time.monotonic() - began) / 60, args)
        soak_report.write(result, out)
        shutil.copytree(disk, out / "faulted", dirs_exist_ok=True)
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    sys.exit(1 if result["problems"] else 0)


def _command(ranks: int, config: Path, run: Path) -> list[str]:
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return [*start, "vjepa", "pretrain", "--config", str(config), "--out", str(run)]


if __name__ == "__main__":
    main()
