"""Write the computed tables of docs/benchmarks.md: what fits which GPU, and what the runs cost.

Run from the repository: ``python docs/make_scaling_table.py`` (``--check`` only compares).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from vjepa.models import PRESETS, ModelConfig, PredictorConfig
from vjepa.models.operations import MaskTokens, update_memory, update_operations

PAGE = Path(__file__).with_name("benchmarks.md")
BEGIN, END = "<!-- begin generated: scaling -->", "<!-- end generated: scaling -->"
GPUS = {"24 GB": 24e9, "40 GB": 40e9, "80 GB": 80e9, "141 GB": 141e9}
USABLE = 0.85
"""Share of a GPU's memory left after workspaces and the allocator's waste; an assumption."""
RATE, DECODE_MS = 0.5 * 790e12, 30.0
"""Assumed: operations a second, half of an H200's matrix products; CPU time of a clip."""


@dataclass(frozen=True)
class Run:
    """One of the paper's pretraining runs (Table 8), or a smaller recipe of ours."""

    name: str
    preset: str
    pixels: int
    clips: int

    @property
    def config(self) -> ModelConfig:
        """Sizes."""
        encoder = replace(PRESETS[self.preset], image_size=self.pixels)
        return ModelConfig(encoder=encoder, predictor=PredictorConfig())

    @property
    def masks(self) -> list[MaskTokens]:
        """Mean tokens of the authors' masks (24 clips of 224 pixels, 10 of 384)."""
        tokens = self.config.encoder.num_tokens
        shares = ((0.2336, 0.4806), (0.0670, 0.7003))
        if self.pixels == 384:
            shares = ((1297 / 4608, 2313 / 4608), (418 / 4608, 3331 / 4608))
        return [MaskTokens(tokens * context, tokens * target) for context, target in shares]

    @property
    def operations(self) -> float:
        """Of one clip."""
        return update_operations(self.config, self.masks, 1).total


RUNS = (
    Run("ViT-S/16 224", "vits16", 224, 90_000 * 768),
    Run("ViT-B/16 224", "vitb16", 224, 90_000 * 768),
    Run("ViT-L/16 224", "vitl16", 224, 90_000 * 3072),
    Run("ViT-H/16 224", "vith16", 224, 90_000 * 3072),
    Run("ViT-H/16 384", "vith16", 384, 90_000 * 2400),
)


def most_clips(run: Run, memory: float, *, checkpointing: bool) -> int:
    """The largest micro-batch that fits."""
    free = USABLE * memory - update_memory(run.config, run.masks, 0).states
    one = update_memory(run.config, run.masks, 1, activation_checkpointing=checkpointing)
    return max(0, int(free // one.activations))


def tables() -> str:
    """Both tables as Markdown."""
    lines = [
        "| model | states GB | GB a clip | with checkpointing | "
        + " | ".join(f"clips in {name}" for name in GPUS)
        + " |",
        "|---|---:|---:|---:|" + "---:|" * len(GPUS),
    ]
    for run in RUNS:
        full = update_memory(run.config, run.masks, 1)
        less = update_memory(run.config, run.masks, 1, activation_checkpointing=True)
        fits = [
            f"{most_clips(run, size, checkpointing=False)} / "
            f"{most_clips(run, size, checkpointing=True)}"
            for size in GPUS.values()
        ]
        lines.append(
            f"| {run.name} | {full.states / 1e9:.1f} | {full.activations / 1e9:.2f} | "
            f"{less.activations / 1e9:.2f} | " + " | ".join(fits) + " |"
        )
    lines += [
        "",
        "| run | TFLOP a clip | million clips | clips/s | GPU hours | CPU cores that feed it |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for run in RUNS:
        rate = RATE / run.operations
        lines.append(
            f"| {run.name} | {run.operations / 1e12:.2f} | {run.clips / 1e6:.0f} | {rate:.0f} | "
            f"{run.clips / rate / 3600:.0f} | {rate * DECODE_MS / 1e3:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Write the tables into the page, or say that they are old."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        print(f"{PAGE}: the markers of the generated part are missing", file=sys.stderr)
        return 1
    wanted = f"{head}{begin}\n{tables()}\n{end}{tail}"
    if parser.parse_args().check:
        if wanted != text:
            print(f"{PAGE} is out of date", file=sys.stderr)
        return int(wanted != text)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
