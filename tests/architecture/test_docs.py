"""The documentation holds together: links lead somewhere, every page is found from the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.architecture.source_tree import ROOT

_PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def _headings(page: Path) -> set[str]:
    """What a link to a section of a page ends in."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in (link for link in links if not re.match(r"[a-z]+:", link)):
        file, _, section = link.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), link
        assert not section or there.suffix != ".md" or section in _headings(there), link


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"]
    assert not [page for page in pages if f"({page})" not in index]
