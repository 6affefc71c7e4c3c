"""House rules that no linter knows: sizes, names, errors, output, documentation."""

from __future__ import annotations

import ast
import re

from tests.architecture.source_tree import PACKAGE, ROOT, functions, modules, nodes, place

BROAD = {"Exception", "BaseException"}


def test_files_have_names_that_say_something() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [module.name for module in modules() if module.name.split(".")[-1] in vague]


def test_no_error_is_swallowed() -> None:
    """A broad except may only pass the error on."""
    wrong = []
    for module in modules():
        for handler in nodes(module.tree, ast.ExceptHandler):
            caught = nodes(handler.type, ast.Name) if handler.type else ()
            broad = handler.type is None or any(name.id in BROAD for name in caught)
            if broad and not any(nodes(handler, ast.Raise)):
                wrong.append(place(module, handler))
    assert not wrong, wrong


def test_no_constructor_swallows_a_misspelt_argument() -> None:
    wrong = [
        place(module, function)
        for module in modules()
        for function in functions(module.tree)
        if function.name == "__init__" and function.args.kwarg
    ]
    assert not wrong, wrong


def test_only_the_command_line_prints() -> None:
    wrong = [
        place(module, call)
        for module in modules()
        if module.room != "cli"
        for call in nodes(module.tree, ast.Call)
        if isinstance(call.func, ast.Name) and call.func.id in ("print", "exit", "quit", "input")
    ]
    assert not wrong, wrong


def test_nothing_is_left_undone() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|NotImplemented\b.*raise)\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not wrong, wrong


def test_everything_public_is_documented() -> None:
    wrong = []
    for module in modules():
        if not ast.get_docstring(module.tree):
            wrong.append(f"{place(module, module.tree)}: the module")
        for owner in [module.tree, *nodes(module.tree, ast.ClassDef)]:
            if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
                continue
            wrong += [
                f"{place(module, node)}: {node.name}"
                for node in owner.body
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not any("overload" in ast.unparse(mark) for mark in node.decorator_list)
                and not ast.get_docstring(node)
            ]
    assert not wrong, "\n".join(wrong)


def test_no_path_of_some_machine() -> None:
    homes = re.compile(r"(?<![\w.])/(home|root|Users|work|mnt|scratch|checkpoint)/")
    text = {".py", ".yaml", ".md", ".toml", ".txt", ".html", ""}
    folders = ["src", "tests", "docs", "benchmarks", ".ci"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    wrong = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix in text
        and "__pycache__" not in path.parts
        and path.name not in ("test_code.py", ".git")  # in a linked worktree .git is a file
        and homes.search(path.read_text(errors="ignore"))
    ]
    assert not wrong, wrong
