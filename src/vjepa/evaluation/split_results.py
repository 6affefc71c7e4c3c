"""Several draws of few labels, summed up: mean and standard deviation (paper, Table 7)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vjepa.evaluation.results import ProbeResult, SeedSummary, over_seeds

SPLITS_FILE = "splits.json"
SPLITS_TABLE_FILE = "splits.md"
_FORMAT = "vjepa-probe-splits-1"


@dataclass(frozen=True, kw_only=True)
class SplitsResult:
    """Probes that were trained on several draws of labels.

    Attributes:
        results: One a draw, in the order of seeds.
        seeds: Of the draws.
        figure: ``top1`` or ``mean_average_precision``.
        summary: Values, mean, standard deviation and 95 % interval over draws of the test figure;
            None without test videos.
    """

    results: tuple[ProbeResult, ...]
    seeds: tuple[int, ...]
    figure: str
    summary: SeedSummary | None

    def save(self, folder: Path) -> None:
        """Write ``splits.json`` and a Markdown table beside it."""
        plain = {
            "format": _FORMAT,
            "figure": self.figure,
            "seeds": list(self.seeds),
            "folders": [result.folder for result in self.results],
            "num_train": [result.num_train for result in self.results],
            "summary": None if self.summary is None else asdict(self.summary),
        }
        text = json.dumps(plain, indent=1)
        (folder / SPLITS_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / SPLITS_TABLE_FILE).write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """A Markdown table with one row a draw, and the mean."""
        name = "top-1 %" if self.figure == "top1" else "mAP %"
        lines = [f"| draw | labels used | {name} |", "|---|---|---|"]
        values = self.summary.values if self.summary is not None else (None,) * len(self.results)
        for seed, result, value in zip(self.seeds, self.results, values, strict=True):
            shown = "-" if value is None else f"{100 * value:.1f}"
            lines.append(f"| seed {seed} | {result.num_train} | {shown} |")
        if self.summary is not None:
            lines.append(f"| mean | | {self.in_words} |")
        return "\n".join(lines) + "\n"

    @property
    def in_words(self) -> str:
        """Mean and standard deviation in percent, for example ``61.2 +- 1.4``."""
        if self.summary is None:
            return "-"
        return f"{100 * self.summary.mean:.1f} +- {100 * self.summary.deviation:.1f}"


def summarise(results: Sequence[ProbeResult], seeds: Sequence[int]) -> SplitsResult:
    """Put the results of several draws together.

    Args:
        results: At least one; all with test videos or none.
        seeds: Of the draws.
    """
    tops = [result.test.metrics.top1 for result in results if result.test is not None]
    precisions = [
        result.test_multi_label.metrics.mean_average_precision
        for result in results
        if result.test_multi_label is not None
    ]
    values = tops or precisions
    return SplitsResult(
        results=tuple(results),
        seeds=tuple(seeds),
        figure="mean_average_precision" if precisions else "top1",
        summary=over_seeds(values) if values else None,
    )
