"""``vjepa detect train | eval | predict``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vjepa.cli.parser import (
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    Parser,
    given,
    print_config,
    resolve_config,
)
from vjepa.errors import UserError
from vjepa.runtime.files import atomic_write, check_kind

HELP = """\
find who does what, where and when: classes of boxes in videos (AVA)

The people's boxes are given: true ones, or those of a detector of people. Features of a frozen
encoder are cut out of each box, and a linear layer says what the person does; several classes at
once. The set is a table made by `vjepa data ava`.
"""

_TRAIN_HELP = """\
train a detector of actions on a table of boxes, and measure it once on another

The encoder stays frozen, and what it says of each box is computed once per pass, so that the head
trains in minutes; with --end_to_end the encoder is trained, too. Compare with --encoder.random true
(the same network untrained) and with --data.view.key_frame_only true (a still picture): a number
alone says little. The folder gets the detector, result.json and result.md.

examples:
  vjepa detect train --encoder.path runs/first --data.train boxes/boxes_train.parquet \\
      --data.test boxes/boxes_test.parquet --out runs/detector
  vjepa detect train --config ava_vitl16_224 --encoder.path vitl16.pth.tar \\
      --data.train train.parquet --data.test val.parquet --out runs/ava
"""

_EVAL_HELP = """\
measure a saved detector, or a csv file of detections, on a table of boxes

On the test table of its training a detector gives the same figure again, digit for digit. A csv
file has AVA's columns: video, second, x1, y1, x2, y2, class, score. Programs differ in the rules of
the figure: the rules are printed beside it (see docs/detection.md).

examples:
  vjepa detect eval runs/detector val.parquet --detections found.csv
  vjepa detect eval found.csv val.parquet --rules activitynet
"""

_PREDICT_HELP = """\
say what every person of any videos does, where and when, and draw it into the video

People's boxes come from a csv file (video, second, x1, y1, x2, y2, class, score; sides as shares of
the frame, seconds from the file's start), or from one of torchvision's detectors, whose weights you
give as a file (nothing is downloaded). Exit code 1 if some video cannot be read.

examples:
  vjepa detect predict runs/detector a.mp4 --persons people.csv --draw drawn.mp4
  vjepa detect predict runs/detector a.mp4 b.mp4 --person-detector fasterrcnn.pth --out found.jsonl
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    train = add_action("train", _TRAIN_HELP, _train)
    train.take_config("vjepa.jobs.detect.config:DetectConfig", recipes="detect")
    train.add_path("--out", "DIR", "new folder for the detector", needed=True)
    train.set_defaults(is_shared=True)
    evaluate = add_action("eval", _EVAL_HELP, _eval)
    evaluate.add_path("source", "SRC", "folder of a trained detector, or a .csv of detections")
    evaluate.add_path("table", "TABLE", "table of boxes made by vjepa data ava")
    evaluate.add_path("--videos", "MANIFEST", "the table's videos, if they have moved")
    text = "boxes that are given classes: people found where the table has any, or the true boxes"
    evaluate.add_choice("--boxes", ("auto", "truth", "predicted"), text, default="auto")
    text = "whose rules the figure follows; default: as trained, or alphaction"
    evaluate.add_choice("--rules", ("alphaction", "activitynet", "slowfast", "mmaction"), text)
    text = "a detection's score: that of its class, or times the person's; default: as trained"
    evaluate.add_choice("--scores", ("class", "class_times_person"), text)
    evaluate.add_on_bad_video("key frame")
    evaluate.add_path("--cache-dir", "DIR", "keep vectors of boxes here, or find them here")
    evaluate.add_path("--detections", "FILE", "write the detections here (.csv)")
    evaluate.add_path("--json", "FILE", "write the figures here too")
    predict = add_action("predict", _PREDICT_HELP, _predict)
    predict.add_path("detector", "DETECTOR", "folder of a trained detector")
    predict.add_path("sources", "SRC", "videos, folders, lists or manifests", nargs="+")
    predict.add_path("--persons", "CSV", "boxes of people")
    predict.add_path("--person-detector", "PATH", "weights of one of torchvision's detectors")
    name = "fasterrcnn_resnet50_fpn"  # as `predict` has it; its module is not imported for a help
    text = f"its name in torchvision (default: {name})"
    predict.add_argument("--person-model", default=name, metavar="NAME", help=text)
    predict.add_number("--min-person-score", float, "S", "least score of a person", default=0.9)
    predict.add_number("--every", float, "SECONDS", "between moments", default=1.0)
    predict.add_number("--top", int, "N", "classes", default=3)
    predict.add_path("--out", "FILE", "write them to a .jsonl or .csv file")
    predict.add_path("--draw", "FILE", "draw them into a copy of the one video (.mp4)")
    for command in (evaluate, predict):
        command.add_path("--encoder", "PATH", "where the detector's encoder is, if it has moved")
        command.add_device()


def _train(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.jobs.detect.train import train
    from vjepa.runtime.distributed import world

    print_config(args, config)
    done = train(config, args.out)
    where = f"{done.num_boxes} boxes in {done.num_key_frames} key frames"
    lines = [f"encoder: {done.encoder}", f"trained: {done.steps} updates on {where}"]
    lines += [f"not read: {bad.path}: {bad.reason}" for bad in done.bad_videos]
    if done.stopped is not None:
        lines.append("stopped before the end, nothing measured: the same command goes on")
    else:
        lines += done.test.lines() if done.test else ["not measured: no test table (data.test)"]
        lines.append(f"detector: {args.out}")
    if world().is_main:
        print(*lines, sep="\n")
    if done.stopped is None:
        return 0
    return EXIT_REQUEUE if done.stopped.requeue else EXIT_INTERRUPTED


def _eval(args: argparse.Namespace) -> int:
    check_kind("--detections", args.detections, ".csv")
    from vjepa.jobs.detect.detector import evaluate

    names = ("videos", "encoder", "rules", "scores", "device", "on_bad_video", "cache_dir")
    others = {"test_on": args.boxes, "answers": args.detections}
    result = evaluate(args.source, args.table, **given(args, *names), **others)
    print(f"detections: {result.encoder}", *result.lines(), sep="\n")
    if args.json is not None:
        atomic_write(args.json, json.dumps(asdict(result), indent=1) + "\n")
    return 0


def _predict(args: argparse.Namespace) -> int:
    check_kind("--draw", args.draw, ".mp4")
    from vjepa.jobs.detect.detector import load_detector
    from vjepa.jobs.detect.predict import PREDICTION_FILES, draw, predict, write_predictions
    from vjepa.jobs.videos import files_of

    videos = files_of(args.sources) if args.draw is not None else []
    if args.draw is not None and len(videos) != 1:
        raise UserError(f"--draw {args.draw}: takes one video, these are {len(videos)}; name one")
    if videos and args.draw.resolve() == Path(videos[0].path).resolve():
        raise UserError(f"--draw {args.draw}: is the video, and would be lost; name another")
    check_kind("--out", args.out, *PREDICTION_FILES)
    detector = load_detector(
        args.detector, encoder=args.encoder, device=args.device, on_bad_video="list"
    )
    print(f"encoder: {detector.features.frozen.identity.sentence}")
    names = ("persons", "person_detector", "person_model", "min_person_score", "every", "top")
    answers, failures = predict(detector, args.sources, **given(args, *names))
    if args.out is not None:
        write_predictions(args.out, answers, failures)
        print(f"classes of {len(answers)} boxes: {args.out}")
    path = None
    for answer in answers if args.out is None else ():
        if answer.path != path:
            path = answer.path
            print(path)
        print(answer.sentence)
    for failed, reason in failures.items():
        print(f"cannot be read: {failed}: {reason}")
    if args.draw is not None:
        draw(videos[0], answers, args.draw, **given(args, "persons", "every"))
        print(f"drawn: {args.draw}")
    return 1 if failures else 0
