"""The source as syntax trees, for the tests of this folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "vjepa"


@dataclass(frozen=True)
class Module:
    """A module of the package.

    Attributes:
        name: Dotted name below ``vjepa``, for example ``models.encoder``.
        path: Its file.
        tree: Its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder it lives in, or its own name at the top level."""
        return self.name.partition(".")[0]


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        found.append(Module(name, path, ast.parse(path.read_text(), str(path))))
    return tuple(found)


def nodes(tree: ast.AST, kind: type | tuple[type, ...]) -> Iterator:
    """All nodes of a kind in a tree."""
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods in a tree."""
    return nodes(tree, (ast.FunctionDef, ast.AsyncFunctionDef))


def place(module: Module, node: ast.AST) -> str:
    """File and line of a node, for a message."""
    return f"{module.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
