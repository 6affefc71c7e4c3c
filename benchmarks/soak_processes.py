"""The processes of a pretraining job, by role, from ``/proc``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    """Live processes of a job when it was looked at."""

    launchers: list[int]
    """``torchrun``, if it was started with it."""
    ranks: list[int]
    """Training processes."""
    workers: list[int]
    """Loader workers."""
    others: list[int]
    """Servers and trackers that Python starts beside them."""

    def alive(self) -> list[int]:
        """Which of them still run."""
        everyone = (*self.launchers, *self.ranks, *self.workers, *self.others)
        return [pid for pid in everyone if _look(pid) is not None]


@dataclass(frozen=True)
class _Process:
    parent: int
    command: str


def _look(pid: int) -> _Process | None:
    """A process; None if it is gone or only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else _Process(int(fields[1]), command)


def tree_of(root: int) -> Tree:
    """All processes below `root`, itself included, by role."""
    found: dict[int, _Process] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _look(int(entry.name))) is not None:
            found[int(entry.name)] = process
    members, new = set(), {root} & found.keys()
    while new:
        members |= new
        new = {pid for pid, process in found.items() if process.parent in new} - members
    tree = Tree([], [], [], [])
    for pid in sorted(members):
        command, parent = found[pid].command, found.get(found[pid].parent)
        if "torch.distributed.run" in command:
            tree.launchers.append(pid)
        elif "forkserver" in command and parent is not None and "forkserver" in parent.command:
            tree.workers.append(pid)
        elif "vjepa pretrain" in command:
            tree.ranks.append(pid)
        else:
            tree.others.append(pid)
    return tree
