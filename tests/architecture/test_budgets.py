"""A budget for ideas: how large a room may be, and how much must be read to understand training.

A room that needs more says why in review, and the table is changed on purpose. The reviewer's
question is not the number of lines but: how many names must I know for this path?
"""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.architecture.source_tree import ROOT, Module, functions, modules, place

LONGEST_FILE = 600
LONGEST_FUNCTION = 90
MOST_LINES = 47_990
MOST_FILES = 208
MOST_CLASSES = 381
LONGEST_READING_PATH = 6_000

BUDGETS: dict[str, tuple[int, int]] = {
    "checkpoint": (3989, 100),
    "cli": (2245, 30),
    "data": (1055, 15),
    "data/clips": (1950, 63),
    "data/loader": (1281, 20),
    "data/manifest": (1914, 38),
    "data/prepare": (1295, 37),
    "data/video": (2457, 54),
    "demo": (2068, 49),
    "evaluation": (4605, 113),
    "jobs": (8747, 190),
    "jobs/detect": (1246, 23),
    "jobs/finetune": (888, 17),
    "jobs/probe": (2183, 54),
    "masking": (797, 15),
    "models": (2711, 66),
    "reporting": (1247, 45),
    "runtime": (2737, 66),
    "tasks": (1805, 44),
    "top level": (1003, 32),
    "training": (1767, 40),
}
"""Lines and public names (functions and classes of modules) of each room."""


def _lines(module: Module) -> int:
    return len(module.path.read_text().splitlines())


def _public_names(module: Module) -> int:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return sum(isinstance(n, kinds) and not n.name.startswith("_") for n in module.tree.body)


def _room(module: Module) -> str:
    """The folder a module lies in, below `data` and `jobs` the one below that."""
    parts = module.path.relative_to(ROOT / "src" / "vjepa").parts[:-1]
    return "/".join(parts[:2]) if parts else "top level"


def test_rooms_keep_their_budgets() -> None:
    lines, names = Counter(), Counter()
    for module in modules():
        lines[_room(module)] += _lines(module)
        names[_room(module)] += _public_names(module)
    assert lines.keys() == BUDGETS.keys(), lines.keys() ^ BUDGETS.keys()
    over = [
        f"{room}: {lines[room]} lines of {most_lines}, {names[room]} public names of {most_names}"
        for room, (most_lines, most_names) in BUDGETS.items()
        if lines[room] > most_lines or names[room] > most_names
    ]
    assert not over, "\n".join(over)


def test_the_house_keeps_its_budget() -> None:
    classes = sum(isinstance(n, ast.ClassDef) for m in modules() for n in ast.walk(m.tree))
    found = {"lines": sum(map(_lines, modules())), "files": len(modules()), "classes": classes}
    most = {"lines": MOST_LINES, "files": MOST_FILES, "classes": MOST_CLASSES}
    assert not [name for name, number in found.items() if number > most[name]], found


def test_files_and_functions_are_short() -> None:
    long = [f"{m.path.name}: {_lines(m)} lines" for m in modules() if _lines(m) > LONGEST_FILE]
    long += [
        f"{place(module, function)}: {function.name} has {length} lines"
        for module in modules()
        for function in functions(module.tree)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_pretraining_is_understood_in_an_evening() -> None:
    """The files that `docs/tour.md` leads through, in order, each after the one that needs it."""
    tour = (ROOT / "docs" / "tour.md").read_text()
    files = list(dict.fromkeys(re.findall(r"\]\(\.\./(src/vjepa/[\w/]+\.py)\)", tour)))
    assert len(files) > 15
    length = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert length <= LONGEST_READING_PATH, length
