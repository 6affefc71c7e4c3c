"""Every ``vjepa ...`` line of the documentation and of the help texts is a valid command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vjepa.cli.main import COMMANDS, build_parser, command_module
from vjepa.config import load_config, recipe_names

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]


def _commands() -> list[str]:
    texts = [
        block
        for page in _PAGES
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.S)
    ]
    parser = build_parser()
    texts.append(parser.description or "")
    texts += [command_module(name).HELP for name in COMMANDS]
    texts += [
        value
        for name in COMMANDS
        for key, value in vars(command_module(name)).items()
        if key.endswith("_HELP")
    ]
    recipes = [path.read_text() for path in sorted((_ROOT / "src/vjepa/configs").rglob("*.yaml"))]
    texts += [text.replace("# Command: ", "\n") for text in recipes]
    lines = re.sub(r"\\\n\s*", " ", "\n".join(texts)).splitlines()
    found = [line.strip() for line in lines if line.strip().startswith("vjepa ")]
    # What follows two blanks, a # or a > is explanation or redirection.
    return sorted({re.split(r" {2,}(?!--)| # | > ", line)[0] for line in found})


@pytest.mark.parametrize("line", _commands())
def test_it_is_valid(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[-1] in ("--help", "--version") or words[0] == "COMMAND":
        return
    args, extras = build_parser().parse_known_args(words)
    assert hasattr(args, "run"), "does nothing"
    overrides = args.parser.overrides(extras)
    cls = args.parser.config_class()
    if cls is not None:
        recipes = args.parser.recipes
        named = recipe_names(recipes) if recipes else []
        files = [file for file in args.config if file in named or not file.endswith(".yaml")]
        load_config(cls, files, overrides, recipes=recipes)


def test_there_are_many() -> None:
    lines = _commands()
    assert len(lines) > 25
    for name in COMMANDS:
        assert any(line.split()[1] == name for line in lines), name
