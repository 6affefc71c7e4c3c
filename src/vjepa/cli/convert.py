"""``vjepa convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa.cli.parser import Parser

NAME = "convert"
HELP = """\
turn the authors' checkpoint file into a folder of ours, or back

SRC is the authors' .pth.tar file, a checkpoint folder or a run folder; what it holds is
recognised, read strictly (every tensor must fit) and reported. DST decides the direction: a name
ending in .tar, .pth or .pt is written in the authors' layout, anything else as a folder with
model.safetensors and config.json. The result is read back and compared before this says "done".

examples:
  vjepa convert vitl16.pth.tar weights/vitl16
  vjepa convert runs/first first.pth.tar
"""


def add_arguments(parser: Parser) -> None:
    """Options of this command."""
    parser.add_argument("src", metavar="SRC", type=Path, help="what to read")
    parser.add_argument("dst", metavar="DST", type=Path, help="what to write; must not exist")
    parser.add_argument(
        "--num-heads",
        type=int,
        metavar="H",
        help="attention heads, for an authors' file of a size that is no preset (the file does"
        " not say it)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, verify, print the load report."""
    from vjepa.checkpoint import convert

    report = convert(args.src, args.dst, args.num_heads)
    print(report)
    print(f"done: {args.dst}")
    return 0
