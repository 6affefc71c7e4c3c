"""Reading the sources of an index: which files, with which split, weight and labels.

A source is a folder tree, a list of files (CSV with a header, JSON lines, or lines ``path label``),
or one media file. Sources are read before any file is probed, so that a mistake in row nine million
costs seconds, not hours.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field

from vjepa.config import config_dataclass
from vjepa.data.manifest.storage import absolute, files_beneath, is_address
from vjepa.data.video.info import (
    IMAGE_FOLDER_FPS,
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

FOLDER_LABEL = LIST_LABEL = "label"
"""Name of the label column of folder trees and of `path label` lists."""

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@config_dataclass
class IndexConfig:
    """How sources are read and files probed."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A file that takes longer to probe is a bad file; its reader process is killed."""
    label_from_folder: bool = False
    """In folder trees, the name of the folder that a file (or a folder of frames) lies in is its
    label."""
    image_folders: Literal["auto", "clips", "images"] = "auto"
    """Folders of images without subfolders: `clips` makes each one clip, `images` makes each image
    one row; `auto` makes it a clip if the images are numbered without gaps. With
    `label_from_folder`, a folder directly below the source or its split is a class of images."""
    image_folder_fps: Annotated[float, Field(gt=0)] = IMAGE_FOLDER_FPS
    """Frame rate given to folders of images, in frames per second."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What a file may demand before it is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """One file named by a source."""

    path: str
    kind: MediaKind
    split: str | None = None
    weight: float = 1.0
    labels: dict[str, str] = field(default_factory=dict)


def read_source(source: str, config: IndexConfig) -> Iterator[SourceRow]:
    """All files that one source names, in a fixed order.

    Raises:
        UserError: The source is missing, empty or malformed, or gives a label to only some of its
            rows; the message names the source and the row.
    """
    path = Path(source).absolute()
    if is_address(source):
        rows = _list_storage(source, config)
    elif not path.exists():
        raise UserError(f"source {source}: no such file or folder")
    elif path.is_dir():
        rows = _folder_rows(str(path), _find_media(path, config), config)
    elif is_media(path.name):
        rows = iter([SourceRow(path=str(path), kind=kind_of(str(path)))])
    else:
        rows = _read_list_file(path)
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 (the count outlives the loop)
        try:
            row.path.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{row.path!r}: the name is not valid UTF-8; rename it") from error
        yield row
    if count == 0 and path.is_dir():
        raise UserError(
            f"source {source}: no video or image in this folder (looked for"
            f" {' '.join(sorted(VIDEO_SUFFIXES)[:6])} ... and images)"
        )
    if count == 0:
        raise UserError(f"source {source}: names no file")


def _uniformly_labelled(
    source: Path | str, rows: Iterator[tuple[str, SourceRow]]
) -> Iterator[SourceRow]:
    """The rows, of which all must have the same labels; each comes with its place in the source."""
    names: frozenset[str] | None = None
    for place, row in rows:
        names = frozenset(row.labels) if names is None else names
        lacking, extra = names - row.labels.keys(), row.labels.keys() - names
        if lacking or extra:
            name = min(lacking or extra)
            what = "has no" if lacking else "has a"
            others = "have one" if lacking else "have none"
            raise UserError(
                f"{source}, {place}: {what} label {name!r}, but the rows above {others};"
                " label every row or none"
            )
        yield row


# --- folder trees ---------------------------------------------------------------------------------


def _list_storage(address: str, config: IndexConfig) -> Iterator[SourceRow]:
    """Media files of a stored folder, or one stored file."""
    if is_media(address):
        return iter([SourceRow(path=address, kind=kind_of(address))])
    try:
        found = [(path, kind_of(path)) for path in files_beneath(address) if is_media(path)]
    except OSError as error:
        raise UserError(f"source {address}: cannot be listed ({error})") from error
    return _folder_rows(address.rstrip("/"), found, config)


def _folder_rows(
    root: str, found: Iterable[tuple[str, MediaKind]], config: IndexConfig
) -> Iterator[SourceRow]:
    def rows() -> Iterator[tuple[str, SourceRow]]:
        for path, kind in found:
            inside = path.removeprefix(root).lstrip("/")
            split, classes = _split_and_classes(inside)
            labels = {FOLDER_LABEL: classes[-1]} if config.label_from_folder and classes else {}
            yield f"file {inside}", SourceRow(path=path, kind=kind, split=split, labels=labels)

    return _uniformly_labelled(root, rows())


def _split_and_classes(inside: str) -> tuple[str | None, list[str]]:
    """The split that a path within a source is in, and the folders between it and the file."""
    folders = inside.split("/")[:-1]
    split = _SPLIT_FOLDERS.get(folders[0].lower()) if folders else None
    return split, folders[1:] if split else folders


def _find_media(root: Path, config: IndexConfig) -> Iterator[tuple[str, MediaKind]]:
    """Media files and clip folders beneath `root`, folder by folder in alphabetical order."""
    image_folders = config.image_folders

    def refuse(error: OSError) -> None:
        raise UserError(f"folder {error.filename}: cannot be read ({error.strerror})") from error

    def is_class(folder: str) -> bool:
        """Whether a clip in place of this folder would have no folder to be labelled by."""
        inside = folder.removeprefix(str(root)).lstrip("/")
        return config.label_from_folder and not _split_and_classes(inside)[1]

    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:  # a link back up the tree
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        media = sorted(name for name in files if not name.startswith(".") and is_media(name))
        images = [name for name in media if is_image(name)]
        is_clip = (
            image_folders != "images"
            and bool(images)
            and not subfolders
            and len(images) == len(media)
            and (
                image_folders == "clips"
                or (not is_class(folder) and is_numbered_sequence(images_in(folder)))
            )
        )
        if is_clip:
            yield folder, "image_folder"
            continue
        for name in media:
            yield os.path.join(folder, name), "image" if is_image(name) else "video"  # noqa: PTH118


# --- lists of files -------------------------------------------------------------------------------


def _read_list_file(path: Path) -> Iterator[SourceRow]:
    """Rows of a CSV, JSON lines or `path label` file; which it is, its first line tells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _uniformly_labelled(path, _parse(path, file))
    except UnicodeDecodeError as error:
        raise UserError(f"source {path}: is neither a media file nor UTF-8 text") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"source {path}: cannot be read ({error})") from error


def _parse(path: Path, file: IO[str]) -> Iterator[tuple[str, SourceRow]]:
    first = file.readline()
    while first and not first.strip():
        first = file.readline()
    file.seek(0)
    if first.lstrip().startswith("{"):
        return _parse_json_lines(path, file)
    delimiter = "\t" if "\t" in first and "," not in first else ","
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    if "path" in header:
        return _parse_csv(path, file, delimiter)
    # A first line that holds commas may be a `path label` line all the same.
    name = _split_pair(path, first.strip())[0]
    if len(header) > 1 and not is_media(name) and not (path.parent / name).exists():
        raise UserError(
            f"source {path}: no column 'path' in its header ({', '.join(header)}); name the column"
            " of files 'path', or give lines of the form 'path label' without header"
        )
    return _parse_pairs(path, file)


def _parse_csv(path: Path, file: IO[str], delimiter: str) -> Iterator[tuple[str, SourceRow]]:
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] = []
    for cells in reader:
        place = f"row {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header) or "" in header:
                named = ", ".join(header)
                raise UserError(f"{path}: header repeats or omits a column name ({named})")
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, {place}: {len(cells)} cells under {len(header)} column names"
                " (quote a path that contains the separator)"
            )
        yield place, _to_row(path, place, dict(zip(header, cells, strict=True)))


def _parse_json_lines(path: Path, file: IO[str]) -> Iterator[tuple[str, SourceRow]]:
    for number, line in enumerate(file, start=1):
        place = f"row {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}, {place}: not valid JSON ({reason})") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}, {place}: not a JSON object")
        yield place, _to_row(path, place, values)


def _parse_pairs(path: Path, file: IO[str]) -> Iterator[tuple[str, SourceRow]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        name, label = _split_pair(path, line.strip())
        values = {"path": name} if label is None else {"path": name, LIST_LABEL: label}
        yield f"row {number}", _to_row(path, f"row {number}", values)


def _split_pair(source: Path, line: str) -> tuple[str, str | None]:
    """Cut ``path label`` at its last space; paths may hold spaces, and the label may be absent."""
    if is_media(line):
        return line, None
    head, _, last = line.rpartition(" ")
    head = head.rstrip()
    if not head or (not is_media(head) and (source.parent / line).exists()):
        return line, None
    return head, last


def _to_row(path: Path, place: str, values: dict[str, Any]) -> SourceRow:
    """One row of a list; relative paths start at the list's own folder."""
    name = values.get("path")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{path}, {place}: no path")
    labels: dict[str, str] = {}
    for column, value in values.items():
        if column in ("path", "split", "weight") or value is None or value == "":
            continue
        if not isinstance(value, str | int | float):
            raise UserError(f"{path}, {place}: {column} is no text or number but {value!r}")
        labels[column] = str(value).strip()
    name = name.strip()
    full = name if is_address(name) else absolute(str(path.parent / name))
    split = str(values.get("split") or "").strip() or None
    given = values.get("weight")
    try:
        weight = 1.0 if given in (None, "") else float(str(given))
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f"{path}, {place}: weight {given!r} is no number from 0 up")
    return SourceRow(path=full, kind=kind_of(full), split=split, weight=weight, labels=labels)
