"""``vjepa decode train | sample``."""

from __future__ import annotations

import argparse

from vjepa.cli.commands import say_end
from vjepa.cli.parser import Parser, print_config, prints, resolve_config

HELP = """\
draw what a model predicts of the hidden part of a video, as pixels
"""

_TRAIN_HELP = """\
train a decoder that turns a frozen model's predictions into pixels

A model of ours or of the authors predicts features of what is hidden, which nobody can look at.
The decoder learns to draw the pixels that belong to them. It is given nothing but the predicted
features of the hidden places: what it draws, the prediction told it, or the videos that it learnt
from. The same command goes on where it was stopped.

examples:
  vjepa data synth --out synthetic --num_clips_train 6000
  vjepa decode train --config demo --model demo \\
      --data.sources.0.manifest synthetic/manifest.parquet \\
      --data.sources.0.split train --out runs/decoder
"""

_SAMPLE_HELP = """\
fill the hidden part of a video by a decoder, several times (Figure 6 of the paper)

Writes a still and a moving picture: the clip, what the model saw of it, samples drawn with
different seeds, their mean (what the prediction decides) and where they differ (what it leaves
open).

examples:
  vjepa decode sample a.mp4 --decoder runs/decoder --out samples.png
  vjepa decode sample a.mp4 --decoder runs/decoder --samples 6 --guidance 2 --moving mp4
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    train = add_action("train", _TRAIN_HELP, _train)
    train.take_config("vjepa.jobs.decode:DecodeConfig", recipes="decode")
    train.add_path("--out", "DIR", "run folder of the decoder, made if missing", needed=True)
    sample = add_action("sample", _SAMPLE_HELP)
    sample.add_path("video", "VIDEO", "video or folder of frames")
    sample.add_path("--decoder", "RUN", "what vjepa decode train has written", required=True)
    sample.add_path("--model", "PATH", "its model, if it does not lie where it was")
    numbers = (
        ("--samples", int, 4, "N", "how many are drawn"),
        ("--seed", int, 0, "N", "of the first sample's noise; the others take the next numbers"),
        ("--mask", int, 0, "N", "other numbers hide other places"),
        ("--kind", int, 0, "N", "kind of mask, where the decoder has learnt several"),
        ("--steps", int, 20, "N", "steps from noise to pixels"),
        ("--guidance", float, 1.0, "G", "above 1: nearer to the features, less varied"),
    )
    for name, kind, default, metavar, text in numbers:
        sample.add_number(name, kind, metavar, text, default)
    text = "form of the moving picture beside it"
    sample.add_choice("--moving", ("webp", "gif", "mp4"), text, default="webp")
    text = "picture to write (default: samples.png)"
    sample.add_path("--out", "FILE", text, default="samples.png")
    names = ("model", "moving", *(name[2:] for name, *_ in numbers))
    show = "vjepa.jobs.decode:show_samples"
    sample.set_defaults(run=prints(show, "video", "decoder", "out", *names))


def _train(args: argparse.Namespace) -> int:
    config = resolve_config(args, resumes=True)
    from vjepa.jobs.decode import train

    print_config(args, config)
    ended = train(config, args.out)
    return say_end(ended, config.optim.steps, config.training, args.out, "decode train")
