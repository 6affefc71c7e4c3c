"""The ``vjepa`` command: finds the subcommand, runs it, turns errors into one line.

Exit code 0 means that the work was done; 2 that the input was bad; 130 that the user stopped it;
75 that the system (SIGTERM, SIGHUP, SIGUSR1) did, and the same command, started again, goes on; 1
that another process of the job was lost. Several processes of a launcher a signal ends before they
train as it ends any process (143 in a shell). Any other error is a defect of ours: it keeps its
traceback and ends with 1.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from vjepa.cli import commands, data, decode, detect, finetune, models, probe, search, show, studies
from vjepa.cli.parser import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_LOST_PROCESS,
    EXIT_REQUEUE,
    Answered,
    Parser,
)
from vjepa.errors import LostProcessError, StoppedBySystem, UserError
from vjepa.runtime.distributed import check_alone, world
from vjepa.runtime.files import DISK_FULL
from vjepa.runtime.logging import configure_logging
from vjepa.runtime.process import prevent_openmp_spinning, stopping_at_signals
from vjepa.version import __version__

COMMANDS = {
    "demo": (commands.DEMO_HELP, commands.add_demo),
    "learn": (commands.LEARN_HELP, commands.add_learn),
    "data": (data.HELP, data.add_arguments),
    "pretrain": (commands.PRETRAIN_HELP, commands.add_pretrain),
    "probe": (probe.HELP, probe.add_arguments),
    "finetune": (finetune.HELP, finetune.add_arguments),
    "detect": (detect.HELP, detect.add_arguments),
    "features": (commands.FEATURES_HELP, commands.add_features),
    "search": (search.HELP, search.add_arguments),
    "decode": (decode.HELP, decode.add_arguments),
    "models": (models.HELP, models.add_arguments),
    "export": (models.EXPORT_HELP, models.add_export),
    "convert": (commands.CONVERT_HELP, commands.add_convert),
    "show": (show.HELP, show.add_arguments),
    "app": (commands.APP_HELP, commands.add_app),
    "studies": (studies.HELP, studies.add_arguments),
    "bench": (commands.BENCH_HELP, commands.add_bench),
    "doctor": (commands.DOCTOR_HELP, commands.add_doctor),
}
"""The subcommands in the order of the help: text, and what adds the options to a parser.

Each names the function that does the work, ``run(args) -> exit code``, by ``set_defaults``, and
says there ``is_shared`` if the processes that a launcher started share it; others run in one."""

_DESCRIPTION = """\
V-JEPA: learn from video by predicting features (arXiv 2404.08471).

From your own videos to a model and a report, in minutes:
  vjepa learn videos/ --out runs/mine

Step by step:
  vjepa data index videos/ --out videos.parquet       look at every file once
  vjepa pretrain --config small --data.sources.0.manifest videos.parquet --out runs/first
  vjepa probe train --help                            measure what the features know
  vjepa show run runs/first --out report.html         look at its state and its curves

Or see all of it on embedded data first:
  vjepa demo --out demo
"""


def build_parser() -> Parser:
    """The parser of the whole command line; imports no torch."""
    parser = Parser(
        prog="vjepa",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vjepa {__version__}")
    add_command = parser.add_commands("COMMAND")
    for name, (text, add_arguments) in COMMANDS.items():
        add_arguments(add_command(name, text))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process's own arguments; returns the exit code."""
    # Python searches all objects for cycles before it ends: seconds of work where torch is loaded.
    atexit.register(gc.freeze)
    try:
        prevent_openmp_spinning()
        configure_logging()
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
        args, extras = build_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        args.parser.refuse_unknown(extras)
        args.parser.refuse_lost(args)
        if not hasattr(args, "run"):
            args.parser.print_help()
            return EXIT_BAD_INPUT
        if not getattr(args, "is_shared", False):
            check_alone(args.parser.prog.partition(" ")[2])
        # Of several processes one that cannot begin makes the launcher end the others: not as if
        # the system had, or they would all be started again for ever.
        with stopping_at_signals() if world().size == 1 else nullcontext():
            return args.run(args)
    except Answered:
        return 0
    except LostProcessError as error:
        _fail(str(error))
        return EXIT_LOST_PROCESS
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        is_system = isinstance(error, StoppedBySystem)
        by = "by the system" if is_system else "at your request"
        print(f"\ninterrupted: stopped {by}", file=sys.stderr)
        return EXIT_REQUEUE if is_system else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`vjepa ... | head`). Point stdout elsewhere, or the
        # interpreter would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        # torch's own class is not imported for it; on a CPU the allocator has none.
        on_cpu = "DefaultCPUAllocator" in str(error)
        if type(error).__name__ != "OutOfMemoryError" and not on_cpu:
            raise
        return _fail(
            f"memory is used up{'' if on_cpu else ' on the GPU'}: use smaller batches "
            "(--data.batch_size or --batch_size; in training more --optim.accumulation_steps, or "
            "--training.activation_checkpointing true, change nothing else) or a smaller model; "
            f"a training goes on from its last checkpoint ({str(error).splitlines()[0]})"
        )
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:
            raise
        reason = error.strerror or type(error).__name__
        if error.errno in DISK_FULL:
            reason += ": free some space and run the same command again"
        return _fail(f"{error.filename}: {reason}" if error.filename else reason)


def _fail(message: str) -> int:
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()  # in a file the error is to stand last
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
