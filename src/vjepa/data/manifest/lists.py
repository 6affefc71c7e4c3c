"""Reading the sources of an index: which files, with which split, weight and labels.

A source is a folder tree, a list of files (CSV with a header, JSON, or lines ``path label``), or
one media file. Sources are read before any file is probed, so that a mistake in row nine million
costs seconds, not hours. A row of a list that cannot be understood is an error; what a folder holds
and cannot be a row is left out, named and counted.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from unicodedata import normalize

from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.data.manifest.storage import absolute, files_beneath, is_address
from vjepa.data.video.info import (
    IMAGE_FOLDER_FPS,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    LimitsConfig,
    MediaKind,
    images_in,
    is_image,
    is_media,
    is_numbered_sequence,
    kind_of,
)
from vjepa.errors import UserError

_LOGGER = logging.getLogger(__name__)

_NO_LABELS = ("path", "split", "weight")
FOLDER_LABEL = LIST_LABEL = "label"
"""Name of the label column of folder trees and of `path label` lists."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What a part of a data set is called, as a folder or in a list, and what it is."""

# What other programs write where there is no value; the second ones are words in another case.
_NO_VALUE = frozenset(("nan", "<na>", "nat", "null", "n/a", "#n/a"))
_NO_VALUE_AS_WRITTEN = frozenset(("None", "NA"))
_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
_SUFFIX = re.compile(r"[^\s/](\.\w+)(?=[\s,;]|$)")
_QUOTED = re.compile(r"""(["'])(.+?)\1(?=[\s,;]|$)""")
_SEVERAL_NUMBERS = re.compile(r"-?[\d.]+([\s,;]+-?[\d.]+)+")
# How JSON begins; a name in brackets may begin a line of text, too.
_JSON = re.compile(r"""\s*([\[{])\s*(["'{}\]]|$)""")
_HEADER_WORDS = frozenset(("path", "file", "filename", "video", "name"))
# Fewer numbered images, or numbers with larger gaps, look like a collection and not like a clip.
_LEAST_FRAMES, _LEAST_SHARE = 8, 0.8
_FIRST_NAMED = 3


@config_dataclass
class InspectConfig:
    """How files are looked into."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A file that takes longer to probe is a bad file; its reader process is killed."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What a file may demand before it is refused."""


@config_dataclass
class IndexConfig(InspectConfig):
    """How sources are read and files probed."""

    label_from_folder: bool = False
    """In folder trees, the name of the folder that a file (or a folder of frames) lies in is its
    label."""
    image_folders: Literal["auto", "clips", "images"] = "auto"
    """Folders of images without subfolders: `clips` makes each one clip, `images` makes each image
    one row; `auto` makes it a clip if the images are numbered without gaps. With
    `label_from_folder`, a folder directly below the source or its split is a class of images."""
    image_folder_fps: Annotated[float, Field(gt=0)] = IMAGE_FOLDER_FPS
    """Frame rate given to folders of images, in frames per second."""


class LeftOut(Counter[str]):
    """How often a source held what is no row, or was read in another way than it looks, by why."""

    def note(self, path: str, why: str) -> None:
        """Count it; the first of each kind are named in a warning."""
        self[why] += 1
        if self[why] <= _FIRST_NAMED:
            _LOGGER.warning("%s: %s", path if _is_text(path) else repr(path), why)

    @property
    def has_unnamed(self) -> bool:
        """Whether there are more of a kind than were named."""
        return any(count > _FIRST_NAMED for count in self.values())

    def __str__(self) -> str:
        return "; ".join(f"{why} ({count})" for why, count in self.items())


def _is_text(text: str) -> bool:
    """Whether it can be stored: no bytes that are not UTF-8, no half characters, no NUL."""
    return text.isprintable() or not re.search("[\0\ud800-\udfff]", text)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One file named by a source."""

    path: str
    kind: MediaKind
    split: str | None = None
    weight: float = 1.0
    labels: dict[str, str] = field(default_factory=dict)
    place: str = field(default="", compare=False)  # where in the source it stands, for messages


def read_source(
    source: str, config: IndexConfig, left_out: LeftOut | None = None
) -> Iterator[SourceRow]:
    """All files that one source names, in a fixed order; what is no row is noted in `left_out`.

    Raises:
        UserError: The source is missing, empty or malformed, or gives a label to only some of its
            rows; the message names the source and the row.
    """
    path = Path(absolute(source))
    left_out = LeftOut() if left_out is None else left_out
    if not _is_text(str(path)):
        raise UserError(f"source {str(path)!r}: the name is not valid UTF-8; rename it")
    remedy = "label every row or none"
    if is_address(source):
        rows = _list_storage(source, config, left_out)
    elif not path.exists():
        raise UserError(f"source {source}: no such file or folder; check the path")
    elif path.is_dir():
        rows = _folder_rows(str(path), _find_media(str(path), config, left_out), config)
    elif is_media(path.name):
        rows = iter([SourceRow(path=str(path), kind=kind_of(str(path)))])
    else:
        rows = _list_rows(path)
        remedy += " (where a video may have several classes, a lone | says that it has none)"
    first: SourceRow | None = None
    for row in rows:
        first = first or row
        if row.labels.keys() != first.labels.keys():
            lacking = first.labels.keys() - row.labels.keys()
            name = min(lacking or row.labels.keys() - first.labels.keys())
            what = "has no" if lacking else "has a"
            others = "have one" if lacking else "have none"
            raise UserError(
                f"{source}, {row.place}: {what} label {shortened(repr(name))}, but the rows above"
                f" {others}; {remedy}"
            )
        yield row
    if first is None and path.is_dir():
        raise UserError(
            f"source {source}: no video or image in this folder (looked for"
            f" {' '.join(sorted(VIDEO_SUFFIXES)[:6])} ... and images)"
            + (f"; {left_out}" if left_out else "")
        )
    if first is None:
        raise UserError(f"source {source}: names no file; write one path a line")


# --- folder trees ---------------------------------------------------------------------------------


def _list_storage(address: str, config: IndexConfig, left_out: LeftOut) -> Iterator[SourceRow]:
    """Media files of a stored folder, or one stored file."""
    if is_media(address):
        return iter([SourceRow(path=address, kind=kind_of(address))])

    def note(folder: str, error: OSError) -> None:
        left_out.note(
            folder, f"left out, cannot be read ({error.strerror or type(error).__name__})"
        )

    try:
        found = [(path, kind_of(path)) for path in files_beneath(address, note) if is_media(path)]
    except OSError as error:
        raise UserError(
            f"source {address}: cannot be listed ({error}); check address and rights"
        ) from error
    for folder, paths in groupby((path for path, _ in found), lambda path: path.rpartition("/")[0]):
        names = [path.rpartition("/")[2] for path in paths]
        if config.image_folders != "images" and _looks_like_a_clip(filter(is_image, names)):
            left_out.note(folder, "its images are taken as stills: a clip is a folder on a disk")
    return _folder_rows(address.rstrip("/"), found, config)


def _folder_rows(
    root: str, found: Iterable[tuple[str, MediaKind]], config: IndexConfig
) -> Iterator[SourceRow]:
    for path, kind in found:
        inside = path.removeprefix(root).lstrip("/")
        split, classes = _split_and_classes(inside)
        named = config.label_from_folder and classes
        labels = {FOLDER_LABEL: normalize("NFC", classes[-1])} if named else {}
        yield SourceRow(path=path, kind=kind, split=split, labels=labels, place=f"file {inside}")


def _split_and_classes(inside: str) -> tuple[str | None, list[str]]:
    """The split that a path within a source is in, and the folders between it and the file."""
    folders = inside.split("/")[:-1]
    split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
    return split, folders[1:] if split else folders


def _find_media(
    root: str, config: IndexConfig, left_out: LeftOut
) -> Iterator[tuple[str, MediaKind]]:
    """Media files and clip folders beneath `root`, folder by folder in alphabetical order.

    Links are followed, and every path under the root counts: only a link to a folder that it lies
    in is not gone into.
    """
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while folders:
        folder, above = folders.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            here = (status.st_dev, status.st_ino)
            if here in above:
                left_out.note(folder, "left out, a link to a folder that it lies in")
                continue
            with os.scandir(folder) as scanned:
                entries = [entry for entry in scanned if not entry.name.startswith(".")]
        except OSError as error:
            if folder == root:
                raise UserError(f"folder {root}: cannot be read ({error.strerror})") from error
            left_out.note(folder, f"left out, cannot be read ({error.strerror})")
            continue
        subfolders, media = [], []
        for entry in sorted(entries, key=lambda entry: entry.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            is_folder |= entry.is_symlink() and os.path.isdir(entry.path)  # noqa: PTH112
            if not is_folder and not is_media(entry.name):
                continue
            if not _is_text(entry.name):
                left_out.note(entry.path, "left out, the name is not valid UTF-8; rename it")
                continue
            (subfolders if is_folder else media).append(entry.name)
        # The last is taken next.
        folders += [(f"{folder}/{name}", above | {here}) for name in reversed(subfolders)]
        images = [name for name in media if is_image(name)]
        is_alone = bool(images) and not subfolders and len(images) == len(media)
        # Whether a clip in place of this folder would have no folder to be labelled by.
        inside = folder.removeprefix(root).lstrip("/")
        is_class = config.label_from_folder and not _split_and_classes(inside)[1]
        is_clip = is_alone and config.image_folders == "clips"
        if config.image_folders == "auto" and not is_class and images:
            is_clip = is_alone and is_numbered_sequence(images_in(folder))
            if not is_clip and (why := _looks_like_a_clip(images)):
                left_out.note(folder, why)
        if is_clip:
            yield folder, "image_folder"
            continue
        for name in media:
            yield f"{folder}/{name}", "image" if is_image(name) else "video"


def _looks_like_a_clip(images: Iterable[str]) -> str | None:
    """What to say of a folder of stills most of which could be the frames of one clip."""
    series: dict[tuple[str, str], list[int]] = {}
    for name in images:
        if match := re.fullmatch(r"(.*?)(\d+)(\.\w+)", name):
            series.setdefault((match[1], match[3].lower()), []).append(int(match[2]))
    numbers = sorted(set(max(series.values(), key=len, default=[])))
    if len(numbers) < _LEAST_FRAMES:
        return None
    step = min(after - before for before, after in pairwise(numbers))
    if len(numbers) * step < _LEAST_SHARE * (numbers[-1] - numbers[0] + step):
        return None
    return (
        "its images are taken as stills, though many are numbered like the frames of a clip: they"
        " are no single series without gaps, or other files or folders lie beside them. Take those"
        " elsewhere, or set image_folders to clips (all images of a folder that holds nothing else"
        " are one clip) or to images (stills, without this warning)"
    )


# --- lists of files -------------------------------------------------------------------------------


def form_of(source: str) -> str:
    """As what a source that is a list is read, in words; empty for folders and media files."""
    path = Path(source)
    if is_media(path.name) or not path.is_file():
        return ""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        json_begin = _JSON.match(file.read(256))
    return "a list" if not json_begin else {"[": "a JSON array", "{": "JSON lines"}[json_begin[1]]


def list_entries(
    path: Path, columns: Sequence[str] = ("path",), *, of_ids: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list as columns and values, each with its place in the file.

    The file is CSV (or with tabs or semicolons) with a header, JSON lines, a JSON array, or text
    with a line ``path label`` for each; which it is, its first line tells.

    Args:
        columns: A header has at least one of these; the first is that of lines without header.
        of_ids: Lines without header begin with an id or a path; what follows is of no interest.

    Raises:
        UserError: It cannot be read or understood; the message names the file and the row.
    """
    try:
        # Bytes that are no text come out as halves of characters, and their row is refused.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _parse(path, file, columns, of_ids)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(
    path: Path, file: IO[str], columns: Sequence[str], of_ids: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    first = next(filter(str.strip, file), "")
    if not _is_text(first):
        if str(mimetypes.guess_type(path)[0]).startswith("audio/"):
            raise UserError(f"{path}: holds sound and no picture; name a video")
        raise UserError(
            f"{path}: is neither a media file nor UTF-8 text; save a list as UTF-8, or unpack it"
        )
    file.seek(0)
    if json_begin := _JSON.match(first):
        return _parse_json(path, file, columns[0], is_array=json_begin[1] == "[")
    for delimiter in sorted(",;\t", key=first.count, reverse=True):
        header = {name.strip().strip('"') for name in first.split(delimiter)}
        if header.intersection(columns):
            return _parse_csv(path, file, delimiter)
    if of_ids:  # ids in another column than the first would not be found
        later = {cell.strip(' "').lower() for cell in re.split("[,;\t]", first.strip())[1:]}
        is_header = not ({*_HEADER_WORDS, *columns}.isdisjoint(later) or _ends_of_names(first))
    else:
        words = first.split()
        is_header = "," in first or ";" in first or (words and words[0].lower() in _HEADER_WORDS)
        is_header = is_header and _split_line(first.strip(), path.parent) is None
    if is_header:
        raise UserError(
            f"{path}: no column {columns[0]!r} in its header ({shortened(first)}); name the column"
            f" of {'ids' if of_ids else 'files'} {columns[0]!r}, with commas between the columns,"
            f" or give lines of the form '{columns[0]} label' without header"
        )
    return _parse_lines(path, file, columns[0], of_ids)


def _parse_csv(path: Path, file: IO[str], delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            place = f"row {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "" in header:
                    named = shortened(", ".join(header))
                    raise UserError(f"{path}: header repeats or omits a column name ({named})")
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, {place}: {len(cells)} cells under {len(header)} column names"
                    " (quote a path that contains the separator)"
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}, row {reader.line_num}: cannot be read ({error}); is a quote not closed?"
        ) from error


def _parse_json(
    path: Path, file: IO[str], column: str, is_array: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One object a line, or one array of objects or paths."""

    def decoded(text: str, place: str) -> Any:
        try:
            return json.loads(text, parse_constant=_json_constant)
        except (ValueError, RecursionError) as error:
            reason = shortened(str(error))
            raise UserError(f"{path}{place}: not valid JSON ({reason}); mend it") from error

    if is_array:
        entries = ((f"entry {n}", values) for n, values in enumerate(decoded(file.read(), ""), 1))
    else:
        entries = (
            (f"row {n}", decoded(line, f", row {n}"))
            for n, line in enumerate(file, start=1)
            if line.strip()
        )
    for place, values in entries:
        if isinstance(values, str) and is_array:
            values = {column: values}
        if not isinstance(values, dict):
            raise UserError(f'{path}, {place}: not a JSON object; write {{"path": ...}}')
        yield place, values


def _json_constant(name: str) -> None:
    """NaN is how some programs write null; an infinite number says nothing."""
    if name != "NaN":
        raise ValueError(f"{name} is no JSON")


def _parse_lines(
    path: Path, file: IO[str], column: str, of_ids: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        text = line.strip()
        if not text:
            continue
        if of_ids:
            ends = _ends_of_names(text)
            name = text[: ends[0]] if ends else re.split(r"[\s,;]", text)[0]
            yield f"row {number}", {column: _without_quotes(name)}
            continue
        found = _split_line(text, path.parent)
        if found is None or _SEVERAL_NUMBERS.fullmatch(found[1]):
            raise UserError(
                f"{path}, row {number}: cannot tell path and label apart, or there are several"
                f" labels ({shortened(text)}); give a CSV file with the header path,label (where a"
                " video has several classes, the label is written 3|7)"
            )
        name, label = found
        yield f"row {number}", {column: name} | ({LIST_LABEL: label} if label else {})


def _split_line(line: str, folder: Path) -> tuple[str, str] | None:
    """Cut ``path label`` behind the path; both may hold spaces, and the label may be empty.

    The path ends at a tab, with the quote that it begins with, or with the suffix of a video or an
    image and a space, comma or semicolon. Where that does not decide it is what exists, or the
    first of two words. None where it cannot be told.
    """
    name, tab, label = line.partition("\t")
    first = (name if tab else line.split()[0]).strip().lower()
    is_header = first in _HEADER_WORDS and not _is_there(first, folder)
    if tab:
        return None if is_header else (_without_quotes(name), _without_quotes(label))
    ends = _ends_of_names(line)
    if len(ends) != 1:
        spaces = [match.start() for match in re.finditer(r"\s+", line)]
        candidates = ends or [*spaces, len(line)]
        existing = [end for end in candidates if _is_there(line[:end], folder)]
        if existing:
            ends = existing[-1:]
        elif not (ends or is_header or len(spaces) > 1 or set(line) & set(",;")):
            ends = candidates[:1]
        else:
            return None
    name, rest = _without_quotes(line[: ends[0]]), line[ends[0] :]
    if rest[:1] in (",", ";"):
        rest = rest.removeprefix(rest[0])
        return None if rest.count(line[ends[0]]) else (name, _without_quotes(rest))
    return name, _without_quotes(rest)


def _is_there(name: str, folder: Path) -> bool:
    return os.path.exists(absolute(name, str(folder)))  # noqa: PTH110


def _without_quotes(text: str) -> str:
    text = text.strip()
    return text[1:-1] if (quoted := _QUOTED.match(text)) and quoted.end() == len(text) else text


def _ends_of_names(line: str) -> list[int]:
    """Where in a line the names of videos and images end, as their quotes or suffixes tell."""
    if quoted := _QUOTED.match(line):
        return [quoted.end()]
    return [match.end() for match in _SUFFIX.finditer(line) if match[1].lower() in _SUFFIXES]


def shortened(text: str) -> str:
    """What a user wrote, on one line and not at length, for a message."""
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:100]} ..."


def _list_rows(path: Path) -> Iterator[SourceRow]:
    """Rows of a list; relative paths start at the list's own folder."""
    folder, is_first = str(path.parent), True
    for place, values in list_entries(path):
        try:
            given = values.get("path")
            name = _text_of("path", given) if isinstance(given, str) else None
            if name is None:
                raise ValueError("no path; every row names its file as `path`")
            labels = {
                column: text
                for column, value in values.items()
                if column not in _NO_LABELS and (text := _text_of(column, value))
            }
            full = absolute(name, folder)
            row = SourceRow(
                path=full,
                kind=kind_of(full),
                split=_text_of("split", values.get("split")),
                weight=_weight_of(values.get("weight")),
                labels=labels,
                place=place,
            )
        except ValueError as error:
            raise UserError(f"{path}, {place}: {error}") from error
        empty = [name for name in values if name and name not in (*_NO_LABELS, *labels)]
        if is_first and empty:  # where a later row has a value, that is an error
            _LOGGER.warning("%s: %s: without values, so no label", path, ", ".join(empty))
        is_first = False
        yield row


def _weight_of(value: object) -> float:
    try:
        weight = 1.0 if value in (None, "") else float(str(value))
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight {shortened(repr(value))} is no number from 0 up")
    return weight


def _text_of(column: str, value: object) -> str | None:
    """A value as text, or None where there is none; ValueError if it says nothing."""
    if isinstance(value, list):
        texts = [_text_of(column, item) or "" for item in value]
        if any(not text or "|" in text for text in texts):
            raise ValueError(f"{column} is no list of classes: {shortened(repr(value))}")
        return "|".join(texts) or "|"
    if isinstance(value, bool):
        value = str(value).lower()  # as JSON writes it
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{column} is no text or number but {shortened(repr(value))}")
    text = "" if value is None else str(value).strip()
    if column != "path":  # a letter with an accent is one character or two
        text = normalize("NFC", text)
    if not _is_text(column + text):
        what = f"{shortened(repr(column))} is not valid UTF-8: {shortened(repr(text))}"
        raise ValueError(f"{what}; save the list as UTF-8")
    is_missing = text.lower() in _NO_VALUE or text in _NO_VALUE_AS_WRITTEN
    if is_missing or (isinstance(value, float) and math.isinf(value)):
        raise ValueError(
            f"{column} is {value!r}, which other programs write for a missing value; leave it"
            " empty, or give the class another name"
        )
    return text or None
