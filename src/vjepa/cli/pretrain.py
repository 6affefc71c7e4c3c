"""``vjepa pretrain``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa.cli.main import EXIT_INTERRUPTED, EXIT_REQUEUE
from vjepa.cli.parser import Parser, print_config, resolve_config
from vjepa.errors import UserError

NAME = "pretrain"
HELP = """\
train an encoder on videos without labels

Hides large parts of each clip and learns to predict the features of what is hidden from what is
left (or, with --objective.name pixel, the pixels). Needs one or more manifests made by
`vjepa data index`. The run folder holds config.yaml, metrics.jsonl, TensorBoard events and
checkpoints; the same command again resumes exactly where the run stopped. Under torchrun all
processes share each batch (see docs/distributed.md).

examples:
  vjepa pretrain --config vits16_224 --data.sources.0.manifest videos.parquet --out runs/small
  vjepa pretrain --config vitl16_224 --config mine.yaml --optim.peak_lr 3e-4 --out runs/large
  vjepa pretrain --config vitl16_224 --print-config > mine.yaml
  vjepa pretrain --out runs/small                        resume with the run's own config
  torchrun --nproc-per-node 8 -m vjepa pretrain --config vitl16_224 --config mine.yaml --out runs/l
"""


def _config_class() -> type:
    from vjepa.jobs.pretrain import PretrainConfig

    return PretrainConfig


def add_arguments(parser: Parser) -> None:
    """Options of this command."""
    parser.take_config(_config_class, recipes="pretrain")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder, made if missing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or resume the run in ``--out``."""
    stored = args.out / "config.yaml" if args.out else None
    files = [stored] if stored and stored.is_file() and not args.config else None
    config = resolve_config(args, files)
    if args.print_config:
        print_config(config)
        return 0
    if args.out is None:
        raise UserError("pretrain needs --out DIR, the folder that the run is written to")
    from vjepa.jobs.pretrain import run as pretrain
    from vjepa.runtime.distributed import world

    is_main = world().is_main
    if is_main:
        print_config(config)
    result = pretrain(config, out=args.out)
    state, code = "done", 0
    if result.interrupted:
        state, code = "stopped at your request", EXIT_INTERRUPTED
    if result.requeue:
        state, code = "stopped by the system", EXIT_REQUEUE
    if is_main:
        print(f"{state} at step {result.step} of {config.optim.steps}: {args.out}")
        if code:
            print(f"resume with: vjepa pretrain --out {args.out}")
    return code
