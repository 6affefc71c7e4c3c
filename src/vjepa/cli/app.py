"""``vjepa app``."""

from __future__ import annotations

import argparse
import signal

from vjepa.cli.parser import Parser

HELP = """\
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


def add_arguments(parser: Parser) -> None:
    """Options of this command."""
    text = "where it is served; 0: any free one (default: 7860)"
    parser.add_argument("--port", type=int, default=7860, metavar="N", help=text)
    text = "another model to offer; may be given several times"
    parser.add_argument("--model", action="append", default=[], metavar="PATH", help=text)
    parser.add_path("--decoder", "RUN", "what vjepa decode train has written")
    parser.add_path("--probe", "FOLDER", "what vjepa probe train has written")
    parser.add_path("--database", "DIR", "what vjepa search index has written")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vjepa.demo.synthetic_files import example_videos
    from vjepa.jobs.app import open_server

    places = {name: getattr(args, name) for name in ("decoder", "probe", "database")}
    # So that files are removed when the system asks for an end, too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_server(args.port, example_videos, args.model, **places) as (url, serve, _):
            print(f"open {url} in a browser on this machine; Ctrl-C ends it", flush=True)
            serve()
    except KeyboardInterrupt:
        print("\nended; uploaded videos and pictures were removed")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
