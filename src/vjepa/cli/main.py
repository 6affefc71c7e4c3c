"""The ``vjepa`` command: finds the subcommand, runs it, turns errors into one line.

Exit code 0 means that the work was done; 2 that the input was bad; 130 that the user stopped it; 75
that the system asked for an end and the same command, started again, goes on; 1 that another
process of the job was lost. Any other error is a defect of ours: it keeps its traceback and ends
with 1.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from vjepa.cli.parser import Parser
from vjepa.errors import LostProcessError, UserError
from vjepa.runtime.logging import configure_logging
from vjepa.runtime.process import prevent_openmp_spinning
from vjepa.version import __version__

EXIT_BAD_INPUT = 2
"""The input was bad; one line on stderr says what and what to do."""

EXIT_INTERRUPTED = 130
"""The user stopped the work before it was done (Ctrl-C)."""

EXIT_LOST_PROCESS = 1
"""Another process of the same job ended or hung; its own message says why."""

EXIT_REQUEUE = 75
"""The system asked for an end (SIGTERM, SIGUSR1), the state is saved: start the job again.

The number is that of EX_TEMPFAIL in sysexits.h."""


COMMANDS = ("demo", "data", "pretrain", "probe", "features", "convert", "show", "bench", "doctor")
"""Names of the subcommands, each a module of this package, in the order of the help."""

_DESCRIPTION = """\
V-JEPA: learn from video by predicting features (arXiv 2404.08471).

The way from video files to answers:
  vjepa data index videos/ --out videos.parquet       look at every file once
  vjepa pretrain --config vits16_224 --data.sources.0.manifest videos.parquet --out runs/first
  vjepa probe train --help                            measure what the features know
  vjepa show run runs/first --out report.html         look at curves, masks and features

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
    for name in COMMANDS:
        module = command_module(name)
        module.add_arguments(add_command(name, module.HELP))
    return parser


def command_module(name: str) -> ModuleType:
    """The module of a subcommand: it has NAME, HELP and ``add_arguments(parser)``.

    ``add_arguments`` names the function that does the work, ``run(args) -> exit code``, with
    ``parser.set_defaults(run=...)``.
    """
    return importlib.import_module(f"vjepa.cli.{name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except LostProcessError as error:
        _fail(str(error))
        return EXIT_LOST_PROCESS
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: stopped at your request", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`vjepa ... | head`). Point stdout elsewhere, or the
        # interpreter would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        return _fail(f"the disk is full{where}: free some space and run the same command again")


def _run(argv: list[str]) -> int:
    prevent_openmp_spinning()
    configure_logging()
    parser = build_parser()
    args, extras = parser.parse_known_args(argv)
    chosen: Parser = args.parser
    if not hasattr(args, "run"):
        chosen.refuse_unknown(extras)
        chosen.print_help()
        return EXIT_BAD_INPUT
    args.overrides = chosen.overrides(extras)
    return args.run(args)


def _fail(message: str) -> int:
    """Print the one line of an error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
