"""``vjepa studies list | run | report``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vjepa.cli.parser import EXIT_INTERRUPTED, EXIT_REQUEUE, Parser
from vjepa.errors import UserError
from vjepa.runtime.process import usable_cpus

if TYPE_CHECKING:
    from vjepa.jobs.studies import Grid

HELP = """\
run the paper's tables and figures, or a grid of your own, as resumable jobs, and report them

A study is a YAML file that says what varies, with which seeds and on which videos; its jobs are
those of the other commands. Scale cpu is for two cores and at most two hours a study, gpu for one
GPU and a night, paper for the paper's own recipes.
"""

_LIST_HELP = """\
name the studies, what of the paper each shows, and its scales
"""

_RUN_HELP = """\
run what is not done yet of a study, and write its report

Says first what it will take. Jobs that are done with the same config are kept, stopped ones go on.
NAME is a packaged study or a YAML file. Studies in one DIR share the jobs that they have alike.
Exit code 1 if a job failed: the others were run, and the same command tries it again.

examples:
  vjepa studies run targets --scale cpu --out studies
  vjepa studies run targets --scale cpu --out studies --files vizdoom=vizdoom/manifest.parquet
  vjepa studies run masks --scale gpu --out studies --files videos=labelled.parquet --devices cuda:0
  vjepa studies run targets --scale cpu --out small --set pretrain.training.max_cpu_minutes=1
  vjepa studies run masks --out small --set 'sets={synthetic: [motion]}' --set 'seeds=[0]'
  vjepa studies run recipes --scale paper --out paper --files videomix2m=mix.parquet --dry-run
"""

_REPORT_HELP = """\
write a study's report from the jobs that are done, however few: Markdown and HTML

Says for each thing that the paper finds whether these runs found it, too: reproduced, not, or
cannot be told.

example:
  vjepa studies report targets --scale cpu --out studies
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    add_action("list", _LIST_HELP, _list)
    run = add_action("run", _RUN_HELP, _run)
    report = add_action("report", _REPORT_HELP, _report)
    for command in (run, report):
        command.add_argument("name", metavar="NAME", help="a packaged study, or a YAML file")
        command.add_choice("--scale", ("cpu", "gpu", "paper"), "how large", default="cpu")
        command.add_path("--out", "DIR", "folder of the jobs and reports", required=True)
        text = "videos or weights that the study asks for by name; may be given several times"
        command.add_argument("--files", action="append", default=[], metavar="NAME=PATH", help=text)
    run.add_number("--workers", int, "N", "jobs at once; default: one a core, or one on a GPU")
    run.add_argument("--devices", metavar="D,D", help="GPUs, one job on each, as cuda:0,cuda:1")
    text = "another setting for every job of a step, or other seeds, sets or variants; remembered"
    run.add_argument("--set", action="append", default=[], metavar="STEP.SETTING=VALUE", help=text)
    run.add_flag("--dry-run", "say the cost and print the commands, run nothing")


def _list(args: argparse.Namespace) -> int:  # noqa: ARG001 (every command takes its arguments)
    from vjepa.jobs.studies import load_study, study_names

    for name in study_names():
        study = load_study(name)
        shows = ", ".join(study.shows) or "not in the paper"
        print(f"{name:<14} {shows:<36} {study.title} [{', '.join(study.scales)}]")
    return 0


def _grid(args: argparse.Namespace, changes: tuple[str, ...] = ()) -> Grid:
    from vjepa.jobs.studies_run import open_grid

    files = {}
    for given in args.files:
        name, equals, path = given.partition("=")
        if not equals or not name:
            raise UserError(f"--files {given}: give NAME=PATH, or NAME= to forget it")
        files[name] = Path(path) if path else None
    return open_grid(args.name, args.scale, args.out, files, changes)


def _slots(args: argparse.Namespace) -> list[dict[str, str]]:
    """What the environment of each job that runs at once holds."""
    if args.devices is not None:
        if args.workers is not None:
            raise UserError("--workers: with --devices there is one job on each device")
        numbers = [name.strip().removeprefix("cuda:") for name in args.devices.split(",")]
        if not all(number.isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
            raise UserError(f"--devices {args.devices}: give them as cuda:0,cuda:1, none twice")
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if shown[0]:  # cuda:0 is the first of these, in this process and so in its jobs
            if max(map(int, numbers)) >= len(shown):
                raise UserError(f"--devices {args.devices}: CUDA_VISIBLE_DEVICES has {len(shown)}")
            numbers = [shown[int(number)] for number in numbers]
        return [{"CUDA_VISIBLE_DEVICES": number} for number in numbers]
    if args.scale == "paper" and not args.dry_run:
        raise UserError("--scale paper: needs --devices, or --dry-run to print the commands")
    on_cpu = args.scale == "cpu"
    workers = (usable_cpus() if on_cpu else 1) if args.workers is None else args.workers
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    return [{"OMP_NUM_THREADS": "1"} if on_cpu else {}] * workers


def _run(args: argparse.Namespace) -> int:
    slots, grid = _slots(args), _grid(args, tuple(args.set))
    from vjepa.jobs import studies_run
    from vjepa.jobs.studies_report import write_report

    print(*studies_run.cost_lines(grid, args.out, len(slots)), sep="\n", flush=True)
    with studies_run.claimed(args.name, grid, args.out):
        if args.dry_run:
            for job in grid.jobs.values():
                if studies_run.done(job, args.out) is None:
                    print("vjepa", *studies_run.command_of(job, args.out))
            return 0
        outcome = studies_run.run(grid, args.out, slots)
        paths = write_report(args.name, grid, args.out)
    for name, why in outcome.failed.items():
        print(f"failed: {grid.jobs[name].what}: {why}")
    if outcome.failed and outcome.waiting:
        print(f"{len(outcome.waiting)} jobs that need a failed one, or were not reached: not run")
    print(f"{len(outcome.done)} of {len(grid.jobs)} jobs done")
    print(f"report: {' and '.join(map(str, paths))}")
    if outcome.stopped is not None:
        print("stopped; the same command goes on")
        return EXIT_INTERRUPTED if outcome.stopped.name == "SIGINT" else EXIT_REQUEUE
    return 1 if outcome.failed else 0


def _report(args: argparse.Namespace) -> int:
    grid = _grid(args)
    from vjepa.jobs.studies_report import write_report

    for path in write_report(args.name, grid, args.out):
        print(f"report: {path}")
    return 0
