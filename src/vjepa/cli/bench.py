"""``vjepa bench step | loader | encode``."""

from __future__ import annotations

import argparse
import importlib
import json

from vjepa.cli.parser import Parser, print_config, resolve_config

NAME = "bench"
HELP = """\
measure how fast this machine trains, reads videos, and encodes

Each benchmark prints what it found in words, and as one line of JSON at the end.
"""

_STEP_HELP = """\
measure a training update on synthetic clips in memory, without reading videos

Reports clips/s, milliseconds, TFLOP/s counted from the model's own operations, their share of the
device's matrix product rate (measured in the same process), and the peak of memory.

examples:
  vjepa bench step --model vitl16 --batch_size 24 --training.compile true
  vjepa bench step --model vits16 --batch_size 2 --training.device cpu --training.num_threads 2
  vjepa bench step --model vith16 --image_size 384 --batch_size 10 --estimate true
"""

_LOADER_HELP = """\
measure how fast training clips are read from the videos of a manifest

Reads the same clips as `vjepa pretrain` would: first in this process, to see where the time goes
(opening, seeking, decoding, converting, cropping), then through worker processes. Reports clips/s
by CPU time, which other processes on the machine do not disturb, and by the clock.

examples:
  vjepa bench loader --manifest videos.parquet
  vjepa bench loader --manifest videos.parquet --loader.num_workers 8 --clip.clips_per_video 4
"""

_ENCODE_HELP = """\
measure the frozen encoder on synthetic clips in memory, without reading videos

Reports clips/s by wall clock (the median of several calls) and by CPU time, which other processes
on the machine do not disturb.

examples:
  vjepa bench encode --model vitl16 --batch_size 64 --precision bfloat16
  vjepa bench encode --model vits16 --batch_size 2 --device cpu --num_threads 2
"""

_ACTIONS = {"step": _STEP_HELP, "loader": _LOADER_HELP, "encode": _ENCODE_HELP}
"""Benchmarks and their help. The module ``vjepa.jobs.bench_NAME`` of each has a config class
``BenchConfig`` and ``run(config) -> BenchReport``; it is imported only when it is used."""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_command = parser.add_commands("ACTION")
    for name, text in _ACTIONS.items():
        command = add_command(name, text)
        command.take_config(lambda module=f"vjepa.jobs.bench_{name}": _config_class(module))
        command.set_defaults(run=run, module=f"vjepa.jobs.bench_{name}")


def _config_class(module: str) -> type:
    return importlib.import_module(module).BenchConfig


def run(args: argparse.Namespace) -> int:
    """Measure, then print the report and its values as one line of JSON."""
    config = resolve_config(args)
    if args.print_config:
        print_config(config)
        return 0
    report = importlib.import_module(args.module).run(config)
    for line in report.lines:
        print(line)
    print(json.dumps(report.values))
    return 0
