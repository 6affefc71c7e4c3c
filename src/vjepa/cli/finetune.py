"""``vjepa finetune [eval | predict]``."""

from __future__ import annotations

import argparse

from vjepa.cli.commands import say_end
from vjepa.cli.parser import Parser, print_config, resolve_config
from vjepa.cli.probe import add_uses, print_metrics
from vjepa.runtime.distributed import world

HELP = """\
train an encoder and a classifier together on labelled videos, and measure the result once

Where `vjepa probe` leaves the encoder as it is, here all of it is trained, or its last blocks, or
small matrices beside its layers (LoRA). Labels come from the manifest (`vjepa data index` reads
them from folder names, CSV or JSONL). The last weights are measured on the test videos, which
nothing is chosen by. The run folder is as that of `vjepa pretrain`; the same command resumes.

examples:
  vjepa finetune --config finetune_vits --encoder.path runs/first --data.label action \\
      --data.train.manifest labelled.parquet --data.train.split train \\
      --data.test.split test --out runs/tuned
  vjepa finetune --config finetune_few_labels --encoder.path runs/first --data.label action \\
      --data.train.manifest labelled.parquet --data.labels_per_class 10 --out runs/few
  vjepa finetune --out runs/tuned                       resume with the run's own config
  vjepa finetune eval runs/tuned labelled.parquet --split test
  vjepa finetune predict runs/tuned a.mp4
"""

_EVAL_HELP = """\
measure a fine-tuned model on the videos of a manifest

On the test videos of its training this gives the same number again, digit for digit. Segments,
crops and everything else are as in its training. Under torchrun the processes share the videos.

example:
  vjepa finetune eval runs/tuned labelled.parquet --split test --confusion confusion.png
"""

_PREDICT_HELP = """\
print the most probable classes of any videos, by a fine-tuned model

SRC is a video, an image, a folder, a list of files, or a manifest. Exit code 1 if some of several
cannot be read.

examples:
  vjepa finetune predict runs/tuned a.mp4 b.mp4 --top 3
  vjepa finetune predict runs/tuned videos/ --out predictions.jsonl
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    parser.take_config("vjepa.jobs.finetune.config:FinetuneConfig", recipes="finetune")
    parser.add_path("--out", "DIR", "run folder, made if missing", needed=True)
    add_action = parser.add_commands("ACTION")
    parser.set_defaults(run=_train, is_shared=True)
    evaluate, predict = add_action("eval", _EVAL_HELP), add_action("predict", _PREDICT_HELP)
    for command in (evaluate, predict):
        command.add_path("probe", "RUN", "folder of a finetune run that has ended")
    add_uses(evaluate, predict, "vjepa.jobs.finetune.saved:load_finetuned")


def _train(args: argparse.Namespace) -> int:
    config = resolve_config(args, resumes=True)
    from vjepa.jobs.finetune.job import run

    print_config(args, config)
    ended = run(config, args.out)
    training, result = ended.training, ended.result
    if result is None:
        return say_end(training, ended.steps, config.training, args.out, "finetune")
    if world().is_main:
        print(f"model: {result.encoder}")
        print(f"trained: {result.steps} updates on {result.num_train} labelled videos")
        print_metrics(result.test)
        print(f"run: {args.out}")
    return 0
