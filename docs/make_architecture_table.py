"""Write the table of rooms and the sizes of their modules into architecture.md.

Run it after a change of the source: ``python docs/make_architecture_table.py``. With ``--check`` it
writes nothing and fails when a room is missing from the table.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "src" / "vjepa"
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- begin generated: sizes -->", "<!-- end generated: sizes -->"


def describe(path: Path) -> tuple[int, int, str]:
    """Lines of a module, lines of code in it, and the first line of its docstring."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    code = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and not is_docstring(node)
        for line in (node.lineno,)
    }
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return len(text.splitlines()), len(code), summary.replace("|", "\\|")


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is only a text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def table() -> str:
    """One section for each room, one row for each module."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        rooms.setdefault(parts[0] if len(parts) > 1 else "(top level)", []).append(path)
    lines = ["| room | modules | lines | statements |", "|---|---:|---:|---:|"]
    sections: list[str] = []
    totals = [0, 0, 0]
    for room, paths in rooms.items():
        described = {path: describe(path) for path in paths}
        sums = [len(paths), *(sum(entry[at] for entry in described.values()) for at in (0, 1))]
        totals = [total + part for total, part in zip(totals, sums, strict=True)]
        lines.append(f"| `{room}` | {sums[0]} | {sums[1]} | {sums[2]} |")
        rows = [
            f"| `{path.relative_to(PACKAGE).as_posix()}` | {length} | {summary} |"
            for path, (length, _, summary) in described.items()
        ]
        sections += ["", f"### {room}", "", "| module | lines | what |", "|---|---:|---|", *rows]
    lines.append(f"| all | {totals[0]} | {totals[1]} | {totals[2]} |")
    return "\n".join([*lines, *sections])


def main() -> int:
    """Write the table, or with ``--check`` compare its rooms with the source."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = table()
    if "--check" in sys.argv[1:]:
        listed, there = (set(re.findall(r"^### (.+)$", text, re.MULTILINE)) for text in (old, new))
        if listed != there:
            sys.stderr.write(f"{PAGE.name}: rooms differ: {sorted(listed ^ there)}\n")
        return int(listed != there)
    PAGE.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
