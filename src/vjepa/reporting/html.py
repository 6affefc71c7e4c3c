"""A report as one HTML file: no script, no reference to anything outside, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vjepa.reporting.pictures import Strip, data_uri
from vjepa.runtime.files import atomic_write
from vjepa.version import __version__


@dataclass(frozen=True)
class Chart:
    """An SVG drawing (trusted text, from :mod:`vjepa.reporting.charts`) with its caption."""

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class PictureBlock:
    """Strips of frames below each other, with their caption."""

    strips: Sequence[Strip]
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of plain text under a header; `strong_rows` are shown bold."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong_rows: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Text:
    """A paragraph, or preformatted text such as a config."""

    text: str
    preformatted: bool = False


Block = Chart | PictureBlock | Table | Text


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `folded` sections open on a click."""

    title: str
    introduction: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A headline number with its meaning."""

    value: str
    label: str


@dataclass(frozen=True)
class Report:
    """The whole page: title, one-paragraph answer, headline figures, sections."""

    title: str
    answer: str
    figures: Sequence[Figure]
    sections: Sequence[Section]
    footer: str = (
        f"vjepa {__version__}, torch {torch.__version__}. Every number on this page was measured "
        "by the run that wrote it."
    )


def write_report(report: Report, path: Path) -> None:
    """Render the report and write it, whole, to `path`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vjepa.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["kind"] = lambda block: type(block).__name__
    atomic_write(path, environment.get_template("report.html").render(report=report))
