"""The commands without actions: demo, learn, pretrain, features, convert, app, bench, doctor."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from vjepa.cli.parser import (
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    Parser,
    given,
    print_config,
    prints,
    resolve_config,
)
from vjepa.runtime.distributed import world
from vjepa.runtime.environment import inspect_environment
from vjepa.runtime.process import handled

DEMO_HELP = """\
pretrain, probe and explain a small model on embedded data, on a CPU

Makes labelled synthetic videos, pretrains a small model on them without their labels (and beside
it one that predicts pixels), trains probes on the frozen features with few labels and with many,
does the same for untrained weights, and writes report.html: results with intervals, what a
decoder draws of the predictions, what is followed, what surprises, nearest moments, features,
errors and curves. The same command again goes on where it was stopped.

examples:
  vjepa demo
  vjepa demo --minutes 60 --out runs/long
  vjepa demo --seeds '[0, 1, 2]' --out runs/three
"""


def add_demo(parser: Parser) -> None:
    """Options of `vjepa demo`."""
    parser.take_config("vjepa.demo.config:DemoConfig")
    out = Path("runs/demo")
    text = f"folder for data, runs and report (default: {out})"
    parser.add_path("--out", "DIR", text, default=out)
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.demo.demo import run

    print(f"report: {run(config, args.out)}")
    return 0


LEARN_HELP = """\
learn from your own videos, and write a report, within a time

Looks at every file (those that cannot be used are skipped and named), chooses size, batch and
workers for this machine by a measurement, trains on the videos without labels, and writes
report.html with curves, masks, features, predictions and moments that are alike. Where videos lie
in folders of classes, or a list has a label, a probe is trained on a part of them and tested on the
rest. What is chosen is printed; each choice has a setting. The same command goes on where it was
stopped; with a larger --minutes also after its end.

examples:
  vjepa learn videos/ --out runs/mine
  vjepa learn --out runs/mine --minutes 60      # goes on
  vjepa learn labels.csv --label action --test-fraction 0.3 --out runs/actions
"""


def add_learn(parser: Parser) -> None:
    """Options of `vjepa learn`."""
    parser.take_config("vjepa.jobs.learn:LearnConfig")
    parser.add_path("sources", "SRC", "folders, videos, lists, or a manifest", nargs="*")
    parser.add_path("--out", "DIR", "folder for everything, made if missing", needed=True)
    parser.set_defaults(run=_learn)


def _learn(args: argparse.Namespace) -> int:
    def with_sources(made: Any) -> Any:
        named = tuple(args.sources) or made.sources
        # Without "..", as the files' own paths: Path.absolute would keep it.
        clean = tuple(Path(os.path.abspath(source)) for source in named)  # noqa: PTH100
        return replace(made, sources=clean)

    config = resolve_config(args, amend=with_sources, resumes=True)
    from vjepa.jobs.learn import REPORT_FILE, run

    ended = run(config, args.out)
    if ended is not None:
        print(f"stopped at step {ended.step}; the same command goes on")
        return EXIT_REQUEUE if ended.requeue else EXIT_INTERRUPTED
    print(f"report: {args.out / REPORT_FILE}")
    return 0


PRETRAIN_HELP = """\
train an encoder on videos without labels

Hides large parts of each clip and learns to predict the features of what is hidden from what is
left (or, with --objective.name pixel, the pixels). Needs one or more manifests made by
`vjepa data index`. The run folder holds config.yaml, metrics.jsonl, TensorBoard events and
checkpoints; the same command again resumes exactly where the run stopped. Under torchrun all
processes share each batch (see docs/distributed.md).

examples:
  vjepa pretrain --config small --data.sources.0.manifest videos.parquet --out runs/small
  vjepa pretrain --config vitl16_224 --config mine.yaml --optim.peak_lr 3e-4 --out runs/large
  vjepa pretrain --config vitl16_224 --print-config > mine.yaml
  vjepa pretrain --out runs/small                        resume with the run's own config
  vjepa pretrain --out runs/small --optim.steps 180000   make a run longer that has ended
  torchrun --nproc-per-node 8 -m vjepa pretrain --config vitl16_224 --config mine.yaml --out runs/l
"""


def add_pretrain(parser: Parser) -> None:
    """Options of `vjepa pretrain`."""
    parser.take_config("vjepa.jobs.pretrain:PretrainConfig", recipes="pretrain")
    parser.add_path("--out", "DIR", "run folder, made if missing", needed=True)
    parser.set_defaults(run=_pretrain, is_shared=True)


def _pretrain(args: argparse.Namespace) -> int:
    config = resolve_config(args, resumes=True)
    from vjepa.jobs.pretrain import run, sized_as_source

    config = sized_as_source(config, args.out)
    print_config(args, config)
    ended = run(config, args.out)
    return say_end(ended, config.optim.steps, config.training, args.out, "pretrain")


def say_end(result: Any, steps: int, training: Any, out: Path, job: str) -> int:
    """Print how a training of ``vjepa JOB`` ended and how it goes on; the exit code.

    `result` is a ``TrainingResult`` of so many `steps`, `training` a ``TrainingConfig``.
    """
    place, again = f"step {result.step} of {steps}", f"vjepa {job} --out {shlex.quote(str(out))}"
    if result.requeue or result.interrupted:
        by = "by the system" if result.requeue else "at your request"
        lines = (f"stopped {by} at {place}: {out}", f"resume with: {again}")
        code = EXIT_REQUEUE if result.requeue else EXIT_INTERRUPTED
    elif result.out_of_time:
        used = result.metrics.get("elapsed_cpu_seconds", 0.0)
        by_cpu = training.max_cpu_minutes is not None and used >= 60 * training.max_cpu_minutes
        name = "max_cpu_minutes" if by_cpu or training.max_minutes is None else "max_minutes"
        minutes = getattr(training, name)
        why = f"training.{name} {minutes:g} are over"
        longer = f"make it longer: {again} --training.{name} {2 * minutes:g}"
        lines, code = (f"done at step {result.step}: {out}", why, longer), 0
    else:
        longer = f"make it longer: {again} --optim.steps {2 * steps}"
        lines, code = (f"done at {place}: {out}", "all updates are done", longer), 0
    if world().is_main:
        print(*lines, sep="\n")
    return code


FEATURES_HELP = """\
write frozen features of videos and images, with times

SRC is a video, an image, a folder, a list of files, or a manifest. Long videos are cut into
overlapping windows whose tokens are averaged where they meet; memory does not grow with length.
Files whose features are in DIR already are kept; those of files that are gone from a folder are
dropped. Exit code 1 if some files cannot be read.

examples:
  vjepa features a.mp4 --encoder.path runs/first --out features
  vjepa features videos.parquet --encoder.path vitl16.pth.tar --pool video --format parquet \\
      --out features
"""


def add_features(parser: Parser) -> None:
    """Options of `vjepa features`."""
    parser.take_config("vjepa.jobs.features:FeaturesConfig")
    parser.add_path("sources", "SRC", "what to encode", nargs="*", needed=True)
    parser.add_path("--out", "DIR", "folder for the features", needed=True)
    parser.add_argument("--split", metavar="NAME", help="only this split of manifests and lists")
    parser.set_defaults(run=_features)


def _features(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.jobs.features import INDEX_FILE, run

    report = run(config, args.sources, args.out, args.split)
    print(*report.lines("features", "windows", "cannot be read"), sep="\n")
    print(f"features: {args.out} (list of files: {INDEX_FILE})")
    return 1 if report.failed else 0


CONVERT_HELP = """\
turn a checkpoint of the authors' or a Hugging Face folder into a folder of ours, or back

SRC is the authors' file of V-JEPA (.pth.tar), V-JEPA 2 or 2.1 (.pt), a Hugging Face folder of
V-JEPA 2, a checkpoint folder or a run folder; what it holds is recognised, read strictly (every
tensor must fit) and reported. DST decides the direction: a name ending in .tar, .pth or .pt is
written in the authors' layout, anything else as a folder with model.safetensors and config.json;
--layout huggingface makes a folder that transformers loads. The result is read back and compared
before this says "done".

examples:
  vjepa convert vitl16.pth.tar weights/vitl16
  vjepa convert runs/first first.pth.tar
  vjepa convert vitl.pt weights/vjepa2 --image-size 256 --num-frames 64
  vjepa convert runs/second hub/second --layout huggingface
"""


def add_convert(parser: Parser) -> None:
    """Options of `vjepa convert`."""
    parser.add_path("src", "SRC", "what to read")
    parser.add_path("dst", "DST", "what to write; must not exist")
    parser.add_sizes()
    text = "what is written (default: as the name of DST says)"
    parser.add_choice("--layout", ("ours", "authors", "huggingface"), text)
    text = "the encoder that a Hugging Face folder gets"
    parser.add_choice("--which", ("target", "context"), text, default="target")
    parser.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    from vjepa.checkpoint import convert

    names = ("num_heads", "image_size", "num_frames", "layout", "which")
    print(convert(args.src, args.dst, **given(args, *names)), f"done: {args.dst}", sep="\n")
    return 0


APP_HELP = """\
open a page on this machine that looks inside models: give a video, click, see

Features as colours over the video; what is alike to a place; what is predicted of a hidden part,
and how wrong that is; what surprises; the classes of a probe; similar moments in a database.
Starts with the weights that come with vjepa, fetches nothing, and is served to this machine alone.
Uploaded videos are removed when their tab is closed, and all else at the end (Ctrl-C). Needs the
extra `app`.

examples:
  vjepa app
  vjepa app --model runs/mine --model vitl16.pth.tar --port 8000
  vjepa app --decoder runs/decoder --probe probes/first --database moments
"""


def add_app(parser: Parser) -> None:
    """Options of `vjepa app`."""
    text = "where it is served; 0: any free one (default: 7860)"
    parser.add_argument("--port", type=int, default=7860, metavar="N", help=text)
    text = "another model to offer; may be given several times"
    parser.add_argument("--model", action="append", default=[], metavar="PATH", help=text)
    parser.add_path("--decoder", "RUN", "what vjepa decode train has written")
    parser.add_path("--probe", "FOLDER", "what vjepa probe train has written")
    parser.add_path("--database", "DIR", "what vjepa search index has written")
    parser.set_defaults(run=_app)


def _app(args: argparse.Namespace) -> int:
    from vjepa.demo.synthetic_files import example_videos
    from vjepa.jobs.app import open_server

    places = {name: getattr(args, name) for name in ("decoder", "probe", "database")}
    # So that files are removed when the system asks for an end, too.
    ended = handled([signal.SIGTERM], signal.default_int_handler)
    try:
        with ended, open_server(args.port, example_videos, args.model, **places) as (url, serve, _):
            print(f"open {url} in a browser on this machine; Ctrl-C ends it", flush=True)
            serve()
    except KeyboardInterrupt:
        print("\nended; uploaded videos and pictures were removed")
    return 0


BENCH_HELP = """\
measure how fast this machine trains, reads videos, and encodes

Each benchmark prints what it found in words, and as one line of JSON at the end.
"""

_STEP_HELP = """\
measure a training update on synthetic clips in memory, without reading videos

Reports clips/s, milliseconds, TFLOP/s counted from the model's own operations, their share of the
device's matrix product rate (measured in the same process), and the peak of memory.

examples:
  vjepa bench step --model vitl16 --batch_size 24 --training.compile true
  vjepa bench step --recipe small --batch_size 32 --training.precision float32
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


def add_bench(parser: Parser) -> None:
    """Options of `vjepa bench`: the job ``bench_NAME`` has ``BenchConfig`` and ``run(config)``."""
    add_command = parser.add_commands("ACTION")
    for name, text in (("step", _STEP_HELP), ("loader", _LOADER_HELP), ("encode", _ENCODE_HELP)):
        command = add_command(name, text, prints(f"vjepa.jobs.bench_{name}:run"))
        command.take_config(f"vjepa.jobs.bench_{name}:BenchConfig")


DOCTOR_HELP = """\
say what this machine offers: versions, devices, decoders, and what is missing

Paste its output into a bug report. Exit code 0 when nothing is missing that a command needs.
"""


def add_doctor(parser: Parser) -> None:
    """`vjepa doctor` has no options."""
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:  # noqa: ARG001 (every command takes its arguments)
    report = inspect_environment()
    for name, version in report.versions.items():
        print(f"{name:<18} {version}")
    print("\ndevices", *(f"  {line}" for line in report.devices), sep="\n")
    for title in ("packages", "decoders", "tools"):
        print(f"\n{title}")
        for finding in getattr(report, title):
            state = finding.found or f"MISSING, needed for {finding.needed_for}: {finding.remedy}"
            print(f"  {finding.name:<16} {state}")
    needed = [finding for finding in (*report.packages, *report.decoders) if not finding.found]
    if needed:
        print("\nmissing: " + ", ".join(finding.name for finding in needed))
        return 1
    print("\nall that is needed is there")
    return 0
