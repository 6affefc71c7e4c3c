"""Is one probe better than another? A test on pairs of answers, video by video.

Two intervals that overlap do not say that two probes are level: both saw the same videos, and only
those that one of them named rightly tell the two apart.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vjepa.errors import UserError
from vjepa.evaluation.metrics import NORMAL_975, ConfidenceInterval
from vjepa.evaluation.saved_probe import refuse_draws
from vjepa.paths import as_path

ANSWERS_FILE = "answers.csv"


@dataclass(frozen=True)
class PairedDifference:
    """How two probes answered the same `count` videos.

    Some the first or the second named rightly alone; those `not_shared` only one of them answered.
    """

    count: int
    first_only: int
    second_only: int
    not_shared: int = 0

    @property
    def difference(self) -> float:
        """Share of right answers, the first's minus the second's, in [-1, 1]."""
        return (self.first_only - self.second_only) / self.count

    @property
    def interval(self) -> ConfidenceInterval:
        """95 % interval of the difference (Agresti and Min 2005: half a video added to each)."""
        one, other, count = self.first_only + 0.5, self.second_only + 0.5, self.count + 2
        centre = (one - other) / count
        half = NORMAL_975 * math.sqrt(one + other - (one - other) ** 2 / count) / count
        return ConfidenceInterval(max(-1.0, centre - half), min(1.0, centre + half))

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: so often would chance tell them apart as far or farther."""
        total, least = self.first_only + self.second_only, min(self.first_only, self.second_only)
        tail = sum(math.comb(total, number) for number in range(least + 1))
        return min(1.0, 2 * tail / 2**total)

    def __str__(self) -> str:
        """All of it in words."""
        low, high = self.interval.low, self.interval.high
        left_out = f", {self.not_shared} that one did not answer left out" * bool(self.not_shared)
        return (
            f"first minus second: {100 * self.difference:+.1f} points (95 % interval "
            f"{100 * low:+.1f} to {100 * high:+.1f}, p {self.p_value:.3g}) on {self.count} videos: "
            f"{self.first_only} named rightly by the first alone, {self.second_only} by the second "
            f"alone{left_out}"
        )


def compare_answers(first: str | Path, second: str | Path) -> PairedDifference:
    """Compare two files of answers, or folders of probes that were tested.

    Raises:
        UserError: A file is missing or no such file; nothing in common; or another label.
    """
    first, second = as_path(first), as_path(second)
    ours, theirs = _read(first), _read(second)
    shared = ours.keys() & theirs.keys()
    if not shared:
        raise UserError(f"{first} and {second}: have no video in common; test both on the same")
    for key in shared:
        if ours[key][0] != theirs[key][0]:
            raise UserError(
                f"{key[0]}: is {ours[key][0]!r} in {first} and {theirs[key][0]!r} in {second}; "
                "compare probes of one label"
            )
    found = Counter((len(set(ours[key])) == 1, len(set(theirs[key])) == 1) for key in shared)
    missing = len(ours) + len(theirs) - 2 * len(shared)
    return PairedDifference(len(shared), found[True, False], found[False, True], missing)


def _read(path: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """Class and answer of each video, by path and how often that has come before."""
    file = path / ANSWERS_FILE if path.is_dir() else path
    seen: Counter[str] = Counter()
    answers = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                answers[row["path"], seen[row["path"]]] = (row["class"], row["answer"])
                seen[row["path"]] += 1
    except FileNotFoundError:
        refuse_draws(path)
        raise UserError(
            f"{file}: no such file; `vjepa probe train` with test videos writes it, or "
            "`vjepa probe eval --answers FILE`"
        ) from None
    except KeyError as error:
        raise UserError(
            f"{file}: not a file of answers with one class a video (no column {error}); those with "
            "several classes a video cannot be compared so"
        ) from error
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(
            f"{file}: not a file of answers with one class a video ({error}); give another"
        ) from error
    return answers
