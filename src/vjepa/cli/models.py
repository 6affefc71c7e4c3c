"""`vjepa models`: what can be opened, fetching one, and what a file is."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from vjepa.cli.parser import Parser, given, prints
from vjepa.errors import UserError

HELP = """\
published models: list them, get one, check what a file is

Wherever an encoder is named (--encoder.path, --model, load_encoder) a name of this list, once
fetched, or the path of a file does. Nothing is fetched but by `vjepa models get`.
"""

_LIST_HELP = """\
what can be opened, under which licence, and how to get it; of a NAME all that is known

"get": `vjepa models get NAME` fetches it; "by hand": its authors publish it where only a person
can fetch it; "downloaded": it is in the cache.
"""

_GET_HELP = """\
fetch a published model into the cache

Says the licence, the address and the place, shows progress, and goes on where a transfer broke,
also when it is called again. The checksum that the server names, or --sha256, must be that of what
came; it is written beside the file. Hugging Face's files that need an account take HF_TOKEN.

examples:
  vjepa models get dinov2_vitg14
  vjepa models get videomae_vitl16 --out weights/videomae
"""

_CHECK_HELP = """\
what a file, folder or name holds, whether every tensor fits, and what was assumed

It is opened as everywhere else, and nothing is kept. Exit code 2 where it does not fit.

examples:
  vjepa models check mvd.pth
  vjepa models check runs/first --which context
"""


def add_arguments(parser: Parser) -> None:
    """The subcommands of `vjepa models`."""
    add_command = parser.add_commands("WHAT")
    listing = add_command("list", _LIST_HELP, _list)
    listing.add_argument("name", nargs="?", metavar="NAME", help="one model, with everything")
    how = ("name", "folder", "offline", "sha256")
    getting = add_command("get", _GET_HELP, prints("vjepa.jobs.models:get", *how))
    getting.add_argument("name", metavar="NAME", help="as `vjepa models list` calls it")
    getting.add_path("--out", "FOLDER", "where to put it, in place of the cache", dest="folder")
    getting.add_flag("--offline", "fetch nothing: say where it is, or that it is not")
    text = "checksum that the weights' file must have"
    getting.add_argument("--sha256", default="", metavar="HEX", help=text)
    check = prints("vjepa.jobs.models:check", "path", *_OPTIONS_OF_FILE)
    checking = add_command("check", _CHECK_HELP, check)
    checking.add_path("path", "PATH", "file, folder, run, or name")
    _add_options_of_file(checking)


_OPTIONS_OF_FILE = ("which", "num_heads", "image_size", "num_frames", "tokens")


def _add_options_of_file(parser: Parser) -> None:
    """What a file of weights may leave open."""
    text = "which encoder, where there are two"
    parser.add_choice("--which", ("target", "context"), text, default="target")
    parser.add_sizes()
    text = "another token map than the usual one, where a model has one"
    parser.add_choice("--tokens", ("before_norm", "two_poolings"), text)


EXPORT_HELP = """\
write an encoder, alone or with a probe, as one file that other programs compute

The file takes pixels (uint8, RGB) and gives tokens, or with a probe the shares of its classes;
normalisation is inside. It is compared with the original before it has its name, and timed.

examples:
  vjepa export runs/first --format onnx --out encoder.onnx
  vjepa export runs/probe --format torch-export --batch 8 --out probe.pt2
"""


def add_export(parser: Parser) -> None:
    """Options of `vjepa export`."""
    parser.add_path("path", "PATH", "what holds an encoder; a probe's or a fine-tuning's --out")
    text = "onnx needs the extra `export`"
    parser.add_choice("--format", ("onnx", "torch-export"), text, default="onnx")
    parser.add_path("--out", "FILE", "what to write; must not exist", required=True)
    parser.add_number("--batch", int, "N", "clips (videos, with a probe) of a call (any number)")
    parser.add_path("--encoder", "PATH", "where a probe's encoder lies now, if it was moved")
    _add_options_of_file(parser)
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from vjepa.jobs.export import export
    from vjepa.jobs.probe.config import EncoderSourceConfig

    for name in ("batch", "num_heads", "image_size", "num_frames"):
        if (value := getattr(args, name)) is not None and value < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: must be at least 1, got {value}")
    source = EncoderSourceConfig(**given(args, *_OPTIONS_OF_FILE))
    what = (args.path, args.out, args.format)
    print(export(*what, batch=args.batch, encoder=args.encoder, source=source))
    return 0


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _list(args: argparse.Namespace) -> int:
    from vjepa.checkpoint.folder import shipped_names
    from vjepa.jobs.models import describe, overview

    if args.name is None:
        rows = [(name, clip, how, licence, title) for name, title, clip, licence, how in overview()]
        short = [
            (*row[:3], textwrap.shorten(row[3], 24, placeholder=" ..."), row[4]) for row in rows
        ]
        print("\n".join(_table([("name", "input", "how", "licence", "model"), *short])))
        own = ", ".join(shipped_names())
        print(f"\nOne with everything: vjepa models list NAME. They come with vjepa: {own}")
        return 0
    for what, said in describe(args.name):
        wrapped = textwrap.wrap(said, 84, break_long_words=False, break_on_hyphens=False)
        print("\n".join(f"{what if not n else '':<12}{line}" for n, line in enumerate(wrapped)))
    return 0
