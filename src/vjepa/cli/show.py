"""``vjepa show``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa.cli.parser import Parser, print_config, resolve_config

NAME = "show"
HELP = """\
draw masks, features, predictions, or the state of a run

examples:
  vjepa show masks clip.mp4 --config vitl16_224 --out masks.png
  vjepa show features clip.mp4 --model runs/first --out features.png
  vjepa show predictions clip.mp4 --model runs/first --out predictions.png
  vjepa show run runs/first
"""


def _pretrain_config() -> type:
    from vjepa.jobs.pretrain_config import PretrainConfig

    return PretrainConfig


def add_arguments(parser: Parser) -> None:
    """The four things that can be shown."""
    add_command = parser.add_commands("WHAT")
    masks = add_command("masks", "what each mask kind leaves visible of a video")
    masks.take_config(_pretrain_config, recipes="pretrain")
    masks.set_defaults(run=_masks)
    features = add_command("features", "main directions of the features as colours over the frames")
    features.set_defaults(run=_features)
    predictions = add_command("predictions", "where the predictor errs over what was hidden")
    predictions.set_defaults(run=_predictions)
    for command in (masks, predictions):
        command.add_argument("video", type=Path, help="video, image, or folder of images")
        command.add_argument(
            "--sample", type=int, default=0, metavar="N", help="draw the masks of sample N (0)"
        )
    features.add_argument("videos", type=Path, nargs="+", help="videos or images")
    features.add_argument(
        "--which", choices=("target", "context"), default="target", help="which encoder (target)"
    )
    for command in (features, predictions):
        command.add_argument(
            "--model", type=Path, required=True, help="run folder, checkpoint or released file"
        )
        command.add_argument(
            "--num-heads", type=int, help="attention heads, where a released file does not tell"
        )
    for command, name in ((masks, "masks"), (features, "features"), (predictions, "predictions")):
        command.add_argument(
            "--out", type=Path, default=Path(f"{name}.png"), help=f"PNG file ({name}.png)"
        )
    state = add_command("run", "state and curves of a running or dead run")
    state.add_argument("folder", type=Path, help="run folder")
    state.add_argument("--out", type=Path, help="HTML file (report.html in the run folder)")
    state.set_defaults(run=_run)


def _masks(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    if args.print_config:
        print_config(config)
        return 0
    from vjepa.jobs.show import show_masks

    show_masks(args.video, config, args.out, args.sample)
    print(args.out)
    return 0


def _features(args: argparse.Namespace) -> int:
    from vjepa.jobs.show import ModelSource, show_features

    show_features(args.videos, ModelSource(args.model, args.num_heads), args.which, args.out)
    print(args.out)
    return 0


def _predictions(args: argparse.Namespace) -> int:
    from vjepa.jobs.show import ModelSource, show_predictions

    source = ModelSource(args.model, args.num_heads)
    for line in show_predictions(args.video, source, args.out, args.sample):
        print(line)
    return 0


def _run(args: argparse.Namespace) -> int:
    from vjepa.jobs.show import show_run

    out = args.out or args.folder / "report.html"
    for line in show_run(args.folder, out):
        print(line)
    print(f"report       {out}")
    return 0
