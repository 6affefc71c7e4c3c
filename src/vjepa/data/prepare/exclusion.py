"""Validation lists: the videos that must not be trained on, by id and by manifest."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vjepa.data.manifest import Manifest
from vjepa.data.prepare.config import ExcludeConfig, MatchConfig
from vjepa.data.prepare.inputs import stem_of
from vjepa.errors import UserError

_ID_COLUMNS = ("id", "video_id", "youtube_id", "path")


@dataclass(frozen=True)
class Exclusion:
    """All validation lists together.

    Attributes:
        ids: Ids of their videos, with the list that each comes from.
        manifests: Those lists that are manifests.
    """

    ids: dict[str, str] = field(default_factory=dict)
    manifests: list[Manifest] = field(default_factory=list)


def read_exclusion(lists: Sequence[ExcludeConfig], match: MatchConfig) -> Exclusion:
    """Read validation lists.

    Raises:
        UserError: A list is missing, malformed or empty.
    """
    made = Exclusion()
    for entry in lists:
        if entry.path.suffix == ".parquet":
            manifest = Manifest.open(entry.path).select(entry.split, ok_only=False)
            made.manifests.append(manifest)
            names: Iterator[str] = (manifest.path(row) for row in range(len(manifest)))
        elif entry.split is not None:
            raise UserError(f"exclude {entry.path}: a split can be chosen of a manifest only")
        else:
            names = _names_in(entry.path)
        count = len(made.ids)
        for name in names if match.by_id else ():
            made.ids.setdefault(video_id(name, match), str(entry.path))
        if match.by_id and len(made.ids) == count and entry.path.suffix != ".parquet":
            _refuse_empty(entry.path)
    return made


def _refuse_empty(path: Path) -> None:
    if next(_names_in(path), None) is None:
        raise UserError(f"exclude {path}: names no video")


def video_id(path: str, match: MatchConfig) -> str:
    """The id of a video: what its file's name says, by `match.id_pattern`."""
    stem = stem_of(path)
    found = re.fullmatch(match.id_pattern, stem)
    return found["id"] if found and found["id"] else stem


def _names_in(path: Path) -> Iterator[str]:
    """Ids, names or paths of a text list: the first word of each line, a column, or JSON."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".json":
                yield from _names_in_json(path, json.load(file))
                return
            first = file.readline()
            file.seek(0)
            delimiter = "\t" if "\t" in first else ","
            header = [name.strip() for name in first.split(delimiter)]
            column = next((name for name in _ID_COLUMNS if name in header), None)
            if column is not None:
                for row in csv.DictReader(file, delimiter=delimiter, skipinitialspace=True):
                    yield str(row.get(column) or "").strip()
                return
            for line in file:
                if line.strip():
                    yield line.split()[0].split(",")[0]
    except FileNotFoundError as error:
        raise UserError(f"exclude {path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise UserError(
            f"exclude {path}: cannot be read as a list of videos ({error}); give a manifest"
            " (.parquet), or text with one video a line"
        ) from error


def _names_in_json(path: Path, values: object) -> Iterator[str]:
    """Ids of a JSON list of texts, or of objects with an `id` (as Something-Something's)."""
    for value in values if isinstance(values, list) else ():
        name = value
        if isinstance(value, dict):
            name = next((value[key] for key in _ID_COLUMNS if key in value), None)
        if not isinstance(name, str | int):
            raise UserError(f"exclude {path}: an entry without `id`")
        yield str(name)


def usable_rows(manifest: Manifest) -> list[int]:
    """Rows of a list whose videos can be looked at."""
    return np.flatnonzero(manifest.ok).tolist()
