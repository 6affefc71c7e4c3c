"""``vjepa probe train | eval | predict``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vjepa.cli.parser import Parser, print_config, resolve_config
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.jobs.probe import EvaluatedSplit

NAME = "probe"
HELP = """\
measure what frozen features know: train a classifier on them, use it on any video

The encoder is never changed. Labels come from the manifest (`vjepa data index` reads them from CSV,
JSONL or folder names); the class names are kept in the probe.
"""

_TRAIN_HELP = """\
train probe heads on the frozen features of labelled videos, and measure the chosen one once

Test videos are never used to choose anything. Compare with `--encoder.which random`, the same
architecture untrained: a number alone says little. The folder gets the probe, result.json and
result.md.

examples:
  vjepa probe train --encoder.path runs/first --data.label action \\
      --data.train.manifest labelled.parquet --data.train.split train \\
      --data.test.split test --out runs/probe
  vjepa probe train --encoder.path runs/first --data.label action --data.labels_per_class 15 \\
      --data.train.manifest labelled.parquet --probe.kind linear --out runs/linear
"""

_EVAL_HELP = """\
measure a saved probe on the videos of a manifest

On the test videos of its training this gives the same number again, digit for digit.

example:
  vjepa probe eval runs/probe labelled.parquet --split test
"""

_PREDICT_HELP = """\
print the most probable classes of any videos, by a saved probe

SRC is a video, an image, a folder, a list of files, or a manifest. Exit code 1 if some of several
cannot be read.

example:
  vjepa probe predict runs/probe a.mp4 b.mp4 --top 3
"""


def _config_class() -> type:
    from vjepa.jobs.probe_config import ProbeConfig

    return ProbeConfig


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    train = add_action("train", _TRAIN_HELP)
    train.take_config(_config_class, recipes="probe")
    train.add_argument("--out", type=Path, metavar="DIR", help="new folder for the probe")
    train.set_defaults(run=_train)
    evaluate = add_action("eval", _EVAL_HELP)
    _add_probe(evaluate)
    evaluate.add_argument("manifest", metavar="MANIFEST", type=Path, help="labelled videos")
    evaluate.add_argument("--split", metavar="NAME", help="only this split; default: all rows")
    evaluate.add_argument(
        "--on-bad-video",
        choices=("error", "list"),
        default="error",
        help="stop at a video that cannot be read, or name it in the result (default: error)",
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the metrics here too")
    evaluate.set_defaults(run=_eval)
    predict = add_action("predict", _PREDICT_HELP)
    _add_probe(predict)
    predict.add_argument("sources", metavar="SRC", type=Path, nargs="+", help="what to look at")
    predict.add_argument("--split", metavar="NAME", help="only this split of the manifests")
    predict.add_argument("--top", type=int, default=5, metavar="N", help="classes (default: 5)")
    predict.set_defaults(run=_predict)


def _add_probe(parser: Parser) -> None:
    parser.add_argument("probe", metavar="PROBE", type=Path, help="folder of a trained probe")
    parser.add_argument(
        "--encoder", type=Path, metavar="PATH", help="where the probe's encoder is, if it has moved"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )


def _train(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    if args.print_config:
        print_config(config)
        return 0
    if args.out is None:
        raise UserError("probe train needs --out DIR, a new folder for the probe")
    from vjepa.jobs.probe import train

    print_config(config)
    result = train(config, args.out)
    for head in result.selection:
        mark = "  <- chosen" if head.chosen else ""
        print(
            f"head with learning rate {head.learning_rate:g}, weight decay {head.weight_decay:g}:"
            f" {head.correct} of {head.count} held-out videos{mark}"
        )
    if result.test is not None:
        _print_metrics(result.test)
    print(f"probe: {args.out}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from vjepa.jobs.probe import VideosConfig, evaluate

    measured = evaluate(
        args.probe,
        VideosConfig(manifest=args.manifest, split=args.split),
        encoder=args.encoder,
        on_bad_video=args.on_bad_video,
        device=args.device,
    )
    _print_metrics(measured)
    if args.json is not None:
        args.json.write_text(json.dumps(asdict(measured), indent=1) + "\n", encoding="utf-8")
    return 0


def _print_metrics(measured: EvaluatedSplit) -> None:
    metrics = measured.metrics
    for entry in metrics.per_class:
        accuracy = "-" if entry.accuracy is None else f"{100 * entry.accuracy:5.1f} %"
        print(f"{entry.name:<28} {accuracy}  of {entry.count}")
    for bad in measured.bad_videos:
        print(f"not evaluated: {bad.path}: {bad.reason}")
    low, high = 100 * metrics.wilson.low, 100 * metrics.wilson.high
    print(
        f"top-1: {100 * metrics.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}),"
        f" {metrics.correct} of {metrics.count} videos of split {measured.split or 'all'}"
    )


def _predict(args: argparse.Namespace) -> int:
    from vjepa.jobs.probe_predict import predict

    predictions = predict(
        args.probe,
        args.sources,
        top=args.top,
        split=args.split,
        encoder=args.encoder,
        device=args.device,
    )
    for prediction in predictions:
        print(prediction.path)
        if prediction.failure:
            print(f"  cannot be read: {prediction.failure}")
        for entry in prediction.classes:
            print(f"  {100 * entry.probability:5.1f} %  {entry.name}")
    return 1 if any(prediction.failure for prediction in predictions) else 0
