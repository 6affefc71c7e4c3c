"""``vjepa search index | query | report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from vjepa.cli.parser import Parser, given, resolve_config
from vjepa.errors import UserError

HELP = """\
find moments in many videos by example: a clip, a part of one, or an image
"""

_INDEX_HELP = """\
make or update a database of the moments of videos

SRC is a video, an image, a folder, a list or a manifest. Every file is cut into moments (windows as
long as the encoder's clips, half overlapping), and each is kept as one vector: the mean of its
features. The same command again encodes only new and changed files, drops those that are gone from
a folder, and goes on where it was stopped. Needs the extra `search`.

examples:
  vjepa search index videos/ --encoder.path runs/mine/run --out moments
  vjepa search index videos/ more.mp4 --encoder.path vitl16.pth.tar --window.overlap 0 --out moments
"""

_QUERY_HELP = """\
the moments of a database that are most alike to an example

Prints them with times, and writes a contact sheet with frames of each. The example itself, where
it is in the database, is left out. Of a long video name a part by --start and --end: what is asked
for is the mean of all of it.

examples:
  vjepa search query a.mp4 --database moments --start 12.5 --end 15
  vjepa search query photo.jpg --database moments --count 20 --out found.png
"""

_REPORT_HELP = """\
near-duplicates and clusters of a database, as one page

examples:
  vjepa search report --database moments --out found.html
"""


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    index = add_action("index", _INDEX_HELP, _index)
    index.take_config("vjepa.jobs.search:SearchConfig")
    text = "videos, images, folders, lists or manifests"
    index.add_path("sources", "SRC", text, nargs="*", needed=True)
    index.add_path("--out", "DIR", "folder of the database", needed=True)
    query = add_action("query", _QUERY_HELP, _query)
    query.add_path("example", "EXAMPLE", "video or image")
    query.add_number("--start", float, "S", "second where its part begins")
    query.add_number("--end", float, "S", "second where it ends")
    query.add_number("--count", int, "N", "moments to find", default=8)
    query.add_path("--encoder", "PATH", "the database's encoder, if it does not lie where it was")
    text = "look at every moment, also where the database is large enough to have an index"
    query.add_flag("--exact", text)
    text = "contact sheet to write (default: found.png)"
    query.add_path("--out", "FILE", text, default="found.png")
    report = add_action("report", _REPORT_HELP, _report)
    text = "from where on two moments are nearly the same; 1: the same"
    report.add_number("--alike", float, "A", text, default=0.95)
    report.add_number("--clusters", int, "N", "groups of moments", default=8)
    report.add_path("--out", "FILE", "page to write (default: found.html)", default="found.html")
    for command in (query, report):
        text = "what vjepa search index has written"
        command.add_path("--database", "DIR", text, required=True)


def _index(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.jobs.search import index

    done, count = index(config, args.sources, args.out)
    print(*done.lines("moments", "moments", "cannot be used"), sep="\n")
    print(f"database: {args.out} ({count} moments)")
    return 1 if done.failed else 0


def _query(args: argparse.Namespace) -> int:
    if args.count < 1:
        raise UserError(f"--count: {args.count}, use 1 or more")
    from vjepa.jobs.search_report import clock, search

    how = given(args, "start", "end", "count", "encoder", "exact")
    found = search(args.database, args.example, args.out, **how)
    print(f"{'':>4}  {'alike':>6}  {'from':>8}  {'to':>8}  file")
    for number, one in enumerate(found, start=1):
        times = f"{clock(one.start):>8}  {clock(one.end):>8}"
        print(f"{number:>4}  {one.alike:>6.3f}  {times}  {one.path}")
    print(f"contact sheet: {args.out}")
    return 0


def _report(args: argparse.Namespace) -> int:
    if args.clusters < 1:
        raise UserError(f"--clusters: {args.clusters}, use 1 or more")
    if args.alike > 1:
        raise UserError(f"--alike: {args.alike}, use 1 (the same) or less")
    from vjepa.jobs.search_report import report

    lines = report(args.database, Path(args.out), least=args.alike, count=args.clusters)
    print(*lines, f"report: {args.out}", sep="\n")
    return 0
