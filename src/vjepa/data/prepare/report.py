"""What became of every video: counts for people, a list for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vjepa.data.prepare.matching import Removed
from vjepa.runtime.files import atomic_write

REPORT_FILE, REMOVED_FILE = "report.json", "removed.jsonl"


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What went in, what came out, and what was left out and why."""

    manifest: str
    """The manifest that was written."""
    num_inputs: int
    """Videos named by the input manifests."""
    num_videos: int
    """Videos of the result; a video that was cut into windows counts once for each."""
    num_shards: int
    """Tar files, or folders of files."""
    duration_hours: float
    """Length of the result in hours."""
    input_gigabytes: float
    """Size of the usable input files, in GB (1e9 bytes)."""
    output_gigabytes: float
    """Size of the result's videos, in GB."""
    removed: dict[str, int]
    """Number of videos (of windows, where only one failed) left out, by reason."""
    first_removed: dict[str, list[str]]
    """Up to three examples for each reason."""

    def write(self, folder: Path, removed: Sequence[Removed]) -> None:
        """Write ``removed.jsonl``, then ``report.json``."""
        lines = "".join(json.dumps(asdict(one)) + "\n" for one in removed)
        atomic_write(folder / REMOVED_FILE, lines)
        atomic_write(folder / REPORT_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> PrepareReport:
        """The report of a finished folder."""
        return cls(**json.loads((folder / REPORT_FILE).read_text()))

    def lines(self) -> list[str]:
        """The report for people."""
        found = [
            f"prepared: {self.num_videos} videos of {self.num_inputs} in the input,"
            f" {self.duration_hours:.2f} hours, in {self.num_shards} "
            + ("shard" if self.num_shards == 1 else "shards"),
            f"size: {self.input_gigabytes:.3f} GB -> {self.output_gigabytes:.3f} GB",
        ]
        for reason, count in sorted(self.removed.items(), key=lambda item: -item[1]):
            found.append(f"left out, {reason}: {count}")
            found += [f"  {example}" for example in self.first_removed[reason]]
        if not self.removed:
            found.append("left out: none")
        return found


def count_removed(removed: Sequence[Removed]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many were left out for each reason, and the first three of each in words."""
    counts = Counter(one.reason for one in removed)
    examples: dict[str, list[str]] = {reason: [] for reason in counts}
    for one in removed:
        if len(examples[one.reason]) < 3:
            words = [one.path]
            words += [f"is {one.same_as}"] if one.same_as else []
            words += [f"({one.detail})"] if one.detail else []
            examples[one.reason].append(" ".join(words))
    return dict(counts), examples
