"""Every ``vjepa ...`` line of the documentation and of the help texts is a valid command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vjepa.cli import commands, data, decode, detect, finetune, models, probe, search, show, studies
from vjepa.cli.main import COMMANDS, build_parser
from vjepa.config import load_config, recipe_names

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]


def _commands() -> list[str]:
    texts = [
        block
        for page in _PAGES
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.S)
    ]
    parser = build_parser()
    texts.append(parser.description or "")
    texts += [
        value
        for module in (
            commands,
            data,
            decode,
            detect,
            finetune,
            models,
            probe,
            search,
            show,
            studies,
        )
        for key, value in vars(module).items()
        if key.endswith("HELP")
    ]
    recipes = [path.read_text() for path in sorted((_ROOT / "src/vjepa/configs").rglob("*.yaml"))]
    texts += [text.replace("# Command: ", "\n") for text in recipes]
    lines = re.sub(r"\\\n\s*", " ", "\n".join(texts)).splitlines()
    found = [line.strip().removeprefix("$ ") for line in lines]
    found = [line for line in found if line.startswith("vjepa ")]
    # What follows two blanks, a # or a > is explanation or redirection.
    return sorted({re.split(r" {2,}(?!--)| # | > ", line)[0] for line in found})


@pytest.mark.parametrize("line", _commands())
def test_it_is_valid(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[-1] in ("--help", "--version") or words[0] == "COMMAND":
        return
    args, extras = build_parser().parse_known_args(words)
    assert hasattr(args, "run"), "does nothing"
    args.parser.refuse_unknown(extras)
    cls = args.parser.config_class()
    if cls is not None:
        recipes = args.parser.recipes
        named = recipe_names(recipes) if recipes else []
        files = [file for file in args.config if file in named or not file.endswith(".yaml")]
        load_config(cls, files, args.overrides, recipes=recipes)


def test_there_are_many() -> None:
    lines = _commands()
    assert len(lines) > 25
    for name in COMMANDS:
        assert any(line.split()[1] == name for line in lines), name
