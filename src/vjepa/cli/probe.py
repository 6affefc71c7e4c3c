"""``vjepa probe train | eval | predict``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from vjepa.cli.parser import Parser, given, print_config, prints, resolve_config
from vjepa.errors import UserError
from vjepa.runtime.files import atomic_write, check_kind

if TYPE_CHECKING:
    from vjepa.jobs.probe.probe import Evaluation

HELP = """\
measure what frozen features know: train a classifier on them, use it on any video

The encoder is never changed. Labels come from the manifest (`vjepa data index` reads them from CSV,
JSONL or folder names); the class names are kept in the probe.
"""

_TRAIN_HELP = """\
train probe heads on the frozen features of labelled videos, and measure the chosen one once

Test videos are never used to choose anything. Compare with `--encoder.random true`, the same
architecture untrained: a number alone says little. The folder gets the probe, result.json and
result.md.

examples:
  vjepa probe train --encoder.path runs/first --data.label action \\
      --data.train.manifest labelled.parquet --data.train.split train \\
      --data.test.split test --out runs/probe
  vjepa probe train --encoder.path runs/first --data.label action --data.labels_per_class 15 \\
      --data.train.manifest labelled.parquet --probe.kind linear --out runs/linear
  vjepa probe train --encoder.path runs/first --data.label action --data.label_fraction 0.1 \\
      --data.num_splits 3 --data.train.manifest labelled.parquet --data.train.split train \\
      --data.test.split test --out runs/ten_percent       mean and deviation of three draws
"""

_EVAL_HELP = """\
measure a saved probe on the videos of a manifest

On the test videos of its training this gives the same number again, digit for digit. Segments,
views and everything else are as the probe was trained with. Under torchrun the processes share the
videos. Of a probe that its authors published (V-JEPA 1, 2) a recipe says these; the settings below
are for such probes alone.

examples:
  vjepa probe eval runs/probe labelled.parquet --split test --confusion confusion.png
  vjepa probe eval ssv2-vitl-16x2x3.pt ssv2.parquet --encoder vitl.pt \\
      --config ssv2_vjepa2_vitl --label action --classes ssv2_classes.txt
"""

_PREDICT_HELP = """\
print the most probable classes of any videos, by a saved probe

SRC is a video, an image, a folder, a list of files, or a manifest. Exit code 1 if some of several
cannot be read. A probe that its authors published works, too (V-JEPA 1, 2); the settings below are
for such probes alone.

examples:
  vjepa probe predict runs/probe a.mp4 b.mp4 --top 3
  vjepa probe predict runs/probe videos/ --out predictions.jsonl
  vjepa probe predict ssv2-vitl-16x2x3.pt a.mp4 --encoder vitl.pt --config ssv2_vjepa2_vitl
  vjepa probe predict vjepa2-vitl-fpc16-256-ssv2 a.mp4      a Hugging Face folder with its names
"""


_COMPARE_HELP = """\
test whether one probe is better than another on the same videos

By pairs of answers: only videos that one probe alone named rightly tell the two apart (McNemar's
exact test, and a 95 % interval of the difference).

examples:
  vjepa probe compare runs/mine-motion runs/pixel-motion
  vjepa probe compare runs/mine-motion runs/mine-motion/random_weights
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    train = add_action("train", _TRAIN_HELP, _train)
    train.take_config("vjepa.jobs.probe.config:ProbeConfig", recipes="probe")
    train.add_path("--out", "DIR", "new folder for the probe", needed=True)
    evaluate, predict = add_action("eval", _EVAL_HELP), add_action("predict", _PREDICT_HELP)
    run = prints("vjepa.jobs.probe.compare:compare_answers", "first", "second")
    compare = add_action("compare", _COMPARE_HELP, run)
    for name in ("first", "second"):
        compare.add_path(name, name.upper(), "folder of a tested probe, or its answers (.csv)")
    for command in (evaluate, predict):
        command.take_config("vjepa.jobs.probe.released:ReleasedProbeConfig", recipes="released")
        command.add_path("probe", "PROBE", "folder of a trained probe, or a released probe")
        text = "where the probe's encoder is, if it has moved; of a released probe always"
        command.add_path("--encoder", "PATH", text)
    evaluate.add_path("--cache-dir", "DIR", "keep features here, or find them here")
    add_uses(evaluate, predict, "vjepa.jobs.probe.predict:load_probe")


def add_uses(evaluate: Parser, predict: Parser, load: str) -> None:
    """Options of measuring a trained classifier and of asking it, whatever it was trained by.

    `load` is the function that opens it, ``package.module:function``.
    """
    for command in (evaluate, predict):
        command.add_device()
        command.set_defaults(load=load)
    evaluate.add_path("manifest", "MANIFEST", "labelled videos")
    evaluate.add_argument("--split", metavar="NAME", help="only this split; default: all rows")
    evaluate.add_on_bad_video("video")
    text = "count videos that were trained on too, instead of refusing them"
    evaluate.add_flag("--allow-training-videos", text)
    evaluate.add_path("--confusion", "FILE", "draw the confusion matrix (.png or .svg)")
    text = "draw how far its confidence can be believed (.png or .svg)"
    evaluate.add_path("--calibration", "FILE", text)
    evaluate.add_path("--answers", "FILE", "write every video's answer here (.csv)")
    evaluate.add_path("--json", "FILE", "write the metrics here too")
    evaluate.set_defaults(run=_eval, is_shared=True)
    predict.add_path("sources", "SRC", "what to look at", nargs="+")
    predict.add_argument("--split", metavar="NAME", help="only this split of manifests and lists")
    predict.add_number("--top", int, "N", "classes", default=5)
    predict.add_path("--out", "FILE", "write them to a .jsonl, .csv or .parquet file")
    predict.set_defaults(run=_predict, is_shared=False)


def _train(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    print_config(args, config)
    if config.data.num_splits > 1:
        from vjepa.jobs.probe.probe import train_splits

        splits = train_splits(config, args.out)
        print(splits.markdown(), end="")
        print(f"probes: {args.out}/split_{splits.seeds[0]} ... split_{splits.seeds[-1]}")
        return 0
    from vjepa.jobs.probe.probe import train

    result = train(config, args.out)
    print(f"encoder: {result.encoder}")
    if result.steps:
        print(f"head: {result.steps} updates on {result.num_train} labelled videos")
    if result.left_out:
        print(result.left_out)
    for head in result.selection:
        mark = "  <- chosen" if head.chosen else ""
        print(
            f"{head.kind} head, {head.steps} updates, learning rate {head.learning_rate:g}, weight "
            f"decay {head.weight_decay:g}: {head.score} on held-out videos{mark}"
        )
    print_metrics(result.test)
    if result.test is not None:
        for floor in result.floors:
            top1, interval = floor.cells
            print(f"beside it: {floor.name}: {top1} % ({interval})")
        if result.floors and not config.encoder.is_random:
            from vjepa.jobs.probe.compare import compare_answers

            paired = compare_answers(args.out, args.out / "random_weights")
            print(f"this probe first, random weights second: {paired}")
        if not result.floors and not config.data.multi_label:
            print("beside it: nothing; --floors true measures what needs no trained encoder")
    print(f"probe: {args.out}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    # Pictures that cannot be drawn are refused before hours of evaluation and not after them.
    pictures = {"--confusion": args.confusion, "--calibration": args.calibration}
    for option, path in pictures.items():
        check_kind(option, path, ".png", ".svg")
    wanted = [option for option, path in pictures.items() if path is not None]
    if wanted and hasattr(args, "encoder"):  # a fine-tuned model has one class a video
        from vjepa.jobs.probe.predict import is_released, load_saved_probe

        if not is_released(args.probe) and load_saved_probe(args.probe).multi_label:
            raise UserError(f"{wanted[0]}: for one class a video only; leave it out")
    from vjepa.jobs.probe.probe import CALIBRATION_ANSWERS, VideosConfig, draw, evaluate
    from vjepa.runtime.distributed import world

    measured = evaluate(
        args.probe,
        VideosConfig(manifest=args.manifest, split=args.split),
        load=resolve_name(args.load),
        **given(args, "encoder", "cache_dir", "on_bad_video", "device"),
        **given(args, "allow_training_videos", "answers"),
        **_released(args),
    )
    if not world().is_main:
        return 0
    print(f"encoder: {measured.encoder}")
    print_metrics(measured)
    if args.json is not None:
        atomic_write(args.json, json.dumps(asdict(measured), indent=1) + "\n")
    draw(measured, args.confusion, args.calibration)
    if args.calibration is not None and measured.metrics.count < CALIBRATION_ANSWERS:
        raise UserError(
            f"--calibration: {measured.metrics.count} answers are too few to say how far a "
            f"confidence can be believed; it takes {CALIBRATION_ANSWERS}"
        )
    return 0


def _released(args: argparse.Namespace) -> dict[str, Any]:
    if not (hasattr(args, "overrides") and (args.config or args.overrides or args.print_config)):
        return {}
    return {"released": resolve_config(args)}


def print_metrics(measured: Evaluation | None) -> None:
    """Every class's figure, and the whole's; None: there is nothing that it was measured on."""
    if measured is None:
        print("not measured: no test videos are named (data.test)")
        return
    metrics = measured.metrics
    unit = " %" if metrics.class_figure.endswith("%") else ""
    for entry in (entry for entry in metrics.per_class if entry.figure):
        print(f"{entry.name:<28} {entry.figure:>5}{unit}  of {entry.count}")
    sentence = metrics.sentence(f"videos of split {measured.split or 'all'}")
    print(*measured.lines(), sentence, sep="\n")


def _predict(args: argparse.Namespace) -> int:
    from vjepa.jobs.probe.predict import PREDICTION_FILES, write_predictions

    check_kind("--out", args.out, *PREDICTION_FILES)
    how = given(args, "encoder", "device") | _released(args)
    probe = resolve_name(args.load)(args.probe, **how)
    print(f"encoder: {probe.extractor.frozen.identity.sentence}")
    predictions = probe.predict(args.sources, top=args.top, split=args.split)
    if args.out is not None:
        write_predictions(args.out, predictions)
        for prediction in predictions:
            if prediction.failure:
                print(f"not predicted: {prediction.path}: {prediction.failure}")
        print(f"predictions of {len(predictions)} files: {args.out}")
    for prediction in predictions if args.out is None else ():
        print(prediction.path)
        if prediction.failure:
            print(f"  cannot be read: {prediction.failure}")
        for entry in prediction.classes:
            print(f"  {100 * entry.probability:5.1f} %  {entry.name}")
    return 1 if any(prediction.failure for prediction in predictions) else 0
