"""``vjepa data index | check | prepare | synth | ava``."""

from __future__ import annotations

import argparse
import errno
import os
from contextlib import suppress
from dataclasses import replace

from vjepa.cli.parser import Parser, resolve_config

HELP = """\
prepare videos: index, check or transcode them, or make a synthetic set

Everything else reads a manifest: one Parquet file that names each video, says what is in it
(frames, rate, size, codec, key frames), its labels if any, and whether it can be read.
"""

_INDEX_HELP = """\
look into every file once and write a manifest

SRC is a folder (searched for videos and images), a CSV file with a header (a `path` column, and
optionally split, weight and labels), JSON lines or a JSON array with the same names, or the
authors' list of `path label` lines. Several sources make one mixture. Files that have not changed
since the last index are not read again.

examples:
  vjepa data index videos/ --out videos.parquet
  vjepa data index kinetics.csv ssv2.csv --source-weight 2 1 --out mix.parquet
  vjepa data index classes/ --label_from_folder true --out labelled.parquet
"""

_CHECK_HELP = """\
see whether every video of a manifest is still there and readable

Files that have not changed since they were indexed keep their verdict, unless --deep decodes every
frame of all of them. Exit code 0 only if every video can be used.

examples:
  vjepa data check videos.parquet
  vjepa data check videos.parquet --deep
"""

_PREPARE_HELP = """\
make a training set out of indexed videos: copies out, transcoded, in shards

Videos that also stand in validation lists (--exclude) are taken out: by id, by content, and by
the look of their frames. So are copies among the videos themselves. The rest is cut if asked for,
encoded with a short side and key frames that training reads fast, and written as WebDataset tar
files with a manifest that pretrain, probe and features take like any other. Labels, splits and
weights are carried over. OUT/removed.jsonl lists everything left out, with its reason.

A run that was stopped goes on where it was when the same command is given again.

examples:
  vjepa data prepare videos.parquet --out prepared
  vjepa data prepare train.parquet --exclude val.parquet --out prepared --workers 16
  vjepa data prepare k400.parquet k700.parquet --config k710 --exclude k400_val.parquet --out k710
  vjepa data prepare howto100m.parquet --config videomix2m --engine ray --out howto
"""

_SYNTH_HELP = """\
make a labelled set of synthetic videos, as real .mp4 files with a manifest

Handwritten digits move over textured, panning backgrounds among distractors. The label `motion`
(what the digit does) is independent of the label `appearance` (which digit it is). The same
settings always give the same set; one that was cut short is continued. With `--boxes true` it is a
set for detection: several digits a clip, each with a box, in AVA's files.

examples:
  vjepa data synth --out synthetic --num_clips_train 2000
  vjepa data synth --out boxes --boxes true --size 64 --object_size 0.25 --travel 0.26 \\
      --zoom 1.5 --num_clips_train 1000 --num_clips_validation 100 --num_clips_test 300
"""

_AVA_HELP = """\
put annotated boxes of people into one table, checked: AVA v2.2, AVA-Kinetics, MultiSports

CSV is a truth in AVA's format (video, second, x1, y1, x2, y2, class, person); several make one
table. The videos are found in the manifest by their file names, and every row is checked against
them: a film that is missing, a second outside of it, an impossible box, an unknown class. The
table says what `vjepa detect` trains on and is measured on.

examples:
  vjepa data ava ava_train_v2.2.csv --videos films.parquet --out train.parquet \\
      --label_map ava_action_list_v2.2.pbtxt --starts_at 900 \\
      --excluded "[ava_train_excluded_timestamps_v2.2.csv]"
  vjepa data ava ava_val_v2.2.csv --videos films.parquet --out val.parquet \\
      --label_map ava_action_list_v2.2.pbtxt --starts_at 900 --min_person_score 0.9 \\
      --evaluated_map ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
      --excluded "[ava_val_excluded_timestamps_v2.2.csv]" --persons "[ava_val_boxes.csv]"
"""


_MOST_NOTES = 20


def add_arguments(parser: Parser) -> None:
    """Options of these commands."""
    add_action = parser.add_commands("ACTION")
    index = add_action("index", _INDEX_HELP, _index)
    check = add_action("check", _CHECK_HELP, _check)
    prepare = add_action("prepare", _PREPARE_HELP, _prepare)
    synth = add_action("synth", _SYNTH_HELP, _synth)
    index.take_config("vjepa.data.manifest.lists:IndexConfig")
    text = "folder, CSV, JSONL or list"
    index.add_path("sources", "SRC", text, needed=True, nargs="*", type=str)
    index.add_path("--out", "FILE", "manifest to write (.parquet)", needed=True)
    text = "name of each source, else its file name"
    index.add_argument("--source-name", nargs="+", metavar="NAME", help=text)
    text = "how often each source is drawn from, relative to the others; without it every video is"
    text += " drawn equally often"
    index.add_argument("--source-weight", nargs="+", type=float, metavar="W", help=text)
    check.take_config("vjepa.data.manifest.lists:InspectConfig")
    check.add_path("manifest", "MANIFEST", "made by vjepa data index")
    check.add_flag("--deep", "decode every frame of every video")
    prepare.take_config("vjepa.jobs.prepare:PrepareConfig", recipes="prepare")
    text = "made by vjepa data index"
    prepare.add_path("manifests", "MANIFEST", text, nargs="*", needed=True)
    prepare.add_path("--out", "DIR", "folder of the result", needed=True)
    text = "validation lists beside those of the config: manifests, or text with one id a line"
    prepare.add_path("--exclude", "LIST", text, nargs="+", default=[])
    text = "processes of this machine, or a Ray cluster that sees the same files"
    prepare.add_choice("--engine", ("local", "ray"), text, default="local")
    synth.take_config("vjepa.demo.synthetic:SyntheticConfig")
    synth.add_path("--out", "DIR", "folder of the set", needed=True)
    ava = add_action("ava", _AVA_HELP, _ava)
    ava.take_config("vjepa.data.ava:AvaConfig")
    ava.add_path("truth", "CSV", "annotated boxes, in AVA's format", nargs="*", needed=True)
    text = "their videos: a manifest made by vjepa data index"
    ava.add_path("--videos", "MANIFEST", text, needed=True)
    ava.add_path("--out", "FILE", "table to write (.parquet)", needed=True)
    for command in (index, check, prepare, synth):
        command.add_number("--workers", int, "N", "processes; default: one for each CPU core")


def _index(args: argparse.Namespace) -> int:
    if args.sources and args.out is not None:
        from vjepa.runtime.workers import INSPECT_MODULES, start_server

        # What the workers need is imported beside what is needed here. If it does not start, the
        # workers will say so.
        with suppress(OSError):
            start_server(INSPECT_MODULES)
    config = resolve_config(args)
    from vjepa.jobs.videos import checked_workers, describe, index_sources

    how = {"names": args.source_name, "weights": args.source_weight}
    workers = checked_workers(args.workers)
    made = index_sources(args.sources, args.out, config=config, workers=workers, **how)
    print(f"{args.out}: {describe(made)}")
    return 0


def _check(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.jobs.videos import Manifest, check_manifest, checked_workers, counted
    from vjepa.runtime.progress import format_gigabytes

    workers, manifest = checked_workers(args.workers), Manifest.open(args.manifest)
    report = check_manifest(manifest, deep=args.deep, workers=workers, config=config)
    for bad in report.bad:
        print(f"bad: {bad.path}: {bad.reason}")
    for path, note in report.notes[:_MOST_NOTES]:
        print(f"unusual: {path}: {note}")
    if len(report.notes) > _MOST_NOTES:
        print(f"unusual: {len(report.notes) - _MOST_NOTES} more (see the manifest's column `note`)")
    print(f"usable: {report.num_ok} of {report.num_rows} videos")
    print(f"length: {report.num_frames} frames, {report.duration_hours:.2f} hours")
    print(f"size: {format_gigabytes(report.num_bytes / 1e9)}")
    print(f"codecs: {counted(report.by_codec)}")
    print(f"splits: {counted(report.by_split)}")
    print(f"variable frame rate: {report.num_variable_rate}")
    print(f"slow to read, without usable timestamps: {report.num_unindexed}")
    if report.num_unverified:
        print(
            f"not verified, indexed by an older version: {report.num_unverified}; run vjepa data "
            "index again"
        )
    lost = sum(one.reason == os.strerror(errno.ENOENT) for one in report.bad)
    if report.bad and lost == report.num_rows:
        print("none of its files is there: was it moved? Its paths begin at its own folder")
    if report.num_changed:
        print(f"changed since they were indexed: {report.num_changed}; run vjepa data index again")
    return 1 if report.bad else 0


def _prepare(args: argparse.Namespace) -> int:
    from vjepa.jobs.prepare import ExcludeConfig, prepare

    lists = tuple(ExcludeConfig(path=path) for path in args.exclude)
    config = resolve_config(
        args, amend=lambda config: replace(config, exclude=(*config.exclude, *lists))
    )
    report = prepare(args.manifests, args.out, config, engine=args.engine, workers=args.workers)
    print(*report.lines(), f"manifest: {report.manifest}", sep="\n")
    return 0


def _synth(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.demo.synthetic_files import synthesise

    manifest, summary = synthesise(config, args.out, workers=args.workers)
    print(f"{manifest}: {summary}")
    return 0


def _ava(args: argparse.Namespace) -> int:
    config = resolve_config(args)
    from vjepa.jobs.videos import build_table

    table, said = build_table(args.truth, args.videos, config)
    table.write(args.out)
    print(f"{args.out}: {said}")
    return 0
