"""``vjepa demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa.cli.parser import Parser, print_config, resolve_config

NAME = "demo"
HELP = """\
pretrain, probe and explain a small model on embedded data, on a CPU

Makes labelled synthetic videos, pretrains a small model on them without their labels (and beside
it one that predicts pixels), trains probes on the frozen features with few labels and with many,
does the same for untrained weights, and writes report.html: masks, curves, results with
intervals, pictures of features and prediction errors. The same command again goes on where it
was stopped.

examples:
  vjepa demo
  vjepa demo --minutes 60 --out runs/long
  vjepa demo --seeds '[0, 1, 2]' --out runs/three
"""

_DEFAULT_OUT = Path("runs/demo")


def _config_class() -> type:
    from vjepa.demo.config import DemoConfig

    return DemoConfig


def add_arguments(parser: Parser) -> None:
    """Options of this command."""
    parser.take_config(_config_class)
    parser.add_argument(
        "--out",
        type=Path,
        default=_DEFAULT_OUT,
        metavar="DIR",
        help=f"folder for data, runs and report (default: {_DEFAULT_OUT})",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and say where its report is."""
    config = resolve_config(args)
    if args.print_config:
        print_config(config)
        return 0
    from vjepa.demo.demo import run as demo

    report = demo(config, args.out)
    print(f"report: {report}")
    return 0
