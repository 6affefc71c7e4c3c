"""``vjepa features``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vjepa.cli.parser import Parser, print_config, resolve_config
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.jobs.features import FeaturesReport

NAME = "features"
HELP = """\
write frozen features of videos and images, with times

SRC is a video, an image, a folder, a list of files, or a manifest. Long videos are cut into
overlapping windows whose tokens are averaged where they meet; memory does not grow with length.
Files whose features are in DIR already are kept. Exit code 1 if some files cannot be read.

examples:
  vjepa features a.mp4 --encoder.path runs/first --out features
  vjepa features videos.parquet --encoder.path vitl16.pth.tar --pool video --format parquet \\
      --out features
"""


def _config_class() -> type:
    from vjepa.jobs.features import FeaturesConfig

    return FeaturesConfig


def add_arguments(parser: Parser) -> None:
    """Options of this command."""
    parser.take_config(_config_class)
    parser.add_argument("sources", metavar="SRC", type=Path, nargs="*", help="what to encode")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the features")
    parser.add_argument("--split", metavar="NAME", help="only this split of the manifests")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write features, then say how many and how fast."""
    config = resolve_config(args)
    if args.print_config:
        print_config(config)
        return 0
    if not args.sources or args.out is None:
        raise UserError("features needs SRC... and --out DIR (see vjepa features --help)")
    from vjepa.jobs.features import INDEX_FILE
    from vjepa.jobs.features import run as write_features

    report = write_features(config, args.sources, args.out, args.split)
    for record in report.failed:
        print(f"no features: {record.path}: {record.failure}")
    print(_summary(report))
    print(f"features: {args.out} (list of files: {INDEX_FILE})")
    return 1 if report.failed else 0


def _summary(report: FeaturesReport) -> str:
    """What was done and how fast, in one line."""
    parts = [f"{report.written} files encoded"]
    if report.kept:
        parts.append(f"{report.kept} there already")
    if report.failed:
        parts.append(f"{len(report.failed)} cannot be read")
    line = ", ".join(parts)
    if report.windows:
        line += (
            f"; {report.source_seconds:.1f} s of video in {report.wall_seconds:.1f} s:"
            f" {report.windows / report.wall_seconds:.2f} windows/s"
        )
    return line
