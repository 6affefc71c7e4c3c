"""Pictures of what a search finds, and the report on a whole database of moments."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vjepa.data.video.decode import decode_frames
from vjepa.data.video.info import DecodeError
from vjepa.data.video.inspect import inspect_file
from vjepa.jobs.search import Database, Moment, encode_example, origin_hash, warn_of_changed
from vjepa.jobs.videos import is_gone
from vjepa.paths import as_path
from vjepa.reporting.html import Block, Figure, PictureBlock, Report, Section, Table, write_report
from vjepa.reporting.pictures import (
    SHOWN_SIDE,
    Strip,
    check_picture,
    picture_of,
    resized,
    write_png,
)
from vjepa.runtime.files import check_kind

_LOGGER = logging.getLogger(__name__)
MOST_MOMENTS = 20_000
"""A report looks at so many moments at most, evenly spread."""
_FRAMES, _NARROW_FRAMES, _SHOWN_PAIRS, _LISTED_PAIRS = 4, 2, 6, 100
_ROWS_AT_ONCE, _LONGEST_NAME, _ROUNDS = 1024, 26, 30


def clock(seconds: float) -> str:
    """A time in a video, as 1:02.5."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"


def search(
    folder: Path,
    example: Path,
    out: Path,
    *,
    start: float | None = None,
    end: float | None = None,
    count: int = 8,
    encoder: Path | None = None,
    exact: bool = False,
    narrow: bool = False,
) -> list[Moment]:
    """The moments of a database most alike to an example; writes them as a contact sheet.

    `narrow`: one for a phone.

    Raises:
        UserError: No database, another model, an example that cannot be read or is too short.
    """
    check_picture(out)
    database = Database(folder)
    worker = database.worker(encoder)
    vector, place = encode_example(worker, example, start, end)
    found = database.query(vector, count, place, exact=exact)
    warn_of_changed(
        one.path for one in found if one.origin != origin_hash(worker, inspect_file(one.path))
    )
    caption = (
        "First row: what was asked for. Below: the moments most alike, a row each. 1: the same; "
        f"0: as unlike as two moments of the database {folder} are on average."
    )
    write_sheet(place, found, out, caption, narrow=narrow)
    return found


def write_sheet(
    asked: Moment, found: Sequence[Moment], out: Path, caption: str, *, narrow: bool = False
) -> None:
    """Write a picture of a moment and of those that are like it, some frames of each."""
    frames, failed = _NARROW_FRAMES if narrow else _FRAMES, set[str]()
    strips = [_strip("asked for", asked, frames, failed)]
    strips += [_strip(f"{moment.alike:.3f} alike", moment, frames, failed) for moment in found]
    shown = [strip for strip in strips if strip]
    write_png(picture_of(shown, caption=caption, narrow=narrow), out)


def _strip(label: str, moment: Moment, frames: int, failed: set[str]) -> Strip | None:
    """Frames of a moment, with file and times; None if they cannot be read.

    The first time that is said, and the file is one of the `failed`.
    """
    numbers = np.linspace(moment.first_frame, moment.last_frame, frames).round().astype(np.int64)
    try:
        pictures = decode_frames(inspect_file(moment.path), np.unique(numbers))
    except DecodeError as error:
        if moment.path not in failed:
            failed.add(moment.path)
            _LOGGER.warning(
                "not shown: %s: %s; the command that looked at these videos brings it up to date",
                *(moment.path, "is gone" if is_gone(moment.path) else error.reason),
            )
        return None
    name = Path(moment.path).name
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 + 1 :]}"
    when = f"{clock(moment.start)} to {clock(moment.end)}"
    notes = [name, when, *[""] * len(pictures)]
    if len(pictures) == 1:
        notes = [name if moment.first_frame == moment.last_frame else f"{name} {when}"]
    return Strip(label, list(resized(pictures, SHOWN_SIDE)), notes[: len(pictures)])


def near_duplicates(
    database: Database, vectors: NDArray[np.float32], moments: Sequence[Moment], least: float
) -> list[tuple[Moment, Moment]]:
    """Pairs of files with moments at least so alike: of each pair of files the most alike two.

    Exact, over all pairs of the moments [n, D] given, the most alike first; both say how much.
    """
    names, files = np.unique([moment.path for moment in moments], return_inverse=True)
    centred = vectors - vectors.mean(axis=0)  # smaller numbers, same distances
    squares = (centred**2).sum(axis=1)
    best: dict[int, tuple[Moment, Moment]] = {}
    for first in range(0, len(centred), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        distances = squares[part, None] + squares - 2 * centred[part] @ centred.T
        alike = 1.0 - np.maximum(distances, 0.0) / database.spread
        rows, columns = np.nonzero((alike >= least) & (files[part, None] < files))
        found = alike[rows, columns]
        order = np.argsort(-found, kind="stable")
        keys = files[part][rows[order]] * len(names) + files[columns[order]]
        for key, place in zip(*np.unique(keys, return_index=True), strict=True):
            n = order[place]
            both = moments[first + rows[n]], moments[columns[n]]
            one, other = (replace(moment, alike=float(found[n])) for moment in both)
            if int(key) not in best or best[int(key)][0].alike < one.alike:
                best[int(key)] = one, other
    return sorted(best.values(), key=lambda pair: -pair[0].alike)


def clusters(
    vectors: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """k-means of vectors [n, D]: the cluster of each [n], and its squared distance [n].

    Centres start as k-means++ draws them. There are fewer clusters where there are fewer different
    vectors.
    """
    generator = np.random.default_rng(0)
    vectors = vectors - vectors.mean(axis=0)
    centres = vectors[generator.integers(len(vectors))][None]
    nearest = ((vectors - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count and nearest.sum() > 1e-9 * len(vectors):
        drawn = generator.choice(len(vectors), p=nearest / nearest.sum())
        centres = np.concatenate([centres, vectors[drawn][None]])
        nearest = np.minimum(nearest, ((vectors - centres[-1]) ** 2).sum(axis=1))
    squares = (vectors**2).sum(axis=1)
    for _ in range(_ROUNDS):
        distances = squares[:, None] + (centres**2).sum(axis=1) - 2 * vectors @ centres.T
        chosen = distances.argmin(axis=1)
        moved = np.stack(
            [
                vectors[chosen == n].mean(axis=0) if (chosen == n).any() else centre
                for n, centre in enumerate(centres)
            ]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return chosen, np.maximum(distances.min(axis=1), 0.0)


def report(
    folder: str | Path, out: str | Path, *, least: float = 0.95, count: int = 8
) -> list[str]:
    """Write near-duplicates and clusters of a database as one page; says what it found in lines."""
    folder, out = as_path(folder), as_path(out)
    check_kind("--out", out, ".html")
    database = Database(folder)
    total = database.table.count_rows()
    vectors, moments = database.moments(MOST_MOMENTS)
    pairs = near_duplicates(database, vectors, moments, least)
    chosen, distances = clusters(vectors, count)
    files = len({moment.path for moment in moments})
    looked = f"all {total:,} moment{'s' * (total != 1)}"
    if len(moments) < total:
        looked = f"{len(moments):,} of {total:,} moments, evenly spread"
    # Any beginning will do: it is cut at a slash, and a path may be an address.
    shared = os.path.commonprefix([moment.path for moment in moments]).rpartition("/")[0]  # noqa: RUF071
    failed = set[str]()
    sections = [
        _pair_section(pairs, least, shared, failed),
        _cluster_section(moments, chosen, distances, shared, failed),
    ]
    several = int(chosen.max()) + 1
    answer = (
        f"Pairs of files with moments that are nearly the same (at least {least:g} alike): "
        f"{len(pairs)}. Clusters of moments: {several}. Looked at: {looked} of {files} "
        f"file{'s' * (files != 1)}."
    )
    figures = [
        Figure(f"{files:,}", f"file{'s' * (files != 1)}"),
        Figure(f"{total:,}", f"moment{'s' * (total != 1)}"),
        Figure(
            f"{len(pairs):,}",
            f"pair{'s' * (len(pairs) != 1)} of files with moments nearly the same",
        ),
    ]
    footer = f"database {folder}; encoder: {database.encoder}. Files lie below {shared or '/'}."
    write_report(Report("What lies in these videos", answer, figures, sections, footer), out)
    named = [
        f"{one.alike:.3f} alike: {one.path} {clock(one.start)} and "
        f"{other.path} {clock(other.start)}"
        for one, other in pairs[:_SHOWN_PAIRS]
    ]
    return [*named, answer]


def _named(moment: Moment, shared: str) -> str:
    """Where a moment lies, without the folder that all share."""
    return f"{moment.path.removeprefix(f'{shared}/')}, {clock(moment.start)}"


def _pair_section(
    pairs: Sequence[tuple[Moment, Moment]], least: float, shared: str, failed: set[str]
) -> Section:
    title = "Near-duplicates"
    if not pairs:
        return Section(title, f"No two files have moments at least {least:g} alike.")
    strips = []
    for pair in pairs[:_SHOWN_PAIRS]:
        one, other = (_strip(f"{half.alike:.3f} alike", half, 2, failed) for half in pair)
        if one and other:
            strips += [one, replace(other, label="and")]
    rows = [
        (f"{one.alike:.3f}", _named(one, shared), _named(other, shared))
        for one, other in pairs[:_LISTED_PAIRS]
    ]
    caption = "Two frames of a moment of one file, and below them two of another's."
    blocks: list[Block] = [PictureBlock(strips, caption)] if strips else []
    blocks.append(Table(("alike", "file", "and"), rows))
    introduction = (
        "Of each pair of files the two moments that are most alike: 1 is the same, 0 as unlike as "
        "two moments of this database are on average. Listed: "
        f"{len(rows)} of {len(pairs)}. What the encoder cannot tell apart counts as the same: look."
    )
    return Section(title, introduction, blocks)


def _cluster_section(
    moments: Sequence[Moment],
    chosen: NDArray[np.int64],
    distances: NDArray[np.float32],
    shared: str,
    failed: set[str],
) -> Section:
    """Every cluster by its most typical moments, of different files where there are several."""
    strips, rows = [], []
    for cluster in np.argsort(-np.bincount(chosen), kind="stable"):
        members = np.flatnonzero(chosen == cluster)
        if not len(members):
            continue
        members = members[distances[members].argsort(kind="stable")]
        paths = {moments[n].path for n in members}
        label = f"{len(members):,} moment{'s' * (len(members) > 1)},\n"
        label += f"{len(paths):,} file{'s' * (len(paths) > 1)}"
        shown: dict[str, Strip] = {}
        for n in members:
            path = moments[n].path
            if path not in shown and path not in failed and len(shown) < _FRAMES:
                strip = _strip(label, moments[n], 3, failed)
                if strip:
                    shown[path] = strip
        if shown:
            frames = [strip.frames[len(strip.frames) // 2] for strip in shown.values()]
            strips.append(Strip(label, frames, [strip.notes[0] for strip in shown.values()]))
        typical = _named(moments[members[0]], shared)
        rows.append((str(len(members)), str(len(paths)), typical))
    introduction = (
        "Moments grouped by k-means: each is with the group whose middle it is nearest to. Shown "
        f"are the moments nearest to the middle, one of each file, of at most {_FRAMES} files. "
        "Groups are of the model's making, not classes."
    )
    caption = "A row is a group, the largest first."
    blocks: list[Block] = [PictureBlock(strips, caption)] if strips else []
    blocks.append(Table(("moments", "files", "most typical"), rows))
    return Section("Clusters", introduction, blocks)
